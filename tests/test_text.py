"""Texts beside images: their embeddings against what Transformers itself computes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import SIZE_PX
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import normalize
from transformers import (
    AutoTokenizer,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from lookalike.errors import ModelError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import CHECKPOINT_FORMAT
from lookalike.model.text import caption_of, embed_texts
from lookalike.progress import SilentProgress

CAPTIONS = ["a photo of a golden delicious.", "a red mug", "x" * 40]
TOWER: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "intermediate_size": 64}  # fmt: skip
WORDS = ["</s>", "<unk>", "a", "red", "mug", "photo", "of", "green"]
SIGLIP_LENGTH = 12


def embedded(encoder: CLIPEncoder, texts: list[str]) -> torch.Tensor:
    return embed_texts(encoder, texts, progress=SilentProgress())


def saved(encoder: CLIPEncoder, path: Path) -> str:
    torch.save(
        {"format": CHECKPOINT_FORMAT, "epoch": 1, "model_state_dict": encoder.state_dict(),
         "model": encoder.description()},
        path,
    )  # fmt: skip
    return str(path)


@pytest.fixture(scope="module")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP with a tokenizer of a few words that puts </s> last, as its own does."""
    folder = tmp_path_factory.mktemp("tiny_siglip")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = SiglipConfig(
        vision_config={**TOWER, "image_size": SIZE_PX, "patch_size": 8},
        text_config={**TOWER, "vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 0,
                     "bos_token_id": 0, "max_position_embeddings": SIGLIP_LENGTH,
                     "projection_size": 32},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipModel(config).save_pretrained(folder)
    size = {"height": SIZE_PX, "width": SIZE_PX}
    SiglipImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def test_clip_texts_are_transformers_own_to_the_last_bit_from_folder_and_checkpoint(
    tiny_clip: Path, tmp_path: Path
) -> None:
    tokens = AutoTokenizer.from_pretrained(tiny_clip)(
        CAPTIONS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = CLIPModel.from_pretrained(tiny_clip).eval().get_text_features(**tokens)
    expected = normalize(theirs.pooler_output, dim=-1)
    encoder = CLIPEncoder(str(tiny_clip))
    assert encoder.has_text
    assert torch.equal(embedded(encoder, CAPTIONS), expected)
    from_checkpoint = CLIPEncoder(saved(encoder, tmp_path / "encoder.pth"))
    assert torch.equal(embedded(from_checkpoint, CAPTIONS), expected)


def test_siglip_texts_are_lower_case_and_padded_to_full_length_without_a_mask(
    tiny_siglip: Path, tmp_path: Path
) -> None:
    texts = ["a red mug", "a photo of a green mug"]
    ids = torch.zeros(2, SIGLIP_LENGTH, dtype=torch.long)  # of </s>, which pads as well
    for row, text in enumerate(texts):
        for place, word in enumerate(text.split()):
            ids[row, place] = WORDS.index(word)
    with torch.inference_mode():
        theirs = SiglipModel.from_pretrained(tiny_siglip).eval().get_text_features(input_ids=ids)
    expected = normalize(theirs.pooler_output, dim=-1)
    encoder = CLIPEncoder(str(tiny_siglip))
    assert torch.equal(embedded(encoder, ["a Red MUG", texts[1]]), expected)
    from_checkpoint = CLIPEncoder(saved(encoder, tmp_path / "encoder.pth"))
    assert torch.equal(embedded(from_checkpoint, texts), expected)


def test_a_text_too_long_is_cut_where_the_model_ends(tiny_siglip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_siglip))
    long, longer = "red " * SIGLIP_LENGTH, "red " * 3 * SIGLIP_LENGTH
    rows = embedded(encoder, [long, longer])
    assert torch.equal(rows[0], rows[1])


def test_embedding_texts_leaves_a_model_in_training_in_training(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip)).train()
    first, second = embedded(encoder, CAPTIONS), embedded(encoder, CAPTIONS)
    assert torch.equal(first, second)  # no dropout
    assert encoder.training
    assert not first.is_inference()


def test_texts_without_a_place_to_go_are_refused_with_the_reason(
    tiny_clip: Path, tmp_path: Path
) -> None:
    pooled = CLIPEncoder(str(tiny_clip), embedding="pooled")
    assert not pooled.has_text
    with pytest.raises(ModelError, match="pooled embeddings are not in the space"):
        embedded(pooled, CAPTIONS)
    bare = shutil.copytree(
        tiny_clip, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*")
    )
    encoder = CLIPEncoder(str(bare))
    assert not encoder.has_text
    with pytest.raises(ModelError, match="without the files of its tokenizer"):
        embedded(encoder, CAPTIONS)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Golden-Delicious", "Golden Delicious"),
        ("red_mug", "red mug"),
        ("red_t-shirt", "red t-shirt"),
        ("T-shirt red", "T-shirt red"),
        ("BMW", "BMW"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("7.5", "7.5"),
        ("3.", "3."),
        ("__tidy  __ me_", "tidy me"),
        ("___", "___"),
        ("{}", "{}"),
        ("Äpfel_日本", "Äpfel 日本"),
        ("caf\udce9", "caf?"),
    ],
)
def test_class_names_become_words(label: str, words: str) -> None:
    assert caption_of(label, "a photo of a {}.") == f"a photo of a {words}."
