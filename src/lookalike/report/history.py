"""The epochs of one run, as their metrics files tell them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from lookalike.evaluation.documents import Document, read_metrics
from lookalike.evaluation.metrics import headline
from lookalike.evaluation.results import mixture_files, result_files
from lookalike.evaluation.scoring.intervals import classes_are_few

# What has an entry a query, and so is as large as the test; the rest of a file is small.
_LARGE = ("per_query", "scores", "unreadable")
_NEEDED = ("epoch", "metrics", "per_query", "health", "versions", "config")


@dataclass(frozen=True)
class History:
    """The measured epochs of a run up to one of them, oldest first.

    `epochs` are their metrics files without what is said of single queries. `current`, `before`
    (the first) and `previous` are whole; the last two are None where there is only one epoch,
    and `previous` is `before` where there are two.
    """

    epochs: list[Document]
    current: Document
    before: Document | None
    previous: Document | None

    @property
    def measured(self) -> bool:
        """There were labels, and so metrics."""
        return self.current["metrics"] is not None

    @property
    def headline(self) -> list[str]:
        """The headline metrics that the current epoch has a number of."""
        metrics = self.current["metrics"] or {}
        return [name for name in headline() if metrics.get(name) is not None]

    @cached_property
    def scored_labels(self) -> list[str]:
        """The classes of the current epoch's queries that have an answer."""
        rows = self.current["per_query"] or {}
        columns = (rows.get(name, ()) for name in ("label", "num_relevant"))
        return [label for label, n in zip(*columns, strict=True) if n]

    @cached_property
    def num_few_classes(self) -> int:
        """How many classes the queries are of, where these are few; else 0."""
        return len(set(self.scored_labels)) if classes_are_few(self.scored_labels) else 0

    @property
    def began(self) -> str:
        """The first measured epoch, in words."""
        first = self.epochs[0]["epoch"]
        return f"epoch {first}" if first else "before training"

    @property
    def text_title(self) -> str:
        """Text search and drift, as far as they were measured, as a title."""
        has_text = self.current.get("text_metrics") is not None
        has_drift = sum(one.get("drift") is not None for one in self.epochs) > 1
        if has_text:
            return "Text search and drift" if has_drift else "Text search"
        return "Drift" if has_drift else ""


def read_history(out: Path, epoch: int, *, of_mixture: bool = False) -> History:
    """Loads the epochs below `out/results` that belong with this one: of its run and protocol.

    With `of_mixture` the last of them is the mixture that was chosen of the epoch's weights and
    the baseline's.

    Raises:
        DataError: the epoch's own metrics file is missing, is not ours, or is an earlier version's.
    """
    path = (mixture_files(out) if of_mixture else result_files(out, epoch))[1]
    current = _read(path, *_NEEDED)
    run, fingerprint = current.get("run"), current["protocol"]["fingerprint"]
    numbers = range(epoch + 1 if of_mixture else epoch) if run is not None else ()
    earlier: list[Path] = []
    epochs: list[Document] = []
    for path in (result_files(out, number)[1] for number in numbers):
        one = _light(path, path.stat().st_mtime_ns) if path.is_file() else {}
        same_test = one.get("protocol", {}).get("fingerprint") == fingerprint
        if one.get("run") == run and same_test and one.keys() >= set(_NEEDED) - set(_LARGE):
            earlier.append(path)
            epochs.append(one)
    epochs.append(_without_queries(current))
    before = _read(earlier[0]) if earlier else None
    previous = before if len(earlier) < 2 else _read(earlier[-1])
    return History(epochs, current, before, previous)


def query_column(document: Document | None, like: Document, metric: str) -> np.ndarray | None:
    """Returns one number a query from an epoch's file, NaN where there is none.

    None where the file has other queries than `like` (an image became unreadable on the way), or
    lacks the metric.
    """
    mine, theirs = like["per_query"], (document or {}).get("per_query")
    if mine is None or theirs is None or metric not in theirs:
        return None
    if any(mine.get(key) != theirs.get(key) for key in ("name", "label", "num_relevant")):
        return None
    return np.array(theirs[metric], dtype=np.float64)  # None becomes NaN


@lru_cache(maxsize=256)
def _light(path: Path, changed_ns: int) -> Document:  # noqa: ARG001 - a part of the key
    """An earlier epoch's file; each epoch's report needs all of them again."""
    return _without_queries(_read(path))


def _without_queries(document: Document) -> Document:
    return {key: value for key, value in document.items() if key not in _LARGE}


def _read(path: Path, *needs: str) -> Document:
    return read_metrics(path, "evaluate anew", needs=needs)
