"""Exact nearest neighbours by cosine similarity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

CHUNK_BYTES = 256 * 2**20  # similarities held at a time; more is no faster
Ids = Int64[Tensor, " n"]


def top_k(
    query: Float32[Tensor, "queries dim"],
    gallery: Float32[Tensor, "gallery dim"],
    k: int,
    *,
    exclude: Sequence[tuple[Ids, Ids]] = (),
) -> tuple[Float32[Tensor, "queries k"], Int64[Tensor, "queries k"]]:
    """The k most similar gallery pictures of each query, best first.

    Exact: every similarity is computed, in float32. Those that come out equal are ordered by
    gallery position.

    Args:
        query, gallery: L2-normalised embeddings.
        k: neighbours wanted; capped at the gallery's size.
        exclude: pairs of id columns (one id a query, one a gallery picture); a gallery picture
            is no neighbour of a query if their ids are equal in any pair. Identity and group
            are such columns, so "not itself" never depends on where a picture stands.

    Returns:
        Similarities and gallery positions. Where fewer than k pictures remain for a query, its
        row ends in similarity -inf and position -1.
    """
    k = min(k, len(gallery))
    rows = max(1, CHUNK_BYTES // (4 * max(1, len(gallery))))
    similarities = torch.empty(len(query), k)
    positions = torch.empty(len(query), k, dtype=torch.int64)
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        scores = query[part] @ gallery.T
        for query_ids, gallery_ids in exclude:
            scores.masked_fill_(query_ids[part, None] == gallery_ids[None, :], float("-inf"))
        # A stable sort keeps equal similarities in gallery order, which topk does not promise.
        ordered, order = scores.sort(dim=1, descending=True, stable=True)
        similarities[part] = ordered[:, :k].cpu()
        positions[part] = order[:, :k].cpu()
    positions[similarities == float("-inf")] = -1
    return similarities, positions
