"""What a checkpoint holds: written whole, loadable without trusting a pickle, and put back."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lookalike.config import TrainConfig
from lookalike.errors import CheckpointError, OutputError, first_line
from lookalike.evaluation.protocol import Holdout
from lookalike.evaluation.results import library_versions
from lookalike.files import shown, write_whole
from lookalike.model.lora import layers_under_lora, lora_matrices, plain_state_dict
from lookalike.model.pretrained import CHECKPOINT_FORMAT
from lookalike.runtime.randomness import random_state
from lookalike.training.data import TrainingData
from lookalike.training.history import TrainingState
from lookalike.training.sharding import part_of, sharded_like, whole_tensors
from lookalike.training.step.step import TrainingStep


def save_checkpoint(
    path: Path,
    state: TrainingState,
    config: TrainConfig,
    step: TrainingStep,
    data: TrainingData,
    holdout: Holdout | None,
) -> None:
    """Writes all that evaluation, search and an exact resume need, as one file.

    `model_state_dict` is what was measured, under the backbone's plain names: it loads wherever
    a model does. Where LoRA makes training go on with other weights than these, they are
    `training_state_dict`. Only the layers that LoRA changes are copied: there may be no room for
    more.

    Of several processes each must call it; the first one writes.

    Raises:
        OutputError: the file cannot be written; a file of that name from before is untouched.
    """
    world, encoder = step.runtime.world, step.encoder
    baseline = step.regularizers.baseline
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "epoch": state.epoch,
        "state": asdict(state),
        "model": encoder.description(),
        "config": asdict(config),
        "train_fingerprint": data.images.fingerprint,
        "train_classes": sorted(encoder.trained_on.union(data.images.classes)),
        "holdout": asdict(holdout) if holdout else None,
        "versions": library_versions(),
        "loss": state.mean_loss if state.step else state.loss,
        "objective_state_dict": step.objective.state_dict(),
        "optimizer_state_dict": whole_tensors(step.optimizer.state_dict(), world),
        "baseline_state_dict": whole_tensors(baseline.values, world) if baseline else None,
        "scaler_state_dict": step.scaler.state_dict(),
        "chunk_size": step.chunk_size,
        # The loader reads ahead of training: batches done are those that were trained on.
        "sampler_state_dict": data.sampler.state_dict()
        | {"epoch": state.epoch, "batches_done": state.step},
        "random_states": world.all_gather_objects(random_state(step.runtime.device)),
        "precision": step.runtime.precision,
    }
    under_lora = {name: weight.clone() for name, weight in layers_under_lora(encoder).items()}
    with step.measured():
        checkpoint["model_state_dict"] = whole_tensors(plain_state_dict(encoder), world)
        checkpoint["training_state_dict"] = under_lora | lora_matrices(encoder)
        world.on_main(lambda: write_checkpoint(path, checkpoint))


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint, whole.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        write_whole(path, lambda file: torch.save(checkpoint, file))
    except RuntimeError as error:  # torch's writer reports a full disk in its own way
        raise OutputError(
            f"cannot write {shown(path)}: {first_line(error)}. Free some room, or "
            "choose another disk with --out; checkpoints written before are untouched"
        ) from error


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


def restore_checkpoint(
    checkpoint: dict[str, Any], path: Path, *, step: TrainingStep, data: TrainingData
) -> TrainingState:
    """Puts a run back where it was saved. The encoder was made of the checkpoint's
    `model_state_dict` already, and random numbers are the business of whoever draws them.

    Raises:
        CheckpointError: the checkpoint does not fit the model or the training images.
    """
    here = dict(step.encoder.named_parameters())
    training = {
        name: part_of(weight, here.get(name, weight))
        for name, weight in checkpoint["training_state_dict"].items()
    }
    try:
        loaded = step.encoder.load_state_dict(training, strict=False)
        saved = sharded_like(checkpoint["optimizer_state_dict"], step.optimizer)
        step.optimizer.load_state_dict(saved)
        step.objective.load_state_dict(checkpoint["objective_state_dict"])
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the state of training in {shown(path)} does not fit: {error}"
        ) from error
    if loaded.unexpected_keys:
        raise CheckpointError(
            f"the checkpoint has weights that the model has not ({loaded.unexpected_keys[0]}); it "
            "was saved with another release of peft or Transformers, go on with that"
        )
    if checkpoint["scaler_state_dict"] and step.scaler.is_enabled():
        step.scaler.load_state_dict(checkpoint["scaler_state_dict"])
    data.sampler.load_state_dict(checkpoint["sampler_state_dict"])
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
    if "optimizer_state_dict" not in checkpoint:
        last = path.with_name(f"encoder_epoch_{checkpoint['epoch']:02}.pth")
        raise CheckpointError(
            f"{shown(path)} is a mixture of weights, which no training led to; go on from "
            f"{shown(last)}, or start a new run from it with --model-name"
        )
