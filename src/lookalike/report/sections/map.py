"""The map of the embeddings."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lookalike.report.embedding_map import EmbeddingMap, Point, has_tsne
from lookalike.report.figures import Figure, Trace, plotted
from lookalike.report.queries import Images, Outcome
from lookalike.report.section import Context, Section

MAX_COLOURED_CLASSES = 20
_MARGIN = {"l": 8, "r": 8, "t": 8, "b": 8}
_HIDDEN = {"showticklabels": False, "showgrid": False, "showline": False, "ticks": ""}
_ENDS = {
    "gallery": ("var(--muted)", "circle"),
    "queries": ("var(--accent)", "circle"),
    "no answer in the gallery": ("var(--warn)", "diamond"),
    "first result right": ("var(--right)", "circle"),
    "first result wrong": ("var(--wrong)", "x"),
}
"""The colour and symbol of points by what became of them."""


def make(context: Context) -> Section:
    """Returns the map of as many images as it has room for."""
    outcome = context.outcome if context.history.measured else None
    figures = {"map": map_figure(context.flat, context.images, outcome)}
    return Section("map", "map", "Map", {"clearer_map": not has_tsne()}, figures)


def map_figure(flat: EmbeddingMap, images: Images, outcome: Outcome | None) -> Figure:
    """Returns the map, coloured by class where these are few, else by the first result."""
    numbers = [images.number(i, is_query=is_query) for is_query, i in flat.points]
    kinds: Sequence[int | str] = [images.labels[number] for number in numbers]
    looks: Mapping[Any, tuple[str, str, str]] = _looks_of_classes(set(kinds), images.classes)
    if not looks:
        kinds = [_end_of(point, outcome) for point in flat.points]
        looks = {end: (end, *look) for end, look in _ENDS.items()}
    traces: list[Trace] = []
    for kind, (name, colour, symbol) in looks.items():
        rows = [row for row, of in enumerate(kinds) if of == kind]
        if rows:
            traces.append({
                "type": "scatter",
                "x": np.round(flat.places[rows, 0], 3).tolist(),
                "y": np.round(flat.places[rows, 1], 3).tolist(),
                "customdata": [numbers[row] for row in rows],
                "name": name,
                "mode": "markers",
                "marker": {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.8},
                "hoverinfo": "none",
            })  # fmt: skip
    return plotted(
        traces, _HIDDEN, _HIDDEN, hovermode="closest", margin=_MARGIN, showlegend=len(traces) > 1
    )


def _looks_of_classes(labels: set[Any], names: list[str]) -> dict[int, tuple[str, str, str]]:
    """Name, colour and symbol of each class; nothing where there are no classes, or too many."""
    if -1 in labels or len(labels) > MAX_COLOURED_CLASSES:
        return {}
    half = MAX_COLOURED_CLASSES // 2
    return {
        # Plotly reads a little HTML in names; in a class's name it is text.
        label: (html.escape(names[label], quote=False), f"var(--class{series % half + 1})",
                "circle" if series < half else "diamond")
        for series, label in enumerate(sorted(labels, key=names.__getitem__))
    }  # fmt: skip


def _end_of(point: Point, outcome: Outcome | None) -> str:
    is_query, i = point
    if not is_query:
        return "gallery"
    if outcome is None:
        return "queries"
    if not outcome.answerable[i]:
        return "no answer in the gallery"
    return "first result right" if outcome.right[i] else "first result wrong"
