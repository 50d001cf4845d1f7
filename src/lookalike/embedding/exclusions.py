"""Pairs of a query and a gallery picture that have an id in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Int64
from torch import Tensor

Ids: TypeAlias = Int64[Tensor, " n"]
Exclude: TypeAlias = Sequence[tuple[Ids, Ids]]


def equal_pairs(query_ids: Ids, gallery_ids: Ids) -> tuple[Ids, Ids]:
    """All (query, gallery picture) whose ids are equal, sorted by query, then picture.

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


def any_equal(exclude: Exclude, rows: Ids, positions: Ids) -> Tensor:
    """Which of these (query, gallery picture) pairs are excluded."""
    banned = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for query_ids, gallery_ids in exclude:
        banned |= query_ids[rows] == gallery_ids[positions]
    return banned
