"""Every knob: its name, its default, its unit, and what it may be.

A configuration is one flat, frozen dataclass; the same names are keyword arguments in Python,
keys in a recipe (YAML) and flags on the command line (`learning_rate` is `--learning-rate`).
`None` means off. Nothing here reads a picture or touches a device.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from typing import Literal

from lookalike.errors import ConfigError
from lookalike.knobs import check_bounds, coerce, knob, same_knob

DEFAULT_MODEL = "openai/clip-vit-large-patch14-336"
DEFAULT_MAX_MEGAPIXELS = 89.0  # where Pillow begins to warn
MAX_PILLOW_MEGAPIXELS = 178.0  # above this Pillow refuses a file by itself, as a bomb


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """The knobs that every verb with pictures shares."""

    query: str | None = knob(
        None,
        "pictures to search for: a class-per-folder tree, a flat folder, or a table",
        group="Test pictures",
        metavar="PICTURES",
    )
    gallery: str | None = knob(
        None,
        "pictures to search in, given together with query",
        group="Test pictures",
        metavar="PICTURES",
    )
    test: str | None = knob(
        None,
        "one labelled folder or table instead: each picture searches in all the others",
        group="Test pictures",
        metavar="PICTURES",
    )
    model_name: str | None = knob(
        DEFAULT_MODEL,
        "a hub id, a local Transformers folder, or a checkpoint of ours (.pth)",
        group="Model",
        metavar="NAME",
    )
    embedding: Literal["projected", "pooled"] = knob(
        "projected",
        "projected: the space shared with text, where the model has one (else pooled); "
        "pooled: what the vision tower gives before that projection",
        group="Model",
    )
    max_megapixels: float = knob(
        DEFAULT_MAX_MEGAPIXELS,
        "a larger picture is refused before it is decoded",
        group="Pictures",
        above=0,
        at_most=MAX_PILLOW_MEGAPIXELS,
    )
    eval_batch_size: int = knob(64, "pictures embedded at a time", group="Machine", at_least=1)
    device: str = knob(
        "auto",
        "auto, cuda, cuda:1, mps, xpu or cpu; auto takes the first there is",
        group="Machine",
        metavar="NAME",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = knob(
        "auto",
        "arithmetic of the model; auto: bf16 where the device is fast at it, else fp16 with "
        "gradient scaling on a GPU, else fp32",
        group="Machine",
    )
    num_workers: int | Literal["auto"] = knob(
        "auto",
        "processes that read pictures; 0 reads in the main process",
        group="Machine",
        at_least=0,
    )
    out: str = knob(
        ".", "folder that results/ and weights/ are written under", group="Output", metavar="FOLDER"
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for one in dataclasses.fields(self):
            value = coerce(one.name, getattr(self, one.name), hints[one.name])
            check_bounds(one, value)
            object.__setattr__(self, one.name, value)  # frozen from here on
        for name in ("train", "data", "test", "query", "gallery", "out", "model_name"):
            if getattr(self, name, None) == "":
                raise ConfigError(f"{name} is empty; name something, or leave it out")


@dataclass(frozen=True, kw_only=True)
class _BatchShape:
    """What a training batch is made of."""

    n_classes_per_batch: int = knob(
        4, "P: different classes in each batch", group="Batches", at_least=2
    )
    n_samples_per_class: int = knob(
        2, "K: pictures of each of them; a batch is P x K", group="Batches", at_least=2
    )


@dataclass(frozen=True, kw_only=True)
class _Common(_Shared):
    """The knobs that training and evaluation share."""

    holdout_classes: str | None = knob(
        None,
        "test on classes that are kept from training: a share of all classes such as 0.5, or one "
        "of so many folds such as 2/5",
        group="Test pictures",
        metavar="SHARE",
    )
    holdout_seed: int = knob(
        0, "another seed holds out other classes", group="Test pictures", at_least=0
    )
    group_pattern: str | None = knob(
        None,
        "a regular expression; test pictures whose names give the same match (its first "
        "parenthesis, or all of it) come from one shoot, and are never searched in each other",
        group="Test pictures",
        metavar="REGEX",
    )
    top_k: int = knob(10, "retrievals returned per query", group="Test pictures", at_least=1)
    model_name: str = same_knob(_Shared, "model_name")
    overwrite: bool = knob(False, "replace what an earlier run wrote there", group="Output")
    report: bool = knob(
        True,
        "write results/report.html: charts, classes, and what was found for each query",
        group="Output",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.holdout_classes is not None:
            object.__setattr__(self, "holdout_classes", _plain_holdout(self.holdout_classes))
        if self.group_pattern is not None:
            _check_pattern(self.group_pattern)
        if self.test is not None and (self.query is not None or self.gallery is not None):
            raise ConfigError("give either test, or query and gallery, not both")
        if (self.query is None) != (self.gallery is None):
            given, missing = ("query", "gallery") if self.query else ("gallery", "query")
            raise ConfigError(f"{given} is given without {missing}; give both, or test instead")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_BatchShape, _Common):
    """All that `lookalike train` can be told.

    Raises:
        ConfigError: a value is out of its range, or two of them contradict each other.
    """

    train: str | None = knob(
        None,
        "pictures to learn from: a class-per-folder tree or a table with labels",
        group="Training pictures",
    )
    singletons: Literal["exclude", "repeat"] = knob(
        "exclude",
        "a class with one picture has no pair to learn from: exclude it, or repeat its picture "
        "K times, each differently augmented",
        group="Batches",
    )
    augmentation: Literal["crop-flip", "none"] = knob(
        "crop-flip",
        "crop-flip: a random part of each picture, half the time mirrored",
        group="Batches",
    )
    min_crop_area: float = knob(
        0.8, "smallest share of a picture that crop-flip keeps", group="Batches", above=0, at_most=1
    )
    num_epochs: int = knob(1, "times through the training pictures", group="Training", at_least=0)
    learning_rate: float = knob(1e-7, "of AdamW", group="Training", above=0)
    temperature: float = knob(0.07, "of the contrastive loss", group="Training", above=0)
    weight_decay: float = knob(
        0.01,
        "of AdamW; on weight matrices, never on biases and norms",
        group="Training",
        at_least=0,
    )
    max_grad_norm: float | None = knob(
        1.0, "gradients longer than this are shortened to it; none: off", group="Training", above=0
    )
    schedule: Literal["constant", "cosine"] = knob(
        "constant", "of the learning rate after warm-up; cosine ends at zero", group="Training"
    )
    warmup_steps: int = knob(
        0, "first steps, over which the learning rate rises from zero", group="Training", at_least=0
    )
    gradient_checkpointing: bool = knob(
        False,
        "recompute activations backwards: less memory, about a third slower",
        group="Training",
    )
    seed: int = knob(0, "of everything random", group="Training", at_least=0, at_most=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(_Common):
    """All that `lookalike evaluate` can be told.

    Raises:
        ConfigError: a value is out of its range, or two of them contradict each other.
    """

    test_embeddings: str | None = knob(
        None,
        "embeddings of the test pictures, made elsewhere: a .npy beside a .csv of the same name "
        "that has a column path, or a .parquet with columns path and embedding",
        group="Other systems",
        metavar="FILE",
    )
    query_embeddings: str | None = knob(
        None, "the same for the queries", group="Other systems", metavar="FILE"
    )
    gallery_embeddings: str | None = knob(
        None, "the same for the gallery", group="Other systems", metavar="FILE"
    )
    run: str | None = knob(
        None,
        "a ranking made elsewhere, as a TREC run file; scored against qrels, without pictures",
        group="Other systems",
        metavar="FILE",
    )
    qrels: str | None = knob(
        None,
        "what is right for each query of run, as a TREC qrels file",
        group="Other systems",
        metavar="FILE",
    )
    trec: bool = knob(
        False,
        "also write a TREC run, as deep as top_k, and qrels; raise top_k for metrics that look "
        "further down",
        group="Output",
    )
    save_embeddings: Literal["none", "npy", "parquet"] = knob(
        "none", "also write the embeddings, with the pictures' names", group="Output"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.run is None) != (self.qrels is None):
            given, missing = ("run", "qrels") if self.run else ("qrels", "run")
            raise ConfigError(f"{given} is given without {missing}; give both")
        if self.run is not None:
            for name in ("test", "query", "gallery", "holdout_classes", "group_pattern", "trec"):
                if getattr(self, name):
                    raise ConfigError(f"run and qrels are scored as they stand; leave {name} out")
            if self.save_embeddings != "none":
                raise ConfigError("run and qrels have no embeddings; leave save_embeddings out")
        for side, needed in (("test", ("test",)), ("query", ("gallery",)), ("gallery", ("query",))):
            if getattr(self, f"{side}_embeddings") is None:
                continue
            partner = f"{needed[0]}_embeddings"
            if getattr(self, side) is None:
                raise ConfigError(f"{side}_embeddings needs {side}: the pictures, or a table of "
                                  "their paths and labels")  # fmt: skip
            if getattr(self, partner) is None:
                raise ConfigError(f"{side}_embeddings is given without {partner}; give both")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(_BatchShape, _Shared):
    """All that `lookalike check` can be told.

    Raises:
        ConfigError: a value is out of its range.
    """

    data: str | None = knob(
        None,
        "the pictures to check: a class-per-folder tree, a flat folder, or a table, each of whose "
        "splits counts as one",
        group="Training pictures",
        metavar="PICTURES",
    )
    test: str | None = same_knob(_Shared, "test", help="test pictures, likewise")
    query: str | None = same_knob(
        _Shared, "query", help="queries, to look for copies of other pictures among them"
    )
    gallery: str | None = same_knob(_Shared, "gallery", help="a gallery, likewise")
    model_name: str | None = same_knob(
        _Shared,
        "model_name",
        default=None,
        help="a hub id, a local Transformers folder, or a checkpoint of ours (.pth); with a model "
        "the check also finds likely wrong labels, and near copies by embedding",
    )
    num_neighbors: int = knob(
        20,
        "nearest pictures that have a say in whether a label is right",
        group="Model",
        at_least=2,
    )
    out: str = same_knob(
        _Shared,
        "out",
        default="check",
        help="folder that the findings are written to, and that remembers what was read",
    )


def holdout_bounds(holdout: str) -> tuple[float, float]:
    """Which part of the ordered classes is held out, as shares: "0.5" is 0 to 0.5.

    Raises:
        ConfigError: it is neither a share nor a fold.
    """
    first, slash, second = holdout.partition("/")
    try:
        if slash and 1 <= int(first) <= int(second) and int(second) >= 2:
            return (int(first) - 1) / int(second), int(first) / int(second)
        if not slash and 0 < float(first) < 1:
            return 0.0, float(first)
    except ValueError:
        pass
    raise ConfigError(
        f"holdout_classes is {holdout!r}; expected a share of the classes such as 0.5, or a fold "
        "such as 2/5"
    )


def _plain_holdout(holdout: str) -> str:
    """One way of writing it: 0.50 is 0.5, 01/2 is 1/2."""
    holdout_bounds(holdout)
    first, slash, second = holdout.partition("/")
    return f"{int(first)}/{int(second)}" if slash else f"{float(first):g}"


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"group_pattern {pattern!r} is no regular expression: {error}") from error
