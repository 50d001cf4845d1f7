"""Disks that are full, and memory that is scarce."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# For the code of a process of its own: getrusage would count what the process had that started it.
PEAK_BYTES = """
def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
posix_only = pytest.mark.skipif(os.name != "posix", reason="a limit that POSIX systems have")


@contextmanager
def disk_with_room_for(num_bytes: int) -> Iterator[None]:
    """Inside the block no file can grow larger; Python ignores the signal that comes with it."""
    with _limited("RLIMIT_FSIZE", num_bytes):
        yield


@contextmanager
def memory_limited_to(num_bytes: int) -> Iterator[None]:
    """Inside the block this process may take so much more than it has; for Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
    with _limited("RLIMIT_AS", used + num_bytes):
        yield


@contextmanager
def _limited(name: str, limit: int) -> Iterator[None]:
    if sys.platform == "win32":
        raise NotImplementedError
    import resource

    which = getattr(resource, name)
    before = resource.getrlimit(which)
    resource.setrlimit(which, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)
