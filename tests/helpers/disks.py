"""Disks that are full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

posix_only = pytest.mark.skipif(os.name != "posix", reason="a limit that POSIX systems have")


@contextmanager
def disk_with_room_for(num_bytes: int) -> Iterator[None]:
    """Inside the block no file can grow larger; Python ignores the signal that comes with it."""
    if sys.platform == "win32":
        raise NotImplementedError
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
