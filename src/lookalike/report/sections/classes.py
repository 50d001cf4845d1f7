"""All classes, worst first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lookalike.report.section import Context, Section

MAX_CLASSES = 2000


def make(context: Context) -> Section | None:
    """Returns the table of classes; None where there are no labels."""
    table = context.history.current.get("per_class") or {}
    if not table:
        return None
    before = context.history.before or {}
    labels = worst_first(table)[:MAX_CLASSES]
    listed = {context.images.class_number(label): label for label in labels}
    facts = {
        "listed": listed,
        "table": table,
        "earlier": before.get("per_class") or {},
        "taken": {one.label: one for one in reversed(context.confusions)},  # the most frequent
    }
    totals = {number: table[label]["num_queries"] for number, label in listed.items()}
    return Section("classes", "classes", "Classes", facts, data={"class_totals": totals})


def worst_first(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns all classes of a metrics file: by recall@1, then by mAP; unmeasured ones last."""
    scores = [
        (row.get("recall@1", 2.0), row.get("mAP", 2.0), label) for label, row in table.items()
    ]
    return [label for _, _, label in sorted(scores)]
