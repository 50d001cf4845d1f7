"""Text search and drift: what training does to either."""

from __future__ import annotations

from collections.abc import Sequence

from lookalike.evaluation.documents import Document
from lookalike.evaluation.metrics import text_headline
from lookalike.report.cards import cards_of
from lookalike.report.figures import Figure, metric_curves, over_epochs
from lookalike.report.section import Context, Section


def make(context: Context) -> Section | None:
    """Returns text search and drift, as far as they were measured; None where neither was."""
    history, names = context.history, text_headline()
    if not history.text_title:
        return None
    figures = {
        "text": metric_curves(history.epochs, names, "text_metrics", "text_intervals"),
        "drift": drift_curve(history.epochs),
    }
    cards = cards_of(history, names, {}, "text_")
    return Section("text_search", "text", history.text_title, {"cards": cards}, figures)


def drift_curve(epochs: Sequence[Document]) -> Figure | None:
    """Returns how alike embeddings are to the first epoch's; None where it was measured once."""
    measured = [one for one in epochs if one.get("drift") is not None]
    if len(measured) < 2:
        return None
    lines = [
        {
            "x": [one["epoch"] for one in measured],
            "y": [one["drift"][key] for one in measured],
            "name": name,
            "line": {"color": "var(--accent)", "dash": dash},
            "hovertemplate": f"epoch %{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
        }
        for key, name, dash in (
            ("mean_cosine", "mean", None),
            ("low_cosine", "1% of images lie below", "dot"),
        )
    ]
    return over_epochs(lines, {"title": "cosine", "maxallowed": 1.02})
