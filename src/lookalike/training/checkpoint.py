"""Checkpoints: `weights/encoder_epoch_XX.pth`, whole, and loadable without trusting a pickle."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lookalike.config import TrainConfig
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.errors import CheckpointError, ConfigError, OutputError
from lookalike.evaluation.results import find_results, library_versions
from lookalike.files import shown, write_whole
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.pretrained import CHECKPOINT_FORMAT
from lookalike.recipes import changed_on_resume
from lookalike.runtime import Runtime, random_state

INTERRUPTED = "interrupted.pth"
_EPOCH_FILE = re.compile(r"encoder_epoch_(\d+)\.pth")


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
    encoder: CLIPEncoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    sampler: BalancedBatchSampler,
    runtime: Runtime,
    train_fingerprint: str,
    train_classes: list[str],
    holdout: dict[str, Any] | None,
) -> None:
    """Writes all that evaluation, search and an exact resume need, as one file.

    Raises:
        OutputError: the file cannot be written; a file of that name from before is untouched.
    """
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "epoch": state.epoch,
        "loss": state.mean_loss if state.step else state.loss,
        "model_state_dict": encoder.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scaler_state_dict": scaler.state_dict(),
        # The loader reads ahead of training: batches done are those that were trained on.
        "sampler_state_dict": sampler.state_dict()
        | {"epoch": state.epoch, "batches_done": state.step},
        "schedule_state_dict": {
            "step": state.epoch * len(sampler) + state.step,
            "total_steps": config.num_epochs * len(sampler),
        },
        "random_state": random_state(runtime.device),
        "precision": runtime.precision,
        "state": asdict(state),
        "model": encoder.description(),
        "config": asdict(config),
        "train_fingerprint": train_fingerprint,
        "train_classes": train_classes,
        "holdout": holdout,
        "versions": library_versions(),
    }
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
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    sampler: BalancedBatchSampler,
) -> TrainingState:
    """Puts a run back where it was saved. The encoder was made of the checkpoint already, and
    random numbers are the business of whoever draws them.

    Raises:
        CheckpointError: the checkpoint does not fit the model or the training pictures.
    """
    try:
        optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    except ValueError as error:
        raise CheckpointError(
            f"the optimiser state in {shown(path)} does not fit: {error}"
        ) from error
    if checkpoint["scaler_state_dict"] and scaler.is_enabled():
        scaler.load_state_dict(checkpoint["scaler_state_dict"])
    sampler.load_state_dict(checkpoint["sampler_state_dict"])
    return TrainingState(**checkpoint["state"])


def check_same_settings(checkpoint: dict[str, Any], path: Path, config: TrainConfig) -> None:
    """Refuses to go on with other settings than a run began with.

    Raises:
        ConfigError: a setting that changes what is learned differs; names each.
    """
    changed = changed_on_resume(checkpoint["config"], config)
    if changed:
        raise ConfigError(
            f"{shown(path)} belongs to a run with other settings ({'; '.join(changed)}). Leave "
            "these flags out to go on with it, or start a new run without --resume"
        )
    done = checkpoint["state"]["epoch"]
    if config.num_epochs < done:
        raise ConfigError(
            f"{shown(path)} has {done} epochs behind it, and num_epochs is {config.num_epochs}; "
            "set --num-epochs higher"
        )


def check_same_pictures(checkpoint: dict[str, Any], path: Path, train_fingerprint: str) -> None:
    """Refuses to go on with other pictures than a run began with, wherever they lie now.

    Raises:
        CheckpointError: the training pictures are others.
    """
    if checkpoint["train_fingerprint"] != train_fingerprint:
        raise CheckpointError(
            f"the training pictures are not those of {shown(path)}: files were added, removed or "
            "renamed since. Put them back, or start a new run without --resume"
        )


def epoch_file(out: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies."""
    return out / "weights" / f"encoder_epoch_{epoch:02}.pth"


def find_checkpoints(out: Path) -> list[Path]:
    """A run's checkpoints, the furthest last; an interrupted run's is further than any."""
    folder = out / "weights"
    found = [
        (int(match[1]), path)
        for path in folder.glob("encoder_epoch_*.pth")
        if (match := _EPOCH_FILE.fullmatch(path.name))
    ]
    paths = [path for _, path in sorted(found)]
    interrupted = folder / INTERRUPTED
    return [*paths, interrupted] if interrupted.is_file() else paths


def newest_checkpoint(out: Path) -> Path:
    """The checkpoint to go on from.

    Raises:
        CheckpointError: there is none.
    """
    found = find_checkpoints(out)
    if not found:
        raise CheckpointError(
            f"there is no checkpoint in {shown(out / 'weights')} to go on from; "
            "give the run's folder with --out, or the file itself: --resume FILE"
        )
    return found[-1]


def files_of_a_run(out: Path) -> list[Path]:
    """All that a run leaves below its folder."""
    return find_checkpoints(out) + find_results(out)


def files_to_replace(config: TrainConfig, out: Path, resume: Path | None) -> list[Path]:
    """Files of another run that this one is told to replace: it never writes among them.

    Raises:
        OutputError: `out` holds files of a run, it is not this one that is resumed, and
            nobody said to overwrite them.
    """
    earlier = [path.resolve() for path in files_of_a_run(out)]
    if not earlier or (resume is not None and resume.resolve() in earlier):
        return []
    if not config.overwrite:
        raise OutputError(
            f"{shown(out)} already holds a run's files ({shown(earlier[-1].name)}). Go on with "
            "that run: --resume; write elsewhere: --out FOLDER; or replace it: --overwrite"
        )
    if Path(config.model_name).resolve() in earlier:
        raise OutputError(
            f"--overwrite would remove {shown(config.model_name)}, which this run starts from; "
            "write elsewhere with --out FOLDER"
        )
    return earlier


def sweep_unfinished(out: Path) -> None:
    """Removes what a killed run left half-written; each may be gigabytes."""
    for pattern in (".encoder_epoch_*.pth.*.tmp", f".{INTERRUPTED}.*.tmp"):
        for path in (out / "weights").glob(pattern):
            path.unlink(missing_ok=True)
