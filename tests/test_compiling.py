"""Layers compiled for training: when, what comes of it, and what is said if it cannot be done."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import LABELS, PIXELS, gradients_of, learner_of
from test_train import Settings, train
from torch import nn

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError, TrainingError
from lookalike.model.layers import drop_patches
from lookalike.progress import PlainProgress, SilentProgress
from lookalike.recipes import config_from
from lookalike.runtime import Runtime, make_runtime
from lookalike.training.making import make_encoder
from lookalike.training.stepping.compiling import compile_layers

ON_A_GPU = Runtime(torch.device("cuda"), "fp32", 0)
MODULE = "lookalike.training.stepping.compiling"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The layers that were to be compiled, by a compiler that leaves them as they are."""
    layers: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: layers.append(self))
    monkeypatch.setattr(f"{MODULE}.forward_and_backward", lambda *_: None)
    pretend_a_gpu(monkeypatch)
    return layers


def pretend_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be done there is done here."""
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    monkeypatch.setattr(f"{MODULE}.black", lambda *_: pixels)
    monkeypatch.setattr(f"{MODULE}.only_tried", lambda *_: nullcontext())


def compiled(
    settings: dict[str, Any], runtime: Runtime, total_steps: int = 10**6
) -> tuple[list[nn.Module], str]:
    """The encoder's layers, and what was said."""
    config = config_from(TrainConfig, settings)
    encoder = make_encoder(config, make_runtime("cpu", "fp32", 0), None, None)
    said = io.StringIO()
    compile_layers(
        config, encoder, runtime, PlainProgress(said),
        chunk_size=2, total_steps=total_steps, side=None,
    )  # fmt: skip
    layers = [m for m in encoder.modules() if type(m).__name__ == "CLIPEncoderLayer"]
    return layers[2:], said.getvalue()  # the text tower's come first


@pytest.mark.parametrize(
    ("changes", "on_gpu", "steps", "expected"),
    [
        ({}, True, 1000, True),
        ({}, True, 999, False),
        ({}, False, 10**6, False),
        ({"compile": "off"}, True, 10**6, False),
        ({"compile": "on"}, False, 1, True),
        ({"lora_rank": 2}, True, 10**6, False),
    ],
)
def test_auto_compiles_on_a_gpu_in_long_runs(
    settings: Settings,
    asked: list[nn.Module],
    changes: dict[str, Any],
    on_gpu: bool,
    steps: int,
    expected: bool,
) -> None:
    runtime = ON_A_GPU if on_gpu else make_runtime("cpu", "fp32", 0)
    layers, said = compiled(settings(**changes), runtime, steps)
    assert len(layers) == 2
    assert all(map(lambda one, other: one is other, asked, layers if expected else []))
    assert len(asked) == (2 if expected else 0)
    assert ("compiling" in said) == expected


def test_a_sharded_model_is_not_compiled() -> None:
    with pytest.raises(ConfigError, match="sharding is full, and compile is on"):
        TrainConfig(sharding="full", compile="on")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch as it is where Triton or a C compiler is missing."""

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation.\nSee the manual.")

    def does_nothing(self: nn.Module, **_: Any) -> None:
        self._compiled_call_impl = fails

    monkeypatch.setattr(nn.Module, "compile", does_nothing)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_training_goes_on_and_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_gpu(monkeypatch)
    layers, said = compiled(settings(), ON_A_GPU)
    assert said.splitlines()[-1] == (
        "warning: torch cannot compile the model's layers (Cannot find a working triton "
        "installation.): steps take longer"
    )
    assert all(layer._compiled_call_impl is None for layer in layers)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_demanding_it_is_an_error(settings: Settings) -> None:
    with pytest.raises(TrainingError, match=r"Cannot find a working triton .*set --compile off"):
        train(settings(compile="on"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler has some of its own
@pytest.mark.parametrize("chunk_size", [5, 12])
def test_compiled_layers_have_the_gradients_of_plain_ones(tiny_clip: Path, chunk_size: int) -> None:
    """With dropout, with patches that are left out, with a last chunk of another size."""
    gradients = []
    state = torch.get_rng_state()
    for how in ("off", "on"):
        torch.set_rng_state(state)
        learner = learner_of(tiny_clip, chunk_size)
        drop_patches(learner.encoder, 0.25)
        compile_layers(
            TrainConfig(compile=how), learner.encoder, learner.runtime, SilentProgress(),
            chunk_size=chunk_size, total_steps=1, side=None,
        )  # fmt: skip
        learner.step(PIXELS, LABELS)
        gradients.append(gradients_of(learner))
    plain, compiled = gradients
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        assert torch.allclose(compiled[name], gradient, rtol=1e-4, atol=1e-6), name
    assert any(not torch.equal(compiled[name], plain[name]) for name in plain)
