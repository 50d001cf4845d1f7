"""Small random models of many families, saved as folders that `from_pretrained` reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    IJepaConfig,
    IJepaModel,
    LevitConfig,
    LevitModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
)

from lookalike.config import TrainConfig
from lookalike.evaluation.results import library_versions
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import CHECKPOINT_FORMAT

SIZE_PX = 32
TOWER: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION: dict[str, Any] = {**TOWER, "image_size": SIZE_PX, "patch_size": 8}
SQUARE = {"height": SIZE_PX, "width": SIZE_PX}


def save(folder: Path, model: Any, processor: Any) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def clip_processor() -> Any:
    return BitImageProcessorPil(size={"shortest_edge": SIZE_PX}, crop_size=SQUARE)


def clip_with_tokenizer(folder: Path) -> str:
    """A random CLIP of two layers, with its text tower, tokenizer and processor, as a folder."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "attention_dropout": 0.1}  # fmt: skip
    config = CLIPConfig(
        vision_config={**tower, "image_size": SIZE_PX, "patch_size": 8},
        text_config={**tower, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1,
                     "pad_token_id": 1, "max_position_embeddings": 16},
        projection_dim=24,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    size = {"height": SIZE_PX, "width": SIZE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE_PX}, crop_size=size).save_pretrained(folder)
    return str(folder)


def copy_without_dropout(model: Path, folder: Path) -> Path:
    """A copy of a CLIP, its attention dropout switched off."""
    clip = CLIPModel.from_pretrained(model)
    tower: Any = clip.config.vision_config
    tower.attention_dropout = 0.0
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    clip.save_pretrained(folder)
    return folder


def dinov2(folder: Path) -> str:
    return save(folder, Dinov2Model(Dinov2Config(**VISION)), clip_processor())


def vit(folder: Path) -> str:
    model = ViTModel(ViTConfig(**VISION, intermediate_size=64))
    return save(folder, model, ViTImageProcessorPil(size=SQUARE))


def convnext(folder: Path) -> str:
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]))
    return save(folder, model, ConvNextImageProcessorPil(size={"shortest_edge": SIZE_PX}))


def siglip_vision(folder: Path) -> str:
    model = SiglipVisionModel(SiglipVisionConfig(**VISION, intermediate_size=64))
    return save(folder, model, SiglipImageProcessorPil(size=SQUARE))


def siglip(folder: Path) -> str:
    text = {**TOWER, "intermediate_size": 64, "vocab_size": 50, "projection_size": 32}
    config = SiglipConfig(vision_config={**VISION, "intermediate_size": 64}, text_config=text)
    return save(folder, SiglipModel(config), SiglipImageProcessorPil(size=SQUARE))


def levit(folder: Path) -> str:
    three = {"num_attention_heads": [1, 1, 1], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}
    config = LevitConfig.from_dict({"image_size": SIZE_PX, "hidden_sizes": [16, 24, 32], **three})
    model = LevitModel(config)
    return save(folder, model, ViTImageProcessorPil(size=SQUARE))


def ijepa(folder: Path) -> str:
    model = IJepaModel(IJepaConfig(**VISION, intermediate_size=64))
    return save(folder, model, ViTImageProcessorPil(size=SQUARE))


def vit_msn(folder: Path) -> str:
    model = ViTMSNModel(ViTMSNConfig(**VISION, intermediate_size=64))
    return save(folder, model, ViTImageProcessorPil(size=SQUARE))


def siglip_with_long_texts(folder: Path) -> str:
    """Its text tower is the longer one."""
    text = {**TOWER, "num_hidden_layers": 5, "vocab_size": 50, "projection_size": 32}
    config = SiglipConfig(vision_config={**VISION, "intermediate_size": 64}, text_config=text)
    return save(folder, SiglipModel(config), SiglipImageProcessorPil(size=SQUARE))


def deep_convnext(folder: Path) -> str:
    """One of its stages has more blocks than there are stages."""
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 6, 1]))
    return save(folder, model, ConvNextImageProcessorPil(size={"shortest_edge": SIZE_PX}))


def resnet(folder: Path) -> str:
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1]))
    return save(folder, model, ConvNextImageProcessorPil(size={"shortest_edge": SIZE_PX}))


def siglip_with_tokenizer(folder: Path) -> str:
    """Two towers whose texts are padded to their full length."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    text = {**TOWER, "intermediate_size": 64, "vocab_size": 5, "projection_size": 32,
            "max_position_embeddings": 12}  # fmt: skip
    config = SiglipConfig(vision_config={**VISION, "intermediate_size": 64}, text_config=text)
    name = save(folder, SiglipModel(config), SiglipImageProcessorPil(size=SQUARE))
    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "mug": 4}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_max_length=12,
        model_input_names=["input_ids"],
    ).save_pretrained(folder)  # fmt: skip
    return name


def vit_without_pooler(folder: Path) -> str:
    model = ViTModel(ViTConfig(**VISION, intermediate_size=64), add_pooling_layer=False)
    return save(folder, model, ViTImageProcessorPil(size=SQUARE))


def clip_vision_with_projection(folder: Path) -> str:
    config = CLIPVisionConfig(**VISION, intermediate_size=64, projection_dim=12)
    return save(folder, CLIPVisionModelWithProjection(config), clip_processor())


def small_resnet(folder: Path) -> str:
    """Pools to a map of one pixel, which is no row of numbers yet."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return save(folder, ResNetModel(config), clip_processor())


def changed_checkpoint(model: str, path: Path, **settings: Any) -> Path:
    """A checkpoint as a run leaves it, every weight that training reaches a little changed."""
    encoder = CLIPEncoder(model, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in encoder.trainable_parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "format": CHECKPOINT_FORMAT,
            "epoch": 1,
            "model_state_dict": encoder.state_dict(),
            "model": encoder.description(),
            "state": {"run": "a run", "step": 0},
            "config": asdict(TrainConfig(model_name=model, **settings)),
            "train_classes": ["red mug"],
            "versions": library_versions(),
        },
        path,
    )
    return path
