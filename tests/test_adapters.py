"""LoRA: which layers it finds, that merging is exact arithmetic and leaves no trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import (
    SIZE_PX,
    TOWER,
    clip_processor,
    convnext,
    dinov2,
    resnet,
    save,
    siglip_vision,
    vit,
)
from helpers.models import siglip_with_long_texts as siglip
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from lookalike.errors import ConfigError, MissingExtraError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import freeze_layers
from lookalike.model.lora import add_lora, merge_for_good, merged, plain_state_dict

Make = Callable[[Path], str]


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (4, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)


def deep_clip(folder: Path) -> str:
    """Both towers have so many layers that peft shortens their names."""
    tower = {**TOWER, "hidden_size": 8, "num_hidden_layers": 11, "intermediate_size": 8}
    config = CLIPConfig(
        vision_config={**tower, "image_size": SIZE_PX, "patch_size": 16},
        text_config={**tower, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1,
                     "pad_token_id": 1},
        projection_dim=8,
    )  # fmt: skip
    return save(folder, CLIPModel(config), clip_processor())


def with_lora(model: str | Path, rank: int = 3) -> CLIPEncoder:
    """An encoder that has learned something: B is not zero."""
    encoder = CLIPEncoder(str(model))
    add_lora(encoder, rank=rank)
    with torch.no_grad():
        for name, parameter in encoder.trainable_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return encoder


def changed_layers(encoder: CLIPEncoder) -> list[str]:
    """Names of the linear layers that LoRA changes."""
    trained = {name.partition(".lora_")[0] for name, _ in encoder.trainable_parameters()}
    return sorted(name.removeprefix("backbone.") for name in trained)


def state_of(encoder: CLIPEncoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize(
    ("make", "block", "names"),
    [
        (deep_clip, "vision_model.encoder.layers.{}.self_attn", "q_proj k_proj v_proj out_proj"),
        (siglip, "vision_model.encoder.layers.{}.self_attn", "q_proj k_proj v_proj out_proj"),
        (siglip_vision, "encoder.layers.{}.self_attn", "q_proj k_proj v_proj out_proj"),
        (dinov2, "encoder.layer.{}.attention", "q_proj k_proj v_proj o_proj"),
        (vit, "layers.{}.attention", "q_proj k_proj v_proj o_proj"),
    ],
)
def test_lora_changes_the_attention_of_every_vision_layer_and_nothing_else(
    make: Make, block: str, names: str, tmp_path: Path
) -> None:
    encoder = with_lora(make(tmp_path / "model"))
    depth = 11 if make is deep_clip else 2
    expected = [f"{block.format(i)}.{name}" for i in range(depth) for name in names.split()]
    assert changed_layers(encoder) == sorted(expected)
    assert type(encoder) is CLIPEncoder


@pytest.mark.parametrize("make", [convnext, resnet])
def test_a_model_without_linear_layers_of_attention_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"linear layers of attention, .*; set lora_rank to none"):
        with_lora(make(tmp_path / "model"))


def test_frozen_layers_are_not_changed(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    freeze_layers(encoder, 1)
    add_lora(encoder, rank=2)
    assert len(changed_layers(encoder)) == 4
    assert all("layers.1.self_attn" in name for name in changed_layers(encoder))


def test_lora_changes_no_embedding_before_it_learns(tiny_clip: Path, pixels: Tensor) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    before = encoder(pixels)
    add_lora(encoder, rank=4)
    assert torch.equal(encoder(pixels), before)
    assert not any(part.training for part in encoder.modules())


@pytest.mark.parametrize("make", [siglip, dinov2, vit])
def test_merged_weights_are_w_plus_two_b_a_under_the_names_of_a_plain_encoder(
    make: Make, tmp_path: Path, pixels: Tensor
) -> None:
    folder = make(tmp_path / "model")
    plain = CLIPEncoder(folder)
    encoder = with_lora(folder)
    state = state_of(encoder)
    with merged(encoder):
        found = {name: tensor.clone() for name, tensor in plain_state_dict(encoder).items()}
        embeddings = encoder(pixels)
    assert found.keys() == plain.state_dict().keys()
    changed = changed_layers(encoder)
    for name, tensor in plain.state_dict().items():
        layer = name.removeprefix("backbone.").removesuffix(".weight")
        if layer in changed:
            a, b = (state[f"backbone.{layer}.lora_{x}.default.weight"].double() for x in "AB")
            expected = (tensor.double() + 2 * b @ a).float()
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-6)
            assert not torch.equal(found[name], tensor)
        else:
            assert torch.equal(found[name], tensor), name
    plain.load_weights(found, "here")
    assert torch.equal(plain(pixels), embeddings)
    torch.testing.assert_close(encoder(pixels), embeddings, atol=1e-5, rtol=0)
    assert not torch.equal(encoder(pixels), CLIPEncoder(folder)(pixels))


def test_merging_leaves_the_encoder_as_it_was_also_after_an_error(
    tiny_clip: Path, pixels: Tensor
) -> None:
    encoder = with_lora(tiny_clip)
    before, embeddings = state_of(encoder), encoder(pixels)
    with pytest.raises(KeyError), merged(encoder):
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(encoder(pixels), embeddings)
    encoder(pixels)[:, 0].sum().backward()
    assert all(p.grad is not None for _, p in encoder.trainable_parameters())


def test_an_encoder_merged_for_good_is_a_plain_one(tiny_clip: Path, pixels: Tensor) -> None:
    encoder = with_lora(tiny_clip)
    with merged(encoder):
        embeddings = encoder(pixels)
    merge_for_good(encoder)
    plain = CLIPEncoder(str(tiny_clip))
    assert [(name, type(part)) for name, part in encoder.named_modules()] == [
        (name, type(part)) for name, part in plain.named_modules()
    ]
    assert torch.equal(encoder(pixels), embeddings)


def test_lora_without_peft_names_the_line_that_installs_it(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent: Any = None
    monkeypatch.setitem(sys.modules, "peft", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'lookalike\[lora\]'"):
        with_lora(tiny_clip)
