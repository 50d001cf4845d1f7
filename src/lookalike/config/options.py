"""How an option is declared, and how what people write becomes its value, within its bounds."""

from __future__ import annotations

import dataclasses
import operator
import re
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from lookalike.errors import ConfigError
from lookalike.files import briefly

# More digits than any bound has are a number of another kind, which has no bound to name.
_DIGITS = re.compile(r"[+-]?\d{1,40}")
_BOUNDS = {"above": operator.gt, "at_least": operator.ge, "at_most": operator.le}


def option(
    default: Any,
    help: str,
    *,
    group: str,
    metavar: str | None = None,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    because: str = "",
) -> Any:
    """Returns a dataclass field that carries what `--help`, the recipe and the checks need.

    A number needs `at_most`: whatever is typed is refused before memory is taken for it. `because`
    says why more is of no use, where that is not plain.
    """
    bounds = {"above": above, "at_least": at_least, "at_most": at_most}
    metadata = {
        "help": help, "group": group, "metavar": metavar, "bounds": bounds, "because": because
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def same_option(cls: type, name: str, **changes: Any) -> Any:
    """Returns an option of another class once more, some of it changed."""
    known = next(one for one in dataclasses.fields(cls) if one.name == name)
    default = changes.pop("default", known.default)
    return field(default=default, metadata={**known.metadata, **changes})


def settle(config: Any) -> None:
    """Makes each option of a frozen configuration what it is declared as, or raises ConfigError."""
    hints = typing.get_type_hints(type(config))
    for one in dataclasses.fields(config):
        value = coerce(one.name, getattr(config, one.name), hints[one.name])
        _check_bounds(one.name, one, value)
        object.__setattr__(config, one.name, value)  # frozen from here on


def checked(cls: type, name: str, value: Any, *, called: str | None = None) -> Any:
    """Returns a value as an option of a configuration would be, `called` so, or raises."""
    known = next(one for one in dataclasses.fields(cls) if one.name == name)
    result = coerce(called or name, value, typing.get_type_hints(cls)[name])
    _check_bounds(called or name, known, result)
    return result


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Returns `value` as the type an option is declared with, or raises."""
    if "\0" in _text(value):
        raise ConfigError(f"{name} is {briefly(_text(value), 200)}; nothing can have such a name")
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    # None first: as text, "none" would otherwise be the name of a folder.
    for option in sorted(options, key=lambda option: option is not type(None)):
        matched, result = _try_coerce(value, option)
        if matched:
            return result
    expected = " or ".join(map(_named, options))
    given = repr(value) if isinstance(value, str) else _text(value)
    raise ConfigError(f"{name} is {briefly(given, 200)}; expected {expected}")


def _try_coerce(value: Any, option: Any) -> tuple[bool, Any]:
    """Returns whether `value` can stand for `option`, and as what."""
    text = _text(value).strip()
    if option is type(None):
        # A recipe's bare `off` is False to YAML.
        return value is None or value is False or text.lower() in ("none", "off", "null"), None
    if typing.get_origin(option) is Literal:
        if isinstance(value, bool):  # so are a recipe's bare `on` and `off`
            text = "on" if value else "off"
        return text in typing.get_args(option), text
    if option is bool:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return text.lower() in words, words.get(text.lower())
    if option is str:
        return isinstance(value, (str, Path)), text if isinstance(value, Path) else value
    if isinstance(value, bool):  # a bool is an int to Python, and no number to anybody else
        return False, None
    if option is int and (isinstance(value, int) or _DIGITS.fullmatch(text)):
        return True, int(value)  # exact, where a float would round
    try:
        number = float(text)
    except ValueError:
        return False, None
    if option is float:
        return True, number
    return number.is_integer(), int(number) if number.is_integer() else None


def _named(option: Any) -> str:
    if option is type(None):
        return "none"
    if typing.get_origin(option) is Literal:
        return " or ".join(typing.get_args(option))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[option]


def _check_bounds(name: str, option: dataclasses.Field[Any], value: Any) -> None:
    """Raises where a number is not one, or out of the range its option states."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    told = f"{name} is {briefly(_text(value))}"
    for bound, limit in option.metadata["bounds"].items():
        if limit is not None and not _BOUNDS[bound](value, limit):
            exact = f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
            why = option.metadata["because"] if bound == "at_most" else ""
            because = f": {why}" if why else ""
            raise ConfigError(f"{told}; it must be {bound.replace('_', ' ')} {exact}{because}")
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"{told}; it must be a finite number")


def _text(value: Any) -> str:
    """Returns a value as text; Python spells no whole number out that has thousands of digits."""
    try:
        return str(value)
    except ValueError:
        return f"a number of {value.bit_length():,} bits"
