"""A paired test between two systems, on one score a query, whatever the metric.

Queries without an answer are left out by the caller. With `clusters` (one label a query, such as
its class or the product it shows) whole clusters are flipped together (see `intervals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.evaluation.scoring.intervals import (
    Column,
    difference_intervals,
    mean_intervals,
    units_of,
)

bootstrap_intervals = mean_intervals  # the name that scripts know from when it was a bootstrap

_CHUNK_ELEMENTS = 2**23  # random numbers held at a time: 64 MB


@dataclass(frozen=True)
class PairedTest:
    """The difference of the mean of B from that of A on the same queries.

    `difference` is B - A with its 95% interval `low`..`high`; `p_value` is that of the two-sided
    paired permutation test.
    """

    difference: float
    low: float
    high: float
    p_value: float


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
        seed: of the flips.
    """
    differences = {name: np.subtract(b[name], a[name], dtype=np.float64) for name in a}
    sums = units_of(np.stack(list(differences.values()), axis=1), clusters).sums
    moved = sums[(sums != 0).any(axis=1)]
    total = sums.sum(axis=0)
    # What rounding makes of equal sums must count as equal.
    enough = np.abs(total) - 1e-9 * np.abs(sums).sum(axis=0)
    generator = np.random.default_rng(seed)
    extreme = np.zeros(len(total))
    for size in _chunk_sizes(len(moved), resamples):
        heads = generator.integers(0, 2, (size, len(moved)), dtype=np.int8).astype(np.float64)
        extreme += (np.abs(2 * (heads @ moved) - total) >= enough).sum(axis=0)
    intervals = difference_intervals(differences, clusters=clusters)
    p_values = dict(zip(differences, (extreme + 1) / (resamples + 1), strict=True))
    return {
        name: PairedTest(float(column.mean()), *intervals[name], float(p_values[name]))
        for name, column in differences.items()
    }


def _chunk_sizes(width: int, total: int) -> list[int]:
    """`total` rows in chunks of a bounded number of elements."""
    rows = max(1, _CHUNK_ELEMENTS // max(1, width))
    return [min(rows, total - start) for start in range(0, total, rows)]
