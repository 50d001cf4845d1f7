"""All classes, worst first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lookalike.report.page import count
from lookalike.report.section import Context, Section

MAX_CLASSES = 2000


def make(context: Context) -> Section | None:
    """Returns the table of classes; None where there are no labels."""
    now, before = context.history.current, context.history.before or {}
    labels = worst_first(now.get("per_class") or {})
    if not labels:
        return None
    listed = {context.images.class_number(label): label for label in labels[:MAX_CLASSES]}
    totals = {number: now["per_class"][label]["num_queries"] for number, label in listed.items()}
    facts = {
        "listed": listed,
        "num_classes": len(labels),
        "table": now["per_class"],
        "earlier": before.get("per_class") or {},
        "taken": {one.label: one for one in reversed(context.confusions)},  # the most frequent
    }
    told = f"The table holds the {count(MAX_CLASSES)} worst of {count(len(labels))} classes."
    left_out = [told] if len(labels) > MAX_CLASSES else []
    return Section(
        "classes", "classes", "Classes", facts, data={"class_totals": totals}, left_out=left_out
    )


def worst_first(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns all classes of a metrics file: by recall@1, then by mAP; unmeasured ones last."""

    def badness(label: str) -> tuple[float, float, str]:
        return (table[label].get("recall@1", 2.0), table[label].get("mAP", 2.0), label)

    return sorted(table, key=badness)
