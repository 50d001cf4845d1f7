"""The device, its precision, the readers: made once, in a command, and handed down."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

import psutil
import torch
from torch import nn

from lookalike.errors import ConfigError, ModelError, first_line, missing_extra
from lookalike.progress import counted
from lookalike.runtime.memory import enough_memory, keep_freed_memory
from lookalike.runtime.world import ALONE, World

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Precision = Literal["bf16", "fp16", "fp32", "int8"]
_FIRST_SCALE = 2.0**16  # of the gradient of a whole batch
_READERS_PER_CORE, _READERS_AT_LEAST = 8, 32
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The machine as one command uses it."""

    device: torch.device
    precision: Precision
    num_workers: int
    world: World = ALONE

    def place(self, module: ModuleT) -> ModuleT:
        """Moves a model to the device; raises ModelError where it does not fit."""
        what = f"{self.device} has too little memory for the model"
        advice = "use a smaller one, free some memory, or set --device cpu"
        with enough_memory(ModelError, what, advice):
            return module.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside the block the model computes in the chosen precision; int8, which takes another
        form of it (`model/inference.py`), means fp32 here.
        """
        if self.precision in _DTYPES:
            return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])
        return nullcontext()

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that fp16 gradients do not underflow; idle in other precisions.

        Each rank goes backward with its part of the gradient times the world size, of which then
        the mean is taken: a smaller scale makes up for it.
        """
        scale, is_needed = _FIRST_SCALE / self.world.size, self.precision == "fp16"
        return torch.amp.GradScaler(self.device.type, init_scale=scale, enabled=is_needed)

    def describe(self) -> str:
        """Returns a line for the start of a run: `cuda (NVIDIA H100) · bf16 · 8 workers`."""
        name = str(self.device)
        if self.device.type == "cuda":
            name += f" ({torch.cuda.get_device_name(self.device)})"
        elif self.device.type == "cpu":
            name += f" ({counted(torch.get_num_threads(), 'thread')})"
        several = f"{self.world.size} processes · " if self.world.size > 1 else ""
        return f"{several}{name} · {self.precision} · {counted(self.num_workers, 'worker')}"


def make_runtime(
    device: str = "auto",
    precision: str = "auto",
    num_workers: int | Literal["auto"] = "auto",
    world: World = ALONE,
) -> Runtime:
    """Finds the device and the precision that suits it.

    On a CPU under glibc the whole process keeps from then on the memory that it frees, for its next
    use, unless a variable of the environment tells glibc what to keep.

    Args:
        device: "auto" (CUDA, else MPS, else XPU, else CPU) or what `torch.device` takes.
        precision: "auto", "bf16", "fp16", "fp32", or "int8", which is for embedding alone.
        num_workers: readers of images, of each process, or "auto".
        world: of several on a machine each takes a GPU of its own, and its share of the cores.

    Raises:
        ConfigError: the device does not exist here, or cannot compute in that precision; or there
            are fewer GPUs than processes; or more readers than the cores could ever serve.
        MissingExtraError: int8 is wanted, and OpenVINO is not installed.
    """
    num_workers = _bounded(num_workers)
    chosen = _find_device() if device == "auto" else _named_device(device)
    if world.size > 1:
        chosen = _own_device(chosen, world)
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # as torchrun sets it when nobody does
            cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // world.local_size))
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # pinned memory and capability questions ask the current one
    if chosen.type == "cpu":
        keep_freed_memory()
    if num_workers == "auto":
        cores = max(1, (os.cpu_count() or 1) // world.local_size)
        # On a CPU the model needs the cores itself; a GPU leaves them to the readers.
        num_workers = max(1, min(4, cores // 2)) if chosen.type == "cpu" else min(16, cores)
    return Runtime(chosen, _find_precision(precision, chosen), int(num_workers), world)


def _bounded(num_workers: int | Literal["auto"]) -> int | Literal["auto"]:
    """Returns the number of readers, or raises where it is beyond what the cores could serve."""
    cores = os.cpu_count() or 1
    most = max(_READERS_AT_LEAST, _READERS_PER_CORE * cores)
    if num_workers != "auto" and num_workers > most:
        raise ConfigError(
            f"num_workers is {num_workers}; at most {most} on this machine with "
            f"{counted(cores, 'core')}: each is a process of about 300 MB, and more of them than "
            f"cores read faster only where files come slowly. {min(16, cores)} or auto will do"
        )
    return num_workers


def _own_device(device: torch.device, world: World) -> torch.device:
    """Returns the device of this one of several processes."""
    if device.type == "cpu":
        return device
    if device != torch.device("cuda"):
        raise ConfigError(
            f"the device is {device}, and {world.size} processes cannot share it; give each "
            "a GPU of its own with --device cuda, or use --device cpu"
        )
    num_gpus = torch.cuda.device_count()
    if world.local_rank >= num_gpus:
        raise ConfigError(
            f"{world.local_size} processes run on this machine, which has {num_gpus} GPUs; start "
            f"no more: torchrun --nproc-per-node {num_gpus}, or use --device cpu"
        )
    return torch.device("cuda", world.local_rank)


def _find_device() -> torch.device:
    kinds = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu, "cpu": torch.cpu}
    return torch.device(next(kind for kind, backend in kinds.items() if backend.is_available()))


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"there is no device {name!r}; use --device auto, or cuda, cuda:1, mps, xpu or cpu"
        ) from error
    try:
        torch.empty(1, device=device)  # the only question every backend answers alike
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here ({first_line(error)}); "
            f"use --device auto, which uses {_find_device().type!r}"
        ) from error
    if device.type == "meta":
        raise ConfigError("device 'meta' computes nothing; use --device auto")
    return device


def _find_precision(wanted: str, device: torch.device) -> Precision:
    if wanted == "fp32":
        return "fp32"
    if wanted in ("bf16", "fp16"):
        if not _can_autocast(device, _DTYPES[wanted]):
            raise ConfigError(f"{device.type} cannot compute in {wanted}; use --precision auto")
        return "bf16" if wanted == "bf16" else "fp16"
    if wanted == "int8":
        if device.type != "cpu":
            raise ConfigError(f"int8 is for a CPU, and the device is {device.type}; set --device "
                              "cpu, or --precision auto")  # fmt: skip
        if find_spec("openvino") is None:
            raise missing_extra("precision int8", "OpenVINO", "int8")
        return "int8"
    if wanted != "auto":
        raise ConfigError(f"precision is {wanted!r}; expected auto, bf16, fp16, fp32 or int8")
    if has_fast_bf16(device):
        return "bf16"
    if device.type != "cpu" and _can_autocast(device, torch.float16):
        return "fp16"
    return "fp32"


def has_fast_bf16(device: torch.device) -> bool:
    """Returns True if the device has units for bf16, not an emulation slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return _cpu_has("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return _can_autocast(device, torch.bfloat16)


def cpu_gains_by_int8() -> bool:
    """Returns True if the processor has units for int8, and none (AMX) as fast in bf16."""
    return _cpu_has("_is_vnni_supported", "_is_avx512_vnni_supported") and not _cpu_has(
        "_is_amx_tile_supported"
    )


def _cpu_has(*names: str) -> bool:
    """Returns True if one of torch's private questions to the processor is there and says yes."""
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def _can_autocast(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns True if a small product under autocast comes out in `dtype`."""
    try:
        with torch.autocast(device.type, dtype=dtype):
            ones = torch.ones(8, 8, device=device)
            return (ones @ ones).dtype == dtype
    except (RuntimeError, TypeError, NotImplementedError):
        return False
