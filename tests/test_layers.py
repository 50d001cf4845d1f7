"""Layers found from the module tree, and frozen ones: that nothing of them moves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import (
    SIZE_PX,
    SQUARE,
    VISION,
    dinov2,
    ijepa,
    resnet,
    save,
    siglip_vision,
    vit,
    vit_msn,
)
from helpers.models import deep_convnext as convnext
from helpers.models import siglip_with_long_texts as siglip
from torch import nn
from torch.nn.functional import normalize
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SwinConfig,
    SwinModel,
    ViTImageProcessorPil,
)

from lookalike.errors import ConfigError, ModelError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import drop_patches, find_layers, freeze_layers, on_device
from lookalike.runtime.device import Runtime

Make = Callable[[Path], str]


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)


def test_clips_parameters_are_of_the_layers_they_are_of(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    layers = find_layers(encoder, "layer_decay")
    found = {name.removeprefix("backbone."): layers.of(name)
             for name, _ in encoder.trainable_parameters()}  # fmt: skip
    block = {"layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight", "layer_norm2.bias"} | {
        f"{part}.{kind}"
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                     "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }  # fmt: skip
    assert layers.count == 2
    assert found == {
        "vision_model.embeddings.class_embedding": 0,
        "vision_model.embeddings.patch_embedding.weight": 0,
        "vision_model.embeddings.position_embedding.weight": 0,
        "vision_model.pre_layrnorm.weight": 0,
        "vision_model.pre_layrnorm.bias": 0,
        **{f"vision_model.encoder.layers.0.{name}": 1 for name in block},
        **{f"vision_model.encoder.layers.1.{name}": 2 for name in block},
        "vision_model.post_layernorm.weight": 3,
        "vision_model.post_layernorm.bias": 3,
        "visual_projection.weight": 3,
    }


@pytest.mark.parametrize(
    ("make", "count"),
    [(siglip, 2), (siglip_vision, 2), (dinov2, 2), (vit, 2), (convnext, 4), (resnet, 3)],
)
def test_images_pass_through_layers_in_their_order(
    make: Make, count: int, tmp_path: Path, pixels: torch.Tensor
) -> None:
    encoder = CLIPEncoder(make(tmp_path / "model"))
    layers = find_layers(encoder, "layer_decay")
    passed: list[int] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: passed.append(layers.of_module[name])

    for name, module in encoder.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(note(name))
    encoder(pixels)
    assert layers.count == count
    assert passed == sorted(passed)
    assert set(passed) >= set(range(count + 1))
    text = [layers.of(name) for name, _ in encoder.vision_parameters() if "text" in name]
    assert not text


@pytest.mark.parametrize("make", [siglip, siglip_vision, dinov2, vit, convnext, resnet])
@pytest.mark.parametrize("number", [1, 2])
def test_what_is_frozen_gets_no_gradient_and_no_new_statistics_and_the_rest_does(
    make: Make, number: int, tmp_path: Path, pixels: torch.Tensor
) -> None:
    encoder = CLIPEncoder(make(tmp_path / "model"))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    layers = find_layers(encoder, "frozen_layers")
    freeze_layers(encoder, number)
    encoder.train()
    encoder(pixels)[:, 0].sum().backward()
    unused = ("mask_token",)  # of DINOv2, for its own kind of training
    for name, parameter in encoder.vision_parameters():
        if not name.endswith(unused):
            assert (parameter.grad is None) is (layers.of(name) <= number), name
    statistics = [name for name in before if "running_" in name]
    assert bool(statistics) is (make is resnet)
    for name in statistics:
        frozen = layers.of(name) <= number
        assert torch.equal(encoder.state_dict()[name], before[name]) is frozen, name


def test_dropout_of_frozen_layers_stays_off(tiny_clip: Path, pixels: torch.Tensor) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    blocks = encoder.backbone.vision_model.encoder.layers
    freeze_layers(encoder, 1)
    encoder.train()
    switched = [{part.training for part in block.modules()} for block in blocks]
    assert switched == [{False}, {True}]
    assert encoder.training
    tokens = torch.randn(1, 5, 32)
    first = [blocks[0](tokens, attention_mask=None) for _ in range(2)]
    second = [blocks[1](tokens, attention_mask=None) for _ in range(2)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(second[0], second[1])


def test_more_frozen_layers_than_there_are_is_refused(tiny_clip: Path) -> None:
    with pytest.raises(ConfigError, match=r"frozen_layers is 3, .* has 2 layers; set it to 2"):
        freeze_layers(CLIPEncoder(str(tiny_clip)), 3)


def test_freezing_all_that_could_be_trained_is_refused(tmp_path: Path) -> None:
    encoder = CLIPEncoder(resnet(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"frozen_layers is 3, which leaves .* set it to 2"):
        freeze_layers(encoder, 3)


def test_a_structure_that_tells_no_layers_is_refused_by_the_option_that_needs_them(
    tiny_clip: Path,
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    lists = {name: nn.ModuleList([nn.Linear(2, 2)]) for name in ("first", "second")}
    encoder.backbone = nn.ModuleDict(lists)
    for option, how in (
        ("layer_decay", r"set layer_decay to 1 \(--layer-decay 1\)"),
        ("frozen_layers", r"set frozen_layers to 0 \(--frozen-layers 0\)"),
    ):
        among = "backbone.first, backbone.second"
        with pytest.raises(ModelError, match=f"{option} needs to know .*{among}.* {how}"):
            find_layers(encoder, option)
    with pytest.raises(ModelError, match=r"set patch_dropout to 0 \(--patch-dropout 0\)"):
        drop_patches(encoder, 0.5)
    encoder.backbone = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="no list of blocks"):
        find_layers(encoder, "layer_decay")


# --- Patches left out ------------------------------------------------------------------------

NUM_PATCHES = (SIZE_PX // 8) ** 2


def clip_vision(folder: Path) -> str:
    config = CLIPVisionConfig(**VISION, intermediate_size=64)
    return save(folder, CLIPVisionModel(config), ViTImageProcessorPil(size=SQUARE))


def swin(folder: Path) -> str:
    config = SwinConfig(image_size=SIZE_PX, patch_size=4, embed_dim=8, depths=[1, 1, 1],
                        num_heads=[1, 1, 1], window_size=2)  # fmt: skip
    return save(folder, SwinModel(config), ViTImageProcessorPil(size=SQUARE))


def dinov3(folder: Path) -> str:
    """Its layers are told the position of each patch once more."""
    config = DINOv3ViTConfig(**VISION, intermediate_size=64, num_register_tokens=2)
    return save(folder, DINOv3ViTModel(config), ViTImageProcessorPil(size=SQUARE))


def beit(folder: Path) -> str:
    """What its attention adds depends on where each patch is."""
    config = BeitConfig(**VISION, intermediate_size=64, use_relative_position_bias=True)
    return save(folder, BeitModel(config), ViTImageProcessorPil(size=SQUARE))


def tokens_before(encoder: CLIPEncoder, pixels: torch.Tensor) -> torch.Tensor:
    """What enters the first layer, all of the hooks before it done."""
    first = next(m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)[0]
    entered: list[torch.Tensor] = []
    noting = first.register_forward_pre_hook(
        lambda _, given, named: entered.append(given[0] if given else named["hidden_states"]),
        with_kwargs=True,
    )
    with noting, torch.no_grad():
        encoder(pixels)
    return entered[0]


@pytest.mark.parametrize(
    ("make", "num_others"), [(siglip_vision, 0), (clip_vision, 1), (dinov2, 1), (vit, 1)]
)
@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_training_sees_some_patches_of_each_image_and_evaluation_all(
    make: Make, num_others: int, share: float, tmp_path: Path, pixels: torch.Tensor
) -> None:
    encoder = CLIPEncoder(make(tmp_path / "model"))
    embedded, whole = encoder(pixels), tokens_before(encoder, pixels)
    drop_patches(encoder, share)
    assert torch.equal(encoder(pixels), embedded)
    encoder.train()
    draws = [tokens_before(encoder, pixels) for _ in range(2)]
    num_kept = max(1, round(NUM_PATCHES * (1 - share)))
    assert draws[0].shape == (len(pixels), num_others + num_kept, whole.shape[2])
    assert not torch.equal(draws[0], draws[1])
    where = [
        [(row == of).all(dim=1).nonzero().flatten().tolist() for row in rows]
        for rows, of in zip(draws[0], whole, strict=True)
    ]
    kept = [[places[0] for places in rows] for rows in where]  # found, and where they were
    assert all(rows[:num_others] == list(range(num_others)) for rows in kept)
    assert all(rows == sorted(set(rows)) for rows in kept)
    assert len(set(map(tuple, kept))) > 1  # others of each image


def test_each_patch_is_left_out_equally_often(tmp_path: Path) -> None:
    encoder = CLIPEncoder(dinov2(tmp_path / "model"))
    pixels = torch.randint(0, 256, (1, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    whole = tokens_before(encoder, pixels)[0]
    drop_patches(encoder, 0.5)
    kept = tokens_before(encoder.train(), pixels.expand(2000, -1, -1, -1))
    often = (kept[:, :, None] == whole).all(dim=3).float().sum(dim=(0, 1)) / len(kept)
    expected = torch.tensor([1.0] + [0.5] * NUM_PATCHES)
    assert torch.allclose(often, expected, atol=0.06)


@pytest.mark.parametrize(("make", "has_class_token"), [(ijepa, False), (vit_msn, True)])
def test_patches_left_out_do_not_change_which_tokens_become_the_embedding(
    make: Make, has_class_token: bool, tmp_path: Path, pixels: torch.Tensor
) -> None:
    encoder = CLIPEncoder(make(tmp_path / "model"))
    drop_patches(encoder, 0.5)
    outputs: list[Any] = []
    with encoder.backbone.register_forward_hook(lambda *given: outputs.append(given[2])):
        found = encoder.train()(pixels)
    tokens = outputs[0].last_hidden_state
    assert tokens.shape[1] == NUM_PATCHES // 2 + has_class_token
    rows = tokens[:, 0] if has_class_token else tokens.mean(dim=1)
    assert torch.equal(found, normalize(rows, dim=-1))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("make", [convnext, resnet, swin, dinov3, beit])
def test_layers_that_need_all_patches_are_refused(make: Make, share: float, tmp_path: Path) -> None:
    encoder = CLIPEncoder(make(tmp_path / "model"))
    with pytest.raises(ModelError, match=r"needs all patches .* set patch_dropout to 0"):
        drop_patches(encoder, share)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("num_frozen", [0, 1])
def test_a_copy_leaves_out_patches_where_it_is_trained_itself(
    copied: Callable[[CLIPEncoder], CLIPEncoder],
    num_frozen: int,
    tmp_path: Path,
    pixels: torch.Tensor,
) -> None:
    encoder = CLIPEncoder(dinov2(tmp_path / "model"))
    if num_frozen:  # the first layer stays in evaluation mode
        freeze_layers(encoder, num_frozen)
    drop_patches(encoder, 0.5)
    again = copied(encoder.train())
    for original_is_trained, copy_is_trained in ((False, True), (True, False)):
        encoder.train(original_is_trained)
        again.train(copy_is_trained)
        for one, is_trained in ((encoder, original_is_trained), (again, copy_is_trained)):
            num_patches = NUM_PATCHES // 2 if is_trained else NUM_PATCHES
            assert tokens_before(one, pixels).shape[1] == 1 + num_patches


def test_checkpointed_activations_are_those_of_the_same_patches(
    tmp_path: Path, pixels: torch.Tensor
) -> None:
    name, gradients = dinov2(tmp_path / "model"), []
    for checkpointing in (False, True):
        encoder = CLIPEncoder(name, gradient_checkpointing=checkpointing)
        drop_patches(encoder, 0.5)
        torch.manual_seed(0)
        encoder.train()(pixels)[:, 0].sum().backward()
        parameters = encoder.trainable_parameters()
        gradients.append(torch.cat([p.grad.flatten() for _, p in parameters if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


# Attention


@pytest.mark.parametrize(
    ("device", "side", "patch_dropout", "expected"),
    [
        ("cpu", None, 0.0, "sdpa"),  # 400 patches
        ("cpu", None, 0.5, "eager"),
        ("cpu", 128, 0.0, "eager"),
        ("meta", 128, 0.5, "sdpa"),
    ],
)
def test_short_sequences_on_a_cpu_have_plain_attention(
    tmp_path: Path, device: str, side: int | None, patch_dropout: float, expected: str
) -> None:
    encoder = CLIPEncoder(clip_of_160_px(tmp_path))
    pixels = torch.zeros(2, 3, 160, 160, dtype=torch.uint8)
    with torch.no_grad():
        before = encoder(pixels)
        on_device(
            encoder,
            Runtime(torch.device(device), "fp32", 0),
            side=side,
            patch_dropout=patch_dropout,
        )
        assert encoder.backbone.config.vision_config._attn_implementation == expected
        if device == "cpu":
            assert torch.allclose(encoder(pixels), before, atol=1e-5)


def test_a_model_without_attention_goes_to_its_device_as_it_is(tmp_path: Path) -> None:
    encoder = CLIPEncoder(convnext(tmp_path))
    assert on_device(encoder, Runtime(torch.device("cpu"), "fp32", 0)) is encoder


def clip_of_160_px(folder: Path) -> str:
    """Of 20 x 20 patches."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    vision = {**tower, "image_size": 160, "patch_size": 8}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 160}, crop_size={"height": 160, "width": 160}
    )
    config = CLIPConfig(vision_config=vision, text_config=tower, projection_dim=16)
    return save(folder, CLIPModel(config), processor)
