"""The map of the embeddings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lookalike.report.embedding_map import EmbeddingMap, has_tsne, num_mappable
from lookalike.report.figures import Figure, blank, plain
from lookalike.report.page import count
from lookalike.report.queries import Images, Outcome
from lookalike.report.section import Context, Section

MAX_COLOURED_CLASSES = 20


class _Group(NamedTuple):
    """Points of the map that look the same."""

    name: str
    colour: str
    symbol: str
    rows: list[int]


def make(context: Context) -> Section:
    """Returns the map of as many images as it has room for."""
    flat, mappable = context.flat, num_mappable(context.retrieval)
    outcome = context.outcome if context.history.measured else None
    told = f"The map shows {count(len(flat.points))} of {count(mappable)} images, "
    return Section(
        "map", "map", "Map", {"num_mappable": mappable, "clearer_map": not has_tsne()},
        figures={"map": map_figure(flat, context.images, outcome)},
        left_out=[f"{told}evenly from all classes."] if len(flat.points) < mappable else [],
    )  # fmt: skip


def map_figure(flat: EmbeddingMap, images: Images, outcome: Outcome | None) -> Figure:
    """Returns the map, coloured by class where these are few, else by the first result."""
    figure = blank(hovermode="closest")
    numbers = [images.number(i, is_query=is_query) for is_query, i in flat.points]
    groups = _by_class(numbers, images) or _by_outcome(flat, outcome)
    for name, colour, symbol, rows in groups:
        figure.add_scatter(
            x=np.round(flat.places[rows, 0], 3).tolist(),
            y=np.round(flat.places[rows, 1], 3).tolist(),
            customdata=[numbers[row] for row in rows],
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.8},
            hoverinfo="none",
        )
    hidden = {"showticklabels": False, "showgrid": False, "showline": False, "ticks": ""}
    figure.update_xaxes(**hidden)
    figure.update_yaxes(**hidden)
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 8}, showlegend=len(groups) > 1)
    return plain(figure)


def _by_class(numbers: list[int], images: Images) -> list[_Group]:
    """One group a class; nothing where there are no classes, or too many."""
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        rows.setdefault(images.labels[number], []).append(row)
    if -1 in rows or len(rows) > MAX_COLOURED_CLASSES:
        return []
    half = MAX_COLOURED_CLASSES // 2
    names = images.classes
    ordered = sorted(rows, key=lambda label: names[label])
    return [
        _Group(
            _no_markup(names[label]),
            f"var(--class{series % half + 1})",
            "circle" if series < half else "diamond",
            rows[label],
        )
        for series, label in enumerate(ordered)
    ]


def _by_outcome(flat: EmbeddingMap, outcome: Outcome | None) -> list[_Group]:
    kinds = [
        _Group("gallery", "var(--muted)", "circle", []),
        _Group("queries", "var(--accent)", "circle", []),
        _Group("no answer in the gallery", "var(--warn)", "diamond", []),
        _Group("first result right", "var(--right)", "circle", []),
        _Group("first result wrong", "var(--wrong)", "x", []),
    ]
    rows = {kind.name: kind.rows for kind in kinds}
    for row, (is_query, i) in enumerate(flat.points):
        if not is_query:
            kind = "gallery"
        elif outcome is None:
            kind = "queries"
        elif not outcome.answerable[i]:
            kind = "no answer in the gallery"
        else:
            kind = "first result right" if outcome.right[i] else "first result wrong"
        rows[kind].append(row)
    return [kind for kind in kinds if kind.rows]


def _no_markup(text: str) -> str:
    """Plotly reads a little HTML in names; in a class's name it is text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
