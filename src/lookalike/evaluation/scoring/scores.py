"""What each query scored, and what that comes to: over queries, over classes, per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64, Int64

from lookalike.evaluation import metrics as m
from lookalike.evaluation.scoring.statistics import bootstrap_intervals

RECALL_KS = (1, 5, 10)
HEADLINE = (*(f"recall@{k}" for k in RECALL_KS), "mAP", "mAP@R")
"""The metrics that tables on a terminal have room for."""
MEDIAN_RANK = "median rank"
METRICS = (
    *(f"recall@{k}" for k in RECALL_KS), "mAP", "mAP@R", "mAP@10/min(10,R)", "R-precision",
    "precision@10", "nDCG@10", "MRR", MEDIAN_RANK,
)  # fmt: skip
"""All metrics of a retrieval of images by images."""

Column = Float64[np.ndarray, " queries"]


@dataclass(frozen=True)
class QueryScores:
    """One number a query and metric; NaN where a query has no answer in the gallery.

    `first_rank` is the rank of the first right image, infinite if none was retrieved.
    """

    labels: list[str]
    num_relevant: Int64[np.ndarray, " queries"]
    first_rank: Column
    columns: dict[str, Column]

    @property
    def answerable(self) -> np.ndarray:
        """Which queries have an answer in the gallery."""
        return self.num_relevant > 0

    @property
    def num_without_answer(self) -> int:
        """Queries that are counted apart."""
        return int((~self.answerable).sum())

    def micro(self) -> dict[str, float]:
        """The mean of each metric over queries, and the median rank."""
        keep = self.answerable
        means = {name: float(column[keep].mean()) for name, column in self.columns.items()}
        return means | {MEDIAN_RANK: float(np.median(self.first_rank[keep]))}

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% bootstrap interval of each mean over queries."""
        return self._intervals(None)

    @cached_property
    def intervals_by_class(self) -> dict[str, tuple[float, float]]:
        """The same with whole classes drawn."""
        return self._intervals(np.array(self.labels)[self.answerable].tolist())

    def _intervals(self, clusters: list[str] | None) -> dict[str, tuple[float, float]]:
        columns = {name: column[self.answerable] for name, column in self.columns.items()}
        return bootstrap_intervals(columns, clusters=clusters)

    def macro(self) -> dict[str, float]:
        """The mean over classes of the mean over the class's queries."""
        keep = self.answerable
        _, of_class = np.unique(np.array(self.labels)[keep], return_inverse=True)
        sizes = np.bincount(of_class)
        return {
            name: float((np.bincount(of_class, weights=column[keep]) / sizes).mean())
            for name, column in self.columns.items()
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """For each class its number of queries, those without an answer, and its means."""
        labels = np.array(self.labels)
        order = np.argsort(labels, kind="stable")
        names, starts = np.unique(labels[order], return_index=True)
        table = {}
        for name, rows in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
            kept = rows[self.answerable[rows]]
            row: dict[str, float] = {
                "num_queries": len(rows), "num_without_answer": len(rows) - len(kept)
            }  # fmt: skip
            if len(kept):
                row |= {key: float(column[kept].mean()) for key, column in self.columns.items()}
            table[name] = row
        return table


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether one value of a metric is strictly better than another: higher, but for ranks."""
    return value < than if metric == MEDIAN_RANK else value > than


def score_ranks(labels: Sequence[str], ranks: m.Ranks, num_relevant: m.Counts) -> QueryScores:
    """All metrics of queries whose right images were found at these ranks."""
    answerable = num_relevant > 0
    kept, counts = ranks[answerable], num_relevant[answerable]
    columns = {f"recall@{k}": m.recall_at_k(kept, k) for k in RECALL_KS}
    columns |= {
        "mAP": m.average_precision(kept, counts),
        "mAP@R": m.average_precision_at_r(kept, counts),
        "mAP@10/min(10,R)": m.average_precision_at_k(kept, counts, 10, over="min(k,R)"),
        "R-precision": m.r_precision(kept, counts),
        "precision@10": m.precision_at_k(kept, 10),
        "nDCG@10": m.ndcg_at_k(kept, counts, 10),
        "MRR": m.reciprocal_rank(kept),
    }

    def spread(values: torch.Tensor) -> Column:
        column = torch.full((len(num_relevant),), float("nan"), dtype=torch.float64)
        column[answerable] = values.cpu()
        return column.numpy()

    return QueryScores(
        list(labels),
        num_relevant.cpu().numpy(),
        spread(m.first_rank(kept)),
        {name: spread(values) for name, values in columns.items()},
    )


def joined(parts: Sequence[QueryScores]) -> QueryScores:
    """The scores of queries that were scored a few at a time."""
    return QueryScores(
        [label for part in parts for label in part.labels],
        np.concatenate([part.num_relevant for part in parts]),
        np.concatenate([part.first_rank for part in parts]),
        {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
    )
