"""top_k against a loop in float64 with a total order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.embedding import topk
from lookalike.embedding.topk import top_k


def lattice(n: int, seed: int) -> Tensor:
    """Embeddings whose similarities are exact in float32, with many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (n, 4), generator=generator).float() / 4


def naive(
    query: Tensor, gallery: Tensor, k: int, banned: list[tuple[list[int], list[int]]]
) -> list[list[int]]:
    rows = []
    for i, q in enumerate(query.double()):
        scored = []
        for j, g in enumerate(gallery.double()):
            if any(query_ids[i] == gallery_ids[j] for query_ids, gallery_ids in banned):
                continue
            scored.append((-sum(float(a) * float(b) for a, b in zip(q, g, strict=True)), j))
        row = [j for _, j in sorted(scored)][:k]
        rows.append(row + [-1] * (min(k, len(gallery)) - len(row)))
    return rows


@settings(deadline=None, max_examples=60)
@given(
    queries=st.integers(1, 7),
    pictures=st.integers(1, 9),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    chunk=st.sampled_from([1, 40, 10**6]),
    data=st.data(),
)
def test_neighbours_are_those_of_a_plain_loop_whatever_the_chunk(
    queries: int, pictures: int, k: int, seed: int, chunk: int, data: st.DataObject
) -> None:
    query, gallery = lattice(queries, seed), lattice(pictures, seed + 1)
    ids = st.integers(0, 4)
    banned = [
        (
            data.draw(st.lists(ids, min_size=queries, max_size=queries)),
            data.draw(st.lists(ids, min_size=pictures, max_size=pictures)),
        )
        for _ in range(data.draw(st.integers(0, 2)))
    ]
    columns = [(torch.tensor(a), torch.tensor(b)) for a, b in banned]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "CHUNK_BYTES", chunk)
        similarities, positions = top_k(query, gallery, k, exclude=columns)
    assert positions.tolist() == naive(query, gallery, k, banned)
    for i, row in enumerate(positions.tolist()):
        for column, j in enumerate(row):
            expected = float(query[i] @ gallery[j]) if j >= 0 else float("-inf")
            assert similarities[i, column].item() == expected


def test_a_duplicate_of_the_query_is_a_neighbour_and_the_query_itself_is_not() -> None:
    # The duplicate stands before the query: dropping column 0 as "self" would drop the wrong one.
    picture = normalize(torch.tensor([[0.6, 0.8]]), dim=-1)
    other = torch.tensor([[1.0, 0.0]])
    gallery = torch.cat([picture, picture, other])
    ids = torch.tensor([0, 1, 2])
    similarities, positions = top_k(gallery[1:2], gallery, 2, exclude=[(ids[1:2], ids)])
    assert positions.tolist() == [[0, 2]]
    assert similarities[0, 0] == pytest.approx(1.0)


def test_similarities_below_zero_are_kept() -> None:
    similarities, positions = top_k(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]), 5)
    assert positions.tolist() == [[0]]
    assert similarities.tolist() == [[-1.0]]
