"""Text search and drift: what training does to either."""

from __future__ import annotations

from collections.abc import Sequence

from lookalike.evaluation.metrics import text_headline
from lookalike.report.cards import cards_of
from lookalike.report.figures import Figure, blank, metric_curves, over_epochs, plain
from lookalike.report.history import Document, History
from lookalike.report.section import Context, Section


def make(context: Context) -> Section | None:
    """Returns text search and drift, as far as they were measured; None where neither was."""
    history, title = context.history, title_of(context.history)
    if not title:
        return None
    figures = {
        "text": metric_curves(history.epochs, text_headline(), "text_metrics", "text_intervals"),
        "drift": drift_curve(history.epochs),
    }
    facts = {"title": title, "cards": cards_of(history, text_headline(), {}, "text_")}
    return Section("text_search", "text", title, facts, figures)


def title_of(history: History) -> str:
    """Returns what there is of both, as a title; nothing where neither was measured."""
    has_drift = sum(one.get("drift") is not None for one in history.epochs) > 1
    if history.current.get("text_metrics") is None:
        return "Drift" if has_drift else ""
    return "Text search and drift" if has_drift else "Text search"


def drift_curve(epochs: Sequence[Document]) -> Figure | None:
    """Returns how alike embeddings are to the first epoch's; None where it was measured once."""
    measured = [one for one in epochs if one.get("drift") is not None]
    if len(measured) < 2:
        return None
    figure = blank()
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
    over_epochs(figure, len(measured))
    figure.update_yaxes(title="cosine", maxallowed=1.02)
    return plain(figure)
