"""The seam between training and the trackers: what a tracker is told, and about which run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it begins, or goes on.

    Args:
        id: of the run; a resumed run has the one it began with.
        name: what people read.
        project: what it is filed under.
        folder: trackers that write to the disk do so in here.
        config: every option of the run.
        step: steps done before now; 0 for a run that begins.
    """

    id: str
    name: str
    project: str
    folder: Path
    config: Mapping[str, Any]
    step: int


class Tracker(Protocol):
    """Keeps numbers of one run: those of a step over steps, those of an epoch over epochs.

    Making one imports its package and looks whether it can be used, and writes nothing. Any
    method may raise anything: `Tracking` keeps that from ending a run.

    Raises:
        MissingExtraError: its package is not installed.
        TrackerError: it needs a login that is not there.
    """

    def begin(self, run: TrackedRun) -> str:
        """Opens the run, or takes it up where its id is known; says where it can be looked at."""

    def log_step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of the step that was done `step`-th."""

    def log_epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Numbers of an epoch; 0 is the model as it came. Everything so far is sent off."""

    def finish(self, *, whole: bool) -> None:
        """Closes the run; `whole` is False where it was stopped before its end."""
