"""Queries and what was found for them, as strips of images that the page's script makes."""

from __future__ import annotations

from lookalike.report.page import count, human_bytes
from lookalike.report.queries import CONFUSIONS
from lookalike.report.section import Context, Section
from lookalike.report.thumbnails import MAX_BYTES


def make(context: Context) -> Section:
    """Returns the queries, with the buttons that choose among them."""
    images = context.images
    data = {
        "queries": context.strips,
        "confusions": [
            [images.class_number(one.label), images.class_number(one.taken_for), one.count]
            for one in context.confusions[:CONFUSIONS]
        ],
        "labelled": context.history.measured,
        "totals": context.outcome.totals,
    }
    return Section("strips", "queries", "Queries", data=data, left_out=_left_out(context))


def _left_out(context: Context) -> list[str]:
    told = []
    num_queries, num_shown = len(context.retrieval.query), len(context.strips)
    if num_shown < num_queries:
        told.append(
            f"{count(num_shown)} of {count(num_queries)} queries are shown: the worst, some "
            "that this epoch fixed or broke, examples of the most frequent confusions, and a "
            "random sample. Numbers and charts are of all queries."
        )
    if context.thumbnails.num_left_out:
        told.append(
            f"{count(context.thumbnails.num_left_out)} images are named only: thumbnails of one "
            f"page may take {human_bytes(MAX_BYTES)}."
        )
    return told
