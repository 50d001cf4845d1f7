"""Embeddings that are noise, and the plain loop that says how to rank them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.model.encoder import CLIPEncoder
from lookalike.runtime.device import Precision, Runtime


def lattice(n: int, seed: int) -> Tensor:
    """Embeddings whose similarities are exact in float32, with many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (n, 4), generator=generator).float() / 4


def unit(n: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, dim, generator=generator), dim=1)


def truth(a: Tensor, b: Tensor) -> float:
    """The dot product in exact arithmetic, rounded once, to float32."""
    total = sum(Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return float(np.float32(float(total)))


def naive(
    query: Tensor, gallery: Tensor, k: int, banned: list[tuple[list[int], list[int]]]
) -> list[list[int]]:
    rows = []
    for i, q in enumerate(query):
        scored = []
        for j, g in enumerate(gallery):
            if any(query_ids[i] == gallery_ids[j] for query_ids, gallery_ids in banned):
                continue
            scored.append((-truth(q, g), j))
        row = [j for _, j in sorted(scored)][:k]
        rows.append(row + [-1] * (min(k, len(gallery)) - len(row)))
    return rows


def random_batch(n: int, dim: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=-1)


def runtime(precision: Precision) -> Runtime:
    return Runtime(torch.device("cpu"), precision, 0)


def noise(encoder: CLIPEncoder, num_images: int = 6) -> torch.Tensor:
    how = encoder.preprocessing
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, 3, how.height, how.width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
