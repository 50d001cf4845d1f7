"""A reader with bugs, in a module of its own: the processes that read import it, and no test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lookalike.data.images import Unreadable
from lookalike.data.reading.reader import Batch, Request
from lookalike.errors import DataError

WAYS: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "left": lambda: os._exit(3),
    "hung": lambda: time.sleep(600),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


class TroubledReader:
    """Reads images of one pixel, whose value is their position; `trouble` says what happens over
    some: a way to end of `WAYS`, each time or ("once") the first time, or "bug", or "error".
    """

    def __init__(self, trouble: Mapping[int, str], folder: Path, side: int = 1) -> None:
        self.trouble, self.folder, self.side = dict(trouble), folder, side
        self.begins: Callable[[int], None] = lambda _: None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "begins"}

    def path_of(self, index: int) -> str:
        return f"photos/{index}.jpg"

    def read(self, request: Request, given_up: Mapping[int, str]) -> Batch:
        read = [index for index in request.indices if index not in given_up]
        for index in read:
            self.begins(index)
            self._meet(index)
        bad = [Unreadable(self.path_of(i), given_up[i]) for i in request.indices if i in given_up]
        shape = (-1, 3, self.side, self.side)
        pixels = torch.tensor(read, dtype=torch.uint8).view(-1, 1, 1, 1).expand(shape)
        return Batch(pixels.contiguous(), read, bad, [])

    def _meet(self, index: int) -> None:
        way, _, once = self.trouble.get(index, "").partition(" ")
        if not way or (once and (self.folder / f"met {index}").exists()):
            return
        (self.folder / f"met {index}").touch()
        if way == "bug":
            raise AttributeError("a bug of ours")
        if way == "error":
            raise DataError("pyarrow is not there")
        WAYS[way]()
