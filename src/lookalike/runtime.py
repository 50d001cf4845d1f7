"""Where and how the arithmetic runs: device, precision, worker processes, seed.

One `Runtime` is made at the top of a command and handed down; nothing reads a global.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lookalike.errors import ConfigError

Precision = Literal["bf16", "fp16", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The machine as one command uses it."""

    device: torch.device
    precision: Precision
    num_workers: int

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside the block the model computes in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that fp16 gradients do not underflow; idle in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def describe(self) -> str:
        """One line for the start of a run: `cuda (NVIDIA H100) · bf16 · 8 workers`."""
        name = str(self.device)
        if self.device.type == "cuda":
            name += f" ({torch.cuda.get_device_name(self.device)})"
        elif self.device.type == "cpu":
            name += f" ({torch.get_num_threads()} threads)"
        readers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        return f"{name} · {self.precision} · {readers}"


def make_runtime(
    device: str = "auto", precision: str = "auto", num_workers: int | Literal["auto"] = "auto"
) -> Runtime:
    """Finds the device and the precision that suits it.

    Args:
        device: "auto" (CUDA, else MPS, else XPU, else CPU) or what `torch.device` takes.
        precision: "auto", "bf16", "fp16" or "fp32".
        num_workers: processes that read pictures, or "auto".

    Raises:
        ConfigError: the device does not exist here, or cannot compute in that precision.
    """
    chosen = _find_device() if device == "auto" else _named_device(device)
    workers = _default_workers(chosen) if num_workers == "auto" else int(num_workers)
    return Runtime(chosen, _find_precision(precision, chosen), workers)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block torch's own random numbers (dropout, new weights) start from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def random_state() -> dict[str, Any]:
    """The state of torch's random generators, to be put back by `restore_random_state`."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts torch's random generators back; a GPU's state is skipped where the GPU is gone."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def _default_workers(device: torch.device) -> int:
    """On a CPU the model needs the cores itself; a GPU leaves them to the readers."""
    cores = os.cpu_count() or 1
    return max(1, min(4, cores // 2)) if device.type == "cpu" else min(16, cores)


def _find_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("cpu")


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # the only question every backend answers alike
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigError(
            f"device {name!r} cannot be used here ({first_line}); "
            f"use --device auto, which takes {_find_device().type!r}"
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
    if wanted != "auto":
        raise ConfigError(f"precision is {wanted!r}; expected auto, bf16, fp16 or fp32")
    if _has_fast_bf16(device):
        return "bf16"
    if device.type != "cpu" and _can_autocast(device, torch.float16):
        return "fp16"
    return "fp32"


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has units for bf16, rather than an emulation that is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return _cpu_has_bf16_units()
    return _can_autocast(device, torch.bfloat16)


def _cpu_has_bf16_units() -> bool:
    # torch.cpu asks the processor itself; the names are private, so their absence means no.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def _can_autocast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a small product under autocast comes out in `dtype`."""
    try:
        with torch.autocast(device.type, dtype=dtype):
            ones = torch.ones(8, 8, device=device)
            return (ones @ ones).dtype == dtype
    except (RuntimeError, TypeError, NotImplementedError):
        return False
