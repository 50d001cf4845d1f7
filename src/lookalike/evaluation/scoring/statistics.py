"""Statistics of scores: bootstrap intervals, and a paired test between two systems.

All of it works on one score a query, whatever the metric; queries without an answer are left
out by the caller. With `clusters` (one label a query, such as its class or the product it shows)
whole clusters are drawn or flipped together: queries of one class resemble each other, and
counting them as independent makes intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Column = Float64[np.ndarray, " queries"]

_LEVEL = 0.95
_CHUNK_ELEMENTS = 2**23  # random numbers held at a time: 64 MB


@dataclass(frozen=True)
class PairedTest:
    """The difference of the mean of B from that of A on the same queries.

    `difference` is B - A with its 95% bootstrap interval `low`..`high`; `p_value` is that of
    the two-sided paired permutation test.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_intervals(
    columns: Mapping[str, Column],
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Returns the 95% percentile bootstrap interval of the mean over queries, for each column.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; of
    whole clusters: Davison and Hinkley, "Bootstrap Methods and their Application", section 3.8.

    Args:
        columns: one number a query, all finite; the queries are the same in all columns, and
            the same draws serve them all.
        clusters: one label a query; draws whole clusters instead of queries.
        resamples: how many times the queries are drawn anew.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        The ends of each interval. Of a single query (or cluster) both are the mean itself.
    """
    sums, sizes = _cluster_sums(np.stack(list(columns.values()), axis=1), clusters)
    generator = np.random.default_rng(seed)
    n, means = len(sums), []
    for size in _chunk_sizes(n, resamples):
        drawn = generator.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        means.append((counts @ sums) / (counts @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(means), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return dict(zip(columns, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def paired_tests(
    a: Mapping[str, Column],
    b: Mapping[str, Column],
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, PairedTest]:
    """Tests, for each metric, whether B's mean differs from A's by more than chance.

    The null hypothesis is that the two systems are exchangeable query by query (or cluster by
    cluster): each difference could as well have had the other sign. The p-value is the share
    of random sign flips whose mean is at least as far from 0 as the one observed, counting the
    observed one (so it is never 0). The same flips serve all metrics.

    Source: Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for
    Information Retrieval Evaluation" (CIKM 2007), section 3.1; the added one: Phipson and
    Smyth, "Permutation P-values Should Never Be Zero" (2010).

    Args:
        a, b: for each metric of `a` one finite number a query, the same queries in one order.
        clusters: flips whole clusters instead of queries.
        resamples: random flips.
        seed: of flips and of the interval's draws.
    """
    differences = {name: np.subtract(b[name], a[name], dtype=np.float64) for name in a}
    sums, _ = _cluster_sums(np.stack(list(differences.values()), axis=1), clusters)
    moved = sums[(sums != 0).any(axis=1)]
    total = sums.sum(axis=0)
    # What rounding makes of equal sums must count as equal.
    enough = np.abs(total) - 1e-9 * np.abs(sums).sum(axis=0)
    generator = np.random.default_rng(seed)
    extreme = np.zeros(len(total))
    for size in _chunk_sizes(len(moved), resamples):
        heads = generator.integers(0, 2, (size, len(moved)), dtype=np.int8).astype(np.float64)
        extreme += (np.abs(2 * (heads @ moved) - total) >= enough).sum(axis=0)
    intervals = bootstrap_intervals(differences, clusters=clusters, seed=seed)
    p_values = dict(zip(differences, (extreme + 1) / (resamples + 1), strict=True))
    return {
        name: PairedTest(float(column.mean()), *intervals[name], float(p_values[name]))
        for name, column in differences.items()
    }


def _cluster_sums(
    scores: np.ndarray, clusters: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of the scores and the number of queries of each cluster."""
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("needs one finite score a query, and at least one query")
    if clusters is None:
        return scores, np.ones(len(scores))
    _, of_cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(of_cluster).astype(np.float64)
    sums = np.zeros((len(sizes), *scores.shape[1:]))
    np.add.at(sums, of_cluster, scores)
    return sums, sizes


def _chunk_sizes(width: int, total: int) -> list[int]:
    """`total` rows in chunks of a bounded number of elements."""
    rows = max(1, _CHUNK_ELEMENTS // max(1, width))
    return [min(rows, total - start) for start in range(0, total, rows)]
