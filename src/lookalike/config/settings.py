"""Configurations from mappings of options, and back into recipes (YAML)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError, nearest
from lookalike.files import briefly

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")

RESUME_ADVICE = "Give the run's folder with --out, or one of its checkpoints: --resume FILE"

# What a resumed run may change: none of it alters what is learned, but for rounding. (That `train`
# still holds the same images is checked by their names, wherever they lie now.)
FREE_ON_RESUME = frozenset(
    {"train", "num_epochs", "out", "overwrite", "query", "gallery", "test", "top_k",
     "group_pattern", "eval_batch_size", "device", "precision", "num_workers",
     "gradient_checkpointing", "batch_memory", "sharding", "compile",
     "interpolation", "best_metric", "patience", "keep", "autosave_minutes",
     "track", "track_project", "track_optional", "report", "decode_cache", "decode_cache_gb"}
)  # fmt: skip

# Wishes of one command, not settings: kept nowhere, so that no later command has them unasked.
ONE_TIME = frozenset({"overwrite"})


def config_from(cls: type[ConfigT], *mappings: Mapping[str, Any]) -> ConfigT:
    """Returns a configuration from mappings of option names to values, later ones winning.

    Values may be strings, as they come from a command line or YAML (`"2e-5"`, `"none"`).

    Raises:
        ConfigError: an unknown name (the nearest known one is named) or an impossible value.
    """
    return cls(**merge_options(cls, *mappings))


def merge_options(cls: type[ConfigT], *mappings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one mapping of several, later ones winning.

    Raises:
        ConfigError: an unknown name, or two names of one option in one mapping.
    """
    known = [option.name for option in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for mapping in mappings:
        keys: dict[str, Any] = {}  # by the option that they name
        for key, value in mapping.items():
            name = str(key).replace("-", "_")
            if name not in known:
                near = nearest(name, known, cutoff=0.5)
                hint = f"did you mean {near!r}?" if near else f"known keys: {', '.join(known)}"
                raise ConfigError(f"unknown key {briefly(repr(key), 200)}; {hint}")
            if name in keys:
                raise ConfigError(
                    f"{keys[name]!r} and {key!r} are one option; leave one of them out"
                )
            keys[name], values[name] = key, value
        # Which test images is one choice: a later mapping that makes it undoes an earlier one.
        if mapping.get("test") is not None:
            values |= {side: mapping.get(side) for side in ("query", "gallery")}
        elif mapping.get("query") is not None or mapping.get("gallery") is not None:
            values["test"] = None
    return values


def kept_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of a run's settings is kept, and goes on in a resumed one: all but the wishes of
    one command, which files of earlier versions hold.
    """
    return {name: value for name, value in settings.items() if name not in ONE_TIME}


def format_recipe(config: DataclassInstance) -> str:
    """Returns the whole configuration as a commented recipe, which `read_recipe` reads back."""
    lines: list[str] = []
    for group, options in options_by_group(type(config)):
        lines += ["", f"# {group}"]
        for option in (one for one in options if one.name not in ONE_TIME):
            line = f"{option.name}: {_as_yaml(getattr(config, option.name))}"
            lines.append(f"{line:<44}  # {option.metadata['help']}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _as_yaml(value: Any) -> str:
    """Returns one value on one line."""
    import yaml

    if isinstance(value, float):
        return repr(value)  # YAML 1.1 takes 1e-07 for text, and we take that text for the number
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    dumped = yaml.safe_dump(value, allow_unicode=True, width=float("inf"), default_style=style)
    return dumped.partition("\n")[0]


def options_by_group(cls: type) -> Iterator[tuple[str, list[dataclasses.Field[Any]]]]:
    """Yields the options of a configuration in reading order: what is trained on first."""
    order = ["Training images", "Test images", "Model", "Training", "Batches", "Objective",
             "Augmentation", "Checkpoints", "Images", "Other systems", "Machine", "Measurement",
             "Output", "Hugging Face Hub", "Tracking", "Text search"]  # fmt: skip
    for group in order:
        options = [one for one in dataclasses.fields(cls) if one.metadata["group"] == group]
        if options:
            yield group, options


def changed_on_resume(saved: Mapping[str, Any], now: TrainConfig) -> list[str]:
    """Returns what differs from a saved run and would make it another run, as `name: a -> b`."""
    free = free_on_resume(now)
    # An option that the saved run does not know, since it came later, had its default then.
    before = {option.name: option.default for option in dataclasses.fields(now)} | dict(saved)
    return [
        f"{name}: {before[name]} -> {value}"
        for name, value in dataclasses.asdict(now).items()
        if name not in free and before[name] != value
    ]


def free_on_resume(config: TrainConfig) -> frozenset[str]:
    """Returns the options that a resumed run may change: its length, if no schedule follows it."""
    follows = config.schedule != "constant" or 0 < config.warmup_steps < 1
    return FREE_ON_RESUME - {"num_epochs"} if follows else FREE_ON_RESUME
