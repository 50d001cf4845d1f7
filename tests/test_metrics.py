"""Metrics against loops in float64 and a hand-made table."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.evaluation import metrics as m

# Rankings of one query each, worked out with pencil and paper:
# relevance, R, recall@1, recall@3, average precision, average precision at R.
TABLE = [
    ("1", 1, 1, 1, 1.0, 1.0),
    ("01", 1, 0, 1, 1 / 2, 0.0),
    ("0001", 1, 0, 0, 1 / 4, 0.0),
    ("1010", 2, 1, 1, (1 + 2 / 3) / 2, 1 / 2),
    ("0110", 2, 0, 1, (1 / 2 + 2 / 3) / 2, 1 / 4),
    ("11011", 4, 1, 1, (1 + 1 + 3 / 4 + 4 / 5) / 4, (1 + 1 + 3 / 4) / 4),
    ("1000", 3, 1, 1, 1 / 3, 1 / 3),  # two right images were not retrieved: they count as 0
    ("0000", 2, 0, 0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ranking", "r", "at_1", "at_3", "ap", "ap_at_r"), TABLE)
def test_metrics_are_what_pencil_and_paper_say(
    ranking: str, r: int, at_1: float, at_3: float, ap: float, ap_at_r: float
) -> None:
    ranks = m.ranks_of(torch.tensor([[mark == "1" for mark in ranking]]))
    total = torch.tensor([r])
    assert m.recall_at_k(ranks, 1).item() == at_1
    assert m.recall_at_k(ranks, 3).item() == at_3
    assert m.average_precision(ranks, total).item() == pytest.approx(ap)
    assert m.average_precision_at_r(ranks, total).item() == pytest.approx(ap_at_r)


rankings = st.lists(st.booleans(), min_size=1, max_size=30).filter(any)


@settings(deadline=None)
@given(ranking=rankings, unseen=st.integers(0, 3), k=st.integers(1, 40))
def test_metrics_agree_with_plain_loops(ranking: list[bool], unseen: int, k: int) -> None:
    r = sum(ranking) + unseen
    hits, hits_at_k, hits_at_r, full, at_r, at_k, gain, first = 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0
    for rank, right in enumerate(ranking, start=1):
        if not right:
            continue
        hits += 1
        first = first or rank
        full += hits / rank
        if rank <= r:
            hits_at_r += 1
            at_r += hits / rank
        if rank <= k:
            hits_at_k += 1
            at_k += hits / rank
            gain += 1 / math.log2(rank + 1)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, r) + 1))
    ranks, total = m.ranks_of(torch.tensor([ranking])), torch.tensor([r])
    expected = {
        m.recall_at_k(ranks, k): float(any(ranking[:k])),
        m.precision_at_k(ranks, k): hits_at_k / k,
        m.r_precision(ranks, total): hits_at_r / r,
        m.average_precision(ranks, total): full / r,
        m.average_precision_at_r(ranks, total): at_r / r,
        m.average_precision_at_k(ranks, total, k, over="R"): at_k / r,
        m.average_precision_at_k(ranks, total, k, over="min(k,R)"): at_k / min(k, r),
        m.ndcg_at_k(ranks, total, k): gain / ideal,
        m.reciprocal_rank(ranks): 1 / first,
        m.first_rank(ranks): first,
    }
    for measured, value in expected.items():
        assert measured.dtype == torch.float64
        assert measured.item() == pytest.approx(value, rel=1e-12)


@given(ranking=rankings)
def test_a_perfect_ranking_scores_one_and_nothing_scores_more(ranking: list[bool]) -> None:
    total = torch.tensor([sum(ranking)])
    ranks = m.ranks_of(torch.tensor([ranking]))
    perfect = m.ranks_of(torch.tensor([sorted(ranking, reverse=True)]))
    for metric in (m.average_precision, m.average_precision_at_r, m.r_precision):
        assert metric(perfect, total).item() == pytest.approx(1.0)
        assert metric(ranks, total).item() <= 1.0 + 1e-12
    assert m.ndcg_at_k(perfect, total, 10).item() == pytest.approx(1.0)


def test_queries_are_scored_one_by_one() -> None:
    ranks = torch.tensor([[1], [3]])
    total = torch.tensor([1, 1])
    assert m.average_precision(ranks, total).tolist() == pytest.approx([1, 1 / 3])
    order = torch.tensor([1, 0])
    assert m.average_precision(ranks[order], total).tolist() == pytest.approx([1 / 3, 1])


def test_a_query_whose_right_images_were_not_retrieved_scores_nothing() -> None:
    for ranks in (torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)):
        total = torch.tensor([2])
        assert m.first_rank(ranks).item() == math.inf
        assert m.reciprocal_rank(ranks).item() == 0
        assert m.average_precision(ranks, total).item() == 0
        assert m.ndcg_at_k(ranks, total, 5).item() == 0
        assert m.recall_at_k(ranks, 5).item() == 0
