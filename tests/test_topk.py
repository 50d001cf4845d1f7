"""top_k against a loop over exact fractions with a total order, in every arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.embeddings import lattice, naive, truth, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.errors import ConfigError, DataError
from lookalike.search import similarity, topk
from lookalike.search.rows import Rows
from lookalike.search.similarity import (
    Arithmetic,
    error_bound,
    exact_similarities,
    from_order_keys,
    operand,
    order_keys,
    products,
)
from lookalike.search.topk import top_k

ARITHMETICS: tuple[Arithmetic, ...] = ("bf16", "fp32", "exact")


@pytest.fixture(params=ARITHMETICS)
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes searches begin with one arithmetic, however small they are."""
    kind: str = request.param
    force(kind, monkeypatch)
    return kind


def force(arithmetic: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(topk, "_WORTH_BF16", -1)
    patch.setattr(topk, "_WORTH_BOUNDS", 10**9 if arithmetic == "exact" else 0)
    patch.setattr(topk, "has_fast_bf16", lambda _: arithmetic == "bf16")


@settings(deadline=None, max_examples=60)
@given(
    queries=st.integers(1, 7),
    images=st.integers(1, 90),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    memory=st.sampled_from([1, 10**5, 10**9]),
    kind=st.sampled_from(ARITHMETICS),
    data=st.data(),
)
def test_neighbours_are_those_of_a_plain_loop_whatever_the_memory_and_arithmetic(
    queries: int, images: int, k: int, seed: int, memory: int, kind: str, data: st.DataObject
) -> None:
    query, gallery = lattice(queries, seed), lattice(images, seed + 1)
    ids = st.integers(0, 4)
    banned = [
        (
            data.draw(st.lists(ids, min_size=queries, max_size=queries)),
            data.draw(st.lists(ids, min_size=images, max_size=images)),
        )
        for _ in range(data.draw(st.integers(0, 2)))
    ]
    columns = [(torch.tensor(a), torch.tensor(b)) for a, b in banned]
    with pytest.MonkeyPatch.context() as patch:
        force(kind, patch)
        similarities, positions = top_k(query, gallery, k, exclude=columns, memory_bytes=memory)
    assert positions.tolist() == naive(query, gallery, k, banned)
    for i, row in enumerate(positions.tolist()):
        for column, j in enumerate(row):
            expected = truth(query[i], gallery[j]) if j >= 0 else float("-inf")
            assert similarities[i, column].item() == expected


def test_the_answer_is_the_same_to_the_last_bit_for_every_way_of_computing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, gallery = unit(40, 96, 0), unit(1000, 96, 1)
    gallery[600:640] = gallery[100:140]  # ties that only the position can break
    answers = []
    for kind in ARITHMETICS:
        force(kind, monkeypatch)
        # Threads share the work of the larger parts; in the smallest they only wait.
        for memory, threads in ((10**5, 1), (10**6, 1), (10**6, 2), (2**30, 1), (2**30, 2)):
            torch.set_num_threads(threads)
            answers.append(top_k(query, gallery, 25, memory_bytes=memory))
    torch.set_num_threads(1)
    for similarities, positions in answers[1:]:
        assert torch.equal(positions, answers[0][1])
        assert torch.equal(similarities, answers[0][0])
    row = answers[0][1][0].tolist()
    assert all(
        truth(query[0], gallery[j]) == s
        for j, s in zip(row, answers[0][0][0].tolist(), strict=True)
    )


def test_a_gallery_of_copies_is_ranked_by_position(arithmetic: str) -> None:
    one = unit(1, 64, 3)
    gallery = one.repeat(5000, 1)
    gallery[4000] = normalize(one + 1e-6 * unit(1, 64, 4), dim=1)[0]
    similarities, positions = top_k(one, gallery, 5, memory_bytes=10**6)
    itself, nudged = truth(one[0], one[0]), truth(one[0], gallery[4000])
    assert positions.tolist() == [[4000, 0, 1, 2, 3] if nudged > itself else [0, 1, 2, 3, 4]]
    assert similarities[0, -1].item() == itself


def test_a_model_that_gives_nearly_the_same_embedding_for_all_is_ranked_exactly(
    arithmetic: str,
) -> None:
    noise = unit(2000, 32, 6) * 1e-5
    collapsed = normalize(unit(1, 32, 5) + noise, dim=1)
    _, positions = top_k(collapsed[:3], collapsed, 10, memory_bytes=10**6)
    assert positions.tolist() == naive(collapsed[:3], collapsed, 10, [])


def test_images_that_get_ever_better_towards_the_end_are_all_considered(arithmetic: str) -> None:
    query = torch.tensor([[1.0, 0.0]])
    angles = torch.linspace(1.5, 0.1, 4000)
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    _, positions = top_k(query, gallery, 7, memory_bytes=10**5)
    assert positions.tolist() == [list(range(3999, 3992, -1))]


def test_a_gallery_whose_embeddings_grow_in_length_loses_none_to_the_growing_error() -> None:
    # All similarities nearly tie, and longer embeddings are computed with larger errors: a cut
    # made while only short ones had been seen must not rule out long ones that are better.
    query, gallery = unit(1, 64, 0), unit(1024, 64, 1)
    away = gallery - (gallery @ query.T) * query
    length = torch.logspace(-2, 3, 1024)[:, None]
    gallery = query * (1 + 1e-4 * unit(1024, 2, 2)[:, :1]) + away * length
    expected = naive(query, gallery, 20, [])
    for kind in ("bf16", "fp32"):
        with pytest.MonkeyPatch.context() as patch:
            force(kind, patch)
            patch.setattr(Rows, "parts", lambda self, _: [(i, i + 64) for i in range(0, 1024, 64)])
            assert top_k(query, gallery, 20)[1].tolist() == expected, kind


def test_embeddings_are_read_from_memory_mapped_shards(tmp_path: Path, arithmetic: str) -> None:
    query, gallery = unit(6, 24, 7), unit(500, 24, 8)
    shards = []
    for number, (start, stop) in enumerate([(0, 1), (1, 300), (300, 300), (300, 500)]):
        np.save(tmp_path / f"{number}.npy", gallery[start:stop].numpy())
        shards.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    expected = top_k(query, gallery, 9)
    for memory in (10**5, 2**30):
        found = top_k(query, shards, 9, memory_bytes=memory)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_half_precision_shards_are_ranked_as_the_float32_they_stand_for() -> None:
    query, gallery = unit(3, 16, 9), unit(60, 16, 10).half()
    assert torch.equal(top_k(query, gallery.numpy(), 5)[1], top_k(query, gallery.float(), 5)[1])


def test_a_duplicate_of_the_query_is_a_neighbour_and_the_query_itself_is_not() -> None:
    # The duplicate stands before the query: dropping column 0 as "self" would drop the wrong one.
    image = normalize(torch.tensor([[0.6, 0.8]]), dim=-1)
    other = torch.tensor([[1.0, 0.0]])
    gallery = torch.cat([image, image, other])
    ids = torch.tensor([0, 1, 2])
    similarities, positions = top_k(gallery[1:2], gallery, 2, exclude=[(ids[1:2], ids)])
    assert positions.tolist() == [[0, 2]]
    assert similarities[0, 0] == pytest.approx(1.0)


def test_similarities_below_zero_are_kept(arithmetic: str) -> None:
    similarities, positions = top_k(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]), 5)
    assert positions.tolist() == [[0]]
    assert similarities.tolist() == [[-1.0]]


def test_an_empty_gallery_or_no_query_gives_empty_rows() -> None:
    assert top_k(unit(2, 4, 0), torch.empty(0, 4), 3)[1].shape == (2, 0)
    assert top_k(torch.empty(0, 4), unit(2, 4, 0), 3)[1].shape == (0, 2)


def test_embeddings_that_are_not_finite_are_named(arithmetic: str) -> None:
    good, bad = unit(50, 8, 0), unit(50, 8, 1)
    bad[37, 2] = float("nan")
    with pytest.raises(DataError, match=r"gallery image 37.*not finite"):
        top_k(good, bad, 3)
    with pytest.raises(DataError, match=r"query 37.*not finite"):
        top_k(bad, good, 3)


@pytest.mark.parametrize("length", [1e-24, 1e20])
def test_embeddings_too_short_or_too_long_to_compute_with_are_named(length: float) -> None:
    good, bad = unit(50, 8, 0), unit(50, 8, 1)
    bad[37] *= length
    with pytest.raises(DataError, match=r"gallery image 37 has length 1e(-24|\+20)"):
        top_k(good, bad, 3)


def test_an_embedding_of_zeros_is_similar_to_nothing() -> None:
    similarities, positions = top_k(unit(1, 8, 0), torch.zeros(40, 8), 2)
    assert (similarities.tolist(), positions.tolist()) == ([[0, 0]], [[0, 1]])


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="k is -1"):
        top_k(unit(2, 4, 0), unit(2, 4, 0), -1)
    with pytest.raises(DataError, match="no columns"):
        top_k(torch.empty(2, 0), torch.empty(2, 0), 1)
    with pytest.raises(DataError, match="1 ids for 2 queries and 2 for 2 gallery images"):
        top_k(unit(2, 4, 0), unit(2, 4, 0), 1, exclude=[(torch.zeros(1), torch.zeros(2))])


def test_float32_that_torch_rounds_on_the_way_is_allowed_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, gallery = unit(20, 64, 11), unit(3000, 64, 12)
    expected = top_k(query, gallery, 10)
    force("fp32", monkeypatch)
    monkeypatch.setattr("torch.backends.fp32_precision", "bf16")
    found = top_k(query, gallery, 10)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])


def test_sparse_embeddings_and_copies_need_no_sum_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # One at a time is how a similarity is computed that float64 leaves in doubt, and is slow.
    summed: list[int] = []
    by_hand = similarity._sum_in_order

    def counted(rows: Tensor) -> Tensor:
        summed.append(len(rows))
        return by_hand(rows)

    monkeypatch.setattr(similarity, "_sum_in_order", counted)
    basis = torch.eye(64)[torch.arange(640) % 64]
    force("exact", monkeypatch)
    _, positions = top_k(basis[:64], basis, 12)
    assert positions[:, :10].tolist() == [list(range(i, 640, 64)) for i in range(64)]
    assert sum(summed) == 0


def test_embeddings_of_two_models_are_refused() -> None:
    with pytest.raises(DataError, match=r"8-d.*16-d"):
        top_k(unit(2, 8, 0), unit(2, 16, 0), 1)
    with pytest.raises(DataError, match=r"shard 1.*16-d"):
        Rows([unit(2, 8, 0), unit(2, 16, 0)])
    with pytest.raises(DataError, match="1 dimension"):
        Rows(torch.ones(3))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    dim=st.sampled_from([1, 2, 3, 7, 64, 513]),
    scale=st.sampled_from([1.0, 1e-3, 30.0]),
    kind=st.sampled_from(ARITHMETICS),
)
def test_products_are_within_the_stated_bound_of_the_truth(
    seed: int, dim: int, scale: float, kind: Arithmetic
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, gallery = (torch.randn(4, dim, generator=generator) * scale for _ in range(2))
    a, b = operand(query, kind, "query"), operand(gallery, kind, "gallery")
    scores, bound = products(a, b).double(), error_bound(a, b).double()
    for i in range(4):
        for j in range(4):
            true = truth(query[i], gallery[j])
            rounded = abs(scores[i, j].item()) * (2**-8 if kind == "bf16" else 0)
            assert abs(scores[i, j].item() - true) <= bound[i].item() + rounded + abs(true) * 2**-24


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), dim=st.sampled_from([1, 2, 3, 5, 33, 384]))
def test_the_exact_similarity_is_the_true_one_rounded_once(seed: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, gallery = (torch.randn(3, dim, generator=generator) for _ in range(2))
    positions = torch.tensor([[0, 1, 2], [2, -1, 0], [1, 1, -1]])
    found = exact_similarities(query, Rows(gallery), positions)
    for i in range(3):
        for column, j in enumerate(positions[i].tolist()):
            expected = truth(query[i], gallery[j]) if j >= 0 else float("-inf")
            assert found[i, column].item() == expected


@given(
    pairs=st.lists(
        st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 2**32 - 1)),
        min_size=1, max_size=20,
    )
)  # fmt: skip
def test_keys_order_by_similarity_then_position_and_can_be_read_back(
    pairs: list[tuple[float, int]],
) -> None:
    similarities = torch.tensor([s for s, _ in pairs])
    positions = torch.tensor([p for _, p in pairs])
    keys = order_keys(similarities, positions)
    assert sorted(range(len(pairs)), key=lambda i: -keys[i].item()) == sorted(
        range(len(pairs)), key=lambda i: (-pairs[i][0], pairs[i][1])
    )
    again = from_order_keys(keys)
    assert again[0].tolist() == similarities.tolist()
    assert torch.equal(again[1], positions)
