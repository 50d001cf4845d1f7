"""A run that is resumed: where it was saved, and what has to be as it was."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lookalike.config import TrainConfig
from lookalike.config.settings import (
    RESUME_ADVICE,
    changed_on_resume,
    config_from,
    free_on_resume,
    kept_settings,
)
from lookalike.errors import CheckpointError, ConfigError
from lookalike.files import does_not_exist, shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.loading.archive import DamagedError, check_archive
from lookalike.model.lora import layers_under_lora, lora_matrices
from lookalike.model.pretrained import (
    CHECKPOINT_FORMAT,
    check_content,
    misfit_of,
    not_finite,
    read_checkpoint,
)
from lookalike.progress import counted
from lookalike.training.checkpoints.content import (
    TRAINING,
    load_optimizer,
    misfit_of_optimizer,
)
from lookalike.training.checkpoints.folder import find_checkpoints
from lookalike.training.data import TrainingData, TrainingImages
from lookalike.training.history import TrainingState
from lookalike.training.sharding import part_of
from lookalike.training.step.step import TrainingStep


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from; as large as the model and its optimizer."""

    path: Path
    content: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """Returns the settings that the run was saved with. It goes on in the folder that it lies
        in (`out`), wherever that is now. What its first command alone wished is no setting.
        """
        saved = kept_settings(self.content["config"])
        if self.path.parent.name == "weights":
            saved["out"] = str(self.path.parent.parent)
        return saved

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

    def check_baseline(self, config: TrainConfig, encoder: CLIPEncoder) -> None:
        """Raises CheckpointError where distillation has no baseline to go on with."""
        if not config.distillation_weight:
            return
        saved = self.content["baseline_state_dict"] or {}
        own = dict(encoder.trainable_parameters())
        misfit = misfit_of(saved, own) or not_finite(saved)
        if misfit is not None:
            raise CheckpointError(
                f"the baseline in {shown(self.path)} does not fit ({misfit}). Resume from another "
                "checkpoint of the run"
            )

    def restore(self, step: TrainingStep, data: TrainingData) -> TrainingState:
        """Puts a run back where it was saved, and returns how far it had come.

        The encoder was made of the checkpoint's `model_state_dict` already, and random numbers are
        the business of whoever draws them.

        Raises:
            CheckpointError: the checkpoint does not fit the model, its optimizer or its objective.
        """
        content, encoder = self.content, step.encoder
        for what, misfit in self._misfits(step, data).items():
            if misfit is not None:
                raise CheckpointError(
                    f"the training state in {shown(self.path)} does not fit ({what}: {misfit}). "
                    "Resume with the releases of peft and Transformers that it was saved with, or "
                    "from another checkpoint of the run"
                )
        here = dict(encoder.named_parameters())
        encoder.load_state_dict(
            {
                name: part_of(weight, here.get(name, weight))
                for name, weight in content["training_state_dict"].items()
            },
            strict=False,
        )
        load_optimizer(content["optimizer_state_dict"], step.optimizer)
        try:
            step.objective.load_state_dict(content["objective_state_dict"])
        # Of an objective of one's own, with a state of its own, as of one that ships.
        except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"the objective's state in {shown(self.path)} does not fit: "
                f"{shown(' '.join(str(error).split()))[:500]}"
            ) from error
        if content["scaler_state_dict"] and step.scaler.is_enabled():
            step.scaler.load_state_dict(content["scaler_state_dict"])
        data.sampler.load_state_dict(content["sampler_state_dict"])
        return TrainingState(**content["state"])

    def _misfits(self, step: TrainingStep, data: TrainingData) -> dict[str, str | None]:
        """Returns how each part of the state differs from what the run would have had."""
        content, encoder, steps = self.content, step.encoder, data.steps_per_epoch
        state, sampler = content["state"], content["sampler_state_dict"]
        training = content["training_state_dict"]
        under_lora = layers_under_lora(encoder) | lora_matrices(encoder)
        told = (content["epoch"], sampler.get("epoch"), sampler.get("batches_done"))
        known = (state["epoch"], state["epoch"], state["step"])
        is_further = state["step"] > steps
        is_larger = content["chunk_size"] > data.batch_size
        return {
            "weights under training": misfit_of(training, under_lora) or not_finite(training),
            "optimizer": misfit_of_optimizer(content["optimizer_state_dict"], step.optimizer),
            "epoch and step": f"{told}, expected {known}" if told != known else None,
            "step": f"{state['step']} of {steps} in an epoch" if is_further else None,
            "images at a time": f"more than {data.batch_size}" if is_larger else None,
        }


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
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_last_good(path)}") from error
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
    try:
        check_content(TRAINING, content, path)
        content["config"] = asdict(config_from(TrainConfig, kept_settings(content["config"])))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_last_good(path)}") from error
    except ConfigError as error:
        raise CheckpointError(
            f"{shown(path)} was saved with settings that cannot be: {str(error)[:500]}. It was "
            "made by hand, or by another version of Lookalike"
        ) from error
    return Resumed(path, content)


def _last_good(path: Path) -> str:
    """Returns the furthest other checkpoint of the same run that is whole, as advice."""
    if path.parent.name != "weights":
        return ""
    for other in reversed(find_checkpoints(path.parent.parent)):
        if other.resolve() == path.resolve():
            continue
        try:
            check_archive(other)
        except (DamagedError, OSError):
            continue
        return f". The last one that is whole: --resume {shown(shlex.quote(str(other)))}"
    return ""
