"""The plots of a report, as Plotly figures in plain JSON.

Colours are CSS variables of the page (`var(--series1)`), which its script resolves anew for
light and dark; fonts, grids and backgrounds are the script's business altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lookalike.evaluation.interpolation import TradeOff
from lookalike.evaluation.scoring.health import BINS
from lookalike.evaluation.scoring.scores import HEADLINE, MEDIAN_RANK
from lookalike.evaluation.text import TEXT_HEADLINE
from lookalike.report.epoch.embedding_map import EmbeddingMap
from lookalike.report.epoch.history import Document
from lookalike.report.epoch.queries import Images, Outcome

Figure = dict[str, Any]

MAX_COLOURED_CLASSES = 20
_EMPTY = {"template": "none", "margin": {"l": 48, "r": 12, "t": 8, "b": 44}}


class _Group(NamedTuple):
    """Points of the map that look the same."""

    name: str
    colour: str
    symbol: str
    rows: list[int]


def metric_curves(epochs: Sequence[Document]) -> Figure | None:
    """The headline metrics over epochs with their intervals; None of a single epoch."""
    return _curves(epochs, HEADLINE, "metrics", "intervals")


def text_curves(epochs: Sequence[Document]) -> Figure | None:
    """The same of text search; None where it was not measured twice."""
    return _curves(epochs, TEXT_HEADLINE, "text_metrics", "text_intervals")


def _curves(
    epochs: Sequence[Document], names: Sequence[str], means: str, intervals: str
) -> Figure | None:
    """Metrics over epochs, which a metrics file has under these keys."""
    import plotly.graph_objects as go

    measured = [one for one in epochs if one.get(means) is not None]
    if len(measured) < 2:
        return None
    figure = go.Figure(layout=_EMPTY)
    numbers = [one["epoch"] for one in measured]
    for series, metric in enumerate(names, start=1):
        values = [one[means][metric] for one in measured]
        ends = [one[intervals][metric] for one in measured]
        colour = f"var(--series{series})"
        figure.add_scatter(
            x=numbers,
            y=values,
            name=metric,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": "dot" if metric.startswith("mAP") else None},
            error_y={
                "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
                "thickness": 1,
                "width": 3,
            },
            hovertemplate=f"epoch %{{x}}<br>{metric} %{{y:.1%}}<extra></extra>",
        )
    figure.update_xaxes(title="epoch", dtick=1 if len(measured) <= 12 else None)
    # Where all is right, or all is wrong, a range of its own would end above 100%.
    figure.update_yaxes(tickformat=".0%", maxallowed=1.02, minallowed=-0.02)
    return _plain(figure)


def drift_curve(epochs: Sequence[Document]) -> Figure | None:
    """How alike embeddings are to the first epoch's, over epochs; None where that is not known."""
    import plotly.graph_objects as go

    measured = [one for one in epochs if one.get("drift") is not None]
    if len(measured) < 2:
        return None
    figure = go.Figure(layout=_EMPTY)
    numbers = [one["epoch"] for one in measured]
    for key, name, dash in (
        ("mean_cosine", "mean", None),
        ("low_cosine", "1% of images lie below", "dot"),
    ):
        figure.add_scatter(
            x=numbers,
            y=[one["drift"][key] for one in measured],
            name=name,
            mode="lines+markers",
            line={"color": "var(--accent)", "width": 2, "dash": dash},
            hovertemplate=f"epoch %{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
        )
    figure.update_xaxes(title="epoch", dtick=1 if len(measured) <= 12 else None)
    figure.update_yaxes(title="cosine", maxallowed=1.02)
    return _plain(figure)


def trade_off_figure(trade_off: TradeOff) -> Figure:
    """What mixtures find by text, to the right, and by images, upwards.

    Without a text tower alpha is what is to the right.
    """
    import plotly.graph_objects as go

    figure = go.Figure(layout=_EMPTY | {"hovermode": "closest"})
    by_text = trade_off.original.text_metrics is not None
    places = [
        (one.text_metrics[trade_off.text_metric] if one.text_metrics else one.alpha,
         one.metrics[trade_off.metric])
        for one in trade_off.mixtures
    ]  # fmt: skip
    figure.add_scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        text=[f"{one.alpha:g}" for one in trade_off.mixtures],
        name="mixtures",
        mode="lines+markers+text" if by_text else "lines+markers",
        textposition="top right",
        cliponaxis=False,
        line={"color": "var(--muted)", "width": 1.5},
        marker={"size": 6},
        hovertemplate="alpha %{text}<extra></extra>",
    )
    marked = (
        (trade_off.original, "before training", "var(--warn)", "square"),
        (trade_off.end, "after training", "var(--accent)", "diamond"),
        (trade_off.chosen, "chosen", "var(--right)", "circle-open"),
    )
    for one, name, colour, symbol in marked:
        x, y = places[trade_off.mixtures.index(one)]
        figure.add_scatter(
            x=[x],
            y=[y],
            name=name,
            mode="markers",
            cliponaxis=False,
            marker={
                "color": colour,
                "symbol": symbol,
                "size": 18 if symbol == "circle-open" else 11,  # around either of the others
                "line": {"color": colour, "width": 3 if symbol == "circle-open" else 0},
            },
            hoverinfo="skip",
        )
    is_rank = trade_off.metric == MEDIAN_RANK  # of which a small one is better, so it is above
    figure.update_xaxes(
        title=f"text search: {trade_off.text_metric}" if by_text else "alpha",
        tickformat=".0%" if by_text else None,
    )
    figure.update_yaxes(
        title=f"images: {trade_off.metric}",
        tickformat=None if is_rank else ".0%",
        autorange="reversed" if is_rank else None,
    )
    return _plain(figure)


def similarity_histogram(now: Document, before: Document | None) -> Figure | None:
    """Positives against negatives, each as shares of its kind; None where there are no pairs."""
    import plotly.graph_objects as go

    found = _histogram_of(now)
    if found is None or not sum(found["positives"]) or not sum(found["negatives"]):
        return None
    figure = go.Figure(layout=_EMPTY | {"barmode": "overlay", "bargap": 0})
    edges = np.linspace(found["low"], found["high"], BINS + 1)
    middles = np.round((edges[:-1] + edges[1:]) / 2, 4).tolist()
    kinds = (
        ("negatives", "different classes", "var(--wrong)"),
        ("positives", "same class", "var(--right)"),
    )
    for kind, name, colour in kinds:
        figure.add_bar(
            x=middles,
            y=_shares(found[kind]),
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            opacity=0.55,
            hovertemplate=f"{name}<br>similarity %{{x:.2f}}: %{{y:.1%}} of pairs<extra></extra>",
        )
    earlier = _histogram_of(before) if before else None
    for kind, name, colour in kinds:
        if earlier and sum(earlier[kind]):
            figure.add_scatter(
                x=middles,
                y=_shares(earlier[kind]),
                name=f"{name}, before",
                mode="lines",
                line={"color": colour, "width": 1.5, "dash": "dot", "shape": "hvh"},
                hoverinfo="skip",
            )
    shown = [found, earlier] if earlier else [found]
    low, high = _filled(shown)
    figure.update_xaxes(title="cosine similarity of a pair", range=[edges[low], edges[high]])
    figure.update_yaxes(tickformat=".0%")
    return _plain(figure)


def map_figure(flat: EmbeddingMap, images: Images, outcome: Outcome | None) -> Figure:
    """The map: coloured by class where these are few, else by whether the first result is right."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_EMPTY | {"hovermode": "closest"})
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
    return _plain(figure)


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


def _histogram_of(document: Document) -> dict[str, Any] | None:
    found: dict[str, Any] | None = document["health"]["histogram"]
    return found


def _shares(counts: list[int]) -> list[float]:
    total = sum(counts)
    return [round(count / total, 6) for count in counts]


def _filled(histograms: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """The first and the last edge between which there is something."""
    counts = sum(np.array(one[kind]) for one in histograms for kind in ("positives", "negatives"))
    filled = np.flatnonzero(counts)
    return max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 2, BINS)


def _plain(figure: Any) -> Figure:
    plain: Figure = figure.to_plotly_json()
    plain["layout"].pop("template", None)
    return plain
