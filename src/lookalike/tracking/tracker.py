"""The seam between training and the trackers: what a tracker is told, and about which run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """A run that begins, or goes on: then with the `id` it began with, and `step` steps done.

    People read its `name`; it is filed under `project`. Trackers that write to the disk do so in
    `folder`. `config` holds every option.
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
        ImportError: its package is not installed.
        TrackerError: it needs a login that is not there.
    """

    def begin(self, run: TrackedRun) -> str:
        """Opens the run, or takes it up where its id is known; returns where to look at it."""

    def log_step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs numbers of the step that was done `step`-th."""

    def log_epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Logs numbers of an epoch (0 is the baseline), and sends off everything so far."""

    def finish(self, *, whole: bool) -> None:
        """Closes the run; `whole` is False where it was stopped before its end."""
