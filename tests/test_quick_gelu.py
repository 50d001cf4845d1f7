"""CLIP's activation in fewer passes: the same values, the same gradients, less kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.models import dinov2
from helpers.runs import Settings
from torch import Tensor
from transformers.activations import QuickGELUActivation

from lookalike.config import TrainConfig
from lookalike.config.settings import config_from
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.quick_gelu import (
    QuickGELU,
    put_silu,
    scales_for_silu,
    train_in_fewer_passes,
)
from lookalike.runtime.device import make_runtime
from lookalike.training.make import make_encoder


def many(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (4 * torch.randn(64, 129, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_the_same_to_the_bit(dtype: torch.dtype) -> None:
    x = many(dtype)
    before = x.clone()
    assert torch.equal(QuickGELU()(x), QuickGELUActivation()(x))
    assert torch.equal(x, before)


def test_gradients_are_those_of_the_function() -> None:
    x = many(torch.float64)[:4, :9].requires_grad_()
    assert torch.autograd.gradcheck(QuickGELU(), x)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_gradients_round_no_more_than_before(dtype: torch.dtype, tolerance: float) -> None:
    x, upstream = many(dtype), many(dtype).flip(0)
    wide = x.double().requires_grad_()
    QuickGELUActivation()(wide).backward(upstream.double())
    assert wide.grad is not None
    errors = []
    for activation in (QuickGELU(), QuickGELUActivation()):
        leaf = x.clone().requires_grad_()
        activation(leaf).backward(upstream)
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        errors.append(float((leaf.grad - wide.grad).norm() / wide.grad.norm()))
    ours, before = errors
    assert ours < min(tolerance, 1.1 * before)


def test_only_the_argument_is_kept_for_the_way_back() -> None:
    x = many(torch.float32).requires_grad_()

    def kept(activation: torch.nn.Module) -> list[int]:
        pointers: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            pointers.append(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            activation(x)
        return pointers

    assert kept(QuickGELU()) == [x.data_ptr()]
    assert len(set(kept(QuickGELUActivation()))) == 2  # it and the sigmoid


def test_training_has_it_wherever_clip_has_its_own(settings: Settings, tiny_clip: Path) -> None:
    def activations(encoder: CLIPEncoder) -> list[type]:
        return [type(m) for m in encoder.modules() if isinstance(m, QuickGELUActivation)]

    config = config_from(TrainConfig, settings())
    encoder = make_encoder(config, make_runtime("cpu", "fp32", 0), None)
    assert activations(CLIPEncoder(str(tiny_clip))) == [QuickGELUActivation] * 4  # 2 of the text
    assert activations(encoder) == [QuickGELU] * 4


def test_an_argument_beyond_what_the_slope_leaves_of_fp16_has_a_gradient() -> None:
    x = torch.tensor([-65504.0, -40000, -60, 60, 40000, 65504]).half().requires_grad_()
    QuickGELU()(x).backward(torch.ones(6).half())
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("in_training", [False, True])
def test_scaled_weights_and_silu_give_the_same_embeddings(
    tiny_clip: Path, in_training: bool
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    if in_training:
        train_in_fewer_passes(encoder)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    texts = [type(m) for n, m in encoder.named_modules() if "text" in n]
    with torch.no_grad():
        expected = encoder(pixels)
        scales = scales_for_silu(encoder)
        for name, parameter in encoder.named_parameters():
            parameter.mul_(scales.get(name, 1))
        assert not torch.allclose(encoder(pixels), expected, atol=1e-4)
        put_silu(encoder, scales)
        assert torch.allclose(encoder(pixels), expected, atol=1e-6)
    assert len(scales) == 3 * 2
    assert scales_for_silu(encoder) == {}
    assert [type(m) for n, m in encoder.named_modules() if "text" in n] == texts


def test_other_activations_are_left_alone(tmp_path: Path) -> None:
    assert scales_for_silu(CLIPEncoder(dinov2(tmp_path))) == {}
