"""Layers compiled by torch, which puts their small operations together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lookalike.config import TrainConfig
from lookalike.errors import ModelError, TrainingError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import blocks
from lookalike.progress import Progress
from lookalike.runtime.device import Runtime
from lookalike.runtime.memory import enough_memory
from lookalike.training.step.batch_memory import black, forward_and_backward, only_tried
from lookalike.training.step.gradient_cache import split_in_chunks

_PAYS_S = 120  # of training, in which compiling is made up for (benchmarks/results/gpu.md)


def compile_layers(
    config: TrainConfig,
    encoder: CLIPEncoder,
    runtime: Runtime,
    progress: Progress,
    *,
    chunk_size: int,
    part_size: int,
    steps_left: int,
) -> None:
    """Has torch compile the blocks of an encoder for training, if `config.compile` says so.

    Blocks of a transformer are the same code, which is compiled once. It is tried here, on black
    images: what cannot be compiled fails before the first step. "auto" means on a GPU, where the
    steps left take minutes and the encoder is of the kind that was measured.

    Args:
        chunk_size: images that go through at a time.
        part_size: images of a step in each process.

    Raises:
        ModelError: it is on, and the encoder has no blocks that can be found.
        TrainingError: it is on, and torch cannot do it here; or there is too little memory for
            what is trained, compiled or not.
    """
    if config.compile == "off" or steps_left <= 0:
        return
    side = encoder.train_side(config.train_size)
    if config.compile == "auto":
        if not _is_as_measured(config, encoder, runtime):
            return
        first = min(chunk_size, part_size)
        if _seconds(encoder, runtime, side, first) / first * part_size * steps_left < _PAYS_S:
            return
    progress.note("compiling the model's layers, up to a minute (--compile off trains without)")
    start = time.perf_counter()
    chunks = split_in_chunks(torch.empty(part_size), chunk_size, runtime.world)
    failure = _failure(encoder, runtime, side, [len(chunk) for chunk in chunks])
    reason = next(filter(None, runtime.world.all_gather_objects(failure)), None)
    if reason is None:
        progress.note(f"compiled in {time.perf_counter() - start:.0f} s")
        return
    leave_uncompiled(encoder)
    if config.compile == "on":
        raise TrainingError(
            f"torch cannot compile the layers of {encoder.model_name} here ({reason}); set "
            "--compile off"
        )
    progress.warn(f"torch cannot compile the model's layers ({reason}): steps take longer")


@contextmanager
def uncompiled(encoder: CLIPEncoder) -> Iterator[None]:
    """Inside the block layers compute as they were before: evaluation has batches of other sizes,
    each of which would be compiled anew.
    """
    compiled = leave_uncompiled(encoder)
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def leave_uncompiled(encoder: CLIPEncoder) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """Takes back what `compile_layers` did, for which there is no public way, and returns it."""
    compiled = [
        (module, module._compiled_call_impl)
        for module in encoder.modules()
        if module._compiled_call_impl is not None
    ]
    for module, _ in compiled:
        module._compiled_call_impl = None
    return compiled


def _is_as_measured(config: TrainConfig, encoder: CLIPEncoder, runtime: Runtime) -> bool:
    """Returns true for a transformer, trained whole in bf16 on one GPU, in the plain way."""
    special = (
        config.lora_rank, config.gradient_checkpointing, config.frozen_layers,
        config.distillation_weight, runtime.world.size > 1,
    )  # fmt: skip
    if any(special) or runtime.device.type != "cuda" or runtime.precision != "bf16":
        return False
    try:
        layers = blocks(encoder, "compile")
    except ModelError:
        return False
    shapes = {tuple((name, p.shape) for name, p in one.named_parameters()) for one in layers}
    return len(shapes) == 1  # those of stages differ, and each would be compiled


def _seconds(encoder: CLIPEncoder, runtime: Runtime, side: int | None, size: int) -> float:
    """Returns what so many images take forwards and backwards, not compiled, on a GPU."""
    what = f"{runtime.device} has too little memory for {size} images at a time"
    advice = f"set --batch-memory {max(1, size // 2)}, or add --gradient-checkpointing"
    with enough_memory(TrainingError, what, advice), only_tried(encoder, runtime):
        pixels = black(encoder, runtime, side, size)
        for _ in range(2):  # the first one warms up
            torch.cuda.synchronize(runtime.device)
            start = time.perf_counter()
            forward_and_backward(encoder, runtime, pixels)
            torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - start


def _failure(
    encoder: CLIPEncoder, runtime: Runtime, side: int | None, sizes: Sequence[int]
) -> str | None:
    """Compiles for chunks of these sizes; returns why that cannot be done, or None."""
    # The hook of patch dropout breaks what is compiled.
    layers = [one for one in blocks(encoder, "compile") if not one._forward_pre_hooks]
    try:
        torch.compiler.reset()  # another run in this process may have filled what it keeps
        for layer in layers:
            # Random numbers as without: of a chunk they are drawn twice, first without gradients.
            layer.compile(dynamic=False, options={"fallback_random": True})
        with only_tried(encoder, runtime):
            for size in dict.fromkeys(sizes):
                forward_and_backward(encoder, runtime, black(encoder, runtime, side, size))
            for size in dict.fromkeys(sizes[:-1]):  # these go through without gradients first
                with torch.no_grad(), runtime.autocast():
                    encoder(black(encoder, runtime, side, size))
    except Exception as error:  # compilers raise nearly everything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        is_wrapped = lines[0].endswith("raised:") and len(lines) > 1
        return lines[1] if is_wrapped else lines[0]
    return None
