"""Retrieval metrics: pure functions of the ranks of the right images, and the one registry of them.

`ranks[q]` holds the ranks (from 1) at which the right images of query q were retrieved,
rising, padded at its end with 0; `num_relevant[q]` is R, how many right images the whole
gallery holds for it, retrieved or not. All functions return one number a query and need R >= 1:
a query without an answer in the gallery has no score, and is counted apart by the caller.

Unless a function says otherwise the source is Manning, Raghavan and Schütze, "Introduction to
Information Retrieval" (2008), chapter 8. Relevance is binary, right or wrong, but for nDCG, which
counts by grades where there are any.

What is measured, shown, compared and known as `best_metric` is whatever `METRICS` holds; a metric
of your own joins it by `register`, before `lookalike.train` or `lookalike.evaluate` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lookalike.errors import ConfigError

if TYPE_CHECKING:  # whoever only reads what was measured need not wait until torch is loaded
    from jaxtyping import Bool, Float64, Int64
    from torch import Tensor

    Ranks = Int64[Tensor, "queries hits"]
    Counts = Int64[Tensor, " queries"]
    Scores = Float64[Tensor, " queries"]


@dataclass(frozen=True)
class Grades:
    """How relevant images are where some are more so than others, as qrels of TREC may say.

    Attributes:
        found: of the image at each of the ranks; 0 where these are padded.
        ideal: of all right images of a query, largest first, padded at its end with 0.
    """

    found: Float64[Tensor, "queries hits"]
    ideal: Float64[Tensor, "queries relevant"]


@dataclass(frozen=True)
class Metric:
    """One metric of retrieval.

    Args:
        name: its name in files, tables and `best_metric`.
        score: maps ranks and R (see above) to one number a query, of any number of queries, none
            included. The numbers must be finite, unless `over_queries` is the median.
        meaning: what it says of a query, in half a sentence.
        text_meaning: the same of text search by class name, which reports the means that have one.
        headline: whether tables and report cards show it; the others are in the files only.
        higher_is_better: its direction.
        is_share: whether it lies between 0 and 1, and is shown to people in percent.
        over_queries: how queries are summarised. Intervals, tests, and means over classes are
            those of means, and so a median has none.
        graded: the same where right images have grades; None for a metric that ignores them.
    """

    name: str
    score: Callable[[Ranks, Counts], Scores]
    meaning: str
    text_meaning: str | None = None
    headline: bool = False
    higher_is_better: bool = True
    is_share: bool = True
    over_queries: Literal["mean", "median"] = "mean"
    graded: Callable[[Ranks, Counts, Grades], Scores] | None = None


def recall_at_k(ranks: Ranks, k: int) -> Scores:
    """Returns 1 if any of the first k results is right, else 0: the hit rate.

    Formula: [min rank <= k]. Source: Jégou et al., "Product Quantization for Nearest Neighbor
    Search" (PAMI 2011), section V; in text retrieval "recall" means found / R, which this is not.

    >>> import torch
    >>> recall_at_k(torch.tensor([[2, 3], [3, 0]]), k=2)
    tensor([1., 0.], dtype=torch.float64)
    """
    return _within(ranks, k).any(dim=1).double()


def precision_at_k(ranks: Ranks, k: int) -> Scores:
    """Returns the share of right images among the first k places.

    Formula: |{rank <= k}| / k. The denominator stays k where the gallery is smaller or R < k.

    >>> import torch
    >>> precision_at_k(torch.tensor([[2, 3], [3, 0]]), k=2)
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    return _within(ranks, k).sum(dim=1).double() / k


def r_precision(ranks: Ranks, num_relevant: Counts) -> Scores:
    """Returns the share of right images among the first R places.

    Formula: |{rank <= R}| / R. Below R = 2 and one of the first two places is right.

    >>> import torch
    >>> r_precision(torch.tensor([[1, 3]]), torch.tensor([2]))
    tensor([0.5000], dtype=torch.float64)
    """
    return _within(ranks, num_relevant[:, None]).sum(dim=1).double() / num_relevant


def average_precision(ranks: Ranks, num_relevant: Counts) -> Scores:
    """Returns the precision at the rank of each right image, summed, over R.

    Formula: (1 / R) sum over right images i of i / rank_i, whose mean over queries is mAP. Needs
    the ranks of all right images in the whole gallery; those that were not retrieved count as
    zero. Below: right at ranks 1 and 3 of two, (1/1 + 2/3) / 2.

    >>> import torch
    >>> average_precision(torch.tensor([[1, 3]]), torch.tensor([2]))
    tensor([0.8333], dtype=torch.float64)
    """
    return _precisions(ranks).sum(dim=1) / num_relevant


def average_precision_at_r(ranks: Ranks, num_relevant: Counts) -> Scores:
    """Returns average precision over the first R ranks only.

    Formula: (1 / R) sum over right images with rank_i <= R of i / rank_i. Its mean over
    queries is mAP@R: 1 only if all right images come before all wrong ones. Source: Musgrave
    et al., "A Metric Learning Reality Check" (ECCV 2020), section 3.1. Below (1/1 + 0) / 2.

    >>> import torch
    >>> average_precision_at_r(torch.tensor([[1, 3]]), torch.tensor([2]))
    tensor([0.5000], dtype=torch.float64)
    """
    counted = _within(ranks, num_relevant[:, None])
    return (_precisions(ranks) * counted).sum(dim=1) / num_relevant


def average_precision_at_k(
    ranks: Ranks, num_relevant: Counts, k: int, *, over: Literal["R", "min(k,R)"]
) -> Scores:
    """Returns average precision over the first k ranks, with the denominator said.

    Formula: (1 / D) sum over right images with rank_i <= k of i / rank_i. D = R makes it a
    part of average precision, which cannot reach 1 where R > k (TREC's `map_cut`); D = min(k,
    R) can. (Dividing by the hits found, as some do, rewards finding fewer.) Below, right at
    ranks 1 and 4 of three, k = 2: 1 / 3 and 1 / 2.

    >>> import torch
    >>> ranks, num_relevant = torch.tensor([[1, 4]]), torch.tensor([3])
    >>> average_precision_at_k(ranks, num_relevant, 2, over="R")
    tensor([0.3333], dtype=torch.float64)
    >>> average_precision_at_k(ranks, num_relevant, 2, over="min(k,R)")
    tensor([0.5000], dtype=torch.float64)
    """
    denominator = num_relevant if over == "R" else num_relevant.clamp(max=k)
    return (_precisions(ranks) * _within(ranks, k)).sum(dim=1) / denominator


def ndcg_at_k(ranks: Ranks, num_relevant: Counts, k: int, grades: Grades | None = None) -> Scores:
    """Returns the normalised discounted cumulative gain of the first k places.

    Formula: DCG / IDCG with DCG = sum over rank_i <= k of g_i / log2(rank_i + 1) and IDCG the
    same for right images at ranks 1 .. min(k, R), the largest g first. The gain g_i is the grade
    of the image, as in trec_eval, and 1 where there are no grades. Source: Järvelin and
    Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques" (TOIS 2002), with the discount
    that became usual. Below, right at ranks 1 and 3 of two: (1 + 1/2) / (1 + 1/log2(3)); then
    with grades 1 and 2: (1 + 2/2) / (2 + 1/log2(3)).

    >>> import torch
    >>> ranks, num_relevant = torch.tensor([[1, 3]]), torch.tensor([2])
    >>> ndcg_at_k(ranks, num_relevant, k=3)
    tensor([0.9197], dtype=torch.float64)
    >>> grades = Grades(torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[2.0, 1.0]]).double())
    >>> ndcg_at_k(ranks, num_relevant, 3, grades)
    tensor([0.7602], dtype=torch.float64)
    """
    shares = (1 / (ranks.double() + 1).log2()).masked_fill(~_within(ranks, k), 0.0)
    discounts = 1 / (num_relevant.new_tensor(range(1, k + 1)).double() + 1).log2()
    if grades is None:
        return shares.sum(dim=1) / discounts.cumsum(dim=0)[num_relevant.clamp(max=k) - 1]
    best = grades.ideal[:, :k]
    return (shares * grades.found).sum(dim=1) / (best * discounts[: best.shape[1]]).sum(dim=1)


def reciprocal_rank(ranks: Ranks) -> Scores:
    """Returns 1 over the rank of the first right image, 0 if none was retrieved; its mean is MRR.

    Source: Voorhees, "The TREC-8 Question Answering Track Report" (1999).

    >>> import torch
    >>> reciprocal_rank(torch.tensor([[2, 3], [0, 0]]))
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    return 1 / first_rank(ranks)


def first_rank(ranks: Ranks) -> Scores:
    """Returns the rank of the first right image, infinite if none was retrieved.

    Its median over queries is the median rank.

    >>> import torch
    >>> first_rank(torch.tensor([[2, 3], [0, 0]]))
    tensor([2., inf], dtype=torch.float64)
    """
    first = ranks[:, 0] if ranks.shape[1] else ranks.new_zeros(len(ranks))  # no query found any
    return first.double().masked_fill(first == 0, float("inf"))


def ranks_of(relevant: Bool[Tensor, "queries places"]) -> Ranks:
    """Returns ranks for the functions above from ranked relevance: is the result in a place right?

    >>> import torch
    >>> ranks_of(torch.tensor([[True, False, True], [False, True, False]]))
    tensor([[1, 3],
            [2, 0]])
    """
    never = relevant.shape[1] + 1
    places = relevant.new_ones(relevant.shape[1]).cumsum(dim=0).expand_as(relevant)
    hits = int(relevant.sum(dim=1).max()) if relevant.numel() else 0
    ranks = places.masked_fill(~relevant, never).sort(dim=1).values[:, :hits]
    return ranks.masked_fill(ranks == never, 0)


def _within(ranks: Ranks, k: int | Tensor) -> Bool[Tensor, "queries hits"]:
    return (ranks > 0) & (ranks <= k)


def _precisions(ranks: Ranks) -> Float64[Tensor, "queries hits"]:
    """The precision at the rank of each right image, 0 where it was not retrieved."""
    found = ranks.new_ones(ranks.shape[1]).cumsum(dim=0).double()
    return (found / ranks).masked_fill(ranks == 0, 0.0)


def _recall(k: int, of_query: str, of_text: str) -> Metric:
    return Metric(f"recall@{k}", lambda ranks, _: recall_at_k(ranks, k), of_query, of_text, True)


MEDIAN_RANK = "median rank"
METRICS = {
    one.name: one
    for one in (
        _recall(1, "the first result is right", "the first image is of the class"),
        _recall(5, "one of the first 5 is right", "one of the first 5 is"),
        _recall(10, "one of the first 10 is right", "one of the first 10 is"),
        Metric("mAP", average_precision, "how far up all right images stand",
               "how far up all its images stand", headline=True),
        Metric("mAP@R", average_precision_at_r, "how nearly they all come before any wrong one",
               headline=True),
        Metric("mAP@10/min(10,R)",
               lambda ranks, counts: average_precision_at_k(ranks, counts, 10, over="min(k,R)"),
               "how far up the right images among the first 10 stand"),
        Metric("R-precision", r_precision, "how many of the first R are right"),
        Metric("precision@10", lambda ranks, _: precision_at_k(ranks, 10),
               "how many of the first 10 are right"),
        Metric("nDCG@10", lambda ranks, counts: ndcg_at_k(ranks, counts, 10),
               "how much right images among the first 10 gain by standing far up",
               graded=lambda ranks, counts, grades: ndcg_at_k(ranks, counts, 10, grades)),
        Metric("MRR", lambda ranks, _: reciprocal_rank(ranks),
               "1 over the place of the first right image"),
        Metric(MEDIAN_RANK, lambda ranks, _: first_rank(ranks),
               "the place of the first right image", higher_is_better=False, is_share=False,
               over_queries="median"),
    )
}  # fmt: skip
"""All metrics by name, in the order in which they are shown."""
TEXT_PREFIX = "text-"
_OTHER_COLUMNS = ("name", "label", "num_relevant", "first rank", "num_queries",
                  "num_without_answer")  # fmt: skip


def register(metric: Metric) -> None:
    """Adds a metric, the last to be shown.

    Raises:
        ConfigError: there is a metric of that name, or something else that files call so.
    """
    if metric.name in (*METRICS, *_OTHER_COLUMNS) or metric.name.startswith(TEXT_PREFIX):
        raise ConfigError(
            f"metrics files already have something called {metric.name!r}; choose another name"
        )
    METRICS[metric.name] = metric


def headline() -> tuple[str, ...]:
    """Returns the names of the metrics that tables and cards have room for."""
    return tuple(name for name, metric in METRICS.items() if metric.headline)


def text_headline() -> tuple[str, ...]:
    """Returns the names of the metrics that text search reports."""
    return tuple(
        name for name, one in METRICS.items() if one.text_meaning and one.over_queries == "mean"
    )


def is_better(name: str, value: float, than: float) -> bool:
    """Returns whether one value of a metric (or of its like in text search) is strictly better.

    >>> is_better("mAP", 0.5, 0.4), is_better("median rank", 3, 2), is_better("text-mAP", 0.4, 0.5)
    (True, False, False)
    """
    higher = METRICS[name.removeprefix(TEXT_PREFIX)].higher_is_better
    return value > than if higher else value < than
