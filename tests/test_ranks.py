"""Ranks of right images against a sorted list, with ties, duplicates and exclusions."""

from __future__ import annotations

import pytest
import torch
from helpers.embeddings import lattice, naive, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lookalike.search import ranks
from lookalike.search.ranks import ranks_of_relevant
from lookalike.search.topk import top_k


def all_ranks(
    query: Tensor, gallery: Tensor, a: Tensor, b: Tensor,
    exclude: list[tuple[Tensor, Tensor]], memory: int,
) -> list[list[int]]:  # fmt: skip
    rows: list[list[int]] = []
    for part in ranks_of_relevant(query, gallery, a, b, exclude=exclude, memory_bytes=memory):
        assert part.queries.start == len(rows)
        for row, count in zip(part.ranks.tolist(), part.num_relevant.tolist(), strict=True):
            found = [rank for rank in row if rank]
            assert len(found) == count
            assert row == found + [0] * (len(row) - count)
            rows.append(found)
    return rows


@pytest.mark.parametrize("worth_bounds", [0.0, 0.02, 2.0])  # exactly, as usual, one by one
@settings(deadline=None, max_examples=40)
@given(
    queries=st.integers(1, 8),
    images=st.integers(1, 80),
    classes=st.integers(1, 6),
    groups=st.integers(1, 9),
    seed=st.integers(0, 99),
    memory=st.sampled_from([1, 10**4, 10**9]),
)
def test_ranks_are_those_in_the_sorted_gallery(
    worth_bounds: float,
    queries: int,
    images: int,
    classes: int,
    groups: int,
    seed: int,
    memory: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, gallery = lattice(queries, seed), lattice(images, seed + 1)
    a, b = (torch.randint(0, classes, (n,), generator=generator) for n in (queries, images))
    banned = tuple(torch.randint(0, groups, (n,), generator=generator) for n in (queries, images))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_WORTH_BOUNDS", worth_bounds)
        found = all_ranks(query, gallery, a, b, [(banned[0], banned[1])], memory)
    order = naive(query, gallery, images, [(banned[0].tolist(), banned[1].tolist())])
    assert found == [
        [rank for rank, j in enumerate(row, start=1) if j >= 0 and b[j] == a[i]]
        for i, row in enumerate(order)
    ]


@pytest.mark.parametrize("spread", [1.0, 1e-5])
def test_ranks_agree_with_top_k_for_embeddings_far_apart_and_nearly_the_same(spread: float) -> None:
    centre = unit(1, 48, 0)
    gallery = torch.nn.functional.normalize(centre + spread * unit(700, 48, 1), dim=1)
    gallery[300:320] = gallery[100:120]
    labels = torch.arange(700) % 9
    ids = torch.arange(700)
    _, positions = top_k(gallery, gallery, 700, exclude=[(ids, ids)])
    found = all_ranks(gallery, gallery, labels, labels, [(ids, ids)], 10**6)
    for i in range(700):
        order = [j for j in positions[i].tolist() if j >= 0]
        assert found[i] == [r for r, j in enumerate(order, start=1) if labels[j] == labels[i]]


def test_a_query_without_an_answer_has_no_ranks() -> None:
    query, gallery = unit(3, 8, 0), unit(5, 8, 1)
    a, b = torch.tensor([7, 0, 8]), torch.tensor([0, 1, 1, 0, 2])
    assert [len(row) for row in all_ranks(query, gallery, a, b, [], 10**6)] == [0, 2, 0]
    alone = all_ranks(query[:1], gallery, a[:1], b, [], 10**6)
    assert alone == [[]]
