"""Embedding many images: as fast as the device allows, and as near as can be to float32."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.embeddings import noise, runtime
from helpers.models import convnext, dinov2, levit, siglip, vit
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

from lookalike.model.encoder import CLIPEncoder
from lookalike.model.inference import inference_form
from lookalike.model.layers import drop_patches
from lookalike.model.lora import add_lora, merged
from lookalike.model.quick_gelu import train_in_fewer_passes
from lookalike.runtime.device import Precision


class Operations(TorchDispatchMode):
    """Counts what torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.done[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [dinov2, vit, siglip, convnext])
def test_bf16_embeddings_point_where_float32_ones_do(tmp_path: Path, make: Any) -> None:
    encoder = CLIPEncoder(make(tmp_path))
    pixels = noise(encoder)
    with torch.no_grad():
        expected = encoder(pixels)
        found = inference_form(encoder, runtime("bf16"))(pixels)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=1e-6)
    assert not torch.equal(found, expected)
    assert cosine_similarity(found, expected).min() > 0.998


def test_in_bf16_clip_has_its_activation_in_one_operation(tiny_clip: Path) -> None:
    """Beside plain bf16: factors that came in and did not go out would show."""
    encoder = CLIPEncoder(str(tiny_clip))
    for layer in encoder.backbone.vision_model.encoder.layers:
        layer.mlp.fc1.weight.data.mul_(20)  # so that the activation matters
    pixels, plain = noise(encoder), copy.deepcopy(encoder).bfloat16()
    with torch.no_grad():
        expected = plain(encoder.normalised(pixels).bfloat16())
        with Operations() as operations:
            found = inference_form(encoder, runtime("bf16"))(pixels)
        without = encoder(pixels)
    assert operations.done["aten.silu.default"] == 2
    assert operations.done["aten.sigmoid.default"] == 0
    error = (found - without).norm(dim=1)
    assert error.max() < 1.5 * (expected - without).norm(dim=1).max()


@pytest.mark.parametrize("how", ["as it came", "in training", "with LoRA", "without patches"])
def test_the_form_follows_what_training_made_of_the_encoder(tiny_clip: Path, how: str) -> None:
    encoder = CLIPEncoder(str(tiny_clip), gradient_checkpointing=how == "in training")
    if how == "in training":
        train_in_fewer_passes(encoder)
    if how == "without patches":
        drop_patches(encoder, 0.5)
    if how == "with LoRA":
        add_lora(encoder, rank=2)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.5)
    pixels = noise(encoder)
    with torch.no_grad(), merged(encoder):
        found = inference_form(encoder, runtime("bf16"))(pixels)
        assert cosine_similarity(found, encoder(pixels)).min() > 0.999


def test_in_float32_embeddings_are_the_encoders_own(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    pixels = noise(encoder)
    with torch.no_grad():
        assert torch.equal(inference_form(encoder, runtime("fp32"))(pixels), encoder(pixels))


def test_weights_are_cast_once_and_not_for_each_batch(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    pixels = noise(encoder)
    with torch.no_grad():
        with Operations() as making:
            embed = inference_form(encoder, runtime("bf16"))
        with Operations() as embedding:
            embed(pixels)
    assert making.done["aten._to_copy.default"] == len(list(encoder.vision_parameters()))
    # pixels to float32 and to bf16, embeddings to float32
    assert embedding.done["aten._to_copy.default"] == 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_running_statistics_and_fp16_stay_with_autocast(
    tmp_path: Path, tiny_clip: Path, precision: Precision
) -> None:
    encoder = CLIPEncoder(levit(tmp_path) if precision == "bf16" else str(tiny_clip))
    pixels = noise(encoder)
    with torch.no_grad():
        with runtime(precision).autocast():
            expected = encoder(pixels)
        assert torch.equal(inference_form(encoder, runtime(precision))(pixels), expected)


def test_the_encoder_keeps_its_own_weights(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    with torch.no_grad():
        inference_form(encoder, runtime("bf16"))(noise(encoder))
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, before[name])
