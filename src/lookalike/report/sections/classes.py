"""All classes, worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lookalike.report.history import Document
from lookalike.report.page import count
from lookalike.report.queries import Confusion
from lookalike.report.section import Context, Section

MAX_CLASSES = 2000


@dataclass(frozen=True)
class ClassRow:
    """One row of the table of classes; what is None was not there to be measured."""

    label: str
    num_queries: int
    num_without_answer: int
    recall: float | None
    recall_before: float | None
    mean_precision: float | None
    taken_for: str | None
    taken_count: int

    @property
    def gained(self) -> float | None:
        """The change of recall@1."""
        if self.recall is None or self.recall_before is None:
            return None
        return self.recall - self.recall_before


def make(context: Context) -> Section | None:
    """Returns the table of classes; None where there are no labels."""
    history = context.history
    rows = class_rows(history.current, history.before, context.confusions)
    if not rows:
        return None
    listed = {context.images.class_number(row.label): row for row in rows[:MAX_CLASSES]}
    left_out = f"The table holds the {count(MAX_CLASSES)} worst of {count(len(rows))} classes."
    return Section(
        "classes", "classes", "Classes", {"classes": listed, "num_classes": len(rows)},
        data={"class_totals": {number: row.num_queries for number, row in listed.items()}},
        left_out=[left_out] if len(rows) > MAX_CLASSES else [],
    )  # fmt: skip


def class_rows(
    now: Document, before: Document | None, confusions: Sequence[Confusion]
) -> list[ClassRow]:
    """Returns all classes, worst first: by recall@1, then by mean average precision."""
    table: Mapping[str, Any] = now.get("per_class") or {}
    earlier: Mapping[str, Any] = (before or {}).get("per_class") or {}
    taken: dict[str, Confusion] = {}
    for one in confusions:  # the most frequent one comes first
        taken.setdefault(one.label, one)
    rows = []
    for label, found in table.items():
        confusion = taken.get(label)
        rows.append(
            ClassRow(
                label,
                found["num_queries"],
                found["num_without_answer"],
                found.get("recall@1"),
                earlier.get(label, {}).get("recall@1"),
                found.get("mAP"),
                confusion.taken_for if confusion else None,
                confusion.count if confusion else 0,
            )
        )

    def badness(row: ClassRow) -> tuple[float, float, str]:
        unmeasured = row.recall is None or row.mean_precision is None
        return (2.0, 2.0, row.label) if unmeasured else (
            row.recall or 0.0, row.mean_precision or 0.0, row.label
        )  # fmt: skip

    return sorted(rows, key=badness)
