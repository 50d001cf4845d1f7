"""What a run says before its first long wait: how it was set up, and what may be wrong with it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from lookalike.config import TrainConfig
from lookalike.config.settings import free_on_resume
from lookalike.data.images import ImageSet, identity
from lookalike.evaluation.protocol import Protocol
from lookalike.files import shown
from lookalike.progress import Progress, counted
from lookalike.runtime.device import Runtime
from lookalike.training.data import TrainingData
from lookalike.training.history import TrainingState
from lookalike.training.step.step import TrainingStep


def describe(
    config: TrainConfig,
    runtime: Runtime,
    data: TrainingData,
    step: TrainingStep,
    protocol: Protocol | None,
) -> list[str]:
    """Returns how a run is set up, in lines."""
    encoder, report, count = step.encoder, data.sampler.report, runtime.world.size
    how, side = encoder.preprocessing, encoder.train_side(config.train_size)
    part = data.part_size
    with runtime.autocast():
        dim = encoder.dim
    trained = sum(p.numel() for p in step.parameters)
    return [
        f"model    {config.model_name} · {encoder.kind} {dim}-d · {how.width}x{how.height} px"
        + (f", trained at {side}" if side else "")
        + f" · {trained:,} parameters trained",
        f"train    {counted(report.num_images, 'image')}, "
        f"{counted(report.num_classes, 'class', 'classes')}",
        f"test     {protocol.describe() if protocol else 'none'}",
        f"batches  {config.n_classes_per_batch} classes x {config.n_samples_per_class} "
        f"images = {data.batch_size}"
        + (f", {part} in each of {count} processes" if count > 1 else "")
        + (f", {step.chunk_size} in memory at a time" if step.chunk_size < part else "")
        + f"; {data.steps_per_epoch:,} an epoch, {counted(config.num_epochs, 'epoch')}",
        *_held_by(config),
        f"device   {runtime.describe()}",
        *([f"cache    {data.cache.describe()}"] if data.cache else []),
    ]


def _held_by(config: TrainConfig) -> list[str]:
    """Returns what holds the encoder near its baseline, in a line; none where nothing does."""
    parts = []
    if config.caption_weight:
        parts.append(f"captions x {config.caption_weight:g}")
    if config.distillation_weight:
        parts.append(f"distillation x {config.distillation_weight:g}")
    return [f"held by  {', '.join(parts)}"] if parts else []


def describe_resumed(config: TrainConfig, path: Path, state: TrainingState) -> list[str]:
    """Returns where a run goes on, in lines."""
    steps = f", then {state.step} steps" if state.step else ""
    lines = [f"resume   {shown(path)}: epoch {state.epoch} done{steps}"]
    if state.epoch >= config.num_epochs:
        lines.append(f"this run is finished{_how_to_train_on(config, path)}")
    return lines


def _how_to_train_on(config: TrainConfig, last: Path) -> str:
    """Returns what a run that has done all of its epochs can be followed by."""
    if "num_epochs" in free_on_resume(config):
        return f"; train on with --num-epochs {config.num_epochs + 1} or more"
    return (
        ", and its learning rate followed its length; to train on from its weights start a new "
        f"run: lookalike train ... --model-name {shown(shlex.quote(str(last)))} --out FOLDER"
    )


def warn_of_images(
    config: TrainConfig, data: TrainingData, protocol: Protocol | None, progress: Progress
) -> None:
    """Warns of images that are missing, few, unreadable, or in the test as well."""
    report, warn = data.sampler.report, progress.warn
    if protocol is None:
        warn("no test images, so nothing is measured; give --test, or --query and --gallery")
    else:
        _warn_of_overlap(data.images.images, protocol, progress)
    if report.excluded_singletons:
        warn(
            f"left out: {counted(report.excluded_singletons, 'class', 'classes')} with a single "
            "image; --singletons repeat takes such classes in"
        )
    if report.small_classes:
        warn(
            f"{counted(report.small_classes, 'class', 'classes')} with fewer than "
            f"{config.n_samples_per_class} images; repeats fill "
            f"{counted(report.repeated_images, 'place')}"
        )
    if data.unreadable:
        warn(
            f"{counted(len(data.unreadable), 'file')} cannot be read as an image; listed at the end"
        )


def _warn_of_overlap(images: ImageSet, protocol: Protocol, progress: Progress) -> None:
    """A test on what was learned proves nothing."""
    learned = set(map(identity, images.refs))
    both = sum(identity(ref) in learned for ref in protocol.files)
    if both:
        progress.warn(
            f"{both:,} of the {len(protocol.files):,} test images are learned from as well, so "
            "the numbers will be too good; lookalike check finds copies, too"
        )


def warn_of_settings(config: TrainConfig, data: TrainingData, progress: Progress) -> None:
    """Warns of a run that ends before it has warmed up, and of a memory that holds everything."""
    steps, size = config.warmup_steps, config.cross_batch_memory
    total_steps, num_images = data.total_steps, data.sampler.report.num_images
    if steps >= total_steps > 0:
        progress.warn(
            f"warmup_steps is {steps:,} and the whole run has {counted(total_steps, 'step')}, so "
            "it ends while it warms up; set --warmup-steps lower, or train longer"
        )
    if size > num_images:  # earlier embeddings are to be compared with as other images'
        progress.warn(
            f"cross_batch_memory is {size:,} and there are {num_images:,} training images, "
            "so that each one's own earlier embedding is among its positives; set "
            "--cross-batch-memory lower"
        )


def warn_of_full_disk(
    config: TrainConfig, folder: Path, epochs_left: int, checkpoint_bytes: int, progress: Progress
) -> None:
    """Warns of a disk without room for the checkpoints: an epoch that is not saved is lost."""
    keep, count, fewer = config.keep, epochs_left, ""
    if keep != "all":
        count = min(count, keep + 2)  # the best one, and the new one before the oldest goes
    elif count > 3:  # of one that is kept
        fewer = "keep fewer with --keep 1, or "
    free = shutil.disk_usage(folder).free
    if count * checkpoint_bytes > free:
        progress.warn(
            f"the checkpoints of {counted(count, 'epoch')} take "
            f"{count * checkpoint_bytes / 1e9:,.1f} GB, and the disk of {shown(folder)} has "
            f"{free / 1e9:,.1f} GB free; free some, {fewer}write elsewhere with --out FOLDER"
        )
