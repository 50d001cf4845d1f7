"""The shape that data from a file has to have: checked whole, before anything in it is used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, TypeAlias

import torch
from torch import Tensor

# Called with a value and the words for where it stands; raises MisfitError.
Check: TypeAlias = Callable[[Any, str], None]
_MOST_DEEP = 32  # lists and dicts in each other
_MOST_PARTS = 1_000_000
# Names of a model's settings that it is built in a loop over.
_REPEATS = re.compile(r"(.*_)?(layers|depths?|stages|blocks|num_labels)")
_SHARES = re.compile(r".*(dropout|drop_path|layerdrop)(_rate|_prob|_p)?")
_MOST_SHOWN = 40  # characters of a value


class MisfitError(ValueError):
    """Something is not what is expected in its place; the message says what and where."""


def anything(value: Any, where: str) -> None:
    """Takes everything: it is not used, or checked by whoever uses it."""


def one_of(*known: Any) -> Check:
    """One of a few values."""
    words = " or ".join(map(repr, known)) if len(known) < 8 else "a known name"
    return _plain(lambda value: isinstance(value, str) and value in known, words)


def text(*, most: int = 4096, pattern: str = r".*") -> Check:
    """Text of up to so many characters, all of which match a pattern."""
    compiled = re.compile(pattern, re.DOTALL | re.ASCII)
    what = f"text of up to {most:,} characters" + ("" if pattern == ".*" else f" ({pattern})")
    return _plain(
        lambda value: (
            isinstance(value, str) and len(value) <= most and bool(compiled.fullmatch(value))
        ),
        what,
    )


def whole(low: int, high: int) -> Check:
    """A whole number within bounds, which belong to them."""
    return _plain(
        lambda value: type(value) is int and low <= value <= high,
        f"a whole number from {low} to {high:,}",
    )


def number(*, above: float = -math.inf, at_least: float = -math.inf) -> Check:
    """A finite number."""
    least = f" above {above:g}" if above > -math.inf else ""
    least = f" of {at_least:g} or more" if at_least > -math.inf else least
    return _plain(
        lambda value: (
            type(value) in (int, float)
            and abs(value) <= 1e300  # a whole number may be larger than any float
            and value > above
            and value >= at_least
        ),
        f"a finite number{least}",
    )


def setting(value: Any, where: str) -> None:
    """What an option may be: text, a number, true, false or None; of any of them not too much."""
    is_number = type(value) is int and abs(value) < 2**64
    if not (value is None or is_number or type(value) in (bool, float)):
        text(most=10_000)(value, where)


def flag(value: Any, where: str) -> None:
    """True or false."""
    if type(value) is not bool:
        raise _misfit(where, value, "true or false")


def text_or_bytes(value: Any, where: str) -> None:
    """The content of a file."""
    if not isinstance(value, (str, bytes)):
        raise _misfit(where, value, "the content of a file")


def tensor(value: Any, where: str) -> None:
    """A tensor with its values in memory, each of them there once."""
    is_plain = isinstance(value, Tensor) and value.layout == torch.strided
    if not is_plain or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        raise _misfit(where, value, "a tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise _misfit(where, value, "a tensor with as many values as its shape says")


def bytes_tensor(value: Any, where: str) -> None:
    """A row of bytes, as the state of a random number generator."""
    tensor(value, where)
    if value.dtype != torch.uint8 or value.ndim != 1:
        raise _misfit(where, value, "a row of bytes")


def document(value: Any, where: str) -> None:
    """What JSON can hold, not too deep and not too much: a small file may hold the same list many
    times, and in this list another one, which comes to more than anybody could walk through.
    """
    _document(value, where, 0, count())


def _document(value: Any, where: str, depth: int, parts: Iterator[int]) -> None:
    if next(parts) > _MOST_PARTS:
        raise MisfitError(f"{where[:200]} has more than {_MOST_PARTS:,} parts")
    if depth > _MOST_DEEP:
        raise MisfitError(f"{where[:200]} is nested too deep")
    if isinstance(value, dict):
        for key, part in value.items():
            text(most=1000)(key, f"a key of {where}")
            _document(part, f"{where}.{key}", depth + 1, parts)
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            _document(part, f"{where}[{place}]", depth + 1, parts)
    elif type(value) not in (int, float, bool, str, type(None)):
        raise _misfit(where, value, "text, a number, a list or a mapping")


def architecture(most: int) -> Check:
    """A model's configuration: a document of finite numbers, with shares up to 1 where something is
    left out at random, and of which no part is repeated more than `most` times.
    """

    def checked(value: Any, where: str) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                checked(part, name)
        elif isinstance(value, (list, tuple)):
            for part in value:
                checked(part, where)
        elif type(value) in (int, float):
            number()(value, where)
            if value > most and _REPEATS.fullmatch(where):
                raise _misfit(where, value, f"{most:,} at most")
            if _SHARES.fullmatch(where) and not 0 <= value <= 1:
                raise _misfit(where, value, "a share from 0 to 1")

    def check(value: Any, where: str) -> None:
        record({"model_type": text(most=200)}, open=True)(value, where)
        document(value, where)
        checked(value, where)

    return check


def nothing_or(check: Check) -> Check:
    """None, or what a check takes."""

    def checked(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return checked


def list_of(check: Check, *, length: int | None = None) -> Check:
    """A list, perhaps of so many, each of which a check takes."""

    def checked(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            raise _misfit(where, value, "a list" if length is None else f"a list of {length}")
        for place, part in enumerate(value):
            check(part, f"{where}[{place}]")

    return checked


def mapping_of(key: Check, check: Check) -> Check:
    """A mapping of any number of keys."""

    def checked(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _misfit(where, value, "a mapping")
        for name, part in value.items():
            key(name, f"a key of {where}")
            check(part, f"{where}.{name}")

    return checked


def record(
    required: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    *,
    open: bool = False,
) -> Check:
    """A mapping with known keys; `open`: others may stand in it, and are not looked at."""
    known = {**required, **(optional or {})}

    def checked(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _misfit(where, value, "a mapping")
        for name in required:
            if name not in value:
                raise MisfitError(f"{_joined(where, name)} is missing")
        for name, part in value.items():
            if name in known:
                known[name](part, _joined(where, name))
            elif not open:
                raise MisfitError(f"{where} has an entry {_shown(name)} that is not known")

    return checked


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _plain(fits: Callable[[Any], bool], expected: str) -> Check:
    def checked(value: Any, where: str) -> None:
        if not fits(value):
            raise _misfit(where, value, expected)

    return checked


def _misfit(where: str, value: Any, expected: str) -> MisfitError:
    place = where.encode("unicode_escape").decode()
    place = place if len(place) < 200 else f"{place[:200]} ..."
    return MisfitError(f"{place} is {_shown(value)}, expected {expected}")


def _shown(value: Any) -> str:
    """Returns a value in a few printable characters, whatever it is."""
    if isinstance(value, Tensor):
        return f"a tensor of {list(value.shape)} ({value.dtype})"[: 2 * _MOST_SHOWN]
    if type(value) is int and abs(value) >= 10**_MOST_SHOWN:
        return "a number of many digits"
    if type(value) in (str, bytes):
        cut = value[:_MOST_SHOWN]
        return ascii(cut) + (" ..." if len(value) > len(cut) else "")
    if value is None or type(value) in (int, float, bool):
        return str(value)
    return f"of the kind {type(value).__name__}"
