"""Labels that are likely wrong: two judges look at each picture, and both must disagree.

Raw neighbours disagree with many a right label: embeddings vary most with light, distance and
background, which say nothing about the class. So embeddings are whitened first by how pictures
of one class differ among each other (the within-class covariance, as linear discriminant
analysis has it). Then, of each picture,

1. the *neighbours* judge: how similar are the two nearest pictures of another class, and the two
   nearest of its own?
2. a *ridge classifier* judges, which has learned from all pictures but this one (leave-one-out
   in closed form), each class counting alike.

Judging every picture by a model that has not seen it, and ranking by how sure the judges are,
is the idea of Northcutt et al., "Confident Learning" (JAIR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.embedding.topk import top_k

# Chosen on planted wrong labels: docs/experiments.md, "Wrong labels".
MIN_NEIGHBOR_MARGIN = 0.1
MIN_RIDGE_MARGIN = 0.1
MIN_CLASS_SIZE = 3
"""A picture of a smaller class has less than two others to be compared with."""

_VOTERS = 2  # nearest pictures of a class that speak for it
_RIDGE = 1.0
_ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class Suspect:
    """A picture that looks like another class than its own; positions are those handed in.

    `margin` is how much more similar the nearest pictures of the suggested class are than those
    of its own (cosine, whitened); the larger, the surer.
    """

    position: int
    suggested: int
    margin: float
    nearest_suggested: list[int]
    nearest_own: list[int]


@dataclass(frozen=True)
class Judgement:
    """What the judges found; suspects come surest first."""

    suspects: list[Suspect]
    num_judged: int
    num_unjudged: int  # in classes too small
    share_of_neighbors_disagreeing: float


def judge_labels(
    embeddings: Float32[Tensor, "n dim"],
    classes: Int64[Tensor, " n"],
    copies: Int64[Tensor, " n"],
    *,
    top_k_wanted: int,
) -> Judgement:
    """Finds pictures whose label is likely wrong.

    Args:
        embeddings: L2-normalised.
        classes: numbers from 0.
        copies: equal for pictures that are copies of each other: such a pair says nothing about
            a label, and of copies within a class one stands for all.
        top_k_wanted: neighbours that are looked at; a class is suggested if it has two of them.
    """
    kept = _one_of_each_copy(classes, copies)
    kept = kept[_large_enough(classes[kept])]
    num_unjudged = len(set(copies.tolist())) - len(set(copies[kept].tolist()))
    if len(kept) < 2 * MIN_CLASS_SIZE or len(classes[kept].unique()) < 2:
        return Judgement([], 0, len(embeddings), 0.0)
    _, own = classes[kept].unique(return_inverse=True)
    twins = copies[kept]
    white = whitened(embeddings[kept], own)
    similarities, places = top_k(white, white, top_k_wanted, exclude=[(twins, twins)])
    disagreeing = (own[places[:, 0]] != own)[places[:, 0] >= 0].double().mean()

    rivals = _rivals(similarities, places, own)
    rows = (rivals.classes >= 0).nonzero()[:, 0]
    mates, mate_similarities = _nearest_mates(white, own, twins, rows)
    margins = rivals.similarities[rows] - mate_similarities
    hopeful = margins >= MIN_NEIGHBOR_MARGIN
    rows, mates, margins = rows[hopeful], mates[hopeful], margins[hopeful]
    agreed = _ridge_margins(white, own, rows) >= MIN_RIDGE_MARGIN
    suspects = []
    for row, mate, margin in zip(rows[agreed], mates[agreed], margins[agreed], strict=True):
        nearest = places[row][(own[places[row]] == rivals.classes[row]) & (places[row] >= 0)]
        suspects.append(
            Suspect(
                position=int(kept[row]),
                suggested=int(classes[kept[nearest[0]]]),
                margin=float(margin),
                nearest_suggested=kept[nearest[:3]].tolist(),
                nearest_own=kept[mate].tolist(),
            )
        )
    suspects.sort(key=lambda one: -one.margin)
    return Judgement(suspects, len(kept), num_unjudged, float(disagreeing))


def whitened(
    embeddings: Float32[Tensor, "n dim"], classes: Int64[Tensor, " n"]
) -> Float32[Tensor, "n dim"]:
    """Embeddings in which pictures of one class vary alike in every direction, L2-normalised.

    The within-class covariance is shrunk towards a multiple of the identity, by as much as
    Ledoit and Wolf, "A well-conditioned estimator" (2004), find best for the number of pictures.

    Args:
        embeddings: one row a picture.
        classes: numbers from 0, each present.
    """
    rows = embeddings.double()
    centres = _class_means(rows, classes)
    residuals = rows - centres[classes]
    n, dim = residuals.shape
    covariance = residuals.T @ residuals / n
    scale = covariance.diagonal().mean()
    identity = scale * torch.eye(dim, dtype=torch.float64)
    distance = (covariance - identity).square().sum()
    noise = (residuals.square().sum(dim=1).square().sum() / n - covariance.square().sum()) / n
    shrinkage = float((noise / distance.clamp(min=1e-30)).clamp(0, 1))
    shrunk = (1 - shrinkage) * covariance + shrinkage * identity
    shrunk = shrunk + (1e-6 * scale + 1e-12) * torch.eye(dim, dtype=torch.float64)
    root = torch.linalg.cholesky(shrunk)
    centred = (rows - rows.mean(dim=0)).T
    return normalize(torch.linalg.solve_triangular(root, centred, upper=False).T, dim=1).float()


def _class_means(
    rows: Float64[Tensor, "n dim"], classes: Int64[Tensor, " n"]
) -> Float64[Tensor, "classes dim"]:
    counts = torch.bincount(classes)
    sums = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64)
    return sums.index_add(0, classes, rows) / counts[:, None]


def _one_of_each_copy(
    classes: Int64[Tensor, " n"], copies: Int64[Tensor, " n"]
) -> Int64[Tensor, " kept"]:
    """Positions of the first picture of each set of copies, in each class."""
    both = torch.stack([classes, copies], dim=1).numpy()
    _, first = np.unique(both, axis=0, return_index=True)
    return torch.from_numpy(np.sort(first))


def _large_enough(classes: Int64[Tensor, " n"]) -> Tensor:
    return torch.bincount(classes)[classes] >= MIN_CLASS_SIZE


@dataclass(frozen=True)
class _Rivals:
    """The other class that has the most similar pair of pictures; class -1 where there is none."""

    classes: Int64[Tensor, " n"]
    similarities: Float32[Tensor, " n"]


def _rivals(
    similarities: Float32[Tensor, "n k"], places: Int64[Tensor, "n k"], own: Int64[Tensor, " n"]
) -> _Rivals:
    """Of each picture's neighbours: the class whose two nearest are the most similar.

    A class's second nearest is met with at the rank where the class is seen for the second
    time; whether that makes it the best is settled by comparing the means.
    """
    best = torch.full((len(own),), float("-inf"))
    which = torch.full((len(own),), -1, dtype=torch.int64)
    labels = torch.where(places >= 0, own[places], -1)
    for rank in range(1, places.shape[1]):
        label = labels[:, rank]
        earlier = labels[:, :rank] == label[:, None]
        second = (earlier.sum(dim=1) == 1) & (label >= 0) & (label != own)
        first_rank = earlier.int().argmax(dim=1, keepdim=True)
        mean = (similarities.gather(1, first_rank)[:, 0] + similarities[:, rank]) / _VOTERS
        better = second & (mean > best)
        best = torch.where(better, mean, best)
        which = torch.where(better, label, which)
    return _Rivals(which, best)


def _nearest_mates(
    white: Float32[Tensor, "n dim"],
    own: Int64[Tensor, " n"],
    twins: Int64[Tensor, " n"],
    rows: Int64[Tensor, " rows"],
) -> tuple[Int64[Tensor, "rows 2"], Float32[Tensor, " rows"]]:
    """For some pictures: the two nearest of their own class, and their mean similarity."""
    mates = torch.empty(len(rows), _VOTERS, dtype=torch.int64)
    means = torch.empty(len(rows))
    for label in own[rows].unique():
        members = (own == label).nonzero()[:, 0]
        here = (own[rows] == label).nonzero()[:, 0]
        some = rows[here]
        found, places = top_k(
            white[some], white[members], _VOTERS, exclude=[(twins[some], twins[members])]
        )
        mates[here], means[here] = members[places], found.mean(dim=1)
    return mates, means


def _ridge_margins(
    white: Float32[Tensor, "n dim"], own: Int64[Tensor, " n"], rows: Int64[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    """By how much the best other class beats the own one, for a classifier without the picture.

    Least squares on one-hot classes with a ridge; a picture weighs one over the root of its
    class's size. Leaving a picture out changes its scores f to (f - h y) / (1 - h), h being its
    leverage (Hastie et al., "The Elements of Statistical Learning", section 7.10).
    """
    counts = torch.bincount(own).double()
    weights = counts[own].rsqrt()
    weights = weights / weights.mean()
    centred = white.double() - white.double().mean(dim=0)
    inputs = torch.cat([centred, torch.ones(len(white), 1, dtype=torch.float64)], dim=1)
    weighted = inputs * weights[:, None]
    penalty = torch.full((inputs.shape[1],), _RIDGE, dtype=torch.float64)
    penalty[-1] = 1e-9  # the intercept is free
    inverse = torch.linalg.inv(weighted.T @ inputs + penalty.diag())
    sums = torch.zeros(len(counts), inputs.shape[1], dtype=torch.float64)
    sums.index_add_(0, own, weighted)
    margins = []
    for some in rows.split(_ROWS_AT_A_TIME):
        leverage = ((inputs[some] @ inverse) * inputs[some]).sum(dim=1) * weights[some]
        scores = inputs[some] @ inverse @ sums.T
        scores[torch.arange(len(some)), own[some]] -= leverage
        scores = scores / (1 - leverage).clamp(min=1e-9)[:, None]
        mine = scores.gather(1, own[some][:, None])[:, 0]
        scores.scatter_(1, own[some][:, None], float("-inf"))
        margins.append(scores.amax(dim=1) - mine)
    return torch.cat(margins) if margins else torch.empty(0, dtype=torch.float64)


def class_numbers(labels: Sequence[str]) -> tuple[Int64[Tensor, " n"], list[str]]:
    """Each label as a number from 0, and the labels by number."""
    names, numbers = np.unique(np.array(labels, dtype=object), return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64)), [str(name) for name in names]
