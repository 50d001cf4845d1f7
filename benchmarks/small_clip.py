"""A small CLIP, trained from scratch on labelled images with their class names as captions.

    export LOOKALIKE_REAL_DATA=...
    python benchmarks/small_clip.py FOLDER     # FOLDER/images, FOLDER/clip

`benchmarks/keep_text.py` fine-tunes it. Images are made small once, as PNG: two minutes, most of
it decoding. The model is saved as a Transformers folder with tokenizer and image processor, which
`lookalike train --model-name FOLDER/clip` takes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from lookalike import BalancedBatchSampler, CLIPEncoder
from lookalike.data.images import ImageSet
from lookalike.data.reading.loader import ImageLoader
from lookalike.data.reading.reader import Request
from lookalike.data.sources import load_images
from lookalike.data.transforms import Augmentation
from lookalike.model.text import caption_of
from lookalike.runtime.device import Runtime, make_runtime
from lookalike.runtime.randomness import seeded

TEMPLATE = "a photo of a {}."
SIDE_PX, STORED_PX = 64, 72  # what the model takes; what is kept, so that crops have a choice
VISION = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3,
          "num_attention_heads": 3, "image_size": SIDE_PX, "patch_size": 8}  # fmt: skip
TEXT = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip
DIMENSIONS = 64


@dataclass(frozen=True)
class Schedule:
    """How the CLIP is trained: AdamW, warm-up over a tenth of all steps, then cosine."""

    epochs: int = 12
    captions_per_batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 0


def make_small_clip(data: Path, folder: Path, schedule: Schedule) -> None:
    """Writes `images` (the splits of `data`, small) and `clip` (the model), where they are not.

    Of each class the model sees the first third of the training images: by name, so that most
    images of one shelf are on one side.
    """
    if not (folder / "images").is_dir():
        for split in ("train", "test"):
            _shrink(data / split, folder / "unfinished-images" / split)
        (folder / "unfinished-images").rename(folder / "images")
    if not (folder / "clip").is_dir():
        images = _first_third(load_images(folder / "images" / "train"))
        _untrained(images, folder / "unfinished-clip", schedule.seed)
        _train(images, folder / "unfinished-clip", schedule)
        (folder / "unfinished-clip").rename(folder / "clip")


def _first_third(images: ImageSet) -> ImageSet:
    """The first third of each class, rounded up."""
    places: dict[str, list[int]] = {}
    for i, label in enumerate(images.labels or ()):
        places.setdefault(label, []).append(i)
    return images.subset(i for some in places.values() for i in some[: math.ceil(len(some) / 3)])


def _shrink(source: Path, target: Path) -> None:
    """The same tree with images whose shorter side is STORED_PX, as PNG."""
    for path in sorted(source.rglob("*.jpg")):
        with Image.open(path) as image:
            scale = STORED_PX / min(image.size)
            image.draft("RGB", (2 * STORED_PX, 2 * STORED_PX))
            size = [round(side * scale) for side in image.size]
            small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        file = target / path.relative_to(source).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        small.save(file)


def _untrained(images: ImageSet, folder: Path, seed: int) -> None:
    """A random CLIP whose tokenizer knows the words of the captions."""
    assert images.labels is not None
    folder.mkdir(parents=True, exist_ok=True)
    captions = sorted({caption_of(label, TEMPLATE) for label in images.labels})
    tokenizer = _tokenizer(captions, folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
           "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    config = CLIPConfig(
        vision_config=VISION,
        text_config={**TEXT, "vocab_size": len(tokenizer), **ids},
        projection_dim=DIMENSIONS,
    )
    with seeded(seed):
        CLIPModel(config).save_pretrained(folder)
    crop = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=crop).save_pretrained(folder)


def _tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """CLIP's own kind of tokenizer (BPE), with pieces learned from the captions."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.normalizer = normalizers.Lowercase()
    learned.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = "abcdefghijklmnopqrstuvwxyz."
    # The trainer numbers letters anew each time, but not what it is given as special.
    first = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=first, end_of_word_suffix="</w>", show_progress=False
    )
    learned.train_from_iterator(captions, trainer)
    model = json.loads(learned.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _train(images: ImageSet, folder: Path, schedule: Schedule) -> None:
    """Contrastive training of both towers (Radford et al., ICML 2021, figure 3)."""
    assert images.labels is not None
    encoder = CLIPEncoder(str(folder)).requires_grad_(True).train()
    classes = sorted(set(images.labels))
    number = {label: i for i, label in enumerate(classes)}
    captions = [caption_of(label, TEMPLATE) for label in classes]
    tokens = CLIPTokenizer.from_pretrained(folder)(captions, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    # One image a class: no caption stands in a batch twice, where it would be its own negative.
    sampler = BalancedBatchSampler(
        images.labels, schedule.captions_per_batch, 1, seed=schedule.seed
    )
    num_steps = schedule.epochs * len(sampler)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, num_steps))
    loader = _loader(images, encoder, make_runtime(device="cpu", precision="fp32", num_workers=0))
    for epoch in range(schedule.epochs):
        sampler.set_epoch(epoch)
        losses = []
        for batch in loader.read(_requests(sampler, schedule.seed, epoch)):
            own = torch.tensor([number[images.labels[i]] for i in batch.indices])
            texts = _embed_texts(encoder.backbone, {k: v[own] for k, v in tokens.items()})
            loss = _contrast(encoder(batch.pixels), texts, encoder.backbone.logit_scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            losses.append(loss.item())
        mean = sum(losses) / len(losses)
        print(f"CLIP from scratch: epoch {epoch + 1}, loss {mean:.3f}", file=sys.stderr, flush=True)
    encoder.backbone.save_pretrained(folder)


def _warm_cosine(step: int, num_steps: int) -> float:
    done = step / num_steps
    return min(1.0, 10 * (step + 1) / num_steps) * (1 + math.cos(math.pi * done)) / 2


def _loader(images: ImageSet, encoder: CLIPEncoder, runtime: Runtime) -> ImageLoader:
    return ImageLoader(
        images.refs,
        encoder.preprocessing,
        runtime,
        max_megapixels=1,
        augmentation=Augmentation("crop-flip", min_crop_area=0.5),
        labels=images.labels,
    )


def _requests(sampler: BalancedBatchSampler, seed: int, epoch: int) -> Iterator[Request]:
    for step, indices in enumerate(sampler):
        yield Request(indices, (seed, epoch, step))


def _embed_texts(clip: CLIPModel, tokens: dict[str, Tensor]) -> Tensor:
    output = clip.get_text_features(**tokens)
    pooled = output if isinstance(output, Tensor) else output.pooler_output
    return functional.normalize(pooled, dim=-1)


def _contrast(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Each image finds its caption among the batch's, and each caption its image."""
    logits = logit_scale.exp() * images @ texts.T
    right = torch.arange(len(logits))
    return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2


def main() -> None:
    """Makes what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=Schedule.epochs)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = Path(os.environ["LOOKALIKE_REAL_DATA"]) / "data" / "grocery"
    make_small_clip(data, given.folder, Schedule(epochs=given.epochs))


if __name__ == "__main__":
    main()
