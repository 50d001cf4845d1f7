"""What a run says before its first long wait: how it was set up, and what may be wrong with it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from lookalike.config import TrainConfig
from lookalike.config.settings import free_on_resume
from lookalike.data.classes import warnings_of_classes
from lookalike.data.images import identity
from lookalike.evaluation.protocol import Protocol
from lookalike.files import shown
from lookalike.progress import counted
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
    how, side, part = encoder.preprocessing, encoder.train_side(config.train_size), data.part_size
    with runtime.autocast():
        dim = encoder.dim
    trained = sum(p.numel() for p in step.parameters)
    weights = {"captions": config.caption_weight, "distillation": config.distillation_weight}
    held_by = ", ".join(f"{name} x {weight:g}" for name, weight in weights.items() if weight)
    # The encoder of a resumed run has the checkpoint's name.
    is_own = encoder.model_name == config.model_name
    model = encoder.title if is_own else shown(config.model_name)
    return [
        f"model    {model} · {encoder.kind} {dim}-d · {how.width}x{how.height} px"
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
        *([f"held by  {held_by}"] if held_by else []),
        f"device   {runtime.describe()}",
        *([f"cache    {data.cache.describe()}"] if data.cache else []),
    ]


def describe_resumed(config: TrainConfig, path: Path, state: TrainingState) -> list[str]:
    """Returns where a run goes on, in lines."""
    steps = f", then {state.step} steps" if state.step else ""
    lines = [f"resume   {shown(path)}: epoch {state.epoch} done{steps}"]
    if state.epoch < config.num_epochs:
        return lines
    if "num_epochs" in free_on_resume(config):
        how = f"; continue it with --num-epochs {config.num_epochs + 1} or more"
    else:
        model = shown(shlex.quote(str(path)))
        how = (", and its learning rate followed its length; to continue from its weights, start a "
               f"new run: lookalike train ... --model-name {model} --out FOLDER")  # fmt: skip
    return [*lines, f"this run is finished{how}"]


def warnings_of(config: TrainConfig, data: TrainingData, protocol: Protocol | None) -> list[str]:
    """Returns what may be wrong with images that are missing, few, unreadable or in the test as
    well, with a warm-up that never ends, and with a memory that holds everything.
    """
    report, steps, size = data.sampler.report, config.warmup_steps, config.cross_batch_memory
    files = protocol.files if protocol else []
    learned = set(map(identity, data.images.images.refs)) if files else set()
    both = sum(identity(ref) in learned for ref in files)
    table = {
        "no test images, so nothing is measured; give --test, or --query and --gallery": (
            protocol is None
        ),
        # A test on what was learned proves nothing.
        f"{both:,} of the {len(files):,} test images are trained on as well, so the numbers "
        "will be too good; lookalike check finds copies, too": both,
        f"left out: {counted(report.excluded_singletons, 'class', 'classes')} with a single "
        "image; --singletons repeat includes them": report.excluded_singletons,
        f"{counted(report.small_classes, 'class', 'classes')} with fewer than "
        f"{config.n_samples_per_class} images; repeats fill "
        f"{counted(report.repeated_images, 'place')}": report.small_classes,
        f"{counted(len(data.unreadable), 'file')} cannot be read as an image; listed at the "
        "end": data.unreadable,
        f"warmup_steps is {steps:,} and the whole run has {counted(data.total_steps, 'step')}, so "
        "it ends during warm-up; lower --warmup-steps, or train longer": (
            steps >= data.total_steps > 0
        ),
        # Earlier embeddings are to be compared with as those of other images.
        f"cross_batch_memory is {size:,} and there are {report.num_images:,} training images, "
        "so each image's own earlier embedding is among its positives; lower "
        "--cross-batch-memory": size > report.num_images,
    }
    learned_from = data.images.images
    of_classes = (
        protocol.warnings(learned_from) if protocol
        else warnings_of_classes({"the training images": learned_from})
    )  # fmt: skip
    return [warning for warning, applies in table.items() if applies] + of_classes


def warnings_of_disk(
    config: TrainConfig, folder: Path, epochs_left: int, checkpoint_bytes: int
) -> list[str]:
    """Returns that the checkpoints do not fit on the disk: an epoch that is not saved is lost."""
    keep, count, fewer = config.keep, epochs_left, ""
    if keep != "all":
        count = min(count, keep + 2)  # the best one, and the new one before the oldest goes
    elif count > 3:  # of one that is kept
        fewer = "keep fewer with --keep 1, or "
    free, needed = shutil.disk_usage(folder).free, count * checkpoint_bytes
    if needed <= free:
        return []
    return [
        f"the checkpoints of {counted(count, 'epoch')} take {needed / 1e9:,.1f} GB, but the disk "
        f"of {shown(folder)} has {free / 1e9:,.1f} GB free; free some, {fewer}write elsewhere "
        "with --out FOLDER"
    ]
