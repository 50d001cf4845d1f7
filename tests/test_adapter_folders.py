"""Folders with a LoRA adapter, as PEFT saves them, against what PEFT computes with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import SIZE_PX, SQUARE, VISION, clip_with_tokenizer, save
from helpers.runs import Settings, load, train
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import lookalike
from lookalike.config import ExportConfig
from lookalike.errors import ModelError
from lookalike.model.encoder import CLIPEncoder

# PEFT's own use of Transformers.
pytestmark = pytest.mark.filterwarnings("ignore")
ATTENTION = ["q_proj", "v_proj"]


def drawn(model: Any, config: LoraConfig) -> Any:
    """A model with an adapter, all of which is random and none of which is zero."""
    adapted = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if p.requires_grad:
                shift = 0.05 * torch.randn(p.shape, generator=generator)
                p.add_(shift.abs() if "magnitude" in name else shift)
    return adapted


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    return Path(clip_with_tokenizer(folder))


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0))


def adapter(base: Path, folder: Path, **settings: Any) -> Any:
    """Writes an adapter of a CLIP, without the model, and returns the two together."""
    model = CLIPModel.from_pretrained(base)
    chosen: dict[str, Any] = {"r": 4, "target_modules": ATTENTION, **settings}
    adapted = drawn(model, LoraConfig(**chosen))
    adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def images_of(adapted: Any, pixels: Tensor) -> Tensor:
    return normalize(adapted.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def embedded(folder: Path, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        embeddings: Tensor = CLIPEncoder(str(folder))(pixels)
    return embeddings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_alpha": 32},
        {"use_rslora": True, "r": 8},
        {"use_dora": True},
        {"alpha_pattern": {"v_proj": 64}, "rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 64}},
        {"target_modules": ["patch_embedding", "fc1"]},
        {"target_modules": ["position_embedding"]},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["visual_projection"]},
        {"bias": "lora_only"},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_an_adapter_gives_what_peft_gives(
    settings: dict[str, Any], base: Path, tmp_path: Path, pixels: Tensor
) -> None:
    adapted = adapter(base, tmp_path / "tuned", **settings)
    found = embedded(tmp_path / "tuned", pixels)
    torch.testing.assert_close(found, images_of(adapted, pixels), atol=2e-6, rtol=0)
    assert not torch.allclose(found, embedded(base, pixels), atol=1e-3)


def test_the_merged_weights_are_those_of_the_paper(
    base: Path, tmp_path: Path, pixels: Tensor
) -> None:
    adapter(base, tmp_path / "tuned", lora_alpha=12, r=4)
    matrices = load_file(tmp_path / "tuned/adapter_model.safetensors")
    plain = load_file(base / "model.safetensors")
    merged = CLIPEncoder(str(tmp_path / "tuned")).backbone.state_dict()
    changed = 0
    for name, weight in merged.items():
        a = matrices.get(f"base_model.model.{name.removesuffix('weight')}lora_A.weight")
        if a is None:
            assert torch.equal(weight, plain[name])
            continue
        b = matrices[f"base_model.model.{name.removesuffix('weight')}lora_B.weight"]
        expected = plain[name].double()
        for row in range(4):  # of A; a column of B
            expected = expected + 12 / 4 * torch.outer(b[:, row].double(), a[row].double())
        torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=0)
        changed += 1
    assert changed == 8  # of both towers, two layers each


def test_an_adapter_beside_its_model_loads_trains_and_is_exported(
    base: Path, tmp_path: Path, pixels: Tensor, settings: Settings
) -> None:
    adapted = adapter(base, tmp_path / "tuned")
    both = Path(shutil.copytree(base, tmp_path / "both"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "tuned" / name, both)
    expected = images_of(adapted, pixels)
    torch.testing.assert_close(embedded(both, pixels), expected, atol=2e-6, rtol=0)
    result = train(settings(model_name=str(both)))
    assert result.checkpoint is not None
    torch.testing.assert_close(
        load(result.checkpoint)["model_state_dict"]["backbone.logit_scale"],
        load_file(base / "model.safetensors")["logit_scale"],
    )
    lookalike.export(ExportConfig(model_name=str(both), out=str(tmp_path / "plain")))
    assert not list((tmp_path / "plain").glob("adapter*"))
    torch.testing.assert_close(embedded(tmp_path / "plain", pixels), expected, atol=2e-6, rtol=0)


def test_an_adapter_of_a_classifier_changes_its_tower(tmp_path: Path, pixels: Tensor) -> None:
    model = ViTForImageClassification(ViTConfig(**VISION, intermediate_size=64)).eval()
    save(tmp_path / "base", model, ViTImageProcessorPil(size=SQUARE))
    model = ViTForImageClassification.from_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=4, target_modules=["q_proj", "fc1", "query", "dense"], modules_to_save=["classifier"]
    )
    adapted = drawn(model, config)
    adapted.save_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        tokens = adapted.base_model.model.vit(pixel_values=pixels).last_hidden_state
    found = embedded(tmp_path / "tuned", pixels)
    torch.testing.assert_close(found, normalize(tokens[:, 0], dim=-1), atol=2e-6, rtol=0)
    assert not torch.allclose(found, embedded(tmp_path / "base", pixels), atol=1e-3)


def test_an_adapters_own_processor_comes_before_the_models(base: Path, tmp_path: Path) -> None:
    adapter(base, tmp_path / "tuned")
    processor = json.loads((base / "preprocessor_config.json").read_text())
    own = tmp_path / "tuned/preprocessor_config.json"
    own.write_text(json.dumps(processor | {"image_mean": [0.25, 0.25, 0.25]}))
    encoder = CLIPEncoder(str(tmp_path / "tuned"))
    assert encoder.preprocessing.mean == (0.25, 0.25, 0.25)
    assert encoder.has_text
    assert encoder.title == f"{tmp_path / 'tuned'} (a LoRA adapter, merged into {base})"


def settle(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def cut_off(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def with_tensors(**tensors: Tensor) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(load_file(path) | tensors, path)

    return change


FIRST = "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (settle(base_model_name_or_path="gone/away"), "without its base model gone/away"),
        (settle(base_model_name_or_path=None), "does not name its base model"),
        (settle(base_model_name_or_path=["x"]), "does not name its base model"),
        (settle(base_model_name_or_path="."), "adapter"),
        (settle(base_model_name_or_path="a" * 5000), "without its base model aaa"),
        (settle(base_model_name_or_path="a/\0b"), "without its base model"),
        (settle(base_model_name_or_path="\x1b[31mred"), "without its base model"),
        (settle(peft_type="LOHA"), "kind LOHA.*merge it with PEFT"),
        (settle(peft_type="\x1b[31m"), "LoRA alone"),
        (settle(init_lora_weights="pissa"), "began from weights that it changed"),
        (settle(lora_alpha="much"), "lora_alpha"),
        (settle(alpha_pattern={"(a+)+$": 3}), "alpha_pattern"),
        (settle(layer_replication=[[0, 2]]), "layer_replication"),
        (without_weights, r"without its weights \(adapter_model\.safetensors\)"),
        (cut_off, "cannot be read"),
        (with_tensors(**{f"{FIRST}.lora_A.weight": torch.ones(4, 7)}), "does not fit"),
        (with_tensors(**{f"{FIRST}.lora_A.weight": torch.tensor(1.0)}), "does not fit"),
        (with_tensors(**{f"{FIRST}.lora_A.weight": torch.ones(4)}), "does not fit"),
        (
            with_tensors(
                **{
                    f"{FIRST}.lora_A.weight": torch.ones(0, 32),
                    f"{FIRST}.lora_B.weight": torch.ones(32, 0),
                }
            ),
            "does not fit",
        ),
        (
            with_tensors(
                **{
                    f"{FIRST}.lora_A.weight": torch.ones(4, 16),
                    f"{FIRST}.lora_B.weight": torch.ones(64, 4),
                }
            ),
            "does not fit",
        ),
        (with_tensors(**{"base_model.model.other.lora_A.weight": torch.ones(4, 7)}), "not fit"),
        (with_tensors(**{f"{FIRST}.lora_X.weight": torch.ones(4, 7)}), "does not fit"),
        (with_tensors(**{f"{FIRST}.lora_A.weight": torch.full((4, 32), float("nan"))}), "finite"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "no mapping"),
    ],
)
def test_an_adapter_that_cannot_be_merged_says_why(
    change: Callable[[Path], Any], words: str, base: Path, tmp_path: Path
) -> None:
    adapter(base, tmp_path / "tuned")
    change(tmp_path / "tuned")
    with pytest.raises(ModelError, match=words) as caught:
        CLIPEncoder(str(tmp_path / "tuned"))
    assert str(caught.value).isprintable()


def test_the_model_is_found_beside_the_adapter(base: Path, tmp_path: Path, pixels: Tensor) -> None:
    adapted = adapter(base, tmp_path / "tuned")
    settle(base_model_name_or_path="base")(tmp_path / "tuned")
    found = embedded(tmp_path / "tuned", pixels)
    torch.testing.assert_close(found, images_of(adapted, pixels), atol=2e-6, rtol=0)


def test_a_linear_layer_is_never_turned_as_in_peft(
    base: Path, tmp_path: Path, pixels: Tensor
) -> None:
    adapted = adapter(base, tmp_path / "tuned")
    settle(fan_in_fan_out=True)(tmp_path / "tuned")
    found = embedded(tmp_path / "tuned", pixels)
    torch.testing.assert_close(found, images_of(adapted, pixels), atol=2e-6, rtol=0)


def test_an_adapter_needs_no_peft(
    base: Path, tmp_path: Path, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = adapter(base, tmp_path / "tuned")
    expected = images_of(adapted, pixels)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    torch.testing.assert_close(embedded(tmp_path / "tuned", pixels), expected, atol=2e-6, rtol=0)
