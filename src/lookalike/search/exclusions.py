"""Pairs of a query and a gallery image that have an id in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lookalike.errors import DataError

Ids: TypeAlias = Int64[Tensor, " n"]
Exclude: TypeAlias = Sequence[tuple[Ids, Ids]]

_MANY = 50  # beyond one excluded pair in so many a mask takes less memory than a list


def equal_pairs(query_ids: Ids, gallery_ids: Ids) -> tuple[Ids, Ids]:
    """All (query, gallery image) whose ids are equal, sorted by query, then image.

    >>> equal_pairs(torch.tensor([7, 8, 7]), torch.tensor([7, 9, 7]))
    (tensor([0, 0, 2, 2]), tensor([0, 2, 0, 2]))
    """
    ordered, order = gallery_ids.sort(stable=True)
    first = torch.searchsorted(ordered, query_ids)
    counts = torch.searchsorted(ordered, query_ids, right=True) - first
    rows = torch.arange(len(query_ids), device=query_ids.device).repeat_interleave(counts)
    before = counts.cumsum(dim=0) - counts
    within = torch.arange(len(rows), device=rows.device) - before[rows]
    return rows, order[first[rows] + within]


def check_ids(exclude: Exclude, num_queries: int, num_gallery: int) -> None:
    """Refuses id columns that are not one id an image.

    Raises:
        DataError: a column is shorter or longer.
    """
    for query_ids, gallery_ids in exclude:
        if (len(query_ids), len(gallery_ids)) != (num_queries, num_gallery):
            raise DataError(
                f"exclude has {len(query_ids):,} ids for {num_queries:,} queries and "
                f"{len(gallery_ids):,} for {num_gallery:,} gallery images; expected one each"
            )


def exclude_pairs(
    scores: Float[Tensor, "queries images"], query_ids: Ids, gallery_ids: Ids
) -> None:
    """Writes -inf over the scores of pairs whose ids are equal."""
    if int(count_equal(query_ids, gallery_ids).sum()) * _MANY > scores.numel():
        scores.masked_fill_(query_ids[:, None] == gallery_ids, float("-inf"))
    else:
        scores[equal_pairs(query_ids, gallery_ids)] = float("-inf")


def count_equal(query_ids: Ids, gallery_ids: Ids) -> Int64[Tensor, " queries"]:
    """How many gallery images have the id of each query."""
    ordered = gallery_ids.sort().values
    first = torch.searchsorted(ordered, query_ids)
    return torch.searchsorted(ordered, query_ids, right=True) - first


def any_equal(exclude: Exclude, rows: Ids, positions: Ids) -> Tensor:
    """Which of these (query, gallery image) pairs are excluded."""
    banned = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for query_ids, gallery_ids in exclude:
        banned |= query_ids[rows] == gallery_ids[positions]
    return banned
