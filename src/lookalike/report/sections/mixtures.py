"""Mixtures of the weights before and after training: what they find by images and by text."""

from __future__ import annotations

from lookalike.evaluation.interpolation import Mixture, TradeOff
from lookalike.evaluation.metrics import METRICS
from lookalike.report.figures import Figure, blank, plain
from lookalike.report.page import in_units
from lookalike.report.section import Context, Section


def make(context: Context) -> Section | None:
    """Returns the mixtures of the run; None where it has tried none."""
    trade_off = context.trade_off
    if trade_off is None:
        return None
    facts = {"trade": trade_in_words(trade_off)}
    figures = {"trade": trade_off_figure(trade_off)}
    return Section("mixtures", "mixtures", "Mixtures", facts, figures)


def trade_in_words(trade_off: TradeOff) -> str:
    """Returns what the chosen mixture keeps, and what it costs."""
    chosen, alpha = trade_off.chosen, f"Alpha {trade_off.chosen.alpha:g}"
    images = f"{trade_off.metric} {_images(trade_off, chosen)}"
    if not trade_off.loses_text:
        return f"{alpha} finds images best: {images}."
    if chosen is trade_off.end:
        return (
            "No mixture keeps a larger share of what training gained on images than of what it "
            f"lost on text, so the trained model is kept as it is: {images}."
        )
    text = f"{trade_off.text_metric} {_text(trade_off, chosen)}"
    kept, lost = trade_off.gain_kept(chosen), trade_off.loss_kept(chosen)
    if 0 <= kept <= 1 and 0 <= lost <= 1:
        return (
            f"{alpha} keeps {kept:.0%} of what training gained on images ({images}), for "
            f"{lost:.0%} of what it lost on text ({text})."
        )
    ends = (trade_off.original, trade_off.end)  # shares of more than there is say little
    before, after = (_images(trade_off, one) for one in ends)
    text_before, text_after = (_text(trade_off, one) for one in ends)
    return (
        f"{alpha} weighs best: on images {images} (before training {before}, after it "
        f"{after}), on text {text} (before {text_before}, after {text_after})."
    )


def _images(trade_off: TradeOff, one: Mixture) -> str:
    return in_units(one.metrics[trade_off.metric], trade_off.metric)


def _text(trade_off: TradeOff, one: Mixture) -> str:
    return in_units((one.text_metrics or {})[trade_off.text_metric], trade_off.text_metric)


def trade_off_figure(trade_off: TradeOff) -> Figure:
    """Returns what mixtures find by text, to the right, and by images, upwards.

    Without a text tower alpha is what is to the right.
    """
    figure = blank(hovermode="closest")
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
    metric = METRICS[trade_off.metric]
    figure.update_xaxes(
        title=f"text search: {trade_off.text_metric}" if by_text else "alpha",
        tickformat=".0%" if by_text else None,
    )
    figure.update_yaxes(
        title=f"images: {trade_off.metric}",
        tickformat=".0%" if metric.is_share else None,
        autorange=None if metric.higher_is_better else "reversed",  # the better one is above
    )
    return plain(figure)
