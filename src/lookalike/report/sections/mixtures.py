"""Mixtures of the weights before and after training: what they find by images and by text."""

from __future__ import annotations

from lookalike.evaluation.interpolation import TradeOff
from lookalike.evaluation.metrics import METRICS
from lookalike.report.figures import Figure, Trace, plotted
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
    tried = (chosen, trade_off.original, trade_off.end)
    metric, text_metric = trade_off.metric, trade_off.text_metric
    image, before, after = (in_units(one.metrics[metric], metric) for one in tried)
    images = f"{metric} {image}"
    if not trade_off.loses_text:
        return f"{alpha} finds images best: {images}."
    if chosen is trade_off.end:
        return (
            "No mixture keeps a larger share of what training gained on images than of what it "
            f"lost on text, so the trained model is kept as it is: {images}."
        )
    text, text_before, text_after = (
        in_units((one.text_metrics or {})[text_metric], text_metric) for one in tried
    )
    kept, lost = trade_off.gain_kept(chosen), trade_off.loss_kept(chosen)
    if 0 <= kept <= 1 and 0 <= lost <= 1:
        return (
            f"{alpha} keeps {kept:.0%} of what training gained on images ({images}), for "
            f"{lost:.0%} of what it lost on text ({text_metric} {text})."
        )
    return (  # shares of more than there is say little
        f"{alpha} weighs best: on images {images} (before training {before}, after it {after}), "
        f"on text {text_metric} {text} (before {text_before}, after {text_after})."
    )


def trade_off_figure(trade_off: TradeOff) -> Figure:
    """Returns what mixtures find by text, to the right, and by images, upwards.

    Without a text tower alpha is what is to the right.
    """
    name, text_name = trade_off.metric, trade_off.text_metric
    by_text = trade_off.original.text_metrics is not None
    x = [
        one.text_metrics[text_name] if one.text_metrics else one.alpha for one in trade_off.mixtures
    ]
    y = [one.metrics[name] for one in trade_off.mixtures]
    shared = {"type": "scatter", "cliponaxis": False}
    traces: list[Trace] = [shared | {
        "x": x,
        "y": y,
        "text": [f"{one.alpha:g}" for one in trade_off.mixtures],
        "name": "mixtures",
        "mode": "lines+markers+text" if by_text else "lines+markers",
        "textposition": "top right",
        "line": {"color": "var(--muted)", "width": 1.5},
        "marker": {"size": 6},
        "hovertemplate": "alpha %{text}<extra></extra>",
    }]  # fmt: skip
    for one, what, colour, symbol, size, width in (
        (trade_off.original, "before training", "var(--warn)", "square", 11, 0),
        (trade_off.end, "after training", "var(--accent)", "diamond", 11, 0),
        (trade_off.chosen, "chosen", "var(--right)", "circle-open", 18, 3),  # around the others
    ):
        place = trade_off.mixtures.index(one)
        line = {"color": colour, "width": width}
        traces.append(shared | {
            "x": [x[place]],
            "y": [y[place]],
            "name": what,
            "mode": "markers",
            "marker": {"color": colour, "symbol": symbol, "size": size, "line": line},
            "hoverinfo": "skip",
        })  # fmt: skip
    metric = METRICS[name]
    return plotted(
        traces,
        {"title": f"text search: {text_name}" if by_text else "alpha",
         "tickformat": ".0%" if by_text else None},
        {"title": f"images: {name}", "tickformat": ".0%" if metric.is_share else None,
         "autorange": None if metric.higher_is_better else "reversed"},  # the better one is above
        hovermode="closest",
    )  # fmt: skip
