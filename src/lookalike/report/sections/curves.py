"""Metrics over epochs, and how alike pairs of images are to the model."""

from __future__ import annotations

import numpy as np

from lookalike.evaluation.documents import Document
from lookalike.evaluation.scoring.health import BINS
from lookalike.report.figures import Figure, Trace, metric_curves, plotted
from lookalike.report.section import Context, Section

_KINDS = {"negatives": ("different classes", "var(--wrong)"),
          "positives": ("same class", "var(--right)")}  # fmt: skip


def make(context: Context) -> Section | None:
    """Returns both plots, as far as there are any; None where there are no labels."""
    history = context.history
    if not history.measured:
        return None
    figures = {
        "curves": metric_curves(history.epochs, history.headline, "metrics", "intervals"),
        "similarity": similarity_histogram(history.current, history.before),
    }
    return Section("curves", figures=figures)


def similarity_histogram(now: Document, before: Document | None) -> Figure | None:
    """Returns positives against negatives, each as shares of its kind; None where no pairs are."""
    found = now["health"]["histogram"]
    earlier = before["health"]["histogram"] if before else None
    if found is None or not all(sum(found[kind]) for kind in _KINDS):
        return None
    edges = np.linspace(found["low"], found["high"], BINS + 1)
    middles = np.round((edges[:-1] + edges[1:]) / 2, 4).tolist()

    def trace(kind: str, counts: list[int], also: str = "") -> Trace:
        shares = [round(count / sum(counts), 6) for count in counts]
        return {"x": middles, "y": shares, "name": _KINDS[kind][0] + also}

    traces = [
        trace(kind, found[kind]) | {
            "type": "bar",
            "marker": {"color": colour, "line": {"width": 0}},
            "opacity": 0.55,
            "hovertemplate": f"{name}<br>similarity %{{x:.2f}}: %{{y:.1%}} of pairs<extra></extra>",
        }
        for kind, (name, colour) in _KINDS.items()
    ] + [
        trace(kind, earlier[kind], ", before") | {
            "type": "scatter",
            "mode": "lines",
            "line": {"color": colour, "width": 1.5, "dash": "dot", "shape": "hvh"},
            "hoverinfo": "skip",
        }
        for kind, (_, colour) in _KINDS.items()
        if earlier and sum(earlier[kind])
    ]  # fmt: skip
    counts = np.array([one[kind] for one in (found, earlier) if one for kind in _KINDS])
    filled = np.flatnonzero(counts.sum(axis=0))
    low, high = max(filled[0] - 1, 0), min(filled[-1] + 2, BINS)
    x = {"title": "cosine similarity of a pair", "range": [edges[low], edges[high]]}
    return plotted(traces, x, {"tickformat": ".0%"}, barmode="overlay", bargap=0)
