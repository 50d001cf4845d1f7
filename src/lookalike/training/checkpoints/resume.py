"""A run that is gone on with: where it was saved, and what has to be as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lookalike.config import TrainConfig
from lookalike.config.settings import changed_on_resume, free_on_resume
from lookalike.errors import CheckpointError, ConfigError
from lookalike.files import shown
from lookalike.model.pretrained import read_checkpoint
from lookalike.progress import counted
from lookalike.training.checkpoints.checkpoint import check_can_go_on
from lookalike.training.checkpoints.folder import newest_checkpoint
from lookalike.training.data import TrainingImages


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from; as large as the model and its optimizer."""

    path: Path
    content: dict[str, Any]

    def check_settings(self, config: TrainConfig) -> None:
        """Refuses to go on with other settings than the run began with.

        Raises:
            ConfigError: a setting that changes what is learned differs; names each.
        """
        saved, path = self.content, self.path
        trained = saved["model"]["embedding"]  # which "auto" is, then and now
        now = config if config.embedding != "auto" else replace(config, embedding=trained)
        changed = changed_on_resume(saved["config"] | {"embedding": trained}, now)
        if changed:
            raise ConfigError(
                f"{shown(path)} belongs to a run with other settings ({'; '.join(changed)}). Leave "
                "these flags out to go on with it, or start a new run from its weights: "
                f"--model-name {shown(path)} without --resume. A resumed run may change "
                f"{', '.join(sorted(free_on_resume(config)))}"
            )
        done, steps = saved["state"]["epoch"], saved["state"]["step"]
        least = done + (steps > 0)  # the end of an epoch is what is measured, and ends a run
        if config.num_epochs < least:
            more = f" and {counted(steps, 'step')}" if steps else ""
            raise ConfigError(
                f"{shown(path)} has {counted(done, 'epoch')}{more} behind it, and num_epochs is "
                f"{config.num_epochs}; set --num-epochs {least} or higher, or go on from an "
                "earlier checkpoint: --resume FILE"
            )

    def check_images(self, images: TrainingImages) -> None:
        """Refuses to go on with other images than the run began with, wherever they lie now.

        Raises:
            CheckpointError: the training images are others.
        """
        if self.content["train_fingerprint"] != images.fingerprint:
            raise CheckpointError(
                f"the training images are not those of {shown(self.path)}: files were added, "
                "removed or renamed since. Put them back, or start a new run without --resume"
            )


def read_resumed(resume: str | Path) -> Resumed:
    """Reads the checkpoint to go on from.

    Args:
        resume: a checkpoint, or the folder of a run, whose newest one is meant.

    Raises:
        CheckpointError: there is none, or none that training can go on from.
    """
    path = Path(resume)
    if path.is_dir():
        path = newest_checkpoint(path)
    content = read_checkpoint(path)
    check_can_go_on(content, path)  # before its settings, which may be those of its time
    return Resumed(path, content)
