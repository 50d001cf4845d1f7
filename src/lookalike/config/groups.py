"""The options that several verbs share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lookalike.config.options import option, same_option, settle
from lookalike.errors import ConfigError
from lookalike.files import briefly

DEFAULT_MODEL = "openai/clip-vit-large-patch14-336"
DEFAULT_MAX_MEGAPIXELS = 89.0  # where Pillow begins to warn
MAX_PILLOW_MEGAPIXELS = 178.0  # above this Pillow refuses a file by itself, as a bomb

_images = partial(option, group="Images")
_batches = partial(option, group="Batches", at_most=65_536, because="a batch is in memory at once")
_machine = partial(option, group="Machine")
_tests = partial(option, group="Test images")
_test_images = partial(_tests, None, metavar="IMAGES")


@dataclass(frozen=True, kw_only=True)
class Basics:
    """The options of whatever embeds images: the model, the machine, what counts as an image."""

    model_name: str | None = option(
        DEFAULT_MODEL,
        "a hub id, a local Transformers folder, or a Lookalike checkpoint (.pth)",
        group="Model",
        metavar="NAME",
    )
    embedding: Literal["auto", "projected", "pooled"] = option(
        "auto",
        "auto: the one a checkpoint was trained for, else projected; projected: the space shared "
        "with text, where the model has one (else pooled); pooled: the vision tower's output "
        "before that projection",
        group="Model",
    )
    max_megapixels: float = _images(
        DEFAULT_MAX_MEGAPIXELS,
        "larger images are refused before they are decoded",
        above=0,
        at_most=MAX_PILLOW_MEGAPIXELS,
    )
    exact_pixels: bool = _images(
        False,
        "decode and resize images exactly as the model's own processor does, to compare with "
        "other tools: slower, for large photos several times",
    )
    eval_batch_size: int = _machine(
        64,
        "images embedded at a time",
        at_least=1,
        at_most=65_536,
        because="all of them are in memory at once",
    )
    device: str = _machine(
        "auto", "auto, cuda, cuda:1, mps, xpu or cpu; auto uses the first available", metavar="NAME"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32", "int8"] = _machine(
        "auto",
        "the model's arithmetic; auto: bf16 where the device is fast at it, else fp16 on a GPU, "
        "else fp32; int8: about 1.5 times as fast as bf16 on a CPU with VNNI, and coarser",
    )
    num_workers: int | Literal["auto"] = _machine(
        "auto", "processes that read images; 0 reads in the main process", at_least=0
    )

    def __post_init__(self) -> None:
        settle(self)
        for name in ("train", "data", "test", "query", "gallery", "out", "model_name",
                     "decode_cache"):  # fmt: skip
            if getattr(self, name, None) == "":
                raise ConfigError(f"{name} is empty; name something, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Shared(Basics):
    """The options that every verb with test images shares."""

    query: str | None = _test_images(
        "images to search for: one folder per class, a flat folder, a table, or shards"
    )
    gallery: str | None = _test_images("images to search in, given together with query")
    test: str | None = _test_images(
        "one labelled source instead: each image is searched for in all the others"
    )
    out: str = option(
        ".", "folder to write results/ and weights/ in", group="Output", metavar="FOLDER"
    )


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The make-up of a training batch."""

    n_classes_per_batch: int = _batches(4, "P: classes in each batch", at_least=2)
    n_samples_per_class: int = _batches(2, "K: images of each class; a batch is P x K", at_least=2)


@dataclass(frozen=True, kw_only=True)
class Common(Shared):
    """The options that training and evaluation share."""

    holdout_classes: str | None = _tests(
        None,
        "test on classes that are kept out of training: a share of all classes, such as 0.5, or "
        "one of several folds, such as 2/5",
        metavar="SHARE",
    )
    holdout_seed: int = _tests(
        0, "random seed that picks the held-out classes", at_least=0, at_most=2**63 - 1
    )
    group_pattern: str | None = _tests(
        None,
        "a regular expression; test images whose names give the same match (its first group, or "
        "all of it) come from one shoot, and are never searched for in each other",
        metavar="REGEX",
    )
    decode_cache: str | None = _images(
        None,
        "a folder that keeps decoded images (width x height x 3 bytes each), so that later "
        "epochs and runs need not decode the files again; results are the same to the last bit; "
        "worth it for large photos and PNG files, over several epochs, if a GPU waits for "
        "images; none: off",
        metavar="FOLDER",
    )
    decode_cache_gb: float = _images(
        20.0,
        "GB (10^9 bytes) that decode_cache may use; once it is full, what is in it stays, and "
        "other images are decoded each time; 5 GB of the disk are always left free",
        above=0,
        at_most=1_000_000,
    )
    caption_template: str = option(
        "a photo of a {}.",
        "the text of a class, for models with a text tower; {} is its name",
        group="Text search",
        metavar="TEXT",
    )
    top_k: int = _tests(
        10,
        "results returned per query",
        at_least=1,
        at_most=1_000_000,
        because="all of them are in memory, for each query",
    )
    model_name: str = same_option(Shared, "model_name")
    overwrite: bool = option(False, "replace what an earlier run wrote there", group="Output")
    report: bool = option(
        True,
        "write results/report.html: charts, classes, and what was found for each query",
        group="Output",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.holdout_classes is not None:
            holdout_bounds(self.holdout_classes)
            first, slash, second = self.holdout_classes.partition("/")
            plain = f"{int(first)}/{int(second)}" if slash else f"{float(first):g}"
            object.__setattr__(self, "holdout_classes", plain)  # one way of writing each
        try:
            re.compile(self.group_pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            pattern = briefly(self.group_pattern or "", 200)
            raise ConfigError(
                f"group_pattern '{pattern}' is not a regular expression: {error}"
            ) from error
        if "{}" not in self.caption_template:
            raise ConfigError(
                f"caption_template is {self.caption_template!r}; it needs {{}} where the name "
                "of the class goes"
            )
        if self.test is not None and (self.query is not None or self.gallery is not None):
            raise ConfigError("give either test, or query and gallery, not both")
        if (self.query is None) != (self.gallery is None):
            given, missing = ("query", "gallery") if self.query else ("gallery", "query")
            raise ConfigError(f"{given} is given without {missing}; give both, or test instead")


def holdout_bounds(holdout: str) -> tuple[float, float]:
    """Returns the part of the ordered classes that is held out, as shares: "0.5" is 0 to 0.5."""
    first, slash, second = holdout.partition("/")
    try:
        if slash and 1 <= int(first) <= int(second) and int(second) >= 2:
            return (int(first) - 1) / int(second), int(first) / int(second)
        if not slash and 0 < float(first) < 1:
            return 0.0, float(first)
    except ValueError:
        pass
    raise ConfigError(
        f"holdout_classes is {holdout!r}; expected a share of the classes, such as 0.5, or a "
        "fold, such as 2/5"
    )
