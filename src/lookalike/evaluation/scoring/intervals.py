"""95% intervals of means over queries, and of their differences between two systems.

All of it works on one number a query; queries without an answer are left out by the caller. The
units that count as independent are queries, or with `clusters` (one label a query, such as its
class) whole clusters: queries of one class resemble each other, and counting them as
independent makes intervals too narrow.

How often these intervals hold the truth is measured in docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from lookalike.evaluation.scoring.quantiles import beta_quantile, student_quantile

Column = Float64[np.ndarray, " queries"]
Interval = tuple[float, float]

FEW_CLASSES = 50
"""Of so many classes or fewer, what intervals and tests say by class is told without asking."""

_TAIL = 0.025  # of each side of 95%
_ROUNDING = 1e-9
# So much of one unit's worth of wrong answers is taken to be seen beyond those that were: where
# hardly any were, nothing tells how they cluster, and whole units count. Without it intervals by
# class are too narrow near 1; from 0.05 on they hold the truth (tests/test_intervals.py).
_UNSEEN = 0.1


@dataclass(frozen=True)
class Units:
    """The independent units of a sample: the sum and the number of the queries in each."""

    sums: Float64[np.ndarray, "units columns"]
    sizes: Float64[np.ndarray, " units"]

    @property
    def num_queries(self) -> float:
        """The number of all queries."""
        return float(self.sizes.sum())

    @cached_property
    def effective(self) -> float:
        """The number of units of one size that would say as much (Kish, 1965)."""
        return self.num_queries**2 / float((self.sizes**2).sum())

    @property
    def are_queries(self) -> bool:
        """True where each query is a unit of its own."""
        return len(self.sizes) == self.num_queries

    def errors(self) -> Float64[np.ndarray, "units columns"]:
        """By how much the sum of each unit differs from what the mean of all makes of its size."""
        found: np.ndarray = (
            self.sums - np.outer(self.sizes, self.sums.sum(axis=0)) / self.num_queries
        )
        return found

    @cached_property
    def variances(self) -> Float64[np.ndarray, " columns"]:
        """The variance of each column's mean, units being a sample of many (ratio estimator)."""
        squares = (self.errors() ** 2).sum(axis=0)
        found: np.ndarray = squares * self._correction / self.num_queries**2
        return found

    @property
    def _correction(self) -> float:
        # Of one query a unit it is 1, so that shares of hits come out as exactly binomial.
        units, queries = len(self.sizes), self.num_queries
        return units / max(1, units - 1) * (queries - 1) / queries


def mean_intervals(
    columns: Mapping[str, Column], *, clusters: Sequence[str] | None = None
) -> dict[str, Interval]:
    """Returns the 95% interval of the mean over queries, for each column.

    Numbers from 0 to 1 (hits, precisions) have that of Clopper and Pearson, for as many
    independent trials as would vary as much: Korn and Graubard, "Confidence Intervals for
    Proportions with Small Expected Number of Positive Counts Estimated from Survey Data" (Survey
    Methodology 24, 1998). Of hits and no clusters these trials are the queries, and the interval
    is exact. It lies within 0 and 1, and has a width also where all queries score the same.
    Others have Student's interval.

    Args:
        columns: one number a query, all finite; the queries are the same in all columns.
        clusters: one label a query.

    Returns:
        The ends of each interval: 0 and 1 where there is but one cluster, which says nothing of
        others; the mean itself where there is but one unit and no such bounds.
    """
    units = units_of(np.stack(list(columns.values()), axis=1), clusters)
    return {
        name: _of_share(units, i)
        if column.min() >= -_ROUNDING and column.max() <= 1 + _ROUNDING
        else _student(units, i)
        for i, (name, column) in enumerate(columns.items())
    }


def difference_intervals(
    differences: Mapping[str, Column], *, clusters: Sequence[str] | None = None
) -> dict[str, Interval]:
    """Returns the 95% interval of the mean of paired differences, for each column.

    Differences from -1 to 1 are what was gained less what was lost, both of which are shares: their
    intervals are put together as Newcombe does (method 10 of "Improved Confidence Intervals for
    the Difference Between Binomial Proportions Based on Paired Data", Statistics in Medicine 17,
    1998; of any two estimates: Zou and Donner, Statistics in Medicine 27, 2008). Others have
    Student's. Of one cluster it is -1 to 1. Arguments and the rest are as in `mean_intervals`.
    """
    table = np.stack(list(differences.values()), axis=1)
    both = units_of(np.concatenate([table.clip(0, None), -table.clip(None, 0)], axis=1), clusters)
    found = {}
    for i, (name, column) in enumerate(differences.items()):
        parts = Units(both.sums[:, [i, len(differences) + i]], both.sizes)
        if np.abs(column).max() <= 1 + _ROUNDING:
            found[name] = _gained_less_lost(parts)
        else:
            found[name] = _student(Units(-np.diff(parts.sums, axis=1), both.sizes), 0)
    return found


def classes_are_few(labels: Sequence[str]) -> bool:
    """Returns whether the queries are of so few classes that intervals by query mislead.

    >>> classes_are_few(["a", "a", "b"]), classes_are_few(["a", "b", "c"])
    (True, False)
    """
    return len(set(labels)) <= min(FEW_CLASSES, len(labels) - 1)


def units_of(
    scores: Float64[np.ndarray, "queries columns"], clusters: Sequence[str] | None
) -> Units:
    """Returns the units of these scores: queries, or whole clusters.

    Raises:
        ValueError: there are no queries, or a score is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("needs one finite score a query, and at least one query")
    if clusters is None:
        return Units(scores, np.ones(len(scores)))
    _, of_cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(of_cluster).astype(np.float64)
    sums = np.zeros((len(sizes), *scores.shape[1:]))
    np.add.at(sums, of_cluster, scores)
    return Units(sums, sizes)


def _of_share(units: Units, column: int) -> Interval:
    """The interval of the mean of numbers from 0 to 1."""
    if len(units.sizes) == 1 and not units.are_queries:
        return 0.0, 1.0
    mean = min(1.0, max(0.0, float(units.sums[:, column].sum()) / units.num_queries))
    trials = _trials(units, float(units.variances[column]), mean)
    hits = mean * trials
    misses = trials - hits
    low = beta_quantile(_TAIL, hits, misses + 1) if hits > _ROUNDING else 0.0
    high = beta_quantile(1 - _TAIL, hits + 1, misses) if misses > _ROUNDING else 1.0
    return min(low, mean), max(high, mean)


def _trials(units: Units, variance: float, mean: float) -> float:
    """How many independent trials with this mean would vary as much."""
    effective, one_trial = units.effective, mean * (1 - mean)
    if not units.are_queries:  # the variance is known from so few numbers
        few, many = (student_quantile(1 - _TAIL, n - 1) for n in (effective, units.num_queries))
        variance *= (few / many) ** 2
    varied = variance * effective**2 + _UNSEEN
    return effective * (effective * one_trial + _UNSEEN) / varied


def _student(units: Units, column: int) -> Interval:
    mean = float(units.sums[:, column].sum()) / units.num_queries
    if len(units.sizes) == 1:
        return mean, mean
    reach = student_quantile(1 - _TAIL, units.effective - 1)
    reach *= math.sqrt(float(units.variances[column]))
    return mean - reach, mean + reach


def _gained_less_lost(units: Units) -> Interval:
    """The interval of the first column's mean less the second's, neither of them below 0."""
    if len(units.sizes) == 1 and not units.are_queries:
        return -1.0, 1.0
    gained, lost = (units.sums.sum(axis=0) / units.num_queries).tolist()
    (gained_low, gained_high), (lost_low, lost_high) = (_of_share(units, i) for i in (0, 1))
    errors = units.errors()
    norm = math.sqrt(float((errors**2).sum(axis=0).prod()))
    correlation = float(errors[:, 0] @ errors[:, 1]) / norm if norm > 0 else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    difference = gained - lost
    low = difference - reach(gained - gained_low, lost_high - lost)
    return max(-1.0, low), min(1.0, difference + reach(gained_high - gained, lost - lost_low))
