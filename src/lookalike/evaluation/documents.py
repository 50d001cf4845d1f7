"""Metrics files as they are read back: checked, for anybody may have changed them since."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import DataError
from lookalike.files import shown

Document = dict[str, Any]
_Check = Callable[[Any], bool]

NUM_BINS = 100
"""Of a histogram of similarities."""
_LARGEST = 1e300


def read_metrics(path: Path, advice: str, *, needs: Iterable[str] = ()) -> Document:
    """Reads a metrics file; what its known parts hold has the form that the rest relies on.

    Args:
        path: of the file.
        advice: what to do about a file that is damaged, the end of the message.
        needs: parts that must be there.

    Raises:
        DataError: it cannot be read, or is not what Lookalike writes; names the part.
    """
    document = read_json(path, advice)
    if not isinstance(document, dict):
        raise DataError(f"{shown(path)} is not a metrics file; expected a results/metrics_*.json "
                        f"that lookalike wrote; {advice}")  # fmt: skip
    for name in ("protocol", *needs):
        if name not in document:
            raise DataError(f"{shown(path)} is not a metrics file of this version, for it has no "
                            f"{name!r}; {advice}")  # fmt: skip
    for name, (what, is_right) in _PARTS.items():
        if name in document and not is_right(document[name]):
            raise DataError(f"{shown(path)} is damaged ({name!r} is not {what}); {advice}")
    return document


def read_json(path: Path, advice: str) -> Any:
    """Reads a JSON file; `advice` is what to do where that fails.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{shown(path)} is not a regular file; {advice}")  # would wait forever
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {shown(path)}: {error.strerror}; {advice}") from error
    except ValueError as error:
        why = shown(str(error))[:200]
        raise DataError(f"{shown(path)} is not JSON ({why}); {advice}") from error
    except RecursionError as error:
        raise DataError(f"{shown(path)} is not JSON (nested too deep); {advice}") from error


def is_number(value: Any) -> bool:
    """Returns whether it is a finite number; true and false are none."""
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def is_count(value: Any) -> bool:
    """Returns whether it is a whole number from 0 that fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def optional(is_right: _Check) -> _Check:
    """Returns a check that also lets null pass."""
    return lambda value: value is None or is_right(value)


def by_name(is_right: _Check) -> _Check:
    """Returns a check for a JSON object with such values."""
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def record(**parts: _Check) -> _Check:
    """Returns a check for a JSON object that has these parts, and perhaps others."""
    return lambda value: (
        isinstance(value, dict)
        and all(name in value and is_right(value[name]) for name, is_right in parts.items())
    )


def _has(known: Mapping[str, _Check]) -> _Check:
    """Returns a check for a JSON object in which these parts are right where they are there."""
    return lambda value: (
        isinstance(value, dict)
        and all(name not in value or is_right(value[name]) for name, is_right in known.items())
    )


def _list_of(is_right: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def is_text(value: Any) -> bool:
    """Returns whether it is text."""
    return isinstance(value, str)


def _is_interval(value: Any) -> bool:
    return _list_of(is_number)(value) and len(value) == 2


def _are_columns(value: Any) -> bool:
    """Whether these are the scores of queries: lists of one length, numbers but for the names."""
    if not isinstance(value, dict):
        return False
    kinds = {name: _list_of(is_text) for name in ("name", "label")}
    kinds["num_relevant"] = _list_of(is_count)
    right = all(kinds.get(name, _are_scores)(column) for name, column in value.items())
    return right and len({len(column) for column in value.values()}) <= 1


def _are_scores(value: Any) -> bool:
    """Whether these are numbers or null; of a million queries in no time."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float, type(None)}:
        return False
    try:
        column = np.array(value, dtype=np.float64)  # null becomes NaN
    except OverflowError:
        return False
    return int((np.abs(column) < _LARGEST).sum()) == len(value) - value.count(None)


def _are_bins(value: Any) -> bool:
    return _list_of(is_count)(value) and len(value) == NUM_BINS


_HISTOGRAM = record(low=is_number, high=is_number, positives=_are_bins, negatives=_are_bins)
_HOLDOUT = record(rule=is_text, classes=_list_of(is_text), of_classes=is_text)
_DRIFT = record(mean_cosine=is_number, low_cosine=is_number, num_images=is_count)
_COUNTS = ("num_queries", "num_gallery", "num_queries_without_answer", "num_query_classes",
           "num_gallery_classes", "num_queries_scored")  # fmt: skip
_PROTOCOL = {"kind": is_text, "holdout": optional(_HOLDOUT)}
_PROTOCOL |= dict.fromkeys(_COUNTS, optional(is_count))
_HEALTH = dict.fromkeys(("separation", "alignment", "uniformity", "effective_rank", "dim"),
                        optional(is_number))  # fmt: skip
_NUMBERS = ("numbers by name", optional(by_name(optional(is_number))))
_INTERVALS = ("pairs of numbers by name", optional(by_name(_is_interval)))
_PARTS: dict[str, tuple[str, _Check]] = {
    "epoch": ("a whole number", is_count),
    "loss": ("a number", optional(is_number)),
    "alpha": ("a number", optional(is_number)),
    "metrics": _NUMBERS,
    "macro_metrics": _NUMBERS,
    "text_metrics": _NUMBERS,
    "intervals": _INTERVALS,
    "intervals_by_class": _INTERVALS,
    "text_intervals": _INTERVALS,
    "per_class": ("numbers by class", optional(by_name(by_name(is_number)))),
    "protocol": (
        "the facts of a test",
        lambda value: record(fingerprint=is_text)(value) and _has(_PROTOCOL)(value),
    ),
    "per_query": ("a column of numbers a metric", optional(_are_columns)),
    "drift": (
        "the cosines of images",
        optional(_DRIFT),
    ),
    "health": (
        "measures of embeddings",
        lambda value: record(histogram=optional(_HISTOGRAM))(value) and _has(_HEALTH)(value),
    ),
    "versions": ("text by name", by_name(is_text)),
    "config": ("settings by name", by_name(lambda _: True)),
}
