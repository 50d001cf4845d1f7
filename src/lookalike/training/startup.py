"""What a run tells while it goes: how it was set up, and what is wrong with its images."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.config import TrainConfig
from lookalike.config.settings import free_on_resume
from lookalike.data.images import ImageSet, Unreadable, identity, list_unreadable
from lookalike.data.reading.reader import Batch
from lookalike.errors import DataError
from lookalike.evaluation.protocol import Protocol
from lookalike.files import shown
from lookalike.progress import Progress, counted
from lookalike.training.checkpoints.checkpoint import bytes_of_checkpoint
from lookalike.training.data import TrainingImages
from lookalike.training.regularizers.others import OtherImages

if TYPE_CHECKING:
    from lookalike.training.run import Run


def introduce(run: Run, resume: Path | None) -> None:
    """Says what is about to happen, before the first long wait."""
    config, progress = run.config, run.progress
    for line in _facts(run):
        progress.note(line)
    if resume:
        progress.note(
            f"resume   {shown(resume)}: epoch {run.state.epoch} done"
            + (f", then {run.state.step} steps" if run.state.step else "")
        )
        if run.state.epoch >= config.num_epochs:
            progress.note(f"this run is finished{_how_to_train_on(config, resume)}")
    _warn_of_images(run)
    _warn_of_warm_up(run)
    _warn_of_cross_batch_memory(run)
    _warn_of_full_disk(run)


def _how_to_train_on(config: TrainConfig, last: Path) -> str:
    """What a run that has done all of its epochs can be followed by."""
    if "num_epochs" in free_on_resume(config):
        return f"; train on with --num-epochs {config.num_epochs + 1} or more"
    return (
        ", and its learning rate followed its length; to train on from its weights start a new "
        f"run: lookalike train ... --model-name {shown(shlex.quote(str(last)))} --out FOLDER"
    )


def tell_early_stop(run: Run) -> None:
    """Says why a run ends before its last epoch, and how it would go on."""
    best, epoch = run.measurements.best, run.state.epoch
    assert best is not None, "patience counts from the best epoch"
    since = epoch - best.epoch
    run.progress.note(
        f"stopped after epoch {epoch} of {run.config.num_epochs}: "
        f"{counted(since, 'epoch')} in a row not better than epoch {best.epoch} "
        f"({best.metric} {best.value:.4f}); to train on: --resume with --patience {since + 1} or "
        "more"
    )


def tell_cache(run: Run) -> None:
    """Says what decoded images were good for, where they are kept."""
    if run.cache is not None:
        run.progress.note(f"cache    {run.cache.reads_of_all(run.world)}")


def _facts(run: Run) -> list[str]:
    config, report, how = run.config, run.sampler.report, run.encoder.preprocessing
    protocol, chunk_size = run.measurements.protocol, run.learner.chunk_size
    count = run.world.size
    part = run.batch_size // count
    trained_at = f", trained at {run.train_side}" if run.train_side else ""
    with run.runtime.autocast():
        dim = run.encoder.dim
    trained = sum(p.numel() for p in run.learner.parameters)
    return [
        f"model    {config.model_name} · {run.encoder.kind} {dim}-d · "
        f"{how.width}x{how.height} px{trained_at} · {trained:,} parameters trained",
        f"train    {counted(report.num_images, 'image')}, "
        f"{counted(report.num_classes, 'class', 'classes')}",
        f"test     {protocol.describe() if protocol else 'none'}",
        f"batches  {config.n_classes_per_batch} classes x {config.n_samples_per_class} "
        f"images = {run.batch_size}"
        + (f", {part} in each of {count} processes" if count > 1 else "")
        + (f", {chunk_size} in memory at a time" if chunk_size < part else "")
        + f"; {len(run.sampler):,} an epoch, "
        f"{counted(config.num_epochs, 'epoch')}",
        *_anchors(run),
        f"device   {run.runtime.describe()}",
        *([f"cache    {run.cache.describe()}"] if run.cache else []),
    ]


def _anchors(run: Run) -> list[str]:
    """What holds the encoder to the model it came from, in a line; none where nothing does."""
    config, parts = run.config, []
    if config.caption_weight:
        parts.append(f"captions x {config.caption_weight:g}")
    if config.distillation_weight:
        on = f" on {len(run.others.images):,} other images" if run.others else ""
        parts.append(f"distillation x {config.distillation_weight:g}{on}")
    if config.l2_sp:
        parts.append(f"L2-SP {config.l2_sp:g}")
    if config.interpolation:
        parts.append(f"mixed in {config.interpolation} steps in the end")
    return [f"held by  {', '.join(parts)}"] if parts else []


def _warn_of_images(run: Run) -> None:
    report, warn = run.sampler.report, run.progress.warn
    if run.measurements.protocol is None:
        warn("no test images, so nothing is measured; give --test, or --query and --gallery")
    else:
        _warn_of_overlap(run.images.images, run.measurements.protocol, run.progress)
    if report.excluded_singletons:
        warn(
            f"left out: {counted(report.excluded_singletons, 'class', 'classes')} with a single "
            "image; --singletons repeat takes such classes in"
        )
    if report.small_classes:
        warn(
            f"{counted(report.small_classes, 'class', 'classes')} with fewer than "
            f"{run.config.n_samples_per_class} images; repeats fill "
            f"{counted(report.repeated_images, 'place')}"
        )
    if run.unreadable.images:
        warn(
            f"{counted(len(run.unreadable.images), 'file')} cannot be read as an image; listed "
            "at the end"
        )


def _warn_of_warm_up(run: Run) -> None:
    """A run that ends before it has warmed up learns next to nothing."""
    total = run.total_steps
    for name in ("warmup_steps", "head_warmup_steps"):
        steps = getattr(run.config, name)
        if total and steps >= max(total, 1):
            run.progress.warn(
                f"{name} is {steps:,} and the whole run has {counted(total, 'step')}, so it ends "
                f"while it warms up; set --{name.replace('_', '-')} lower, or train longer"
            )


def _warn_of_cross_batch_memory(run: Run) -> None:
    """Earlier embeddings are to be compared with as those of other images."""
    size, images = run.config.cross_batch_memory, run.sampler.report.num_images
    if size > images:
        run.progress.warn(
            f"cross_batch_memory is {size:,} and there are {images:,} training images, so that "
            "each one's own earlier embedding is among its positives; set --cross-batch-memory "
            "lower"
        )


def _warn_of_full_disk(run: Run) -> None:
    """An epoch whose checkpoint finds no room is lost."""
    keep, path, count = run.config.keep, run.folder.path, run.config.num_epochs - run.state.epoch
    fewer = ""
    if keep != "all":
        count = min(count, keep + 2)  # the best one, and the new one before the oldest goes
    elif count > 3:  # of one that is kept
        fewer = "keep fewer with --keep 1, or "
    size, free = bytes_of_checkpoint(run.learner), shutil.disk_usage(path).free
    if count * size > free:
        run.progress.warn(
            f"the checkpoints of {counted(count, 'epoch')} take {count * size / 1e9:,.1f} GB, and "
            f"the disk of {shown(path)} has {free / 1e9:,.1f} GB free; free some, {fewer}write "
            "elsewhere with --out FOLDER"
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


class UnreadableTraining:
    """Names training images that turn out unreadable, each once.

    `images` are all that are known so far.
    """

    def __init__(
        self, images: TrainingImages, others: OtherImages | None, progress: Progress
    ) -> None:
        self.images = images.unreadable + (others.unreadable if others else [])
        self._labels, self._progress = images.images.labels or [], progress
        self._lost_classes: set[str] = set()

    def tell(self, batch: Batch) -> None:
        """Names what is new in a batch.

        Raises:
            DataError: hardly anything of the batch is left.
        """
        self._name(batch.unreadable, "another image takes its place")
        for label in sorted({self._labels[i] for i in batch.lost} - self._lost_classes):
            self._lost_classes.add(label)
            self._progress.warn(
                f"no image of class {shown(label)} can be decoded; batches do without it"
            )
        if len(batch.indices) < 2:
            raise DataError(
                f"hardly an image of a batch can be decoded: {list_unreadable(batch.unreadable)}"
            )

    def tell_of_others(self, others: Batch) -> None:
        """Names what is new among images without labels, of which any may be missing."""
        self._name(others.unreadable, "left out")

    def _name(self, unreadable: list[Unreadable], what_now: str) -> None:
        for one in unreadable:
            if one not in self.images:
                self._progress.warn(f"{shown(one.path)}: {one.reason}; {what_now}")
                self.images.append(one)
