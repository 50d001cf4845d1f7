"""The course of one run, handed to a tracker whose failures end no run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from lookalike.config import TrainConfig
from lookalike.errors import LookalikeError, TrackerError, missing_extra
from lookalike.progress import Progress
from lookalike.tracking.tracker import TrackedRun, Tracker

_TRACKERS = {  # the class in the module of that name, and what it needs
    "tensorboard": ("TensorBoardTracker", "TensorBoard"),
    "wandb": ("WandbTracker", "Weights & Biases"),
    "mlflow": ("MlflowTracker", "MLflow"),
    "trackio": ("TrackioTracker", "Trackio"),
}
_ADVICE = "fix that, leave out --track, or make tracking optional: --track-optional"


def make_tracker(config: TrainConfig, progress: Progress) -> Tracker | None:
    """Returns the tracker that a configuration asks for, not begun yet; None for none.

    With `config.track_optional` it warns of a tracker that cannot be used, and returns None.

    Raises:
        MissingExtraError: its package is not installed.
        TrackerError: it needs a login that is not there.
    """
    if config.track == "none":
        return None
    try:
        return _make(config.track)
    except LookalikeError as error:
        if not config.track_optional:
            raise
        progress.warn(f"this run is not tracked: {error}")
        return None


def _make(kind: str) -> Tracker:
    name, package = _TRACKERS[kind]
    make: Callable[[], Tracker] = getattr(import_module(f"lookalike.tracking.{kind}"), name)
    try:
        return make()
    except ImportError as error:
        raise missing_extra(f"track {kind}", package, kind) from error


class Tracking:
    """Tells a tracker of a run, step by step and epoch by epoch; with None it does nothing.

    A tracker that fails once a run has begun costs no more than one warning: it is left alone
    until the next epoch is measured, and tried again then. As a context it finishes the run,
    whose id is `run`, with `step` steps done before now.

    Raises:
        TrackerError: the run cannot be opened, and `config.track_optional` is off.
    """

    def __init__(
        self, tracker: Tracker | None, config: TrainConfig,
        *, run: str, step: int, progress: Progress,
    ) -> None:  # fmt: skip
        self._tracker, self._progress, self._track = tracker, progress, config.track
        self._failing = self._warned = False
        self._last_step_at: float | None = None
        if tracker is None:
            return
        out = Path(config.out).resolve()
        name, folder = f"{out.name}-{run[:8]}", out / "tracking"
        about = TrackedRun(run, name, config.track_project, folder, asdict(config), step)
        try:
            where = tracker.begin(about)
        # What trackers raise is of many kinds, most of them their own.
        except Exception as error:
            what = f"{self._track} cannot open the run: {_told(error)}"
            if not config.track_optional:
                raise TrackerError(f"{what}; {_ADVICE}") from error
            progress.warn(f"this run is not tracked: {what}")
            self._tracker = None
        else:
            progress.note(f"track    {self._track} · {where}")

    def step(self, step: int, num_images: int, numbers: Mapping[str, float]) -> None:
        """Logs numbers of the `step`-th step, and from the time since the last how fast it went."""
        before, self._last_step_at = self._last_step_at, time.monotonic()
        if before is not None:
            seconds = max(self._last_step_at - before, 1e-9)
            numbers = {**numbers, "images_per_s": num_images / seconds}
        if not self._failing:
            named = {f"train/{name}": value for name, value in _finite(numbers).items()}
            self._tell(lambda tracker: tracker.log_step(step, named))

    def epoch(self, epoch: int, loss: float | None, metrics: Mapping[str, float] | None) -> None:
        """Logs an epoch: the mean loss of its steps, and its metrics."""
        self._last_step_at = None  # the time that measuring took is no step's
        named = {f"test/{name}": value for name, value in _finite(metrics or {}).items()}
        if loss is not None:
            named["epoch/loss"] = loss
        self._tell(lambda tracker: tracker.log_epoch(epoch, named))

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._tell(lambda tracker: tracker.finish(whole=kind is None))

    def _tell(self, message: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            message(self._tracker)
        # Whatever a tracker fails of, such as a network or a disk: training must not end with it.
        except Exception as error:
            if not self._warned:
                what = "failed and misses part of this run, which continues"
                self._progress.warn(f"{self._track} {what}: {_told(error)}")
            self._failing = self._warned = True
        else:
            self._failing = False


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Returns the numbers that can be drawn: a median rank can be infinite."""
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _told(error: Exception) -> str:
    """Returns an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
