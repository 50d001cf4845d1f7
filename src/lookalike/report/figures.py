"""Plots of a report, as Plotly figures in plain JSON: the common ground, and metrics over epochs.

Colours are CSS variables of the page (`var(--series1)`), which its script resolves anew for
light and dark; fonts, grids and backgrounds are the script's business altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookalike.evaluation.documents import Document
from lookalike.evaluation.metrics import METRICS

Figure = dict[str, Any]
Trace = dict[str, Any]

_SERIES = 5  # colours of lines in report.css
_MARGIN = {"l": 48, "r": 12, "t": 8, "b": 44}


def plotted(traces: Sequence[Trace], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> Figure:
    """Returns a figure of traces and its two axes as plain JSON, without Plotly's template."""
    import plotly.graph_objects as go

    layout = {"template": "none", "margin": _MARGIN, "xaxis": x, "yaxis": y, **layout}
    figure: Figure = go.Figure(list(traces), layout).to_plotly_json()
    figure["layout"].pop("template", None)
    return figure


def over_epochs(lines: Sequence[Trace], y: dict[str, Any]) -> Figure:
    """Returns a figure of lines, each with its colour and dash as `line`, that counts epochs."""
    num_epochs = max((len(line["x"]) for line in lines), default=0)
    for line in lines:
        line |= {"type": "scatter", "mode": "lines+markers", "line": line["line"] | {"width": 2}}
    return plotted(lines, {"title": "epoch", "dtick": 1 if num_epochs <= 12 else None}, y)


def metric_curves(
    epochs: Sequence[Document], names: Sequence[str], means: str, intervals: str
) -> Figure | None:
    """Returns shares over epochs with their intervals; None where they were not measured twice.

    Args:
        epochs: metrics files, oldest first.
        names: metrics; those that are no shares have no place on this scale and are left out.
        means, intervals: the keys of a metrics file that hold them.
    """
    measured = [one for one in epochs if one.get(means) is not None]
    if len(measured) < 2:
        return None
    shares = [name for name in names if METRICS[name].is_share]
    lines: list[Trace] = []
    for series, metric in enumerate(shares):
        # an earlier file may lack it
        known = [one for one in measured if one[means].get(metric) is not None]
        values = [one[means][metric] for one in known]
        ends = [(one.get(intervals) or {}).get(metric, (value, value))
                for one, value in zip(known, values, strict=True)]  # fmt: skip
        same_kind = metric.partition("@")[0] == shares[0].partition("@")[0]
        lines.append({
            "x": [one["epoch"] for one in known],
            "y": values,
            "name": metric,
            "line": {"color": f"var(--series{series % _SERIES + 1})",
                     "dash": None if same_kind else "dot"},
            "error_y": {
                "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
                "thickness": 1,
                "width": 3,
            },
            "hovertemplate": f"epoch %{{x}}<br>{metric} %{{y:.1%}}<extra></extra>",
        })  # fmt: skip
    # Where all is right, or all is wrong, a range of its own would end above 100%.
    return over_epochs(lines, {"tickformat": ".0%", "maxallowed": 1.02, "minallowed": -0.02})
