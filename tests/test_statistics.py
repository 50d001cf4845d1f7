"""Intervals and the paired test against SciPy, full enumeration, and cases that are known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lookalike.evaluation.scoring.statistics import (
    PairedTest,
    bootstrap_intervals,
    paired_tests,
)


def paired_test(a: np.ndarray, b: np.ndarray, **options: Any) -> PairedTest:
    """The test of a single metric."""
    return paired_tests({"": a}, {"": b}, **options)[""]


def interval(scores: np.ndarray, **options: int) -> tuple[float, float]:
    return bootstrap_intervals({"m": scores}, **options)["m"]  # type: ignore[arg-type]


def test_intervals_are_those_of_scipy() -> None:
    scores = np.random.default_rng(0).beta(2, 1, 300)
    theirs = stats.bootstrap(
        (scores,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval(scores, resamples=20_000) == pytest.approx(tuple(theirs), abs=1e-3)


def test_all_columns_share_their_draws_and_a_seed_repeats_them() -> None:
    scores = np.random.default_rng(0).random(50)
    both = bootstrap_intervals({"a": scores, "b": 2 * scores + 1})
    assert both["b"] == pytest.approx([2 * end + 1 for end in both["a"]])
    assert both == bootstrap_intervals({"a": scores, "b": 2 * scores + 1})
    assert interval(scores, seed=1) != interval(scores, seed=2)


def test_the_interval_of_the_mean_covers_it_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        low, high = interval(generator.random(60), resamples=400, seed=trial)
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 200  # 190 expected


def test_clusters_widen_the_interval_when_queries_of_a_class_agree() -> None:
    of_class = np.random.default_rng(0).random(20)
    scores, labels = np.repeat(of_class, 30), np.repeat(np.arange(20), 30).astype(str).tolist()
    low, high = bootstrap_intervals({"m": scores})["m"]
    low_c, high_c = bootstrap_intervals({"m": scores}, clusters=labels)["m"]
    low_1, high_1 = bootstrap_intervals({"m": of_class})["m"]
    assert high_c - low_c == pytest.approx(high_1 - low_1, rel=0.1)  # as if one query a class
    assert high_c - low_c > 4 * (high - low)


def test_scores_that_are_all_equal_have_an_interval_without_width() -> None:
    assert interval(np.full(10, 0.25)) == (0.25, 0.25)
    assert interval(np.array([0.5])) == (0.5, 0.5)


def test_the_p_value_is_that_of_full_enumeration() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.random(10), generator.random(10) + 0.15
    differences = b - a
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()
    found = paired_test(a, b, resamples=50_000)
    assert found.p_value == pytest.approx(exact, abs=0.006)
    assert found.difference == pytest.approx(differences.mean())
    assert found.low < found.difference < found.high


def test_no_difference_has_p_value_one_and_the_least_p_value_is_not_zero() -> None:
    same = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    assert paired_test(same, same).p_value == 1
    assert paired_test(np.zeros(60), np.ones(60), resamples=999).p_value == 1 / 1000


def test_the_test_is_as_rarely_fooled_as_its_level_says() -> None:
    generator = np.random.default_rng(9)
    fooled = 0
    for trial in range(200):
        a, b = generator.random(30), generator.random(30)
        fooled += paired_test(a, b, resamples=400, seed=trial).p_value <= 0.05
    assert 1 <= fooled <= 20  # 10 expected


def test_all_metrics_share_their_flips() -> None:
    generator = np.random.default_rng(11)
    a, b = generator.random(25), generator.random(25) + 0.1
    both = paired_tests({"x": a, "half": a / 2}, {"x": b, "half": b / 2})
    assert both["x"].p_value == both["half"].p_value == paired_test(a, b).p_value
    assert both["half"].low == pytest.approx(both["x"].low / 2)


def test_clusters_keep_one_lucky_class_from_looking_like_many_queries() -> None:
    a = np.zeros(200)
    b = np.r_[np.ones(100), np.zeros(100)]
    labels = ["lucky"] * 100 + [f"other{i // 10}" for i in range(100)]
    assert paired_test(a, b).p_value < 0.001
    assert paired_test(a, b, clusters=labels).p_value > 0.9


def test_scores_that_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        interval(np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="at least one query"):
        interval(np.array([]))
