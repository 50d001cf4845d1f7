"""Training and evaluation called as a user of the package does, and what they told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lookalike
from lookalike.commands.evaluate import EvaluateResult
from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.config.settings import config_from
from lookalike.progress import SilentProgress, Task
from lookalike.training.history import TrainResult

Settings = Callable[..., dict[str, Any]]
SILENT = SilentProgress()


class Watch(SilentProgress):
    """Keeps what is told, and acts when a given number of training steps is done."""

    def __init__(self, at_step: int | None = None, act: Callable[[], None] | None = None) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._at_step, self._act = at_step, act

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Task]:
        yield self

    def advance(self, amount: int = 1, **stats: float) -> None:
        if "loss" not in stats:
            return
        self.losses.append(stats["loss"])
        self.rates.append(stats["lr"])
        if len(self.losses) == self._at_step and self._act:
            self._act()


def train(
    settings: dict[str, Any], resume: Path | None = None, watch: Watch | None = None
) -> TrainResult:
    return lookalike.train(
        config_from(TrainConfig, settings), resume=resume, progress=watch or Watch()
    )


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def load(path: Path | None) -> dict[str, Any]:
    assert path is not None
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def assert_same_bits(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_bits(a, b)
    else:
        assert one == other


class Told(SilentProgress):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def evaluate(settings: dict[str, Any], told: Told | None = None) -> EvaluateResult:
    known = {k: v for k, v in settings.items() if k not in ("train", "learning_rate")}
    return lookalike.evaluate(config_from(EvaluateConfig, known), progress=told or Told())


def document(result: EvaluateResult, which: int) -> Any:
    return json.loads(result.files[which].read_text(encoding="utf-8"))
