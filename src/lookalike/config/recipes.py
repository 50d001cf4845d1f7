"""Recipes (YAML) as files: those that ship with the package, and people's own."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from lookalike.errors import ConfigError, DataError, nearest

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
        f"there is no recipe {name!r}{more}{meant} Those that ship with Lookalike: "
        f"{', '.join(SHIPPED)}"
    )


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a recipe file (YAML).

    Raises:
        DataError: there is no such file.
        ConfigError: it is not YAML, or not a mapping of names to values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the recipe {path} is not YAML: it is not UTF-8") from error
    return _parsed(text, path)


def _parsed(text: str, path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a recipe's text; `path` is what errors call it."""
    import yaml

    try:
        recipe = yaml.safe_load(text)
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
