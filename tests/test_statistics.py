"""The paired test against full enumeration and cases that are known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lookalike.evaluation.scoring.statistics import PairedTest, paired_tests


def paired_test(a: np.ndarray, b: np.ndarray, **options: Any) -> PairedTest:
    """The test of a single metric."""
    return paired_tests({"": a}, {"": b}, **options)[""]


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


def test_clusters_keep_one_lucky_class_from_looking_like_many_queries() -> None:
    a = np.zeros(200)
    b = np.r_[np.ones(100), np.zeros(100)]
    labels = ["lucky"] * 100 + [f"other{i // 10}" for i in range(100)]
    assert paired_test(a, b).p_value < 0.001
    assert paired_test(a, b, clusters=labels).p_value > 0.9


def test_scores_that_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_test(np.zeros(2), np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="at least one query"):
        paired_test(np.array([]), np.array([]))
