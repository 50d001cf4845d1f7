"""Layers compiled for training: when, what comes of it, and what is said if it cannot be done."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import deep_convnext as convnext
from helpers.models import levit, resnet, vit
from helpers.runs import Settings, Watch, train
from helpers.steps import LABELS, PIXELS, gradients_of, step_of
from torch import nn

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError, TrainingError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import drop_patches
from lookalike.progress import PlainProgress, SilentProgress
from lookalike.runtime.device import Runtime, make_runtime
from lookalike.runtime.world import World
from lookalike.training.step import compiling
from lookalike.training.step.compiling import compile_layers, uncompiled

CPU = make_runtime("cpu", "fp32", 0)
GPU = Runtime(torch.device("cuda"), "bf16", 0)


class Compiler:
    """Takes the place of torch's, and does nothing but note what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers: list[nn.Module] = []
        self.sizes: list[tuple[int, bool]] = []  # of batches, and whether with gradients
        self.error: Exception | None = None
        compiler = self

        def compile(module: nn.Module, **_: Any) -> None:  # noqa: A001
            compiler.layers.append(module)

            def call(*args: Any, **kwargs: Any) -> Any:
                if compiler.error is not None:
                    raise compiler.error
                if module is compiler.layers[0]:
                    compiler.sizes.append((len(args[0]), torch.is_grad_enabled()))
                return module._call_impl(*args, **kwargs)

            module._compiled_call_impl = call

        monkeypatch.setattr(nn.Module, "compile", compile)
        monkeypatch.setattr(torch.compiler, "reset", lambda: None)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(monkeypatch)


def compile_for(
    encoder: CLIPEncoder,
    runtime: Runtime = CPU,
    *,
    chunk_size: int = 3,
    part_size: int = 8,
    steps_left: int = 10**6,
    **changes: Any,
) -> str:
    """What was said."""
    said = io.StringIO()
    compile_layers(
        TrainConfig(**changes), encoder, runtime, PlainProgress(said),
        chunk_size=chunk_size, part_size=part_size, steps_left=steps_left,
    )  # fmt: skip
    return said.getvalue()


def pretend_a_gpu(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A chunk of three takes so long on it, and what is tried there is tried here."""
    monkeypatch.setattr(compiling, "_seconds", lambda *_: seconds)
    monkeypatch.setattr(compiling, "_failure", lambda *_: None)


def vision_layers(encoder: CLIPEncoder) -> list[nn.Module]:
    layers = encoder.backbone.vision_model.encoder.layers
    return list(layers)


@pytest.mark.parametrize(
    ("changes", "steps", "runtime", "expected"),
    [
        ({}, 450, GPU, True),  # of 8 images, a second each step
        ({}, 120, GPU, True),
        ({}, 119, GPU, False),
        ({}, 10**6, CPU, False),
        ({}, 0, GPU, False),
        ({"compile": "off"}, 10**6, GPU, False),
        ({"compile": "on"}, 1, CPU, True),
        ({"compile": "on"}, 0, CPU, False),
        ({"lora_rank": 2}, 10**6, GPU, False),
        ({"gradient_checkpointing": True}, 10**6, GPU, False),
        ({"distillation_weight": 1.0}, 10**6, GPU, False),
        ({"frozen_layers": 1}, 10**6, GPU, False),
        ({}, 10**6, Runtime(GPU.device, "fp16", 0), False),
        ({}, 10**6, Runtime(GPU.device, "bf16", 0, World(1, 2)), False),
    ],
)
def test_auto_compiles_what_was_measured_where_it_takes_minutes(
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    steps: int,
    runtime: Runtime,
    expected: bool,
) -> None:
    pretend_a_gpu(monkeypatch, 0.375)
    said = compile_for(CLIPEncoder(str(tiny_clip)), runtime, steps_left=steps, **changes)
    assert ("compiling the model's layers" in said) == expected


@pytest.mark.parametrize(("make", "expected"), [(vit, True), (convnext, False), (levit, False)])
def test_auto_leaves_models_whose_blocks_differ_or_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], str], expected: bool
) -> None:
    pretend_a_gpu(monkeypatch, 1.0)
    said = compile_for(CLIPEncoder(make(tmp_path)), GPU)
    assert ("compiling" in said) == expected


def test_auto_leaves_a_model_without_any_list_of_blocks(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_gpu(monkeypatch, 1.0)
    encoder = CLIPEncoder(str(tiny_clip))
    encoder.backbone.vision_model.encoder.layers = nn.Sequential(*vision_layers(encoder))
    assert compile_for(encoder, GPU) == ""


def test_a_sharded_model_is_not_compiled() -> None:
    with pytest.raises(ConfigError, match="sharding is full, and compile is on"):
        TrainConfig(sharding="full", compile="on")


def test_every_size_that_a_step_has_is_tried_before_it(tiny_clip: Path, compiler: Compiler) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    compile_for(encoder, compile="on", chunk_size=3, part_size=8)
    assert [id(layer) for layer in compiler.layers] == [id(one) for one in vision_layers(encoder)]
    assert compiler.sizes == [(3, True), (2, True), (3, False)]
    compiler.sizes.clear()
    compile_for(encoder, compile="on", chunk_size=12, part_size=8)
    assert compiler.sizes == [(8, True)]


def test_of_several_processes_the_sizes_are_as_even_as_they_are_in_a_step(
    tiny_clip: Path, compiler: Compiler
) -> None:
    class Two(World):
        def all_gather_objects(self, one: Any) -> list[Any]:
            return [one, one]

    runtime = Runtime(CPU.device, "fp32", 0, Two(0, 2))
    compile_for(CLIPEncoder(str(tiny_clip)), runtime, compile="on", chunk_size=4, part_size=10)
    assert compiler.sizes == [(4, True), (3, True), (4, False), (3, False)]


def test_if_one_process_cannot_none_does(tiny_clip: Path, compiler: Compiler) -> None:
    class Two(World):
        def all_gather_objects(self, one: Any) -> list[Any]:
            return [one, "no compiler" if one is None else one]

    encoder, runtime = CLIPEncoder(str(tiny_clip)), Runtime(CPU.device, "fp32", 0, Two(0, 2))
    with pytest.raises(TrainingError, match="no compiler"):
        compile_for(encoder, runtime, compile="on", chunk_size=8)
    assert compiler.layers
    assert all(module._compiled_call_impl is None for module in encoder.modules())


def test_the_block_that_patch_dropout_hooks_into_is_left(
    tiny_clip: Path, compiler: Compiler
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    drop_patches(encoder, 0.25)
    compile_for(encoder, compile="on")
    assert [id(one) for one in compiler.layers] == [id(one) for one in vision_layers(encoder)[1:]]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("make", [None, resnet])
def test_trying_changes_nothing(
    tmp_path: Path,
    tiny_clip: Path,
    compiler: Compiler,
    make: Callable[[Path], str] | None,
    fails: bool,
) -> None:
    """Neither weights nor running statistics, random numbers, gradients or the mode."""
    encoder = CLIPEncoder(make(tmp_path) if make else str(tiny_clip))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    numbers = torch.get_rng_state()
    if fails:
        compiler.error = RuntimeError("no compiler")
        with pytest.raises(TrainingError):
            compile_for(encoder, compile="on")
    else:
        compile_for(encoder, compile="on")
    assert compiler.layers
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(module.training for module in encoder.modules())
    assert all(p.grad is None for p in encoder.parameters())
    assert before.keys() == encoder.state_dict().keys()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_without_a_compiler_training_goes_on_and_says_so(
    tiny_clip: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.error = RuntimeError("Cannot find a working triton installation.\nSee the manual.")
    monkeypatch.setattr(compiling, "_is_as_measured", lambda *_: True)
    monkeypatch.setattr(compiling, "_seconds", lambda *_: 1.0)
    encoder = CLIPEncoder(str(tiny_clip))
    said = compile_for(encoder)
    assert said.splitlines()[-1] == (
        "warning: torch cannot compile the model's layers (Cannot find a working triton "
        "installation.): steps take longer"
    )
    assert encoder.train()(PIXELS).requires_grad  # by the layers as they were


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Cannot find a working triton installation.\nSee the manual."),
        RuntimeError("backend='inductor' raised:\nCannot find a working triton installation."),
        torch.OutOfMemoryError("Cannot find a working triton installation."),
    ],
)
def test_without_a_compiler_demanding_it_is_an_error(
    settings: Settings, compiler: Compiler, error: Exception
) -> None:
    compiler.error = error
    with pytest.raises(
        TrainingError, match=r"\(Cannot find a working triton installation\.\); set --compile off"
    ):
        train(settings(compile="on"))


def test_what_does_not_fit_uncompiled_is_told_as_that(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")

    monkeypatch.setattr(compiling, "forward_and_backward", too_large)
    monkeypatch.setattr(compiling, "only_tried", lambda *_: nullcontext())
    monkeypatch.setattr(compiling, "black", lambda *_: PIXELS)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    with pytest.raises(TrainingError, match=r"too little memory for 6 images .*--batch-memory 3"):
        compile_for(CLIPEncoder(str(tiny_clip)), GPU, chunk_size=6)


def test_evaluation_and_what_is_returned_are_not_compiled(
    settings: Settings, compiler: Compiler
) -> None:
    """Their batches have other sizes, each of which would be compiled."""
    watch = Watch()
    result = train(settings(compile="on", num_epochs=2, eval_batch_size=5), watch=watch)
    assert any("compiling" in note for note in watch.notes)
    assert compiler.sizes == [(8, True)] * (1 + len(watch.losses))  # tried once, then the steps
    assert all(module._compiled_call_impl is None for module in result.encoder.modules())


def test_what_is_uncompiled_for_a_while_is_compiled_again(
    tiny_clip: Path, compiler: Compiler
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    compile_for(encoder, compile="on")
    compiler.sizes.clear()
    with uncompiled(encoder):
        encoder(PIXELS)
    assert compiler.sizes == []
    encoder(PIXELS)
    assert compiler.sizes == [(12, True)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler has some of its own
@pytest.mark.parametrize(("chunk_size", "patch_dropout"), [(12, 0.0), (5, 0.25)])
def test_compiled_layers_have_the_gradients_of_plain_ones(
    tiny_clip: Path, chunk_size: int, patch_dropout: float
) -> None:
    """With dropout, with patches that are left out, with a last chunk of another size."""
    gradients = []
    state = torch.get_rng_state()
    for how in ("off", "on"):
        torch.set_rng_state(state)
        learner = step_of(tiny_clip, chunk_size)
        if patch_dropout:
            drop_patches(learner.encoder, patch_dropout)
        compile_layers(
            TrainConfig(compile=how), learner.encoder, learner.runtime, SilentProgress(),
            chunk_size=chunk_size, part_size=12, steps_left=1,
        )  # fmt: skip
        learner.take(PIXELS, LABELS)
        gradients.append(gradients_of(learner))
    plain, compiled = gradients
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        assert torch.allclose(compiled[name], gradient, rtol=1e-4, atol=1e-6), name
    assert any(not torch.equal(compiled[name], plain[name]) for name in plain)
