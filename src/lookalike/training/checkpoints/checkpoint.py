"""Checkpoints: `weights/encoder_epoch_XX.pth`, whole, and loadable without trusting a pickle."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lookalike.config import TrainConfig
from lookalike.config.settings import changed_on_resume, free_on_resume
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.errors import CheckpointError, ConfigError, OutputError
from lookalike.evaluation.interpolation import TradeOff
from lookalike.evaluation.results import library_versions
from lookalike.files import shown, write_whole
from lookalike.model.lora import layers_under_lora
from lookalike.model.pretrained import CHECKPOINT_FORMAT
from lookalike.progress import counted
from lookalike.runtime.randomness import random_state
from lookalike.training.checkpoints.weights import restore_weights, saved_weights
from lookalike.training.data import TrainingImages
from lookalike.training.regularizers.others import OtherImages
from lookalike.training.step.learner import Learner
from lookalike.training.step.parallel import sharded_like, whole_tensors


@dataclass
class TrainingState:
    """How far a run has come. `run` is a random name that ties a run's files together."""

    run: str
    epoch: int = 0  # epochs that are done
    step: int = 0  # steps of the running epoch that are done
    loss_sum: float = 0.0  # over these steps
    loss: float | None = None  # mean over the last epoch that was done

    def finish_step(self, loss: float) -> None:
        """Counts a step."""
        self.step += 1
        self.loss_sum += loss

    @property
    def mean_loss(self) -> float:
        """Of the running epoch so far."""
        return self.loss_sum / self.step

    def finish_epoch(self) -> None:
        """Counts an epoch; its mean loss stays."""
        self.loss = self.mean_loss
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0


def save_checkpoint(
    path: Path,
    state: TrainingState,
    *,
    config: TrainConfig,
    learner: Learner,
    sampler: BalancedBatchSampler,
    images: TrainingImages,
    others: OtherImages | None,
    holdout: dict[str, Any] | None,
) -> None:
    """Writes all that evaluation, search and an exact resume need, as one file.

    Of several processes each must call it; the first one writes.

    Raises:
        OutputError: the file cannot be written; a file of that name from before is untouched.
    """
    world = learner.runtime.world
    original = learner.anchors.original
    checkpoint = _about_model(state, config, learner, images, holdout) | {
        "loss": state.mean_loss if state.step else state.loss,
        "objective_state_dict": learner.objective.state_dict(),
        "optimizer_state_dict": whole_tensors(learner.optimizer.state_dict(), world),
        "original_state_dict": whole_tensors(original.values, world) if original else None,
        "scaler_state_dict": learner.scaler.state_dict(),
        "chunk_size": learner.chunk_size,
        # The loader reads ahead of training: batches done are those that were trained on.
        "sampler_state_dict": sampler.state_dict()
        | {"epoch": state.epoch, "batches_done": state.step},
        "schedule_state_dict": {
            "step": state.epoch * len(sampler) + state.step,
            "total_steps": config.num_epochs * len(sampler),
        },
        "random_states": world.all_gather_objects(random_state(learner.runtime.device)),
        "precision": learner.runtime.precision,
        "distillation_fingerprint": others.images.fingerprint() if others else None,
    }
    with saved_weights(learner) as weights:
        checkpoint |= whole_tensors(weights, world)
        world.on_main(lambda: _write(path, checkpoint))


def save_mixture(
    path: Path,
    state: TrainingState,
    trade_off: TradeOff,
    *,
    config: TrainConfig,
    learner: Learner,
    images: TrainingImages,
    holdout: dict[str, Any] | None,
) -> None:
    """Writes the encoder with the weights it has now, which no training goes on from.

    Of several processes each must call it; the first one writes.

    Raises:
        OutputError: the file cannot be written; a file of that name from before is untouched.
    """
    world = learner.runtime.world
    checkpoint = _about_model(state, config, learner, images, holdout) | {
        "loss": state.loss,
        "interpolation": asdict(trade_off.chosen),
        "model_state_dict": whole_tensors(learner.encoder.state_dict(), world),
    }
    world.on_main(lambda: _write(path, checkpoint))


def _about_model(
    state: TrainingState,
    config: TrainConfig,
    learner: Learner,
    images: TrainingImages,
    holdout: dict[str, Any] | None,
) -> dict[str, Any]:
    """What is needed to use the encoder, and to know what it is."""
    return {
        "format": CHECKPOINT_FORMAT,
        "epoch": state.epoch,
        "state": asdict(state),
        "model": learner.encoder.description(),
        "config": asdict(config),
        "train_fingerprint": images.fingerprint,
        "train_classes": sorted(learner.encoder.trained_on.union(images.classes)),
        "holdout": holdout,
        "versions": library_versions(),
    }


def bytes_of_checkpoint(learner: Learner) -> int:
    """What the tensors in a checkpoint take on the disk."""
    original, optimizer = learner.anchors.original, learner.optimizer
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [
        *learner.encoder.state_dict().values(),
        *learner.objective.state_dict().values(),
        *trained, *trained,  # AdamW's two means
        *(learner.parameters if learner.average else ()),
        *layers_under_lora(learner.encoder).values(),
        *(original.values.values() if original else ()),
    ]  # fmt: skip
    return sum(one.numel() * one.element_size() for one in tensors)


def _write(path: Path, checkpoint: dict[str, Any]) -> None:
    try:
        write_whole(path, lambda file: torch.save(checkpoint, file))
    except RuntimeError as error:  # torch's writer reports a full disk in its own way
        raise OutputError(
            f"cannot write {shown(path)}: {str(error).partition(chr(10))[0]}. Free some room, or "
            "choose another disk with --out; checkpoints written before are untouched"
        ) from error


def restore_checkpoint(
    checkpoint: dict[str, Any],
    path: Path,
    *,
    learner: Learner,
    sampler: BalancedBatchSampler,
) -> TrainingState:
    """Puts a run back where it was saved. The encoder was made of the checkpoint's
    `model_state_dict` already, and random numbers are the business of whoever draws them.

    Raises:
        CheckpointError: the checkpoint does not fit the model or the training images.
    """
    try:
        restore_weights(learner, checkpoint)
        saved = sharded_like(checkpoint["optimizer_state_dict"], learner.optimizer)
        learner.optimizer.load_state_dict(saved)
        learner.objective.load_state_dict(checkpoint["objective_state_dict"])
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the state of training in {shown(path)} does not fit: {error}"
        ) from error
    if checkpoint["scaler_state_dict"] and learner.scaler.is_enabled():
        learner.scaler.load_state_dict(checkpoint["scaler_state_dict"])
    sampler.load_state_dict(checkpoint["sampler_state_dict"])
    return TrainingState(**checkpoint["state"])


def check_can_go_on(checkpoint: dict[str, Any], path: Path) -> None:
    """Refuses a model without a state of training that can be taken up.

    Raises:
        CheckpointError: an earlier version of Lookalike wrote it, or it is a mixture of weights.
    """
    if checkpoint["format"] != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{shown(path)} was written by an earlier version of Lookalike, and lacks what this "
            "one needs to go on exactly where it was. To train on from its weights start a new "
            f"run with --model-name {shown(shlex.quote(str(path)))}, without --resume"
        )
    if "interpolation" in checkpoint:
        last = path.with_name(f"encoder_epoch_{checkpoint['epoch']:02}.pth")
        raise CheckpointError(
            f"{shown(path)} is a mixture of weights, which no training led to; go on from "
            f"{shown(last)}, or start a new run from it with --model-name"
        )


def check_same_settings(checkpoint: dict[str, Any], path: Path, config: TrainConfig) -> None:
    """Refuses to go on with other settings than a run began with.

    Raises:
        ConfigError: a setting that changes what is learned differs; names each.
    """
    trained = checkpoint["model"]["embedding"]  # which "auto" is, then and now
    now = config if config.embedding != "auto" else replace(config, embedding=trained)
    changed = changed_on_resume(checkpoint["config"] | {"embedding": trained}, now)
    if changed:
        raise ConfigError(
            f"{shown(path)} belongs to a run with other settings ({'; '.join(changed)}). Leave "
            "these flags out to go on with it, or start a new run from its weights: --model-name "
            f"{shown(path)} without --resume. A resumed run may change "
            f"{', '.join(sorted(free_on_resume(config)))}"
        )
    done, steps = checkpoint["state"]["epoch"], checkpoint["state"]["step"]
    least = done + (steps > 0)  # the end of an epoch is what is measured, and what a run ends with
    if config.num_epochs < least:
        more = f" and {counted(steps, 'step')}" if steps else ""
        raise ConfigError(
            f"{shown(path)} has {counted(done, 'epoch')}{more} behind it, and num_epochs is "
            f"{config.num_epochs}; set --num-epochs {least} or higher, or go on from an earlier "
            "checkpoint: --resume FILE"
        )


def check_same_images(
    checkpoint: dict[str, Any], path: Path, images: TrainingImages, others: OtherImages | None
) -> None:
    """Refuses to go on with other images than a run began with, wherever they lie now.

    Raises:
        CheckpointError: the training images are others, or those of distillation.
    """
    distilled = others.images.fingerprint() if others else None
    for what, saved, found in (
        ("training images", checkpoint["train_fingerprint"], images.fingerprint),
        ("distillation_images", checkpoint["distillation_fingerprint"], distilled),
    ):
        if (saved is None) != (found is None):
            raise CheckpointError(
                f"{shown(path)} belongs to a run {'without' if saved is None else 'with'} {what}, "
                "which must stay so; start a new run without --resume"
            )
        if saved != found:
            raise CheckpointError(
                f"the {what} are not those of {shown(path)}: files were added, removed or renamed "
                "since. Put them back, or start a new run without --resume"
            )
