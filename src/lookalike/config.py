"""Every knob: its name, its default, its unit, and what it may be.

A configuration is one flat, frozen dataclass; the same names are keyword arguments in Python,
keys in a recipe (YAML) and flags on the command line (`learning_rate` is `--learning-rate`).
`None` means off. Nothing here reads a picture or touches a device.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from lookalike.errors import ConfigError, DataError

DEFAULT_MODEL = "openai/clip-vit-large-patch14-336"
DEFAULT_MAX_MEGAPIXELS = 89.0  # where Pillow begins to warn
MAX_PILLOW_MEGAPIXELS = 178.0  # above this Pillow refuses a file by itself, as a bomb


def _knob(
    default: Any,
    help: str,
    *,
    group: str,
    metavar: str | None = None,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field that carries what `--help`, the recipe and the checks need."""
    bounds = {"above": above, "at_least": at_least, "at_most": at_most}
    metadata = {"help": help, "group": group, "metavar": metavar, "bounds": bounds}
    return field(default=default, metadata=metadata)


def _same_knob(cls: type, name: str, **changes: Any) -> Any:
    """A knob of another class once more, some of it changed."""
    known = next(knob for knob in dataclasses.fields(cls) if knob.name == name)
    default = changes.pop("default", known.default)
    return field(default=default, metadata={**known.metadata, **changes})


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """The knobs that every verb with pictures shares."""

    query: str | None = _knob(
        None,
        "pictures to search for: a class-per-folder tree, a flat folder, or a table",
        group="Test pictures",
        metavar="PICTURES",
    )
    gallery: str | None = _knob(
        None,
        "pictures to search in, given together with query",
        group="Test pictures",
        metavar="PICTURES",
    )
    test: str | None = _knob(
        None,
        "one labelled folder or table instead: each picture searches in all the others",
        group="Test pictures",
        metavar="PICTURES",
    )
    model_name: str | None = _knob(
        DEFAULT_MODEL,
        "a hub id, a local Transformers folder, or a checkpoint of ours (.pth)",
        group="Model",
        metavar="NAME",
    )
    embedding: Literal["projected", "pooled"] = _knob(
        "projected",
        "projected: the space shared with text, where the model has one (else pooled); "
        "pooled: what the vision tower gives before that projection",
        group="Model",
    )
    max_megapixels: float = _knob(
        DEFAULT_MAX_MEGAPIXELS,
        "a larger picture is refused before it is decoded",
        group="Pictures",
        above=0,
        at_most=MAX_PILLOW_MEGAPIXELS,
    )
    eval_batch_size: int = _knob(64, "pictures embedded at a time", group="Machine", at_least=1)
    device: str = _knob(
        "auto",
        "auto, cuda, cuda:1, mps, xpu or cpu; auto takes the first there is",
        group="Machine",
        metavar="NAME",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = _knob(
        "auto",
        "arithmetic of the model; auto: bf16 where the device is fast at it, else fp16 with "
        "gradient scaling on a GPU, else fp32",
        group="Machine",
    )
    num_workers: int | Literal["auto"] = _knob(
        "auto",
        "processes that read pictures; 0 reads in the main process",
        group="Machine",
        at_least=0,
    )
    out: str = _knob(
        ".", "folder that results/ and weights/ are written under", group="Output", metavar="FOLDER"
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for knob in dataclasses.fields(self):
            value = _coerce(knob.name, getattr(self, knob.name), hints[knob.name])
            _check_bounds(knob, value)
            object.__setattr__(self, knob.name, value)  # frozen from here on
        for name in ("train", "data", "test", "query", "gallery", "out", "model_name"):
            if getattr(self, name, None) == "":
                raise ConfigError(f"{name} is empty; name something, or leave it out")


@dataclass(frozen=True, kw_only=True)
class _BatchShape:
    """What a training batch is made of."""

    n_classes_per_batch: int = _knob(
        4, "P: different classes in each batch", group="Batches", at_least=2
    )
    n_samples_per_class: int = _knob(
        2, "K: pictures of each of them; a batch is P x K", group="Batches", at_least=2
    )


@dataclass(frozen=True, kw_only=True)
class _Common(_Shared):
    """The knobs that training and evaluation share."""

    holdout_classes: str | None = _knob(
        None,
        "test on classes that are kept from training: a share of all classes such as 0.5, or one "
        "of so many folds such as 2/5",
        group="Test pictures",
        metavar="SHARE",
    )
    holdout_seed: int = _knob(
        0, "another seed holds out other classes", group="Test pictures", at_least=0
    )
    group_pattern: str | None = _knob(
        None,
        "a regular expression; test pictures whose names give the same match (its first "
        "parenthesis, or all of it) come from one shoot, and are never searched in each other",
        group="Test pictures",
        metavar="REGEX",
    )
    top_k: int = _knob(10, "retrievals returned per query", group="Test pictures", at_least=1)
    model_name: str = _same_knob(_Shared, "model_name")
    overwrite: bool = _knob(False, "replace what an earlier run wrote there", group="Output")
    report: bool = _knob(
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

    train: str | None = _knob(
        None,
        "pictures to learn from: a class-per-folder tree or a table with labels",
        group="Training pictures",
    )
    singletons: Literal["exclude", "repeat"] = _knob(
        "exclude",
        "a class with one picture has no pair to learn from: exclude it, or repeat its picture "
        "K times, each differently augmented",
        group="Batches",
    )
    augmentation: Literal["crop-flip", "none"] = _knob(
        "crop-flip",
        "crop-flip: a random part of each picture, half the time mirrored",
        group="Batches",
    )
    min_crop_area: float = _knob(
        0.8, "smallest share of a picture that crop-flip keeps", group="Batches", above=0, at_most=1
    )
    num_epochs: int = _knob(1, "times through the training pictures", group="Training", at_least=0)
    learning_rate: float = _knob(1e-7, "of AdamW", group="Training", above=0)
    temperature: float = _knob(0.07, "of the contrastive loss", group="Training", above=0)
    weight_decay: float = _knob(
        0.01,
        "of AdamW; on weight matrices, never on biases and norms",
        group="Training",
        at_least=0,
    )
    max_grad_norm: float | None = _knob(
        1.0, "gradients longer than this are shortened to it; none: off", group="Training", above=0
    )
    schedule: Literal["constant", "cosine"] = _knob(
        "constant", "of the learning rate after warm-up; cosine ends at zero", group="Training"
    )
    warmup_steps: int = _knob(
        0, "first steps, over which the learning rate rises from zero", group="Training", at_least=0
    )
    gradient_checkpointing: bool = _knob(
        False,
        "recompute activations backwards: less memory, about a third slower",
        group="Training",
    )
    seed: int = _knob(0, "of everything random", group="Training", at_least=0, at_most=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(_Common):
    """All that `lookalike evaluate` can be told.

    Raises:
        ConfigError: a value is out of its range, or two of them contradict each other.
    """

    test_embeddings: str | None = _knob(
        None,
        "embeddings of the test pictures, made elsewhere: a .npy beside a .csv of the same name "
        "that has a column path, or a .parquet with columns path and embedding",
        group="Other systems",
        metavar="FILE",
    )
    query_embeddings: str | None = _knob(
        None, "the same for the queries", group="Other systems", metavar="FILE"
    )
    gallery_embeddings: str | None = _knob(
        None, "the same for the gallery", group="Other systems", metavar="FILE"
    )
    run: str | None = _knob(
        None,
        "a ranking made elsewhere, as a TREC run file; scored against qrels, without pictures",
        group="Other systems",
        metavar="FILE",
    )
    qrels: str | None = _knob(
        None,
        "what is right for each query of run, as a TREC qrels file",
        group="Other systems",
        metavar="FILE",
    )
    trec: bool = _knob(
        False,
        "also write a TREC run, as deep as top_k, and qrels; raise top_k for metrics that look "
        "further down",
        group="Output",
    )
    save_embeddings: Literal["none", "npy", "parquet"] = _knob(
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

    data: str | None = _knob(
        None,
        "the pictures to check: a class-per-folder tree, a flat folder, or a table, each of whose "
        "splits counts as one",
        group="Training pictures",
        metavar="PICTURES",
    )
    test: str | None = _same_knob(_Shared, "test", help="test pictures, likewise")
    query: str | None = _same_knob(
        _Shared, "query", help="queries, to look for copies of other pictures among them"
    )
    gallery: str | None = _same_knob(_Shared, "gallery", help="a gallery, likewise")
    model_name: str | None = _same_knob(
        _Shared,
        "model_name",
        default=None,
        help="a hub id, a local Transformers folder, or a checkpoint of ours (.pth); with a model "
        "the check also finds likely wrong labels, and near copies by embedding",
    )
    num_neighbors: int = _knob(
        20,
        "nearest pictures that have a say in whether a label is right",
        group="Model",
        at_least=2,
    )
    out: str = _same_knob(
        _Shared,
        "out",
        default="check",
        help="folder that the findings are written to, and that remembers what was read",
    )


ConfigT = TypeVar("ConfigT", TrainConfig, EvaluateConfig, CheckConfig)

# What a resumed run may change: none of it alters what is learned. (That `train` still holds
# the same pictures is checked by their names, wherever they lie now.)
FREE_ON_RESUME = frozenset(
    {"train", "num_epochs", "out", "overwrite", "query", "gallery", "test", "top_k",
     "group_pattern", "eval_batch_size", "device", "num_workers", "gradient_checkpointing",
     "report"}
)  # fmt: skip


def config_from(cls: type[ConfigT], *mappings: Mapping[str, Any]) -> ConfigT:
    """A configuration from mappings of knob names to values, later ones winning.

    Values may be strings, as they come from a command line or YAML (`"2e-5"`, `"none"`).

    Raises:
        ConfigError: an unknown name (the nearest known one is named) or an impossible value.
    """
    known = [knob.name for knob in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            name = str(key).replace("-", "_")
            if name not in known:
                raise ConfigError(f"unknown key {key!r}{_nearest(name, known)}")
            values[name] = value
        # Which test pictures is one choice: a later mapping that makes it undoes an earlier one.
        if mapping.get("test") is not None:
            values |= {side: mapping.get(side) for side in ("query", "gallery")}
        elif mapping.get("query") is not None or mapping.get("gallery") is not None:
            values["test"] = None
    return cls(**values)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The mapping in a recipe file (YAML).

    Raises:
        DataError: there is no such file.
        ConfigError: it is not YAML, or not a mapping of names to values.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            recipe = yaml.safe_load(file)
    except OSError as error:
        raise DataError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        reason = " ".join(str(error).split())
        raise ConfigError(f"the recipe {path} is not YAML: {reason}") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict):
        raise ConfigError(
            f"the recipe {path} holds a {type(recipe).__name__}; "
            "it needs lines of the form 'learning_rate: 2e-5'"
        )
    return recipe


def format_recipe(config: TrainConfig | EvaluateConfig | CheckConfig) -> str:
    """The whole configuration as a commented recipe, which `read_recipe` reads back."""
    lines: list[str] = []
    for group, knobs in knobs_by_group(type(config)):
        lines += ["", f"# {group}"]
        for knob in knobs:
            line = f"{knob.name}: {_as_yaml(getattr(config, knob.name))}"
            lines.append(f"{line:<44}  # {knob.metadata['help']}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _as_yaml(value: Any) -> str:
    """One value on one line."""
    import yaml

    if isinstance(value, float):
        return repr(value)  # YAML 1.1 takes 1e-07 for text, and we take that text for the number
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    dumped = yaml.safe_dump(value, allow_unicode=True, width=float("inf"), default_style=style)
    return dumped.partition("\n")[0]


def knobs_by_group(cls: type) -> Iterator[tuple[str, list[dataclasses.Field[Any]]]]:
    """The knobs of a configuration in reading order: what is trained on first."""
    order = ["Training pictures", "Test pictures", "Model", "Batches", "Training", "Pictures",
             "Other systems", "Machine", "Output"]  # fmt: skip
    for group in order:
        knobs = [knob for knob in dataclasses.fields(cls) if knob.metadata["group"] == group]
        if knobs:
            yield group, knobs


def changed_on_resume(saved: Mapping[str, Any], now: TrainConfig) -> list[str]:
    """The knobs that differ from a saved run's and would make it another run, as `name: a -> b`."""
    free = FREE_ON_RESUME if now.schedule == "constant" else FREE_ON_RESUME - {"num_epochs"}
    return [
        f"{name}: {saved[name]} -> {value}"
        for name, value in dataclasses.asdict(now).items()
        if name in saved and name not in free and saved[name] != value
    ]


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


def _nearest(name: str, known: list[str]) -> str:
    begun = [one for one in known if len(name) > 2 and one.startswith(name)]
    near = begun or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type a knob is declared with."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    # None first: as text, "none" would otherwise be the name of a folder.
    for option in sorted(options, key=lambda option: option is not type(None)):
        matched, result = _try_coerce(value, option)
        if matched:
            return result
    raise ConfigError(f"{name} is {value!r}; expected {' or '.join(_named(o) for o in options)}")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _try_coerce(value: Any, option: Any) -> tuple[bool, Any]:
    """Whether `value` can stand for `option`, and as what."""
    text = str(value).strip()
    if option is type(None):
        # A recipe's bare `off` is False to YAML.
        return value is None or value is False or text.lower() in ("none", "off", "null"), None
    if typing.get_origin(option) is Literal:
        return text in typing.get_args(option), text
    if option is bool:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return text.lower() in words, words.get(text.lower())
    if option is str:
        return isinstance(value, (str, Path)), text if isinstance(value, Path) else value
    if isinstance(value, bool):  # a bool is an int to Python, and no number to anybody else
        return False, None
    if option is int and (isinstance(value, int) or text.lstrip("+-").isdecimal()):
        return True, int(value)  # exact, where a float would round
    try:
        number = float(text)
    except ValueError:
        return False, None
    if option is int:
        return number.is_integer(), int(number) if number.is_integer() else None
    return True, number


def _named(option: Any) -> str:
    if option is type(None):
        return "none"
    if typing.get_origin(option) is Literal:
        return " or ".join(typing.get_args(option))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[option]


def _check_bounds(knob: dataclasses.Field[Any], value: Any) -> None:
    """Raises where a number is not one, or out of the range its knob states."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    bounds = knob.metadata["bounds"]
    above, at_least, at_most = bounds["above"], bounds["at_least"], bounds["at_most"]
    if above is not None and not value > above:
        raise ConfigError(f"{knob.name} is {value}; it must be above {above:g}")
    if at_least is not None and not value >= at_least:
        raise ConfigError(f"{knob.name} is {value}; it must be at least {at_least:g}")
    if at_most is not None and not value <= at_most:
        raise ConfigError(f"{knob.name} is {value}; it must be at most {at_most:g}")
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"{knob.name} is {value}; it must be a finite number")
