"""At which ranks the right pictures come, without holding or sorting the whole ranking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from lookalike.embedding.exclusions import Exclude, Ids, any_equal, equal_pairs
from lookalike.embedding.rows import Embeddings, Rows
from lookalike.embedding.similarity import (
    error_bound,
    exact_similarities,
    from_order_keys,
    operand,
    order_keys,
    products,
)
from lookalike.embedding.topk import MEMORY_BYTES

QUERIES_AT_A_TIME = 8192
"""At most so many queries come together; more makes nothing faster."""

_PICTURES_AT_A_TIME = 8192
_LOWEST = torch.iinfo(torch.int64).min
_WORTH_BOUNDS = 0.02  # share of a gallery beyond which similarities are computed exactly at once


class Ranked(NamedTuple):
    """The ranks of the right pictures of some queries.

    `ranks` start from 1 and rise along each row, padded with 0; `num_relevant` counts them.
    """

    queries: slice
    ranks: Int64[Tensor, "some hits"]
    num_relevant: Int64[Tensor, " some"]


def ranks_of_relevant(
    query: Embeddings,
    gallery: Embeddings,
    query_labels: Ids,
    gallery_labels: Ids,
    *,
    exclude: Exclude = (),
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[Ranked]:
    """The rank of every right picture in the whole gallery, for a few queries at a time.

    The ranking is that of `top_k`, to the last place: the same similarities, the same order of
    ties, the same exclusions. It is counted rather than sorted: the rank of a right picture is
    one more than the number of pictures that come before it.

    Args:
        query, gallery, exclude: as `top_k` takes them.
        query_labels, gallery_labels: numbers; a picture is right for a query if they are equal.
        memory_bytes: working memory beside inputs and result.
    """
    asked, rows = Rows(query), Rows(gallery)
    for part, right in _parts(query_labels, gallery_labels, exclude, memory_bytes, rows.dim):
        some = asked.part(part.start, part.stop).cpu()
        banned = [(query_ids[part].cpu(), ids.cpu()) for query_ids, ids in exclude]
        num_relevant = (right >= 0).sum(dim=1)
        keys = _keys_of_right(some, rows, right)
        ranks = 1 + _count_before(some, rows, keys, banned, memory_bytes)
        # Keys rise, so ranks fall, and the padding in front belongs at the end.
        yield Ranked(part, torch.where(keys == _LOWEST, 0, ranks).flip(dims=[1]), num_relevant)


def _parts(
    query_labels: Ids, gallery_labels: Ids, exclude: Exclude, memory_bytes: int, dim: int
) -> Iterator[tuple[slice, Int64[Tensor, "some hits"]]]:
    """Queries that fit into memory together, and where their right pictures lie, -1 for none."""
    counts = _count_equal(query_labels, gallery_labels)
    # Positions, keys, counters and their copies for each right picture; a query's operand.
    weights = (64 * counts.clamp(min=1) + 16 * dim).tolist()
    start = 0
    while start < len(weights):
        stop, widest = start, 0
        while stop < len(weights) and stop - start < QUERIES_AT_A_TIME:
            widest = max(widest, weights[stop])
            if stop > start and widest * (stop - start + 1) > memory_bytes // 2:
                break
            stop += 1
        part = slice(start, stop)
        rows, positions = equal_pairs(query_labels[part], gallery_labels)
        kept = ~any_equal([(ids[part], others) for ids, others in exclude], rows, positions)
        yield part, _as_table(rows[kept], positions[kept], stop - start)
        start = stop


def _count_equal(query_labels: Ids, gallery_labels: Ids) -> Int64[Tensor, " queries"]:
    ordered = gallery_labels.sort().values
    first = torch.searchsorted(ordered, query_labels)
    return torch.searchsorted(ordered, query_labels, right=True) - first


def _as_table(rows: Ids, values: Ids, num_rows: int) -> Int64[Tensor, "rows most"]:
    """Values of rising rows as a table, padded with -1."""
    counts = torch.bincount(rows, minlength=num_rows)
    table = values.new_full((num_rows, int(counts.max()) if len(rows) else 0), -1)
    before = counts.cumsum(dim=0) - counts
    table[rows, torch.arange(len(rows), device=rows.device) - before[rows]] = values
    return table


def _keys_of_right(
    query: Float32[Tensor, "queries dim"], gallery: Rows, right: Int64[Tensor, "queries hits"]
) -> Int64[Tensor, "queries hits"]:
    """The order keys of the right pictures, rising; padding comes first."""
    if right.numel() < _WORTH_BOUNDS * len(query) * len(gallery):
        similarities = exact_similarities(query, gallery, right)
    else:  # cheaper by whole products
        similarities = torch.full(right.shape, float("-inf"))
        asked = operand(query, "exact", "query")
        for start, stop in gallery.parts(_PICTURES_AT_A_TIME // 8):
            part = operand(gallery.part(start, stop).cpu(), "exact", "gallery picture", start)
            rows, columns = ((right >= start) & (right < stop)).nonzero().unbind(dim=1)
            exact = products(asked, part)
            similarities[rows, columns] = exact[rows, right[rows, columns] - start]
    keys = torch.where(right >= 0, order_keys(similarities, right), _LOWEST)
    return keys.sort(dim=1).values


def _count_before(
    query: Float32[Tensor, "queries dim"],
    gallery: Rows,
    keys: Int64[Tensor, "queries hits"],
    exclude: Exclude,
    memory_bytes: int,
) -> Int64[Tensor, "queries hits"]:
    """How many gallery pictures come before each right picture.

    A picture whose key lies between two right ones comes before the lower and all below it: so
    it is enough to count, for each gap between right pictures, what falls into it.
    """
    hits = keys.shape[1]
    in_gap = torch.zeros(len(query), hits + 1, dtype=torch.int64)
    # Per similarity: itself in two precisions, its gap and the place it is counted in.
    most = memory_bytes // 4 // (48 * len(query) + 16 * gallery.dim)
    asked, asked_exactly = operand(query, "fp32", "query"), operand(query, "exact", "query")
    thresholds = _similarities_of(keys)
    row_starts = torch.arange(len(query))[:, None] * (hits + 1)
    for start, stop in gallery.parts(max(32, min(most, _PICTURES_AT_A_TIME))):
        rows = gallery.part(start, stop).cpu()
        part = operand(rows, "fp32", "gallery picture", start)
        scores = products(asked, part)
        bound = error_bound(asked, part)
        for query_ids, gallery_ids in exclude:
            banned = equal_pairs(query_ids, gallery_ids[start:stop])
            scores[banned] = float("-inf")
        gap = torch.searchsorted(thresholds, scores - bound[:, None], out_int32=True)
        above = thresholds.gather(1, gap.long().clamp(max=hits - 1)) if hits else scores
        unsure = (gap < hits) & (above <= scores + bound[:, None]) & (scores > float("-inf"))
        if int(unsure.sum()) > _WORTH_BOUNDS * scores.numel():
            exact = products(asked_exactly, operand(rows, "exact", "gallery picture", start))
            exact.masked_fill_(scores == float("-inf"), float("-inf"))
            places = torch.arange(start, stop).expand_as(exact)
            gap = torch.searchsorted(keys, order_keys(exact, places))
        else:
            gap[unsure] = _gaps_of(query, gallery, keys, unsure, start).int()
        counted = (gap + row_starts).flatten()
        in_gap += torch.bincount(counted, minlength=in_gap.numel()).view_as(in_gap)
    # Gap g lies above g right pictures: those before right picture i are in the gaps above i.
    return in_gap.flip(dims=[1]).cumsum(dim=1).flip(dims=[1])[:, 1:]


def _similarities_of(keys: Int64[Tensor, "queries hits"]) -> Float32[Tensor, "queries hits"]:
    similarities, _ = from_order_keys(keys)
    return torch.where(keys == _LOWEST, float("-inf"), similarities)


def _gaps_of(
    query: Float32[Tensor, "queries dim"],
    gallery: Rows,
    keys: Int64[Tensor, "queries hits"],
    unsure: Bool[Tensor, "queries pictures"],
    start: int,
) -> Int64[Tensor, " unsure"]:
    """The gaps that pictures too close to a right one fall into, row by row."""
    rows, columns = unsure.nonzero().unbind(dim=1)
    places = _as_table(rows, start + columns, len(query))
    exact = order_keys(exact_similarities(query, gallery, places), places)
    return torch.searchsorted(keys, exact)[places >= 0]
