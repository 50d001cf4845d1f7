"""Memory of the machine: how much is free, and what happens where it runs out."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from lookalike.errors import ConfigError, LookalikeError

_ALWAYS_THERE = 2**28  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_GLIBC_TOLD = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_",
               "MALLOC_TOP_PAD_"}  # fmt: skip
_CONTROL_GROUP = Path("/sys/fs/cgroup")  # of a container
# Its limit and use, below that folder: of control groups version 2, and of version 1.
_LIMIT_AND_USE = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@contextmanager
def enough_memory(kind: type[LookalikeError], what: str, advice: str) -> Iterator[None]:
    """Inside the block a device that runs out of memory raises an error of that kind, which says
    `what (torch's own words); advice`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise kind(f"{what} ({str(error).partition('.')[0]}); {advice}") from error


def check_memory(device: torch.device, num_bytes: int, what: str, advice: str) -> None:
    """Raises ConfigError, before it is taken, where `what` would take more memory than is free."""
    if num_bytes < _ALWAYS_THERE or num_bytes <= (free := free_bytes(device)):
        return
    raise ConfigError(f"{what} would take {num_bytes / 1e9:,.1f} GB of memory, of which {device} "
                      f"has {free / 1e9:,.1f} GB free; {advice}")  # fmt: skip


def free_bytes(device: torch.device) -> int:
    """Returns the memory that this process can still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    give_back_freed_memory()
    available: int = psutil.virtual_memory().available
    for names in _LIMIT_AND_USE:
        limit, used = (_CONTROL_GROUP / name for name in names)
        try:
            left = int(limit.read_text()) - int(used.read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return min(available, left + _cached_files(limit.with_name("memory.stat")))
    return available


def _cached_files(stat: Path) -> int:
    """Returns bytes of files in a container's cache, which give way to anything else."""
    try:
        sizes = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):  # no such file, or not of this form
        return 0
    # Version 1 has the group's own numbers under the plain names, and all below it as totals.
    return sum(
        int(sizes.get(f"total_{name}", sizes.get(name, 0)))
        for name in ("inactive_file", "active_file")
    )


def keep_freed_memory() -> None:
    """Has glibc reuse large blocks of memory rather than give each back to the system.

    The system clears every page of the next one again: CLIP ViT-B/16 spent a third of its training
    step on that (docs/experiments.md). A step's peak memory is the same to within a twentieth.
    """
    mallopt, tunables = _of_glibc("mallopt"), os.environ.get("GLIBC_TUNABLES", "")
    is_told = "glibc.malloc." in tunables or not _GLIBC_TOLD.isdisjoint(os.environ)
    if mallopt is not None and not is_told:
        mallopt(_M_MMAP_MAX, 0)  # none
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def give_back_freed_memory() -> None:
    """Has glibc give back to the system what it keeps, so that it counts as free."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """Returns a function of glibc's own; None under another library, such as musl."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
