"""Trackio: a database on the disk, or the Space or server that its own variables name."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

from lookalike.files import shown
from lookalike.tracking.tracker import TrackedRun


class TrackioTracker:
    """Knows a run again by its name. Trackio reads where to write once in a process: when it is
    first imported.
    """

    def __init__(self) -> None:
        if find_spec("trackio") is None:
            raise ModuleNotFoundError("No module named 'trackio'")

    def begin(self, run: TrackedRun) -> str:
        """Writes to TRACKIO_DIR, else to `trackio` in the run's tracking folder."""
        if not os.environ.get("TRACKIO_DIR"):
            os.environ["TRACKIO_DIR"] = str(run.folder / "trackio")
        import trackio
        from trackio.utils import TRACKIO_DIR

        self._trackio: Any = trackio
        with redirect_stdout(io.StringIO()):  # it prints, and stdout is for results
            self._run: Any = trackio.init(
                project=run.project, name=run.name, config=dict(run.config), resume="allow",
                embed=False, auto_log_cpu=False, auto_log_gpu=False,
            )  # fmt: skip
        return f"trackio show, where TRACKIO_DIR={shown(TRACKIO_DIR)}"

    def log_step(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def log_epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=epoch)

    def finish(self, *, whole: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()
