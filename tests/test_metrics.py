"""Metrics against loops in float64, a hand-made table, and pytorch-metric-learning."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.evaluation.metrics import average_precision, average_precision_at_r, recall_at_k

# Rankings of one query each, worked out with pencil and paper:
# relevance, R, recall@1, recall@3, average precision, average precision at R.
TABLE = [
    ("1", 1, 1, 1, 1.0, 1.0),
    ("01", 1, 0, 1, 1 / 2, 0.0),
    ("0001", 1, 0, 0, 1 / 4, 0.0),
    ("1010", 2, 1, 1, (1 + 2 / 3) / 2, 1 / 2),
    ("0110", 2, 0, 1, (1 / 2 + 2 / 3) / 2, 1 / 4),
    ("11011", 4, 1, 1, (1 + 1 + 3 / 4 + 4 / 5) / 4, (1 + 1 + 3 / 4) / 4),
    ("1000", 3, 1, 1, 1 / 3, 1 / 3),  # two right pictures were not retrieved: they count as 0
    ("0000", 2, 0, 0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ranking", "r", "at_1", "at_3", "ap", "ap_at_r"), TABLE)
def test_metrics_are_what_pencil_and_paper_say(
    ranking: str, r: int, at_1: float, at_3: float, ap: float, ap_at_r: float
) -> None:
    relevant = torch.tensor([[mark == "1" for mark in ranking]])
    total = torch.tensor([r])
    assert recall_at_k(relevant, 1).item() == at_1
    assert recall_at_k(relevant, 3).item() == at_3
    assert average_precision(relevant, total).item() == pytest.approx(ap)
    assert average_precision_at_r(relevant, total).item() == pytest.approx(ap_at_r)


rankings = st.lists(st.booleans(), min_size=1, max_size=30).filter(any)


@settings(deadline=None)
@given(ranking=rankings, unseen=st.integers(0, 3), k=st.integers(1, 40))
def test_metrics_agree_with_plain_loops(ranking: list[bool], unseen: int, k: int) -> None:
    relevant, r = torch.tensor([ranking]), sum(ranking) + unseen
    hits, full, at_r = 0, 0.0, 0.0
    for rank, right in enumerate(ranking, start=1):
        if right:
            hits += 1
            full += hits / rank
            at_r += hits / rank if rank <= r else 0
    assert recall_at_k(relevant, k).item() == float(any(ranking[:k]))
    assert average_precision(relevant, torch.tensor([r])).item() == pytest.approx(full / r)
    assert average_precision_at_r(relevant, torch.tensor([r])).item() == pytest.approx(at_r / r)


@given(ranking=rankings)
def test_a_perfect_ranking_scores_one_and_nothing_scores_more(ranking: list[bool]) -> None:
    total = torch.tensor([sum(ranking)])
    perfect = torch.tensor([sorted(ranking, reverse=True)])
    for metric in (average_precision, average_precision_at_r):
        assert metric(perfect, total).item() == pytest.approx(1.0)
        assert metric(torch.tensor([ranking]), total).item() <= 1.0 + 1e-12


def test_queries_are_scored_one_by_one() -> None:
    relevant = torch.tensor([[True, False, False], [False, False, True]])
    total = torch.tensor([1, 1])
    assert average_precision(relevant, total).tolist() == pytest.approx([1, 1 / 3])
    order = torch.tensor([1, 0])
    assert average_precision(relevant[order], total).tolist() == pytest.approx([1 / 3, 1])
