"""TensorBoard: event files on the disk."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lookalike.files import shown
from lookalike.tracking.tracker import TrackedRun


class TensorBoardTracker:
    """Writes to `tensorboard/PROJECT/RUN` in the run's tracking folder."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make_writer = SummaryWriter

    def begin(self, run: TrackedRun) -> str:
        """Opens the run, and hides what was written of steps that a resumed run does anew."""
        folder = run.folder / "tensorboard"
        self._writer = self._make_writer(
            str(folder / _file_name(run.project) / _file_name(run.name)),
            purge_step=run.step + 1 if run.step else None,
            flush_secs=20,
        )
        code = "\n".join(f"    {name}: {value}" for name, value in run.config.items())
        self._writer.add_text("config", code, run.step)
        self._writer.flush()
        return f"tensorboard --logdir {shown(folder)}"

    def log_step(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def log_epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self.log_step(epoch, numbers)
        self._writer.flush()

    def finish(self, *, whole: bool) -> None:
        self._writer.close()


def _file_name(name: str) -> str:
    """Returns a name that every file system takes."""
    return re.sub(r"[^\w.-]+", "_", name)
