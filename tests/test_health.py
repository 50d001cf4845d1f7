"""Alignment, uniformity, effective rank and the histogram against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lookalike.evaluation.scoring.health import (
    BINS,
    alignment,
    effective_rank,
    histogram,
    measure_health,
    pair_similarities,
    separation,
)


def some(rows: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def naive(
    query: torch.Tensor, gallery: torch.Tensor, labels: list[list[int]], ids: list[list[int]]
) -> tuple[list[float], list[float]]:
    """Cosine similarities of positive and negative pairs, pair by pair."""
    positive: list[float] = []
    negative: list[float] = []
    for i, q in enumerate(query.double().tolist()):
        for j, g in enumerate(gallery.double().tolist()):
            if ids[0][i] == ids[1][j]:
                continue
            dot = sum(a * b for a, b in zip(q, g, strict=True))
            cosine = dot / math.sqrt(sum(a * a for a in q) * sum(b * b for b in g))
            (positive if labels[0][i] == labels[1][j] else negative).append(cosine)
    return positive, negative


def test_all_of_it_is_what_plain_loops_find() -> None:
    query, gallery = some(11), some(23, seed=1)
    labels = [[i % 4 for i in range(11)], [i % 5 for i in range(23)]]
    ids = [list(range(11)), [j - 3 for j in range(23)]]
    positive, negative = naive(query, gallery, labels, ids)
    found = measure_health(
        query,
        gallery,
        (torch.tensor(labels[0]), torch.tensor(labels[1])),
        exclude=[(torch.tensor(ids[0]), torch.tensor(ids[1]))],
    )
    distance = [2 - 2 * s for s in positive]
    assert found["alignment"] == pytest.approx(sum(distance) / len(distance), abs=1e-6)
    spread = [math.exp(-2 * (2 - 2 * s)) for s in positive + negative]
    assert found["uniformity"] == pytest.approx(math.log(sum(spread) / len(spread)), abs=1e-6)
    assert found["pairs"] == "all"
    assert found["num_pairs"] == 11 * 23 - 11
    for kind, values in (("positives", positive), ("negatives", negative)):
        counts, _ = np.histogram(values, bins=BINS, range=(-1, 1))
        assert found["histogram"][kind] == counts.tolist()


def test_effective_rank_is_that_of_numpys_singular_values() -> None:
    rows = some(40) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.1, 1e-6, 0.0]))
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    shares = [v / values.sum() for v in values if v > 0]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(rows) == pytest.approx(expected, abs=1e-6)


def test_many_pairs_are_sampled_evenly_and_leave_out_what_is_no_pair() -> None:
    # Classes of very different sizes: each pair must count once, not each class or image.
    rows, labels = some(60), torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    ids = torch.arange(60)
    everything = pair_similarities(rows, rows, (labels, labels), exclude=[(ids, ids)])
    drawn = pair_similarities(
        rows, rows, (labels, labels), exclude=[(ids, ids)], exact_pairs=100, drawn_pairs=40_000
    )
    assert drawn.drawn
    assert not everything.drawn
    for name in ("positive", "negative", "any"):
        sample, whole = getattr(drawn, name), getattr(everything, name)
        assert sample.max() < 0.9999  # an image with itself would have 1
        assert float(sample.mean()) == pytest.approx(float(whole.mean()), abs=0.015)
        assert float(sample.std()) == pytest.approx(float(whole.std()), abs=0.015)


def test_a_seed_repeats_its_sample() -> None:
    rows, labels = some(30), torch.arange(30) % 3

    def sample(seed: int) -> float:
        pairs = pair_similarities(
            rows, rows, (labels, labels), seed=seed, exact_pairs=1, drawn_pairs=50
        )
        assert pairs.positive is not None
        return alignment(pairs.positive)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_without_labels_only_what_needs_none_is_measured() -> None:
    found = measure_health(some(5), some(9), None)
    assert found["alignment"] is None
    assert found["histogram"] is None
    assert found["uniformity"] < 0
    assert found["effective_rank"] > 1


def test_no_pair_at_all_is_no_number_and_no_error() -> None:
    one = torch.tensor([0])
    found = measure_health(some(1), some(1), (one, one), exclude=[(one, one)])
    assert found["alignment"] is None
    assert found["uniformity"] is None
    assert found["histogram"] == {
        "low": -1.0, "high": 1.0, "positives": [0] * BINS, "negatives": [0] * BINS
    }  # fmt: skip
    sampled = pair_similarities(some(3), some(3), (torch.arange(3), torch.arange(3, 6)),
                                exact_pairs=1, drawn_pairs=20)  # fmt: skip
    assert sampled.positive is not None
    assert len(sampled.positive) == 0


def test_separation_is_the_area_under_the_roc_curve() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.uniform(-0.2, 0.9, 300), generator.uniform(-0.9, 0.5, 900)
    truth = roc_auc_score([1] * 300 + [0] * 900, np.concatenate([positive, negative]))
    positives, negatives = (
        histogram(torch.tensor(some, dtype=torch.float32)) for some in (positive, negative)
    )
    assert separation(positives, negatives) == pytest.approx(truth, abs=2e-3)
    assert separation(positives, [0] * 100) is None
