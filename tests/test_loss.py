"""SupConLoss against a float64 loop, gradcheck, and pytorch-metric-learning where that is right."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.embeddings import random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lookalike.errors import NoPositivesError
from lookalike.training.losses.supcon import SupConLoss


def naive(embeddings: Tensor, labels: list[int], temperature: float) -> float:
    """Equation 2 of the paper, term by term."""
    z = [[float(x) for x in row] for row in embeddings.detach().double()]
    n, losses = len(labels), []

    def similarity(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(z[i], z[j], strict=True)) / temperature

    for i in range(n):
        others = [a for a in range(n) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        largest = max(similarity(i, a) for a in others)
        denominator = sum(math.exp(similarity(i, a) - largest) for a in others)
        terms = [similarity(i, p) - largest - math.log(denominator) for p in positives]
        losses.append(-sum(terms) / len(positives))
    return sum(losses) / len(losses)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=12),
    temperature=st.sampled_from([0.005, 0.07, 0.5, 2.0]),
    seed=st.integers(0, 1000),
)
def test_the_loss_is_the_mean_of_equation_2_over_anchors_with_a_positive(
    labels: list[int], temperature: float, seed: int
) -> None:
    embeddings = random_batch(len(labels), seed=seed, dtype=torch.float64)
    if len(set(labels)) == len(labels):
        with pytest.raises(NoPositivesError):
            SupConLoss(temperature)(embeddings, torch.tensor(labels))
        return
    loss = SupConLoss(temperature)(embeddings, torch.tensor(labels))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(
        naive(embeddings, labels, temperature), rel=1e-10, abs=1e-10
    )


def test_a_hand_computed_batch_of_three() -> None:
    # Orthogonal apart from one equal pair; T = 1: for the pair log(e / (e + 1)), once each.
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = SupConLoss(1.0)(embeddings, torch.tensor([7, 7, 9]))
    assert loss.item() == pytest.approx(math.log((math.e + 1) / math.e), rel=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    embeddings = random_batch(7, dim=3, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    assert torch.autograd.gradcheck(lambda z: SupConLoss(0.3)(z, labels), (embeddings,))


def test_several_views_are_one_batch_of_repeated_labels() -> None:
    views = random_batch(12).reshape(4, 3, 8)
    labels = torch.tensor([5, 6, 5, 8])
    flat = [5, 5, 5, 6, 6, 6, 5, 5, 5, 8, 8, 8]
    expected = naive(views.reshape(12, 8), flat, 0.07)
    assert SupConLoss()(views, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(half: torch.dtype) -> None:
    embeddings, labels = random_batch(16), torch.arange(16) % 4
    plain = SupConLoss()(embeddings, labels)
    with torch.autocast("cpu", dtype=half):
        inside = SupConLoss()(embeddings, labels)
        from_half = SupConLoss()(embeddings.to(half), labels)
    assert inside.dtype == from_half.dtype == torch.float32
    assert inside.item() == plain.item()


def test_temperature_0_005_is_finite_and_right() -> None:
    embeddings, labels = random_batch(32, dim=4), torch.arange(32) % 8
    embeddings.requires_grad_()
    loss = SupConLoss(0.005)(embeddings, labels)
    loss.backward()
    assert loss.item() == pytest.approx(naive(embeddings, labels.tolist(), 0.005), rel=1e-4)
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_labels_that_float32_cannot_tell_apart_are_told_apart() -> None:
    embeddings = random_batch(4)
    base = 2**24
    labels = torch.tensor([base, base + 1, base, base + 1])
    assert labels.float().unique().numel() == 1
    expected = naive(embeddings, labels.tolist(), 0.07)
    assert SupConLoss()(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def test_singletons_are_negatives_and_no_anchors() -> None:
    embeddings = random_batch(8)
    labels = [0, 0, 1, 1, 2, 3, 4, 5]
    loss = SupConLoss()(embeddings, torch.tensor(labels))
    assert loss.item() == pytest.approx(naive(embeddings, labels, 0.07), rel=1e-5)
    without = SupConLoss()(embeddings[:4], torch.tensor(labels[:4]))
    assert loss.item() > without.item()


def test_a_single_class_is_finite_and_right() -> None:
    embeddings = random_batch(6).requires_grad_()
    loss = SupConLoss()(embeddings, torch.zeros(6, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(naive(embeddings, [0] * 6, 0.07), rel=1e-5)
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[3], [1, 2, 3]])
def test_no_positive_at_all_is_one_clear_error(labels: list[int]) -> None:
    with pytest.raises(NoPositivesError, match=f"none of the {len(labels)} images"):
        SupConLoss()(random_batch(len(labels)), torch.tensor(labels))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 8\).*\(3,\)"):
        SupConLoss()(random_batch(4), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="above 0"):
        SupConLoss(0.0)


def test_agrees_with_pytorch_metric_learning_where_that_is_right() -> None:
    # It agrees on batches with positives and negatives for each anchor. Elsewhere it differs:
    # without negatives it returns 0, and it leaves anchors whose loss is exactly 0 out of the mean.
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    embeddings, labels = random_batch(24, dim=16), torch.arange(24) % 5
    theirs = losses.SupConLoss(temperature=0.07)(embeddings, labels)
    assert SupConLoss(0.07)(embeddings, labels).item() == pytest.approx(theirs.item(), rel=1e-5)
    one_class = torch.zeros(24, dtype=torch.int64)
    assert losses.SupConLoss(temperature=0.07)(embeddings, one_class).item() == 0
    assert SupConLoss(0.07)(embeddings, one_class).item() > 0
