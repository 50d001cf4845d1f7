"""A run that is resumed: where it was saved, and what has to be as it was."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lookalike.config import TrainConfig
from lookalike.config.settings import RESUME_ADVICE, changed_on_resume, free_on_resume
from lookalike.errors import CheckpointError, ConfigError
from lookalike.files import does_not_exist, shown
from lookalike.model.pretrained import CHECKPOINT_FORMAT, read_checkpoint
from lookalike.progress import counted
from lookalike.training.checkpoints.folder import find_checkpoints
from lookalike.training.data import TrainingData, TrainingImages
from lookalike.training.history import TrainingState
from lookalike.training.sharding import part_of, sharded_like
from lookalike.training.step.step import TrainingStep


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
                "these flags out to resume it, or start a new run from its weights: "
                f"--model-name {shown(path)} without --resume. A resumed run may change "
                f"{', '.join(sorted(free_on_resume(config)))}"
            )
        done, steps = saved["state"]["epoch"], saved["state"]["step"]
        least = done + (steps > 0)  # the end of an epoch is what is measured, and ends a run
        if config.num_epochs < least:
            more = f" and {counted(steps, 'step')}" if steps else ""
            raise ConfigError(
                f"{shown(path)} has trained for {counted(done, 'epoch')}{more}, and num_epochs is "
                f"{config.num_epochs}; set --num-epochs {least} or higher, or resume from an "
                "earlier checkpoint: --resume FILE"
            )

    def check_images(self, images: TrainingImages) -> None:
        """Raises CheckpointError for other training images, wherever they lie now."""
        if self.content["train_fingerprint"] != images.fingerprint:
            raise CheckpointError(
                f"the training images are not those of {shown(self.path)}: files were added, "
                "removed or renamed since. Put them back, or start a new run without --resume"
            )

    def restore(self, step: TrainingStep, data: TrainingData) -> TrainingState:
        """Puts a run back where it was saved, and returns how far it had come.

        The encoder was made of the checkpoint's `model_state_dict` already, and random numbers are
        the business of whoever draws them.

        Raises:
            CheckpointError: the checkpoint does not fit the model.
        """
        content, here = self.content, dict(step.encoder.named_parameters())
        training = {
            name: part_of(weight, here.get(name, weight))
            for name, weight in content["training_state_dict"].items()
        }
        try:
            loaded = step.encoder.load_state_dict(training, strict=False)
            saved = sharded_like(content["optimizer_state_dict"], step.optimizer)
            step.optimizer.load_state_dict(saved)
            step.objective.load_state_dict(content["objective_state_dict"])
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the training state in {shown(self.path)} does not fit: {error}"
            ) from error
        if loaded.unexpected_keys:
            raise CheckpointError(
                f"the checkpoint has weights that the model lacks ({loaded.unexpected_keys[0]}); "
                "it was saved with another release of peft or Transformers: resume with that one"
            )
        if content["scaler_state_dict"] and step.scaler.is_enabled():
            step.scaler.load_state_dict(content["scaler_state_dict"])
        data.sampler.load_state_dict(content["sampler_state_dict"])
        return TrainingState(**content["state"])


def read_resumed(resume: str | Path) -> Resumed:
    """Reads the checkpoint to go on from.

    Args:
        resume: a checkpoint, or the folder of a run, whose newest one is meant.

    Raises:
        CheckpointError: there is none; or an earlier version of Lookalike wrote it, or it is a
            mixture of weights, so that training cannot go on from it.
    """
    path = Path(resume)
    if path.is_dir():
        found = find_checkpoints(path)
        if not found:
            raise CheckpointError(
                f"there is no checkpoint in {shown(path / 'weights')} to resume from; give the "
                "run's folder with --out, or the file itself: --resume FILE"
            )
        path = found[-1]
    elif not path.exists():
        raise CheckpointError(f"{does_not_exist(path)} {RESUME_ADVICE}")
    content = read_checkpoint(path)
    if content["format"] != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{shown(path)} was written by an earlier version of Lookalike, and lacks what this "
            "one needs to resume exactly. To continue training from its weights, start a new "
            f"run with --model-name {shown(shlex.quote(str(path)))}, without --resume"
        )
    if "optimizer_state_dict" not in content:
        last = path.with_name(f"encoder_epoch_{content['epoch']:02}.pth")
        raise CheckpointError(
            f"{shown(path)} is a mixture of weights, not a training checkpoint; resume from "
            f"{shown(last)}, or start a new run from the mixture with --model-name"
        )
    return Resumed(path, content)
