"""Metrics over epochs, and how alike pairs of images are to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lookalike.evaluation.scoring.health import BINS
from lookalike.report.figures import Figure, blank, metric_curves, plain
from lookalike.report.history import Document
from lookalike.report.section import Context, Section


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
    found = _histogram_of(now)
    if found is None or not sum(found["positives"]) or not sum(found["negatives"]):
        return None
    figure = blank(barmode="overlay", bargap=0)
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
    return plain(figure)


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
