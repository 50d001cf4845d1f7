"""A run's checkpoints: what they hold, when they are written, and which of them stay."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from lookalike.config import TrainConfig
from lookalike.config.settings import kept_settings
from lookalike.errors import OutputError
from lookalike.evaluation.protocol import Holdout
from lookalike.evaluation.results import library_versions
from lookalike.files import shown, write_whole
from lookalike.model.lora import layers_under_lora, lora_matrices, plain_state_dict
from lookalike.model.pretrained import CHECKPOINT_FORMAT
from lookalike.progress import Progress
from lookalike.runtime.randomness import random_state
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.data import TrainingData
from lookalike.training.history import TrainingState
from lookalike.training.sharding import whole_tensors
from lookalike.training.step.step import TrainingStep


class Autosave:
    """Tells when the next checkpoint in the middle of an epoch is due: `minutes` after the one
    before, of whatever kind; None: never. The clock tells seconds that only ever rise.
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
    """Writes the checkpoints of a run.

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

    def save_epoch(self, state: TrainingState) -> None:
        """Writes the checkpoint of the epoch just done; one of its middle is outdated now.

        Raises:
            OutputError: it cannot be written; a file of that name from before is untouched.
        """
        path = self.folder.epoch_file(state.epoch)
        self._save(path, state)
        self.epochs.append(path)
        self._world.on_main(lambda: self.folder.interrupted.unlink(missing_ok=True))

    def save_interrupted(self, state: TrainingState) -> None:
        """Writes the checkpoint of the middle of an epoch; raises as `save_epoch` does."""
        self._save(self.folder.interrupted, state)

    def autosave(self, state: TrainingState) -> None:
        """Writes a checkpoint of the middle of the epoch where one is due."""
        if state.step == self.data.steps_per_epoch:
            return
        if not self._world.any_of(self._autosave.is_due()):  # each looks at its own clock
            return
        try:
            self.save_interrupted(state)
        except OutputError as error:  # there may be room by the end of the epoch
            self.progress.warn(f"no checkpoint was saved within the epoch: {error}")
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
        return f"{shown(self.newest or '')}. Continue with: {command} --resume {path}"

    def _save(self, path: Path, state: TrainingState) -> None:
        """Writes all that evaluation, search and an exact resume need, as one file.

        `model_state_dict` is what was measured, under the backbone's plain names: it loads wherever
        a model does. Where LoRA makes training go on with other weights than these, they are
        `training_state_dict`. Only the layers that LoRA changes are copied: there may be no room
        for more.
        """
        self._world.on_main(self.folder.make_room)
        step, encoder, world = self.step, self.step.encoder, self._world
        images, baseline = self.data.images, self.step.regularizers.baseline
        checkpoint = {
            "format": CHECKPOINT_FORMAT,
            "epoch": state.epoch,
            "state": asdict(state),
            "model": encoder.description(),
            "config": kept_settings(asdict(self.config)),
            "train_fingerprint": images.fingerprint,
            "train_classes": sorted(encoder.trained_on.union(images.classes)),
            "holdout": asdict(self.holdout) if self.holdout else None,
            "versions": library_versions(),
            "loss": state.mean_loss if state.step else state.loss,
            "objective_state_dict": step.objective.state_dict(),
            "optimizer_state_dict": whole_tensors(step.optimizer.state_dict(), world),
            "baseline_state_dict": whole_tensors(baseline.values, world) if baseline else None,
            "scaler_state_dict": step.scaler.state_dict(),
            "chunk_size": step.chunk_size,
            # The loader reads ahead of training: batches done are those that were trained on.
            "sampler_state_dict": self.data.sampler.state_dict()
            | {"epoch": state.epoch, "batches_done": state.step},
            "random_states": world.all_gather_objects(random_state(step.runtime.device)),
            "precision": step.runtime.precision,
        }
        under_lora = {name: weight.clone() for name, weight in layers_under_lora(encoder).items()}
        with step.measured():
            checkpoint["model_state_dict"] = whole_tensors(plain_state_dict(encoder), world)
            checkpoint["training_state_dict"] = under_lora | lora_matrices(encoder)
            world.on_main(lambda: write_checkpoint(path, checkpoint))
        self.newest = path
        self._autosave.restart()


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint, whole; raises OutputError where it cannot be written."""

    def write(file: IO[bytes]) -> None:
        remembering: Any = _Remembering(file)
        try:
            torch.save(checkpoint, remembering)
        except RuntimeError:
            if remembering.error is not None:
                raise remembering.error from None
            raise

    write_whole(path, write)


class _Remembering:
    """A file that knows why it could not be written: torch's writer does not say it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.flush = file, file.flush
        self.error: BaseException | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except BaseException as error:  # Ctrl-C as well
            self.error = error
            raise


def bytes_of_checkpoint(step: TrainingStep) -> int:
    """Returns what the tensors in a checkpoint take on the disk."""
    baseline = step.regularizers.baseline
    trained = [p for group in step.optimizer.param_groups for p in group["params"]]
    tensors = [
        *step.encoder.state_dict().values(),
        *step.objective.state_dict().values(),
        *trained, *trained,  # AdamW's two means
        *layers_under_lora(step.encoder).values(),
        *(baseline.values.values() if baseline else ()),
    ]  # fmt: skip
    return sum(one.numel() * one.element_size() for one in tensors)
