"""Intervals against SciPy, and how often they hold a truth that is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lookalike.evaluation.scoring.intervals import (
    Interval,
    classes_are_few,
    difference_intervals,
    mean_intervals,
)
from lookalike.evaluation.scoring.quantiles import beta_quantile, student_quantile

Draw = Callable[[np.random.Generator], tuple[np.ndarray, list[str] | None]]


def interval(scores: Any, labels: list[str] | None = None) -> Interval:
    return mean_intervals({"m": np.asarray(scores, dtype=np.float64)}, clusters=labels)["m"]


def of_differences(scores: Any, labels: list[str] | None = None) -> Interval:
    return difference_intervals({"m": np.asarray(scores, dtype=np.float64)}, clusters=labels)["m"]


def labels_of(classes: int, size: int) -> list[str]:
    return [str(number) for number in range(classes) for _ in range(size)]


def test_quantiles_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    for a, b in np.exp(generator.uniform(-7, 7, (200, 2))):
        for share in (0.025, 0.975):
            ours, theirs = beta_quantile(share, a, b), stats.beta.ppf(share, a, b)
            assert ours == pytest.approx(theirs, abs=1e-9)
    for freedom in (0.5, 1, 2.3, 4, 30, 1e5):
        assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (40, 40), (0, 40), (39, 40), (7, 500)])
def test_hits_have_the_exact_interval(hits: int, n: int) -> None:
    exact = stats.binomtest(hits, n).proportion_ci(method="exact")
    assert interval(np.arange(n) < hits) == pytest.approx((exact.low, exact.high))


def test_precisions_have_about_the_interval_of_a_bootstrap() -> None:
    scores = np.random.default_rng(0).beta(2, 1, 300)
    theirs = stats.bootstrap(
        (scores,), np.mean, method="BCa", n_resamples=5000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval(scores) == pytest.approx(tuple(theirs), abs=3e-3)


def test_numbers_beyond_0_and_1_have_students_interval() -> None:
    scores = np.random.default_rng(0).normal(5, 2, 30)
    theirs = stats.ttest_1samp(scores, 0).confidence_interval()
    for found in (interval(scores), of_differences(scores)):
        # The n - 1 of the exact formula is an n here, as for hits.
        assert found == pytest.approx((theirs.low, theirs.high), abs=0.03)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_scores_that_are_all_equal_have_an_interval_with_a_width(value: float) -> None:
    for n in (1, 2, 40):
        low, high = interval(np.full(n, value))
        assert 0 <= low <= value <= high <= 1
        assert high - low > 1 / (2 * n)


def test_a_single_class_tells_nothing_of_others() -> None:
    one = ["a"] * 18
    assert interval(np.ones(18), one) == (0, 1)
    assert of_differences(np.ones(18), one)[0] <= 0
    assert interval(np.ones(18))[0] == pytest.approx(0.025 ** (1 / 18))  # of queries it does


def test_a_single_class_tells_nothing_of_a_difference_either() -> None:
    differences = {"m": np.array([0.5, -0.5, 1.0])}
    assert difference_intervals(differences, clusters=["a", "a", "a"]) == {"m": (-1.0, 1.0)}


def test_one_query_a_class_is_the_same_by_class_and_by_query() -> None:
    scores = np.random.default_rng(1).random(30) < 0.8
    assert interval(scores, labels_of(30, 1)) == pytest.approx(interval(scores))


def test_queries_of_a_class_that_agree_count_as_one() -> None:
    of_class = (np.random.default_rng(0).random(40) < 0.7).astype(float)
    low, high = interval(np.repeat(of_class, 30), labels_of(40, 30))
    low_1, high_1 = interval(of_class)
    assert (low, high) == pytest.approx((low_1, high_1), abs=0.02)
    low_q, high_q = interval(np.repeat(of_class, 30))
    assert high - low > 4 * (high_q - low_q)


def test_a_class_that_has_most_of_the_queries_leaves_little_to_go_by() -> None:
    scores = np.random.default_rng(0).random(1000) < 0.9
    even = interval(scores, labels_of(20, 50))
    uneven = interval(scores, ["large"] * 905 + labels_of(19, 5))
    assert uneven[1] - uneven[0] > 2 * (even[1] - even[0])


def test_equal_systems_differ_by_less_than_what_so_many_queries_can_tell() -> None:
    low, high = of_differences(np.zeros(40))
    assert -low == high == pytest.approx(1 - 0.025 ** (1 / 40))  # up to 0.088 may have been missed


def test_what_was_gained_bounds_the_difference() -> None:
    low, high = of_differences([1.0] * 8 + [0.0] * 32)
    exact = stats.binomtest(8, 40).proportion_ci(method="exact")
    assert 0 < low < 0.2 < high == pytest.approx(exact.high, abs=0.01)
    low_m, high_m = of_differences([-1.0] * 8 + [0.0] * 32)
    assert (low_m, high_m) == pytest.approx((-high, -low))


def test_a_million_queries_take_no_more_than_their_arrays() -> None:
    scores = (np.arange(10**6) % 100 > 0).astype(float)
    low, high = interval(scores)
    assert (low, high) == pytest.approx((0.99 - 1.96e-4, 0.99 + 1.94e-4), abs=5e-6)


def test_few_classes_are_those_with_several_queries_each() -> None:
    assert classes_are_few(labels_of(50, 2))
    assert not classes_are_few(labels_of(51, 2))
    assert not classes_are_few(labels_of(20, 1))
    assert not classes_are_few([])


def hits(n: int, share: float) -> Draw:
    return lambda generator: ((generator.random(n) < share).astype(float), None)


def precisions(n: int, perfect: float) -> Draw:
    """Average precisions: a share is 1, the rest anything, with a mean of 0.4."""

    def draw(generator: np.random.Generator) -> tuple[np.ndarray, None]:
        is_perfect = generator.random(n) < perfect
        return np.where(is_perfect, 1, generator.beta(2, 3, n)), None

    return draw


def hits_of_classes(classes: int, size: int, mean: float, agreement: float) -> Draw:
    """Hits whose share in a class is beta-distributed; `agreement` is their correlation in it."""
    a, b = (share * (1 - agreement) / agreement for share in (mean, 1 - mean))

    def draw(generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        labels = np.repeat(np.arange(classes), size)
        found = generator.random(len(labels)) < generator.beta(a, b, classes)[labels]
        return found.astype(float), labels.astype(str).tolist()

    return draw


def hits_but_for_hard_classes(classes: int, hard: float) -> Draw:
    """Classes of 50 queries with a recall of 0.99, some with one of 0.3."""

    def draw(generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        labels = np.repeat(np.arange(classes), 50)
        recall = np.where(generator.random(classes) < hard, 0.3, 0.99)
        found = generator.random(len(labels)) < recall[labels]
        return found.astype(float), labels.astype(str).tolist()

    return draw


def changes(n: int, gained: float, lost: float) -> Draw:
    shares = [gained, lost, 1 - gained - lost]
    return lambda generator: (generator.choice([1.0, -1.0, 0.0], n, p=shares), None)


def changes_of_classes(classes: int, spread: float) -> Draw:
    """Three queries in ten of a class change, for the better or the worse as the class has it."""

    def draw(generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        labels = np.repeat(np.arange(classes), 20)
        better = generator.beta(0.5 / spread, 0.5 / spread, classes)[labels]
        signs = np.where(generator.random(len(labels)) < better, 1.0, -1.0)
        return signs * (generator.random(len(labels)) < 0.3), labels.astype(str).tolist()

    return draw


def coverage(find: Callable[..., Interval], draw: Draw, truth: float, samples: int) -> float:
    generator, held = np.random.default_rng(7), 0
    for _ in range(samples):
        low, high = find(*draw(generator))
        held += low <= truth <= high
    return held / samples


MEANS = [
    *((hits(n, p), p) for n, p in ((20, 0.5), (50, 0.98), (50, 0.99), (200, 0.9), (200, 0.995))),
    *((precisions(n, p), p + 0.4 * (1 - p)) for n in (10, 40, 200) for p in (0.0, 0.8, 0.97)),
    *(
        (hits_of_classes(classes, size, mean, agreement), mean)
        for classes in (3, 5, 10, 20, 50)
        for size, mean, agreement in ((20, 0.5, 0.1), (20, 0.9, 0.1), (100, 0.9, 0.02),
                                      (5, 0.97, 0.3), (100, 0.97, 0.3), (10, 0.9, 0.9))
    ),
    *(
        (hits_but_for_hard_classes(classes, hard), 0.99 - 0.69 * hard)
        for classes in (5, 10, 20, 50)
        for hard in (0.02, 0.1, 0.3)
    ),
]  # fmt: skip
CHANGES = [
    *(
        (changes(n, gained, lost), gained - lost)
        for n in (20, 50, 200)
        for gained, lost in ((0.01, 0.0), (0.05, 0.0), (0.02, 0.02), (0.1, 0.05), (0.3, 0.2))
    ),
    *((changes_of_classes(n, spread), 0.0) for n in (3, 5, 10, 20, 50) for spread in (0.1, 1.0)),
]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    for draw, truth in (MEANS[2], MEANS[10], MEANS[20]):
        assert coverage(interval, draw, truth, 150) > 0.9
    assert coverage(of_differences, *CHANGES[8], 150) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("which", range(len(MEANS)))
def test_95_percent_of_intervals_hold_the_mean(which: int) -> None:
    assert coverage(interval, *MEANS[which], 400) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("which", range(len(CHANGES)))
def test_95_percent_of_intervals_hold_the_difference(which: int) -> None:
    assert coverage(of_differences, *CHANGES[which], 400) >= 0.93
