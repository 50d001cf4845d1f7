"""The images a run learns from, listed and looked at before it begins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from lookalike.config import TrainConfig
from lookalike.data.images import ImageSet, Unreadable
from lookalike.data.reading.probing import keep_readable
from lookalike.data.sources import load_images
from lookalike.errors import ConfigError, DataError
from lookalike.evaluation.protocol import Holdout
from lookalike.files import shown
from lookalike.progress import Progress


@dataclass(frozen=True)
class TrainingImages:
    """What is learned from. `labels` are numbers of classes: that of class i is called
    `classes[i]`.
    """

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
        ConfigError: nothing to train on is named.
        DataError: there are no images, or no labels.
    """
    listed = _listed(config, holdout, progress)
    images, unreadable = keep_readable(listed, config.max_megapixels, progress)
    names = images.labels or ()
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name in names])
    return TrainingImages(images, classes, labels, unreadable, images.fingerprint())


def _listed(config: TrainConfig, holdout: Holdout | None, progress: Progress) -> ImageSet:
    """The files to learn from, none of them opened yet."""
    if config.train is None:
        raise ConfigError("there is nothing to train on: name a folder or a table of images, "
                          "as in lookalike train photos/train")  # fmt: skip
    images = load_images(config.train, progress).of_split("train")
    if holdout is not None:
        images = images.of_classes(set(images.labels or ()) - set(holdout.classes))
    if images.labels is None:
        raise DataError(
            f"{shown(config.train)} has no labels to learn from; give one folder per class "
            "in it, or a table with a column 'label'"
        )
    return images
