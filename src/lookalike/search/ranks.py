"""The ranks of the right images, without holding or sorting the whole ranking."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lookalike.search.exclusions import (
    Exclude,
    Ids,
    any_equal,
    check_ids,
    count_equal,
    equal_pairs,
    exclude_pairs,
    places_in_rows,
)
from lookalike.search.rows import Embeddings, Rows, check_widths
from lookalike.search.similarity import (
    error_bound,
    exact_similarities,
    from_order_keys,
    operand,
    order_keys,
    products,
)
from lookalike.search.topk import MEMORY_BYTES

QUERIES_AT_A_TIME = 8192
"""At most so many queries come together; more makes nothing faster."""

_IMAGES_AT_A_TIME = 4096
_PAIRS_AT_A_TIME = 2**22  # whose keys take 32 MB: larger blocks get fresh memory each time
_LOWEST = torch.iinfo(torch.int64).min
_WORTH_BOUNDS = 0.02  # share of a gallery beyond which similarities are computed exactly at once


class Ranked(NamedTuple):
    """The ranks of the right images of some queries."""

    queries: slice
    ranks: Int64[Tensor, "some hits"]  # from 1, rising along each row, padded with 0
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
    """Yields the rank of every right image in the whole gallery, for a few queries at a time.

    The ranking is that of `top_k`, to the last place: the same similarities, the same order of
    ties, the same exclusions. It is counted rather than sorted: the rank of a right image is
    one more than the number of images that come before it.

    Args:
        query, gallery, exclude: as `top_k` takes them.
        query_labels, gallery_labels: numbers; an image is right for a query if they are equal.
        memory_bytes: working memory beside inputs and result.
    """
    asked, rows = Rows(query), Rows(gallery)
    check_widths(asked, rows)
    check_ids(exclude, len(asked), len(rows))
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
    """Yields queries that fit into memory together, and the places of their right images, or -1."""
    counts = count_equal(query_labels, gallery_labels)
    # For each right image its position, keys, bounds, counters, and copies; a query's operand.
    weights = (192 * counts.clamp(min=1) + 16 * dim).tolist()
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


def _as_table(rows: Ids, values: Ids, num_rows: int) -> Int64[Tensor, "rows most"]:
    """Returns values of rising rows as a table, padded with -1."""
    counts = torch.bincount(rows, minlength=num_rows)
    table = values.new_full((num_rows, int(counts.max()) if len(rows) else 0), -1)
    table[rows, places_in_rows(rows, counts)] = values
    return table


def _keys_of_right(
    query: Float32[Tensor, "queries dim"], gallery: Rows, right: Int64[Tensor, "queries hits"]
) -> Int64[Tensor, "queries hits"]:
    """Returns the order keys of the right images, rising; padding comes first."""
    if right.numel() < _WORTH_BOUNDS * len(query) * len(gallery):
        similarities = exact_similarities(query, gallery, right)
    else:  # cheaper by whole products
        similarities = torch.full(right.shape, float("-inf"))
        asked = operand(query, "exact", "query")
        for start, stop in gallery.parts(1024):
            part = operand(gallery.part(start, stop).cpu(), "exact", "gallery image", start)
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
    """Counts the gallery images before each right image.

    Each is looked up in parts of the gallery that are sorted by quick similarities. Where it lands
    is certain but for the images within the rounding error of it; these are compared exactly.
    """
    before = torch.zeros_like(keys)
    if not keys.shape[1]:
        return before
    # Of each similarity itself, its key, and what `products` needs to make it exact. Few queries
    # and many images at a time, since each right image is looked up once a part.
    pairs = min(memory_bytes // 4 // 48, _PAIRS_AT_A_TIME)
    images = max(32, min(pairs // 64, _IMAGES_AT_A_TIME, memory_bytes // 8 // gallery.dim // 16))
    queries = max(1, pairs // images)
    asked, asked_exactly = operand(query, "fp32", "query"), operand(query, "exact", "query")
    for start, stop in gallery.parts(images):
        rows = gallery.part(start, stop).cpu()
        part = operand(rows, "fp32", "gallery image", start)
        for first in range(0, len(query), queries):
            some = slice(first, first + queries)
            banned = [(ids[some], others[start:stop]) for ids, others in exclude]
            quick = _sorted_keys(products(asked.part(some), part), start, banned)
            bound = error_bound(asked.part(some), part)
            low, high = _where_they_land(quick, keys[some], bound)
            unsure = high - low
            if int(unsure.sum()) > _WORTH_BOUNDS * quick.numel():
                whole = operand(rows, "exact", "gallery image", start)
                quick = _sorted_keys(products(asked_exactly.part(some), whole), start, banned)
                before[some] += quick.shape[1] - torch.searchsorted(quick, keys[some], right=True)
                continue
            below = unsure.flip(dims=[1]).cumsum(dim=1).flip(dims=[1]) - unsure
            before[some] += quick.shape[1] - high - below
            before[some] += _count_unsure(query[some], gallery, keys[some], quick, low, unsure)
    return before


def _where_they_land(
    quick: Int64[Tensor, "queries images"],
    keys: Int64[Tensor, "queries hits"],
    bound: Float32[Tensor, " queries"],
) -> tuple[Int64[Tensor, "queries hits"], Int64[Tensor, "queries hits"]]:
    """Returns from where to where in each sorted row right images may land, without overlap."""
    similarities, _ = from_order_keys(keys)
    ahead, after = torch.zeros_like(keys), torch.full_like(keys, 2**32 - 1)  # of any position
    low = torch.searchsorted(quick, order_keys(similarities - bound[:, None], after))
    high = torch.searchsorted(quick, order_keys(similarities + bound[:, None], ahead), right=True)
    low[keys == _LOWEST], high[keys == _LOWEST] = 0, 0  # padding
    low[:, 1:] = torch.maximum(low[:, 1:], high[:, :-1])  # so that no image counts twice
    return low, high


def _sorted_keys(
    scores: Float32[Tensor, "queries images"], start: int, banned: Exclude
) -> Int64[Tensor, "queries images"]:
    """Returns order keys of scores, rising along each row; excluded images come first."""
    exclude_pairs(scores, banned)
    keys = order_keys(scores, torch.arange(start, start + scores.shape[1]))
    # NumPy's sort is many times as fast as torch's own on a CPU, and works outside Python's lock.
    num_threads = torch.get_num_threads()
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(lambda rows: rows.sort(axis=1), np.array_split(keys.numpy(), num_threads)))
    return keys


def _count_unsure(
    query: Float32[Tensor, "queries dim"],
    gallery: Rows,
    keys: Int64[Tensor, "queries hits"],
    quick: Int64[Tensor, "queries images"],
    low: Int64[Tensor, "queries hits"],
    unsure: Int64[Tensor, "queries hits"],
) -> Int64[Tensor, "queries hits"]:
    """Counts those of the images too close to tell that come before each right image in truth."""
    counts = unsure.flatten()
    hits = torch.arange(len(counts)).repeat_interleave(counts)
    rows, columns = hits // keys.shape[1], low.flatten()[hits] + places_in_rows(hits, counts)
    places = _as_table(rows, from_order_keys(quick[rows, columns])[1], len(query))
    exact = order_keys(exact_similarities(query, gallery, places), places)
    exact = torch.where(places >= 0, exact, _LOWEST).sort(dim=1).values
    return exact.shape[1] - torch.searchsorted(exact, keys, right=True)
