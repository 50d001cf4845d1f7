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


def with_lora(model: str | Path, targets: str = "auto", rank: int = 3) -> CLIPEncoder:
    """An encoder that has learned something: B is not zero."""
    encoder = CLIPEncoder(str(model))
    add_lora(encoder, rank=rank, targets=targets)
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
def test_auto_means_the_attention_of_every_vision_layer_and_nothing_else(
    make: Make, block: str, names: str, tmp_path: Path
) -> None:
    encoder = with_lora(make(tmp_path / "model"))
    depth = 11 if make is deep_clip else 2
    expected = [f"{block.format(i)}.{name}" for i in range(depth) for name in names.split()]
    assert changed_layers(encoder) == sorted(expected)
    assert type(encoder) is CLIPEncoder


def test_named_targets_are_matched_by_their_last_parts(tmp_path: Path) -> None:
    folder = dinov2(tmp_path / "model")
    assert changed_layers(with_lora(folder, "mlp.fc1, v_proj")) == [
        "encoder.layer.0.attention.v_proj",
        "encoder.layer.0.mlp.fc1",
        "encoder.layer.1.attention.v_proj",
        "encoder.layer.1.mlp.fc1",
    ]


@pytest.mark.parametrize(
    ("make", "targets", "told"),
    [
        (dinov2, "q_proj,qkv", r"has 'qkv', which matches no .* there are: fc1, fc2, k_proj, o_pr"),
        (dinov2, "proj", r"'proj'"),
        (dinov2, "q_proj,", r"has ''"),
        (siglip, "head.attention.out_proj", r"there are: fc1, fc2, k_proj, out_proj, q_proj"),
        (convnext, "auto", r"auto, .* attention, .*--lora-targets \(there are: pwconv1, pwconv2\)"),
        (resnet, "auto", r"there are: none"),
    ],
)
def test_targets_that_match_nothing_are_refused_with_the_names_there_are(
    make: Make, targets: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        with_lora(make(tmp_path / "model"), targets)


def test_frozen_layers_are_not_changed(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    freeze_layers(encoder, 1)
    add_lora(encoder, rank=2, targets="q_proj")
    assert changed_layers(encoder) == ["vision_model.encoder.layers.1.self_attn.q_proj"]


def test_lora_changes_no_embedding_before_it_learns(tiny_clip: Path, pixels: Tensor) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    before = encoder(pixels)
    add_lora(encoder, rank=4, targets="auto")
    assert torch.equal(encoder(pixels), before)
    assert not any(part.training for part in encoder.modules())


@pytest.mark.parametrize("make", [siglip, dinov2, vit, convnext])
def test_merged_weights_are_w_plus_two_b_a_under_the_names_of_a_plain_encoder(
    make: Make, tmp_path: Path, pixels: Tensor
) -> None:
    folder = make(tmp_path / "model")
    plain = CLIPEncoder(folder)
    encoder = with_lora(folder, "pwconv1" if make is convnext else "auto")
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
