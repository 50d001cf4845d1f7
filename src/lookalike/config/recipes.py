"""Recipes (YAML) as files: those that ship with the package, and people's own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from lookalike.errors import ConfigError, DataError, nearest
from lookalike.files import briefly, encoding_of, shown

_MOST_BYTES = 2**20
_MOST_CHARACTERS = 4096  # as long as a path can be
_DEEPEST = 3

# In the order in which people meet them.
SHIPPED = ("default", "quick", "strong", "keep-text", "large-batch", "low-memory")


def find_recipe(name: str) -> dict[str, Any]:
    """Returns the mapping of a shipped recipe, or of a file.

    A shipped name means the shipped recipe wherever the command runs: a file that bears such a
    name is `./strong`, or has an ending, as `strong.yaml`.

    Raises:
        DataError: there is no such recipe and no such file; names the nearest shipped one.
        ConfigError: it is not YAML, or not a mapping of names to values.
    """
    if name in SHIPPED:
        return _parsed(shipped_text(name), name)
    if Path(name).suffix or os.path.basename(name) != name or os.path.exists(name):
        return read_recipe(name)
    raise _no_recipe(name, ", and no file of that name")


def shipped_text(name: str) -> str:
    """Returns the text of a shipped recipe; raises DataError where none of that name ships."""
    if name not in SHIPPED:
        raise _no_recipe(name)
    return (files(__package__) / "shipped" / f"{name}.yaml").read_text(encoding="utf-8")


def summary(name: str) -> str:
    """Returns the purpose of a shipped recipe: the first line of its file."""
    return shipped_text(name).partition("\n")[0].removeprefix("# ")


def _no_recipe(name: str, more: str = "") -> DataError:
    near = nearest(name.lower(), SHIPPED, cutoff=0.5)
    meant = f"; did you mean {near!r}?" if near else "."
    return DataError(
        f"there is no recipe '{briefly(name, 200)}'{more}{meant} Those that ship with Lookalike: "
        f"{', '.join(SHIPPED)}"
    )


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a recipe file (YAML, in UTF-8 or UTF-16).

    Raises:
        DataError: there is no such file.
        ConfigError: it is not YAML, or not a mapping of names to values.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read the recipe {shown(path)}: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"the recipe {shown(path)} has more than {_MOST_BYTES:,} bytes; a recipe "
                          "is a page of lines of the form 'learning_rate: 2e-5'")  # fmt: skip
    try:
        text = content.decode(encoding_of(content[:4096]))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the recipe {shown(path)} is not YAML: it is not UTF-8, but perhaps Windows-1252; "
            "save it as UTF-8"
        ) from error
    return _parsed(text, path)


def _parsed(text: str, path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a recipe's text; `path` is what errors call it."""
    import yaml

    try:
        for wrong in _wrong_with(text):
            raise ConfigError(f"the recipe {shown(path)} {wrong}; it needs lines of the form "
                              "'learning_rate: 2e-5'")  # fmt: skip
        recipe = yaml.safe_load(text)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date such as 2024-13-45
        reason = briefly(" ".join(str(error).split()), 300)
        raise ConfigError(f"the recipe {shown(path)} is not YAML: {reason}") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict):
        raise ConfigError(
            f"the recipe {shown(path)} holds a {type(recipe).__name__}; "
            "it needs lines of the form 'learning_rate: 2e-5'"
        )
    return recipe


def _wrong_with(text: str) -> Iterator[str]:
    """Yields what no recipe has; looked for event by event, before anything is built of it.

    A few lines of aliases stand for billions of values, and what is nested too deep ends in an
    error of Python's.
    """
    import yaml

    depth = 0
    names: list[str] = []  # of the outer mapping, and its values in turn
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if anchor := getattr(event, "anchor", None):
            yield f"uses an anchor or alias ('{briefly(anchor)}')"
        if tag := getattr(event, "tag", None):
            yield f"uses a tag ('{briefly(tag)}')"
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MOST_CHARACTERS:
            yield f"has a value of {len(event.value):,} characters, of which no option takes more "\
                  f"than {_MOST_CHARACTERS:,}"  # fmt: skip
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            yield f"is nested more than {_DEEPEST} deep"
        if depth == 1 and isinstance(event, (yaml.ScalarEvent, yaml.CollectionEndEvent)):
            names.append(getattr(event, "value", ""))
    for name, count in Counter(names[::2]).items():
        if count > 1:
            yield f"gives '{briefly(name)}' {count} times"
