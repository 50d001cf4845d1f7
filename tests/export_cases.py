"""Checkpoints of small models of several families, to be exported."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from test_encoder import SQUARE, TOWER, VISION, clip_processor, save
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from lookalike.config import TrainConfig
from lookalike.evaluation.results import library_versions
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import CHECKPOINT_FORMAT
from lookalike.progress import SilentProgress

SILENT = SilentProgress()


def siglip(folder: Path) -> str:
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


def dinov2(folder: Path) -> str:
    return save(folder, Dinov2Model(Dinov2Config(**VISION)), clip_processor())


def vit_without_pooler(folder: Path) -> str:
    model = ViTModel(ViTConfig(**VISION, intermediate_size=64), add_pooling_layer=False)
    return save(folder, model, ViTImageProcessorPil(size=SQUARE))


def clip_vision_with_projection(folder: Path) -> str:
    config = CLIPVisionConfig(**VISION, intermediate_size=64, projection_dim=12)
    return save(folder, CLIPVisionModelWithProjection(config), clip_processor())


def resnet(folder: Path) -> str:
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
