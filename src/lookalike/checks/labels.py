"""Labels that are likely wrong: two judges look at each image, and both must disagree.

Raw neighbours disagree with many a right label: embeddings vary most with light, distance and
background, which say nothing about the class. So embeddings are whitened first by how images
of one class differ among each other (the within-class covariance, as linear discriminant
analysis has it). Then, of each image,

1. the *neighbours* judge: how similar are the two nearest images of another class, and the two
   nearest of its own?
2. a *ridge classifier* judges, to which each class counts alike.

Whatever judges an image, the whitening included, has learned from other images only: they are
dealt into ten folds, and each fold is judged by what the other nine teach. A judge that had seen
the wrong label would believe it, the more so the fewer images there are. Judging out of sample
and ranking by how sure the judges are is from Northcutt et al., "Confident Learning" (JAIR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize, pad

from lookalike.search.topk import top_k

# Chosen on planted wrong labels: docs/experiments.md, "Wrong labels".
MIN_NEIGHBOR_MARGIN = 0.18
MIN_RIDGE_MARGIN = 0.1
MIN_CLASS_SIZE = 3
"""An image of a smaller class has less than two others to be compared with."""

_FOLDS = 10
_VOTERS = 2  # nearest images of a class that speak for it
_RIDGE = 1.0
_ROWS_AT_A_TIME = 65536


@dataclass(frozen=True)
class Suspect:
    """An image that looks like another class than its own; positions are those handed in.

    `margin` is how much more similar the nearest images of the suggested class are than those
    of its own (cosine, whitened); the larger, the surer.
    """

    position: int
    suggested: int
    margin: float
    nearest_suggested: list[int]
    nearest_own: list[int]


@dataclass(frozen=True)
class Judgement:
    """The judges' findings; suspects come surest first."""

    suspects: list[Suspect]
    num_judged: int
    num_unjudged: int  # in classes too small
    share_of_neighbors_disagreeing: float


def judge_labels(
    embeddings: Float32[Tensor, "n dim"],
    classes: Int64[Tensor, " n"],
    copies: Int64[Tensor, " n"],
    *,
    num_neighbors: int,
) -> Judgement:
    """Finds images whose label is likely wrong.

    Args:
        embeddings: L2-normalised.
        classes: numbers from 0.
        copies: equal for images that are copies of each other: such a pair says nothing about
            a label, and of copies within a class one stands for all.
        num_neighbors: nearest images that are looked at; a class is suggested if two of them
            are its own.
    """
    both = torch.stack([classes, copies], dim=1).numpy()
    _, first = np.unique(both, axis=0, return_index=True)
    kept = torch.from_numpy(np.sort(first))
    large = torch.bincount(classes[kept])[classes[kept]] >= MIN_CLASS_SIZE
    judged, num_unjudged = kept[large], int((~large).sum())
    if len(classes[judged].unique()) < 2:
        return Judgement([], 0, len(kept), 0.0)
    of_class, own = classes[judged].unique(return_inverse=True)
    known = _Known(judged, of_class, embeddings[judged], own, copies[judged])
    suspects: list[Suspect] = []
    disagreeing = 0
    # Dealt round by class, so that a fold takes as little of a class as can be.
    dealt, num_folds = own.argsort(stable=True), min(_FOLDS, len(own))
    for start in range(num_folds):
        found, disagree = _judge_fold(known, dealt[start::num_folds], num_neighbors)
        suspects += found
        disagreeing += disagree
    suspects.sort(key=lambda one: -one.margin)
    return Judgement(suspects, len(judged), num_unjudged, disagreeing / len(judged))


def class_numbers(labels: Sequence[str]) -> tuple[Int64[Tensor, " n"], list[str]]:
    """Returns each label as a number from 0, and the labels by number."""
    names, numbers = np.unique(np.array(labels, dtype=object), return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64)), [str(name) for name in names]


@dataclass(frozen=True)
class Whitening:
    """Makes images of one class vary alike in every direction."""

    mean: Float64[Tensor, " dim"]
    root: Float64[Tensor, "dim dim"]  # lower Cholesky factor of the within-class covariance

    def __call__(self, rows: Float32[Tensor, "n dim"]) -> Float32[Tensor, "n dim"]:
        """Returns the rows, whitened and L2-normalised."""
        parts = []
        for part in rows.split(_ROWS_AT_A_TIME):
            centred = (part.double() - self.mean).T
            white = torch.linalg.solve_triangular(self.root, centred, upper=False).T
            parts.append(normalize(white, dim=1).float())
        return torch.cat(parts)


def learn_whitening(
    rows: Float32[Tensor, "n dim"], classes: Int64[Tensor, " n"], num_classes: int
) -> Whitening:
    """Returns the whitening of some embeddings.

    Their within-class covariance is shrunk towards a multiple of the identity, by as much as
    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices"
    (2004), find best for so many images.
    """
    n, dim = rows.shape
    counts = torch.bincount(classes, minlength=num_classes).clamp(min=1)
    sums = torch.zeros(num_classes, dim, dtype=torch.float64)
    parts = list(zip(rows.split(_ROWS_AT_A_TIME), classes.split(_ROWS_AT_A_TIME), strict=True))
    for part, of in parts:
        sums.index_add_(0, of, part.double())
    centres = sums / counts[:, None]
    covariance = torch.zeros(dim, dim, dtype=torch.float64)
    fourth = 0.0
    for part, of in parts:
        residuals = part.double() - centres[of]
        covariance += residuals.T @ residuals / n
        fourth += float(residuals.square().sum(dim=1).square().sum()) / n
    scale = covariance.diagonal().mean()
    identity = scale * torch.eye(dim, dtype=torch.float64)
    noise = (fourth - covariance.square().sum()) / n
    distance = (covariance - identity).square().sum().clamp(min=1e-30)
    shrinkage = float((noise / distance).clamp(0, 1))
    shrunk = (1 - shrinkage) * covariance + shrinkage * identity
    shrunk += (1e-6 * scale + 1e-12) * torch.eye(dim, dtype=torch.float64)
    return Whitening(sums.sum(dim=0) / n, torch.linalg.cholesky(shrunk))


@dataclass(frozen=True)
class _Known:
    """The images that are judged and judge. `classes` are places in `names`."""

    positions: Int64[Tensor, " n"]  # among all that were handed in
    names: Int64[Tensor, " classes"]
    embeddings: Float32[Tensor, "n dim"]
    classes: Int64[Tensor, " n"]
    copies: Int64[Tensor, " n"]


def _judge_fold(
    known: _Known, fold: Int64[Tensor, " fold"], num_neighbors: int
) -> tuple[list[Suspect], int]:
    """Returns a fold's suspects, and for how many the nearest image is of another class."""
    is_other = torch.ones(len(known.classes), dtype=torch.bool)
    is_other[fold] = False
    others = is_other.nonzero()[:, 0]
    own, voters = known.classes[fold], known.classes[others]
    num_classes = len(known.names)
    whiten = learn_whitening(known.embeddings[others], voters, num_classes)
    asked, rest = whiten(known.embeddings[fold]), whiten(known.embeddings[others])
    twins = (known.copies[fold], known.copies[others])
    similarities, places = top_k(asked, rest, num_neighbors, exclude=[twins])
    labels = torch.where(places >= 0, voters[places], -1)
    disagree = int(((labels[:, 0] != own) & (labels[:, 0] >= 0)).sum())

    rivals, rival_similarities = _best_rivals(similarities, labels, own)
    rows = (rivals >= 0).nonzero()[:, 0]
    mates, mate_similarities = _nearest_mates(asked, rest, own, voters, twins, rows)
    margins = rival_similarities[rows] - mate_similarities
    # Infinite: it has no two mates that are no copies of it.
    sure = (margins >= MIN_NEIGHBOR_MARGIN) & margins.isfinite()
    rows, mates, margins = rows[sure], mates[sure], margins[sure]
    agreed = _ridge_margins(rest, voters, asked[rows], own[rows], num_classes) >= MIN_RIDGE_MARGIN
    fold, others = known.positions[fold], known.positions[others]
    suspects = [
        Suspect(
            int(fold[row]),
            int(known.names[rivals[row]]),
            float(margin),
            others[places[row][labels[row] == rivals[row]]][:3].tolist(),
            others[mate].tolist(),
        )
        for row, mate, margin in zip(rows[agreed], mates[agreed], margins[agreed], strict=True)
    ]
    return suspects, disagree


def _best_rivals(
    similarities: Float32[Tensor, "n k"], labels: Int64[Tensor, "n k"], own: Int64[Tensor, " n"]
) -> tuple[Int64[Tensor, " n"], Float32[Tensor, " n"]]:
    """Returns the class with the highest mean of its two nearest (-1: none), and that mean."""
    best = torch.full((len(own),), float("-inf"))
    which = torch.full((len(own),), -1, dtype=torch.int64)
    for rank in range(1, labels.shape[1]):
        label = labels[:, rank]
        earlier = labels[:, :rank] == label[:, None]
        second = (earlier.sum(dim=1) == _VOTERS - 1) & (label >= 0) & (label != own)
        first_rank = earlier.int().argmax(dim=1, keepdim=True)
        mean = (similarities.gather(1, first_rank)[:, 0] + similarities[:, rank]) / _VOTERS
        better = second & (mean > best)
        best = torch.where(better, mean, best)
        which = torch.where(better, label, which)
    return which, best


def _nearest_mates(
    asked: Float32[Tensor, "fold dim"],
    rest: Float32[Tensor, "rest dim"],
    own: Int64[Tensor, " fold"],
    voters: Int64[Tensor, " rest"],
    twins: tuple[Tensor, Tensor],
    rows: Int64[Tensor, " rows"],
) -> tuple[Int64[Tensor, "rows 2"], Float32[Tensor, " rows"]]:
    """Returns for some images the two nearest of their class, and their mean (-inf: no two)."""
    mates = torch.zeros(len(rows), _VOTERS, dtype=torch.int64)
    means = torch.full((len(rows),), float("-inf"))
    for label in own[rows].unique():
        members = (voters == label).nonzero()[:, 0]
        if len(members) < _VOTERS:
            continue
        here = own[rows] == label
        some = rows[here]
        exclude = [(twins[0][some], twins[1][members])]
        found, places = top_k(asked[some], rest[members], _VOTERS, exclude=exclude)
        mates[here], means[here] = members[places], found.mean(dim=1)
    return mates, means


def _ridge_margins(
    rest: Float32[Tensor, "rest dim"],
    voters: Int64[Tensor, " rest"],
    asked: Float32[Tensor, "rows dim"],
    own: Int64[Tensor, " rows"],
    num_classes: int,
) -> Float64[Tensor, " rows"]:
    """Returns by how much the best other class beats the own one, if `rest` teaches."""
    # Least squares on one-hot classes with a ridge, so that each class counts alike.
    if not len(asked):
        return torch.empty(0, dtype=torch.float64)
    weights = torch.bincount(voters, minlength=num_classes)[voters].double().rsqrt()
    weights = weights / weights.mean()
    width = rest.shape[1] + 1
    mean = rest.mean(dim=0).double()
    normal = _RIDGE * torch.eye(width, dtype=torch.float64)
    normal[-1, -1] = 1e-9  # the intercept is free
    sums = torch.zeros(num_classes, width, dtype=torch.float64)
    for part in torch.arange(len(rest)).split(_ROWS_AT_A_TIME):
        inputs = pad(rest[part].double() - mean, (0, 1), value=1.0)
        weighted = inputs * weights[part, None]
        normal += weighted.T @ inputs
        sums.index_add_(0, voters[part], weighted)
    inputs = pad(asked.double() - mean, (0, 1), value=1.0)
    scores = inputs @ torch.linalg.solve(normal, sums.T)
    mine = scores.gather(1, own[:, None])[:, 0]
    scores.scatter_(1, own[:, None], float("-inf"))
    margins: Tensor = scores.amax(dim=1) - mine
    return margins
