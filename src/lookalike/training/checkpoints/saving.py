"""A run's checkpoints: when they are written, and which of them stay."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.config import TrainConfig
from lookalike.errors import OutputError
from lookalike.evaluation.protocol import Holdout
from lookalike.files import shown
from lookalike.progress import Progress
from lookalike.training.checkpoints.checkpoint import restore_checkpoint, save_checkpoint
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.checkpoints.resume import Resumed
from lookalike.training.data import TrainingData
from lookalike.training.history import TrainingState
from lookalike.training.step.step import TrainingStep


class Autosave:
    """Tells when the next checkpoint in the middle of an epoch is due.

    Args:
        minutes: from one checkpoint, of whatever kind, to the next; None: never.
        clock: seconds that only ever rise.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._minutes, self._clock = minutes, clock
        self.restart()

    def restart(self) -> None:
        """Counts anew from now: something was saved, or could not be."""
        self._since_s = self._clock()

    def is_due(self) -> bool:
        """Returns true once the time has come."""
        return self._minutes is not None and self._clock() - self._since_s >= 60 * self._minutes


@dataclass(eq=False)
class Checkpoints:
    """Writes the checkpoints of a run, and puts it back where one of them was written.

    `newest` is the one written or resumed from last; `epochs` are those of whole epochs that were
    written here and are still there.

    Of several processes each must call every method; the first one writes.
    """

    config: TrainConfig
    folder: RunFolder
    step: TrainingStep
    data: TrainingData
    holdout: Holdout | None
    progress: Progress
    newest: Path | None = None
    epochs: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._world = self.step.runtime.world
        self._autosave = Autosave(self.config.autosave_minutes)

    def restore(self, resumed: Resumed) -> TrainingState:
        """Puts the run back where it was saved, and returns how far it had come.

        Raises:
            CheckpointError: the checkpoint does not fit the model or the training images.
        """
        self.newest = resumed.path
        return restore_checkpoint(resumed.content, resumed.path, step=self.step, data=self.data)

    def save_epoch(self, state: TrainingState) -> None:
        """Writes the checkpoint of the epoch just done; one of its middle is outdated now."""
        path = self.folder.epoch_file(state.epoch)
        self._save(path, state)
        self.epochs.append(path)
        self._world.on_main(lambda: self.folder.interrupted.unlink(missing_ok=True))

    def save_interrupted(self, state: TrainingState) -> None:
        """Writes the checkpoint of the middle of an epoch."""
        self._save(self.folder.interrupted, state)

    def autosave(self, state: TrainingState) -> None:
        """Writes a checkpoint of the middle of the epoch where one is due.

        Where that fails the run goes on: there may be room by the end of the epoch.
        """
        if state.step == self.data.steps_per_epoch:
            return
        if not self._world.any_of(self._autosave.is_due()):  # each looks at its own clock
            return
        try:
            self.save_interrupted(state)
        except OutputError as error:
            self.progress.warn(f"no checkpoint in the middle of the epoch: {error}")
            self._autosave.restart()

    def keep_newest(self, epoch: int, *, best: int | None) -> None:
        """Removes what need not be kept once `epoch` is measured, and the epoch `best` known."""
        keep = self.config.keep
        removed = self._world.on_main(lambda: self.folder.keep_newest(epoch, keep, best=best))
        self.epochs = [path for path in self.epochs if path not in removed]

    def how_to_go_on(self) -> str:
        """Returns the newest checkpoint, and the command that goes on from it."""
        path, command = shown(shlex.quote(os.fspath(self.newest or ""))), "lookalike train"
        if self._world.size > 1:
            command = f"torchrun --nproc-per-node {self._world.local_size} -m {command}"
        return f"{shown(self.newest or '')}. Go on with: {command} --resume {path}"

    def _save(self, path: Path, state: TrainingState) -> None:
        self._world.on_main(self.folder.make_room)
        save_checkpoint(path, state, self.config, self.step, self.data, self.holdout)
        self.newest = path
        self._autosave.restart()
