"""Embedding with products of 8-bit integers, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.embeddings import noise, runtime
from helpers.models import convnext, dinov2, levit, save, siglip, vit
from helpers.photos import write_tree
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

import lookalike
from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.errors import ConfigError, MissingExtraError, ModelError
from lookalike.model import inference
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.inference import inference_form
from lookalike.progress import SilentProgress, others_hushed
from lookalike.runtime.device import make_runtime


@pytest.mark.parametrize(
    "make",
    [
        dinov2,
        convnext,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (vit, siglip, levit)),
    ],
)
def test_embeddings_point_where_float32_ones_do(tmp_path: Path, make: Any) -> None:
    encoder = CLIPEncoder(make(tmp_path))
    pixels = noise(encoder)
    with torch.no_grad():
        expected = encoder(pixels)
        embed = inference_form(encoder, runtime("int8"))
    found = embed(pixels)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=1e-5)
    assert cosine_similarity(found, expected).min() > 0.998
    assert not torch.equal(found, expected)


def wide(folder: Path) -> str:
    """A model whose layers have the 128 inputs from which activations are on steps as well."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return save(folder, ViTModel(config), ViTImageProcessorPil(size={"height": 32, "width": 32}))


@pytest.mark.slow
def test_activations_are_on_steps_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CLIPEncoder(wide(tmp_path))
    pixels = noise(encoder)
    monkeypatch.setattr(inference, "has_fast_bf16", lambda device: False)
    with torch.no_grad():
        expected = encoder(pixels).double()
    errors = {}
    for group in (128, 0):
        monkeypatch.setattr(inference, "_GROUP", group)
        found = inference_form(encoder, runtime("int8"))(pixels).double()
        errors[group] = float((found - expected).norm(dim=1).mean())
    assert 1.2 * errors[0] < errors[128] < 0.03


def test_an_embedding_does_not_depend_on_the_images_beside_it(tmp_path: Path) -> None:
    encoder = CLIPEncoder(wide(tmp_path))
    pixels = noise(encoder)
    pixels[1:] //= 8  # dark ones, with which a common scale would be another
    embed = inference_form(encoder, runtime("int8"))
    alone = torch.cat([embed(one) for one in pixels.split(1)])
    assert cosine_similarity(embed(pixels), alone).min() > 0.99999


@pytest.mark.slow
def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    script = """
import sys
from lookalike.model import inference
openvino = inference._openvino()
inference._openvino()
assert openvino.Core().available_devices
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "intel").exists()


def test_every_linear_layer_has_its_weights_on_127_steps(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    with others_hushed():
        graph = inference._graph(encoder)
    inference._put_weights_on_steps(graph)

    steps = {}
    for operation in graph.get_ordered_ops():
        if operation.get_type_name() != "MatMul":
            continue
        product = operation.input_value(1).get_node()
        if product.get_type_name() != "Multiply":
            continue
        convert, scale = (product.input_value(i).get_node() for i in (0, 1))
        steps[operation.get_friendly_name()] = (
            convert.input_value(0).get_node().data,
            scale.data,
        )

    linear = [
        module.weight.detach().numpy()
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and "text" not in name
    ]
    assert len(steps) == len(linear)
    for weights in linear:
        scale = np.abs(weights).max(axis=1, keepdims=True).astype(np.float64) / 127
        expected = (weights.astype(np.float64) / scale).round()
        same = [
            (found, step)
            for found, step in steps.values()
            if found.shape == weights.shape and np.abs(found - expected).max() <= 1
        ]
        assert same
        assert any(
            np.abs(found * step - weights).max() <= 0.51 * step.max() for found, step in same
        )
        assert all(found.dtype == np.int8 for found, _ in same)


def test_evaluation_says_that_it_was_in_int8(tmp_path: Path, tiny_clip: Path) -> None:
    test = write_tree(tmp_path / "test", {"a": 3, "b": 3})
    scores = {}
    for precision in ("int8", "fp32"):
        result = lookalike.evaluate(
            EvaluateConfig(
                model_name=str(tiny_clip), test=str(test), out=str(tmp_path / precision),
                device="cpu", precision=precision, num_workers=0, report=False,
            ),
            progress=SilentProgress(),
        )  # fmt: skip
        written = json.loads((tmp_path / precision / "results/metrics_epoch_00.json").read_text())
        assert written["config"]["precision"] == precision
        assert result.retrieval is not None
        scores[precision] = result.retrieval.gallery_embeddings[:]
    assert cosine_similarity(scores["int8"], scores["fp32"]).min() > 0.998
    assert not torch.allclose(scores["int8"], scores["fp32"], atol=1e-5)


def test_without_openvino_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.runtime.device.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lookalike\[int8\]'"):
        make_runtime("cpu", "int8")


def test_a_gpu_has_no_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="int8 is for a CPU, and the device is cuda"):
        make_runtime(precision="int8")


def test_training_in_int8_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision is 'int8'; expected auto or bf16 or fp16"):
        TrainConfig(train="photos", precision="int8")  # type: ignore[arg-type]


def test_a_model_that_cannot_be_converted_says_what_to_do(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise RuntimeError("no such operation\nand much more")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(ModelError, match=r"in int8 \(no such operation\); set --precision auto"):
        inference_form(CLIPEncoder(str(tiny_clip)), runtime("int8"))


def test_conversion_says_nothing(tiny_clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inference_form(CLIPEncoder(str(tiny_clip)), runtime("int8"))
    assert capfd.readouterr() == ("", "")
