"""What a run learns from: its images and classes, the order they come in, and their reader."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from lookalike.config import TrainConfig
from lookalike.data.images import ImageSet, Unreadable, list_unreadable
from lookalike.data.reading.cache import DecodeCache
from lookalike.data.reading.decode import keep_readable
from lookalike.data.reading.loader import ImageLoader
from lookalike.data.reading.reader import Batch, Request
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.data.sources import if_one_class, load_images
from lookalike.errors import ConfigError, DataError, LookalikeError
from lookalike.evaluation.protocol import Holdout
from lookalike.files import shown
from lookalike.progress import Progress
from lookalike.runtime.world import World


@dataclass(frozen=True)
class TrainingImages:
    """What is learned from. `labels` are numbers of classes; class i is called `classes[i]`."""

    images: ImageSet
    classes: list[str]
    labels: Int64[Tensor, " images"]
    unreadable: list[Unreadable]
    fingerprint: str


def read_training_images(
    config: TrainConfig, holdout: Holdout | None, progress: Progress
) -> TrainingImages:
    """Lists the images of the classes that are learned, without the files that are none.

    Raises:
        LookalikeError: nothing to train on is named, or there are no images, or no labels.
    """
    if config.train is None:
        raise ConfigError("there is nothing to train on: give a folder or a table of images, "
                          "as in lookalike train photos/train")  # fmt: skip
    listed = load_images(config.train, progress).of_split("train")
    if holdout is not None:
        listed = listed.of_classes(set(listed.labels or ()) - set(holdout.classes))
    if listed.labels is None:
        raise DataError(
            f"{shown(config.train)} has no labels to learn from; give one folder per class "
            f"in it, or a table with a column 'label'{if_one_class(config.train)}"
        )
    images, unreadable = keep_readable(listed, config.max_megapixels, progress)
    names = images.labels or ()
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name in names])
    return TrainingImages(images, classes, labels, unreadable, images.fingerprint())


@dataclass(eq=False)
class TrainingData:
    """The batches of a run, epoch by epoch.

    `unreadable` are all images known so far that cannot be read; each is named once.
    """

    config: TrainConfig
    images: TrainingImages
    sampler: BalancedBatchSampler
    loader: ImageLoader
    cache: DecodeCache | None
    world: World
    progress: Progress

    def __post_init__(self) -> None:
        self.batch_size = self.config.n_classes_per_batch * self.config.n_samples_per_class
        self.part_size = self.batch_size // self.world.size  # images in each process
        self.steps_per_epoch = len(self.sampler)
        self.unreadable = list(self.images.unreadable)
        self._lost_classes: set[str] = set()

    @property
    def total_steps(self) -> int:
        """Returns the steps of all epochs together."""
        return self.config.num_epochs * self.steps_per_epoch

    def batches(
        self, epoch: int, step: int, stop: Callable[[], bool] | None = None
    ) -> Iterator[Batch]:
        """Yields this process's part of the batches of an epoch that come after `step` of them.

        A single process that waits for its readers asks `stop` whether to go on waiting.

        Raises:
            DataError: almost nothing of a batch can be read.
        """
        if step == 0:
            self.sampler.set_epoch(epoch)
        seed, own = self.config.seed, self.world.share_of(self.batch_size)
        requests = (
            Request(whole[own], (seed, epoch, number), own.start, whole)
            for number, whole in enumerate(self.sampler, step)
        )
        if self.world.size > 1:  # they stop together, between two steps
            stop = None
        for batch in _read_together(self.loader.read(requests, stop), self.world):
            self._tell(batch)
            yield batch

    def _tell(self, batch: Batch) -> None:
        """Tells each image and class that a batch could not read, once."""
        for one in batch.unreadable:
            if one not in self.unreadable:
                self.progress.warn(
                    f"{shown(one.path)}: {one.reason}; another image takes its place"
                )
                self.unreadable.append(one)
        labels = self.images.images.labels or []
        for label in sorted({labels[i] for i in batch.lost} - self._lost_classes):
            self._lost_classes.add(label)
            self.progress.warn(
                f"no image of class {shown(label)} can be decoded; it is left out of the batches"
            )
        if len(batch.indices) < 2:
            raise DataError(
                f"almost no image in a batch could be decoded: {list_unreadable(batch.unreadable)}"
            )


def check_divisible(world: World, n_classes: int, n_samples: int) -> None:
    """Raises ConfigError for a batch that the processes cannot divide into equal parts."""
    size, count = n_classes * n_samples, world.size
    if size % count:
        more = next(p for p in itertools.count(n_classes) if p * n_samples % count == 0)
        raise ConfigError(
            f"a batch of {n_classes} classes x {n_samples} images = {size} cannot be divided "
            f"among {count} processes; set --n-classes-per-batch {more}, or start a different "
            "number of processes"
        )


def _read_together(batches: Iterator[Batch], world: World) -> Iterator[Batch]:
    """Yields own pixels and all else of all processes' batches; one's error is raised by all."""
    if world.size == 1:
        yield from batches
        return
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except LookalikeError as error:
            failure = error
        parts = world.all_gather_objects((failure, batch and batch[1:4]))
        for one, _ in parts:
            if one is not None:
                raise one
        if batch is None:
            return
        indices, unreadable, lost = zip(*(told for _, told in parts if told), strict=True)
        start = sum(len(of_one) for of_one in indices[: world.rank])
        yield Batch(
            batch.pixels,
            list(itertools.chain(*indices)),
            list(dict.fromkeys(itertools.chain(*unreadable))),
            list(itertools.chain(*lost)),
            slice(start, start + len(batch.indices)),
        )
