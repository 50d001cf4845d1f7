"""The course of one run, handed to a tracker whose failures end no run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import TracebackType

from lookalike.config import TrainConfig
from lookalike.errors import LookalikeError, TrackerError
from lookalike.progress import Progress
from lookalike.tracking.tracker import TrackedRun, Tracker

_TRACKERS = {
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandbTracker",
    "mlflow": "MlflowTracker",
    "trackio": "TrackioTracker",
}
_ADVICE = "mend that, leave out --track, or go on without it: --track-optional"


def make_tracker(config: TrainConfig, progress: Progress) -> Tracker | None:
    """The tracker that a configuration asks for, not begun yet; None where it asks for none.

    With `config.track_optional` what keeps a tracker from being used is a warning, and None.

    Raises:
        MissingExtraError: its package is not installed.
        TrackerError: it needs a login that is not there.
    """
    if config.track == "none":
        return None
    try:
        home = import_module(f"lookalike.tracking.{config.track}")
        tracker: Tracker = getattr(home, _TRACKERS[config.track])()
    except LookalikeError as error:
        if not config.track_optional:
            raise
        progress.warn(f"this run is not tracked: {error}")
        return None
    return tracker


class Tracking:
    """What training calls, step by step and epoch by epoch; with None it does nothing.

    A tracker that fails once a run has begun costs no more than one warning: it is left alone
    until the next epoch is measured, and tried again then. As a context it finishes the run.

    Args:
        tracker: made by `make_tracker`.
        config: of the run.
        run: the run's id, which a resumed one keeps.
        step: steps done before now.
        progress: where warnings go.

    Raises:
        TrackerError: the run cannot be opened, and `config.track_optional` is off.
    """

    def __init__(
        self,
        tracker: Tracker | None,
        config: TrainConfig,
        *,
        run: str,
        step: int,
        progress: Progress,
    ) -> None:
        self._tracker, self._progress, self._track = tracker, progress, config.track
        self._failing = self._warned = False
        self._last_step_at: float | None = None
        if tracker is not None:
            self._begin(tracker, config, run, step)

    def _begin(self, tracker: Tracker, config: TrainConfig, run: str, step: int) -> None:
        out = Path(config.out).resolve()
        about = TrackedRun(
            id=run,
            name=f"{out.name}-{run[:8]}",
            project=config.track_project,
            folder=out / "tracking",
            config=asdict(config),
            step=step,
        )
        try:
            where = tracker.begin(about)
        # What trackers raise is of many kinds, most of them their own.
        except Exception as error:
            what = f"{self._track} cannot open the run: {_told(error)}"
            if not config.track_optional:
                raise TrackerError(f"{what}; {_ADVICE}") from error
            self._progress.warn(f"this run is not tracked: {what}")
            self._tracker = None
        else:
            self._progress.note(f"track    {self._track} · {where}")

    def step(self, step: int, num_images: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step, and from the time since the last one how fast it went.

        Args:
            step: how many are done with it.
            num_images: that went into it.
            numbers: by name.
        """
        now = time.monotonic()
        if self._last_step_at is not None:
            seconds = max(now - self._last_step_at, 1e-9)
            numbers = {**numbers, "images_per_s": num_images / seconds}
        self._last_step_at = now
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

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._tell(lambda tracker: tracker.finish(whole=kind is None))

    def _tell(self, message: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            message(self._tracker)
        # Whatever a tracker fails of, such as a network or a disk: training must not end with it.
        except Exception as error:
            if not self._warned:
                self._progress.warn(
                    f"{self._track} failed, and misses a part of this run, which goes on: "
                    f"{_told(error)}"
                )
            self._failing = self._warned = True
        else:
            self._failing = False


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Returns the numbers that can be drawn: a median rank can be infinite."""
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _told(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
