"""A decoder with bugs, in a module of its own: worker processes import it, and nothing else."""

from __future__ import annotations

import os
import signal
import time

from lookalike.checks.reading.image import ImageFacts
from lookalike.data.images import ImageRef, shown_path


def crash_or_hang(ref: ImageRef, max_megapixels: float) -> ImageFacts:
    """Ends its process over one file, never ends over another, and reads the rest."""
    path = shown_path(ref)
    if path.endswith("1.png"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.endswith("3.png"):
        time.sleep(600)
    return ImageFacts(sha256=path.encode())


def die(ref: ImageRef, max_megapixels: float) -> ImageFacts:
    """Ends its process over every file, as where memory has run out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
