"""The outcome of queries, the choice of those that a report shows, and their strips."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from lookalike.data.images import ImageRef
from lookalike.evaluation.retrieval import Retrieval
from lookalike.evaluation.scoring.intervals import Column
from lookalike.report.page import brief

SHOWN_RESULTS = 10
MAX_IMAGES = 4000
"""All queries are shown where they and their results are no more images than this."""
CONFUSIONS = 100
_CONFUSED_PAIRS, _EXAMPLES = 50, 3


@dataclass(frozen=True)
class Outcome:
    """The end of each query. `first` is the gallery position of its first result, -1 if none.

    `change` is 1 where the first result is right and was wrong an epoch ago, -1 the other way
    round, else 0; `compared` says whether there was an epoch to compare with. Without labels
    `right` is False and `precision` NaN throughout.
    """

    answerable: Bool[np.ndarray, " queries"]
    right: Bool[np.ndarray, " queries"]
    precision: Column
    first_rank: Column
    num_relevant: Int64[np.ndarray, " queries"]
    change: Int64[np.ndarray, " queries"]
    first: Int64[np.ndarray, " queries"]
    compared: bool

    @property
    def totals(self) -> dict[str, int]:
        """The number of queries of each kind that the page can list, even if it does not."""
        kinds = {
            "worst": self.answerable,
            "wrong": self.answerable & ~self.right,
            "fixed": self.change == 1,
            "broken": self.change == -1,
            "unanswerable": ~self.answerable,
        }
        return {"all": len(self.first)} | {kind: int(of.sum()) for kind, of in kinds.items()}


@dataclass(frozen=True)
class Confusion:
    """So many queries of one class had an image of another as their first result."""

    label: str
    taken_for: str
    count: int


class Images:
    """The images of a page, each once, by number; columns for the page's script.

    A file that is listed under two labels is two images.
    """

    def __init__(self, retrieval: Retrieval) -> None:
        sides = (retrieval.gallery, retrieval.query)
        self._sides = [(side, side.refs) for side in sides]
        self._numbers: dict[tuple[ImageRef, str | None], int] = {}
        self._classes: dict[str, int] = {}
        self.names: list[str] = []
        self.labels: list[int] = []

    @property
    def refs(self) -> list[ImageRef]:
        """Returns the references of all images."""
        return [ref for ref, _ in self._numbers]

    @property
    def classes(self) -> list[str]:
        """The names of the classes, by their numbers."""
        return [brief(label) for label in self._classes]

    def number(self, position: int, *, is_query: bool) -> int:
        """Returns the number of an image of the queries or the gallery."""
        side, refs = self._sides[is_query]
        label = None if side.labels is None else side.labels[position]
        number = self._numbers.setdefault((refs[position], label), len(self._numbers))
        if number == len(self.names):
            self.names.append(brief(side.names[position]))
            self.labels.append(-1 if label is None else self.class_number(label))
        return number

    def class_number(self, label: str) -> int:
        """Returns the number of a class."""
        return self._classes.setdefault(label, len(self._classes))

    def columns(self, number_of: dict[ImageRef, int]) -> dict[str, list[Any]]:
        """Returns names, classes and thumbnails (-1 for none) of all images numbered so far."""
        thumbs = [number_of.get(ref, -1) for ref in self.refs]
        names, labels = self.names, self.labels
        return {"classes": self.classes, "names": names, "labels": labels, "thumbs": thumbs}


def outcome_of(retrieval: Retrieval, previous_recall: Column | None) -> Outcome:
    """Returns how each query ended, and how its first result changed since an epoch ago."""
    first, scores = retrieval.positions[:, 0].numpy(), retrieval.scores
    change = np.zeros(len(first), dtype=np.int64)
    if scores is None:
        no, none = np.zeros(len(first), dtype=bool), np.full(len(first), np.nan)
        return Outcome(no, no, none, none, change, change, first, compared=False)
    right = scores.columns["recall@1"] == 1
    if previous_recall is not None:
        change = right.astype(np.int64) - (previous_recall == 1)
    return Outcome(
        scores.answerable, right, scores.columns["mAP"], scores.first_rank, scores.num_relevant,
        change, first, previous_recall is not None,
    )  # fmt: skip


def find_confusions(retrieval: Retrieval, outcome: Outcome) -> list[Confusion]:
    """Returns which class was taken for which by queries that have an answer; most often first."""
    labels, gallery_labels = retrieval.query.labels, retrieval.gallery.labels
    if labels is None or gallery_labels is None:
        return []
    wrong = np.flatnonzero(outcome.answerable & ~outcome.right & (outcome.first >= 0))
    pairs = Counter((labels[i], gallery_labels[outcome.first[i]]) for i in wrong.tolist())
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(a, b, count) for (a, b), count in ordered]


def worst_first(outcome: Outcome) -> Int64[np.ndarray, " answerable"]:
    """Returns queries that have an answer: a late first right result first, then low precision."""
    order = np.lexsort((outcome.precision, -outcome.first_rank))
    worst: Int64[np.ndarray, " answerable"] = order[outcome.answerable[order]]
    return worst


def choose_queries(
    retrieval: Retrieval, outcome: Outcome, confusions: list[Confusion], *, seed: int = 0
) -> list[int]:
    """Returns the queries to show, in the order of the test: all, or a choice of too many.

    A choice holds the worst, some of those that were fixed and broken since the last epoch, a
    few of each of the most frequent confusions, and a seeded random sample.
    """
    num_queries = len(retrieval.query)
    results = np.unique(retrieval.positions[:, :SHOWN_RESULTS].numpy())
    num_found, both = int((results >= 0).sum()), retrieval.query is retrieval.gallery
    if (max(num_found, num_queries) if both else num_found + num_queries) <= MAX_IMAGES:
        return list(range(num_queries))
    shuffled = np.random.default_rng(seed).permutation(num_queries)
    change = outcome.change[shuffled]
    groups = (  # and how many of each there is room for
        (worst_first(outcome), 150),
        (shuffled[change == 1], 100),
        (shuffled[change == -1], 100),
        (shuffled, 150),
    )
    chosen = {i for group, room in groups for i in group[:room].tolist()}
    labels, gallery_labels = retrieval.query.labels or [], retrieval.gallery.labels or []
    wanted = {(one.label, one.taken_for): _EXAMPLES for one in confusions[:_CONFUSED_PAIRS]}
    wrong = outcome.answerable & ~outcome.right & (outcome.first >= 0)
    for i in shuffled[wrong[shuffled]].tolist():
        pair = (labels[i], gallery_labels[outcome.first[i]])
        if wanted.get(pair, 0):
            wanted[pair] -= 1
            chosen.add(i)
    return sorted(chosen)


def strips(
    retrieval: Retrieval, outcome: Outcome, chosen: list[int], images: Images
) -> list[list[Any]]:
    """Returns for each chosen query: image, first right rank, AP, right images, change, results.

    Rank and AP are None where there is none; results are image and similarity by turns.
    """
    rows = []
    for i in chosen:
        columns = (retrieval.positions, retrieval.similarities)
        found = zip(*(column[i, :SHOWN_RESULTS].tolist() for column in columns), strict=True)
        results: list[float] = []
        for position, similarity in found:
            if position >= 0:
                results += [images.number(position, is_query=False), round(similarity, 3)]
        rank, precision = float(outcome.first_rank[i]), float(outcome.precision[i])
        rows.append([
            images.number(i, is_query=True),
            int(rank) if np.isfinite(rank) else None,
            None if np.isnan(precision) else round(precision, 3),
            int(outcome.num_relevant[i]),
            int(outcome.change[i]),
            results,
        ])  # fmt: skip
    return rows


def thumbnails_in_order(rows: list[list[Any]]) -> tuple[list[int], list[int]]:
    """Returns images of strips, the most important first: those to have anyway, and the rest.

    Where the bound is reached early, it is the later results that go without.
    """
    results = [row[5][0::2] for row in rows]
    by_rank = [[n for n in place if n is not None] for place in zip_longest(*results)]
    first = chain([row[0] for row in rows], *by_rank[:3])
    return list(dict.fromkeys(first)), list(chain(*by_rank))
