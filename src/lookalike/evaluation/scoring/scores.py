"""The scores of queries, and what they come to: over queries, over classes, per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from lookalike.errors import ConfigError
from lookalike.evaluation.metrics import MEDIAN_RANK, METRICS, Grades
from lookalike.evaluation.scoring.intervals import Column, classes_are_few, mean_intervals

if TYPE_CHECKING:
    from lookalike.evaluation.metrics import Counts, Ranks


@dataclass(frozen=True)
class QueryScores:
    """One number a query and metric of the registry; NaN where a query has no answer."""

    labels: list[str]
    num_relevant: Int64[np.ndarray, " queries"]
    columns: dict[str, Column]

    @property
    def first_rank(self) -> Column:
        """The rank of each query's first right image, infinite if none was retrieved."""
        return self.columns[MEDIAN_RANK]

    @property
    def averaged(self) -> dict[str, Column]:
        """The columns of the metrics that are means over queries."""
        return {k: v for k, v in self.columns.items() if METRICS[k].over_queries == "mean"}

    @property
    def answerable(self) -> np.ndarray:
        """True for queries that have an answer in the gallery."""
        return self.num_relevant > 0

    @property
    def num_without_answer(self) -> int:
        """Queries that are counted apart."""
        return int((~self.answerable).sum())

    def micro(self) -> dict[str, float]:
        """Returns each metric over queries: their mean or median, as the metric has it."""
        keep, averaged = self.answerable, self.averaged
        return {
            name: float(column[keep].mean() if name in averaged else np.median(column[keep]))
            for name, column in self.columns.items()
        }

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% interval of each mean over queries."""
        return self._intervals(None)

    @cached_property
    def intervals_by_class(self) -> dict[str, tuple[float, float]]:
        """The same with whole classes as what is independent."""
        return self._intervals(self._scored_labels)

    @property
    def classes_are_few(self) -> bool:
        """True where what the numbers say of other classes needs the intervals by class."""
        return classes_are_few(self._scored_labels)

    @property
    def _scored_labels(self) -> list[str]:
        return [label for label, kept in zip(self.labels, self.answerable, strict=True) if kept]

    def _intervals(self, clusters: list[str] | None) -> dict[str, tuple[float, float]]:
        columns = {name: column[self.answerable] for name, column in self.averaged.items()}
        return mean_intervals(columns, clusters=clusters)

    def macro(self) -> dict[str, float]:
        """Returns the mean over classes of the mean over the class's queries."""
        keep = self.answerable
        _, of_class = np.unique(np.array(self.labels)[keep], return_inverse=True)
        sizes = np.bincount(of_class)
        return {
            name: float((np.bincount(of_class, weights=column[keep]) / sizes).mean())
            for name, column in self.averaged.items()
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """Returns for each class its number of queries, those without an answer, and its means."""
        labels, averaged = np.array(self.labels), self.averaged
        order = np.argsort(labels, kind="stable")
        names, starts = np.unique(labels[order], return_index=True)
        table = {}
        for name, rows in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
            kept = rows[self.answerable[rows]]
            means = averaged if len(kept) else {}
            table[name] = {
                "num_queries": len(rows),
                "num_without_answer": len(rows) - len(kept),
                **{key: float(column[kept].mean()) for key, column in means.items()},
            }
        return table


def score_ranks(
    labels: Sequence[str], ranks: Ranks, num_relevant: Counts, grades: Grades | None = None
) -> QueryScores:
    """Returns all metrics of queries whose right images were found at these ranks.

    With `grades` right images are not all equally so, which metrics that can tell count.

    Raises:
        ConfigError: a metric does not return one number a query, or returns none that is finite.
    """
    answerable = num_relevant > 0
    kept, counts = ranks[answerable], num_relevant[answerable]
    if grades is not None:
        grades = Grades(grades.found[answerable], grades.ideal[answerable])
    columns = {}
    for name, metric in METRICS.items():
        if grades is not None and metric.graded is not None:
            scores = metric.graded(kept, counts, grades)
        else:
            scores = metric.score(kept, counts)  # a metric from outside may return anything
        if scores.shape != (len(kept),):
            raise ConfigError(
                f"the metric {name!r} returned a tensor of shape {tuple(scores.shape)} for "
                f"{len(kept)} queries; expected ({len(kept)},), one number a query"
            )
        if metric.over_queries == "mean" and not scores.isfinite().all():
            raise ConfigError(
                f"the metric {name!r} returned a number that is not finite, of which there is "
                'no mean; score such a query 0, or summarise by over_queries="median"'
            )
        columns[name] = np.full(len(num_relevant), np.nan)
        columns[name][answerable.cpu().numpy()] = scores.double().cpu().numpy()
    return QueryScores(list(labels), num_relevant.cpu().numpy(), columns)


def joined(parts: Sequence[QueryScores]) -> QueryScores:
    """Returns the scores of queries that were scored a few at a time."""
    return QueryScores(
        [label for part in parts for label in part.labels],
        np.concatenate([part.num_relevant for part in parts]),
        {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
    )
