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
    """Returns all (query, gallery image) whose ids are equal, sorted by query, then image.

    >>> equal_pairs(torch.tensor([7, 8, 7]), torch.tensor([7, 9, 7]))
    (tensor([0, 0, 2, 2]), tensor([0, 2, 0, 2]))
    """
    ordered, order = gallery_ids.sort(stable=True)
    first = torch.searchsorted(ordered, query_ids)
    counts = torch.searchsorted(ordered, query_ids, right=True) - first
    rows = torch.arange(len(query_ids), device=query_ids.device).repeat_interleave(counts)
    return rows, order[first[rows] + places_in_rows(rows, counts)]


def places_in_rows(rows: Ids, counts: Int64[Tensor, " rows"]) -> Ids:
    """Returns 0, 1, 2 ... along each row; `rows` rise, and each is there `counts` times."""
    return torch.arange(len(rows), device=rows.device) - (counts.cumsum(dim=0) - counts)[rows]


def check_ids(exclude: Exclude, num_queries: int, num_gallery: int) -> None:
    """Refuses id columns that are not one id an image, with DataError."""
    for query_ids, gallery_ids in exclude:
        if (len(query_ids), len(gallery_ids)) != (num_queries, num_gallery):
            raise DataError(
                f"exclude has {len(query_ids):,} ids for {num_queries:,} queries and "
                f"{len(gallery_ids):,} for {num_gallery:,} gallery images; expected one each"
            )


def exclude_pairs(scores: Float[Tensor, "rows columns"], exclude: Exclude) -> None:
    """Writes -inf over the scores of pairs (row, column) whose ids are equal."""
    for row_ids, column_ids in exclude:
        if int(count_equal(row_ids, column_ids).sum()) * _MANY > scores.numel():
            scores.masked_fill_(row_ids[:, None] == column_ids, float("-inf"))
        else:
            scores[equal_pairs(row_ids, column_ids)] = float("-inf")


def count_equal(query_ids: Ids, gallery_ids: Ids) -> Int64[Tensor, " queries"]:
    """Returns the number of gallery images that have the id of each query."""
    ordered = gallery_ids.sort().values
    first = torch.searchsorted(ordered, query_ids)
    return torch.searchsorted(ordered, query_ids, right=True) - first


def any_equal(exclude: Exclude, rows: Ids, positions: Ids) -> Tensor:
    """Returns True for those of these (query, gallery image) pairs that are excluded."""
    banned = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for query_ids, gallery_ids in exclude:
        banned |= query_ids[rows] == gallery_ids[positions]
    return banned
