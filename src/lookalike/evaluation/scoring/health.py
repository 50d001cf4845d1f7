"""The health of embeddings: alignment, uniformity, effective rank, histogram of similarities.

All of it is about cosine similarity (embeddings are brought to length 1), and about the pairs of
a query and a gallery image that a search compares: an image and itself, or two of one group,
are no pair. Where there are too many pairs to look at, a seeded sample of them stands for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.evaluation.documents import NUM_BINS
from lookalike.search.exclusions import Exclude, any_equal, equal_pairs
from lookalike.search.rows import Rows

Similarities = Float32[Tensor, " pairs"]

RANK_ROWS = 8192
BINS = NUM_BINS
_AT_A_TIME = 2**20  # similarities computed at once


@dataclass(frozen=True)
class Pairs:
    """Similarities of pairs: of one class, of two classes, and of any two images.

    Without labels the first two are None. `drawn` says that they are samples, the first two of
    all pairs of their kind, the last of all pairs.
    """

    positive: Similarities | None
    negative: Similarities | None
    any: Similarities
    drawn: bool


def alignment(positive: Similarities) -> float:
    """Returns how far apart images of one class lie, squared, on average; 0 is best, 2 is chance.

    Formula: the mean of |x - y|^2 over positive pairs, which is 2 - 2 x.y at length 1. Source:
    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere" (ICML 2020), section 4.1, with alpha = 2.

    >>> round(alignment(torch.tensor([1.0, 0.5])), 4)
    0.5
    """
    return float((2 - 2 * positive.double()).mean())


def uniformity(similarities: Similarities) -> float:
    """Returns how evenly all images spread over the sphere; lower is more even, 0 is one point.

    Formula: log of the mean of exp(-2 |x - y|^2) over pairs of different images. Source: as
    `alignment`, with t = 2. Below a pair that coincides and one at right angles:
    log((1 + exp(-4)) / 2).

    >>> round(uniformity(torch.tensor([1.0, 0.0])), 4)
    -0.675
    """
    return float((4 * similarities.double() - 4).exp().mean().log())


def effective_rank(embeddings: Float32[Tensor, "n dim"]) -> float:
    """Returns how many dimensions embeddings really use: from 1 to the smaller of n and dim.

    Formula: exp of the entropy of the singular values over their sum. Source: Roy and Vetterli,
    "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007), definition 1.

    >>> round(effective_rank(torch.eye(3)), 4)
    3.0
    >>> round(effective_rank(torch.tensor([[1.0, 0.0], [2.0, 0.0]])), 4)
    1.0
    """
    values = torch.linalg.svdvals(embeddings.double())
    shares = values / values.sum()
    return math.exp(float(torch.special.entr(shares).sum()))


def histogram(similarities: Similarities) -> list[int]:
    """Returns how many similarities fall into each of `BINS` equal bins from -1 to 1.

    >>> counts = histogram(torch.tensor([-1.0, 0.99, 1.0]))
    >>> counts[0], counts[-1], sum(counts)
    (1, 2, 3)
    """
    # Rounding may leave a similarity a little outside.
    bins = ((similarities + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    return torch.bincount(bins, minlength=BINS).tolist()


def separation(positives: Sequence[int], negatives: Sequence[int]) -> float | None:
    """Returns how often a pair of one class is more similar than one of two; None without pairs.

    The area under the ROC curve (0.5 is chance, 1 is perfect), from two histograms of the same
    bins: pairs within one bin count as ties, which count half. Below all of the first lie above
    half of the second and tie with the other half.

    >>> separation([0, 4], [5, 5])
    0.75
    """
    if not sum(positives) or not sum(negatives):
        return None
    shares = torch.tensor(negatives, dtype=torch.float64) / sum(negatives)
    below = shares.cumsum(dim=0) - shares / 2
    return float(torch.tensor(positives, dtype=torch.float64) @ below) / sum(positives)


def measure_health(
    query: Float32[Tensor, "queries dim"] | Rows,
    gallery: Float32[Tensor, "gallery dim"] | Rows,
    labels: tuple[Int64[Tensor, " queries"], Int64[Tensor, " gallery"]] | None,
    *,
    exclude: Exclude = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Returns all of the above, as in a metrics file; None where there are no such pairs."""
    pairs = pair_similarities(query, gallery, labels, exclude=exclude, seed=seed)
    rows = gallery[:RANK_ROWS]
    if len(gallery) > RANK_ROWS:
        generator = torch.Generator().manual_seed(seed)
        rows = gallery[torch.randperm(len(gallery), generator=generator)[:RANK_ROWS]]
    positive, found, apart = pairs.positive, None, None
    if positive is not None and pairs.negative is not None:
        positives, negatives = histogram(positive), histogram(pairs.negative)
        apart = separation(positives, negatives)
        found = {"low": -1.0, "high": 1.0, "positives": positives, "negatives": negatives}
    return {
        "separation": apart,
        "alignment": None if positive is None or not len(positive) else alignment(positive),
        "uniformity": uniformity(pairs.any) if len(pairs.any) else None,
        "effective_rank": effective_rank(normalize(rows, dim=1)),
        "effective_rank_rows": len(rows),
        "dim": gallery.shape[1],
        "pairs": "drawn" if pairs.drawn else "all",
        "num_pairs": len(pairs.any),
        "histogram": found,
    }


def pair_similarities(
    query: Float32[Tensor, "queries dim"] | Rows,
    gallery: Float32[Tensor, "gallery dim"] | Rows,
    labels: tuple[Int64[Tensor, " queries"], Int64[Tensor, " gallery"]] | None,
    *,
    exclude: Exclude = (),
    seed: int = 0,
    exact_pairs: int = 10**7,
    drawn_pairs: int = 3 * 10**5,
) -> Pairs:
    """Returns the similarities of the pairs a search compares; of many pairs, a sample.

    Args:
        query, gallery: embeddings of any length but 0.
        labels: numbers that are equal where query and gallery image are of one class.
        exclude: the id columns that `top_k` was given; pairs they name are left out.
        seed: of the sample.
        exact_pairs: more pairs than this are sampled.
        drawn_pairs: how many are drawn of each kind; those that are excluded fall out again.
    """
    positive: Similarities | None = None
    drawn = len(query) * len(gallery) > exact_pairs
    if drawn:
        generator = torch.Generator().manual_seed(seed)
        columns = torch.randint(len(gallery), (drawn_pairs,), generator=generator)
        rows = torch.randint(len(query), (drawn_pairs,), generator=generator)
        found, rows, columns = _of_pairs(query, gallery, rows, columns, exclude)
        same = None if labels is None else labels[0][rows] == labels[1][columns]
        if labels is not None:
            pairs = _draw_equal(*labels, drawn_pairs, generator)
            positive, *_ = _of_pairs(query, gallery, *pairs, exclude)
    else:
        found, same = _all_pairs(query, gallery, labels, exclude)
        positive = None if same is None else found[same]
    return Pairs(positive, None if same is None else found[~same], found, drawn)


def _of_pairs(
    query: Tensor | Rows, gallery: Tensor | Rows, rows: Tensor, columns: Tensor, exclude: Exclude
) -> tuple[Similarities, Tensor, Tensor]:
    """The cosine similarity of each pair that is not excluded, and these pairs."""
    keep = ~any_equal(exclude, rows, columns)
    rows, columns = rows[keep], columns[keep]
    pieces = [
        (normalize(query[rows[part]], dim=1) * normalize(gallery[columns[part]], dim=1)).sum(dim=1)
        for part in _parts(len(rows), gallery.shape[1])
    ]
    return torch.cat([torch.empty(0), *pieces]), rows, columns


def _all_pairs(
    query: Tensor | Rows,
    gallery: Tensor | Rows,
    labels: tuple[Tensor, Tensor] | None,
    exclude: Exclude,
) -> tuple[Similarities, Tensor | None]:
    """The similarities of all pairs, and with labels which are of one class."""
    everything, same = [], []
    columns = normalize(gallery[:], dim=1)
    for part in _parts(len(query), len(gallery)):
        similarities = normalize(query[part], dim=1) @ columns.T
        keep = torch.ones_like(similarities, dtype=torch.bool)
        for query_ids, gallery_ids in exclude:
            keep[equal_pairs(query_ids[part], gallery_ids)] = False
        everything.append(similarities[keep])
        if labels is not None:
            same.append((labels[0][part, None] == labels[1])[keep])
    return torch.cat(everything), torch.cat(same) if same else None


def _draw_equal(
    query_labels: Tensor, gallery_labels: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pairs drawn evenly from all those with equal labels."""
    ordered, order = gallery_labels.sort(stable=True)
    first = torch.searchsorted(ordered, query_labels)
    partners = torch.searchsorted(ordered, query_labels, right=True) - first
    ends = partners.cumsum(dim=0)
    if not int(ends[-1]):
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    drawn = torch.randint(int(ends[-1]), (count,), generator=generator)
    rows = torch.searchsorted(ends, drawn, right=True)
    return rows, order[first[rows] + drawn - (ends[rows] - partners[rows])]


def _parts(rows: int, width: int) -> list[slice]:
    """Rows of so many numbers, as many at a time as memory is meant for."""
    step = max(1, _AT_A_TIME // max(1, width))
    return [slice(start, start + step) for start in range(0, rows, step)]
