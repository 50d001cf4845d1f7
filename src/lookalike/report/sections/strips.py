"""Queries and what was found for them, as strips of images that the page's script makes."""

from __future__ import annotations

from lookalike.report.queries import CONFUSIONS
from lookalike.report.section import Context, Section


def make(context: Context) -> Section:
    """Returns the queries, with the buttons that choose among them."""
    number = context.images.class_number
    data = {
        "queries": context.strips,
        "confusions": [
            [number(one.label), number(one.taken_for), one.count]
            for one in context.confusions[:CONFUSIONS]
        ],
        "labelled": context.history.measured,
        "totals": context.outcome.totals,
    }
    return Section("strips", "queries", "Queries", data=data)
