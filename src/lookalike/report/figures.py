"""Plots of a report, as Plotly figures in plain JSON: the common ground, and metrics over epochs.

Colours are CSS variables of the page (`var(--series1)`), which its script resolves anew for
light and dark; fonts, grids and backgrounds are the script's business altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lookalike.evaluation.metrics import METRICS
from lookalike.report.history import Document

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

Figure = dict[str, Any]

_SERIES = 5  # colours of lines in report.css


def blank(**layout: Any) -> PlotlyFigure:
    """Returns a figure with nothing in it."""
    import plotly.graph_objects as go

    margin = {"l": 48, "r": 12, "t": 8, "b": 44}
    return go.Figure(layout={"template": "none", "margin": margin, **layout})


def plain(figure: PlotlyFigure) -> Figure:
    """Returns a figure as plain JSON, without Plotly's own template."""
    made: Figure = figure.to_plotly_json()
    made["layout"].pop("template", None)
    return made


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
    figure = blank()
    shares = [name for name in names if METRICS[name].is_share]
    for series, metric in enumerate(shares):
        known = [one for one in measured if metric in one[means]]  # an earlier file may lack it
        values = [one[means][metric] for one in known]
        ends = [one[intervals].get(metric, (value, value))
                for one, value in zip(known, values, strict=True)]  # fmt: skip
        same_kind = metric.partition("@")[0] == shares[0].partition("@")[0]
        figure.add_scatter(
            x=[one["epoch"] for one in known],
            y=values,
            name=metric,
            mode="lines+markers",
            line={
                "color": f"var(--series{series % _SERIES + 1})",
                "width": 2,
                "dash": None if same_kind else "dot",
            },
            error_y={
                "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
                "thickness": 1,
                "width": 3,
            },
            hovertemplate=f"epoch %{{x}}<br>{metric} %{{y:.1%}}<extra></extra>",
        )
    over_epochs(figure, len(measured))
    # Where all is right, or all is wrong, a range of its own would end above 100%.
    figure.update_yaxes(tickformat=".0%", maxallowed=1.02, minallowed=-0.02)
    return plain(figure)


def over_epochs(figure: PlotlyFigure, num_epochs: int) -> None:
    """Lets the x axis of a figure count epochs."""
    figure.update_xaxes(title="epoch", dtick=1 if num_epochs <= 12 else None)
