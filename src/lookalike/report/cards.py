"""A metric as a card: now, before training, and whether that is a change for the better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lookalike.evaluation.metrics import METRICS, is_better, text_headline
from lookalike.evaluation.scoring.statistics import PairedTest
from lookalike.report.history import History
from lookalike.report.page import NO_NUMBER, percent, points

Interval = tuple[float, float]


@dataclass(frozen=True)
class Card:
    """One metric now, and before where there was a before; what is None was not measured."""

    metric: str
    meaning: str
    now: float | None
    interval: Interval | None
    before: float | None
    interval_before: Interval | None
    test: PairedTest | None = None

    def told(self, value: float | None) -> str:
        """Returns a value of this metric as people read it."""
        return in_units(self.metric, value)

    @property
    def change(self) -> str:
        """How much was gained, with its sign."""
        if self.now is None or self.before is None:
            return NO_NUMBER
        gained = self.now - self.before
        return points(gained) if METRICS[self.metric].is_share else f"{gained:+.4g}"

    @property
    def colour(self) -> str:
        """The class of a change for the better, for the worse, and of none."""
        if self.now is None or self.before is None or self.now == self.before:
            return "muted"
        return "right" if is_better(self.metric, self.now, self.before) else "wrong"

    @property
    def bars(self) -> list[tuple[str, float, float]]:
        """Class, start and width in percent of each interval, on a scale from 0 to 100%."""
        both = (("range before", self.interval_before), ("range", self.interval))
        return [
            (name, 100 * ends[0], 100 * (ends[1] - ends[0]))
            for name, ends in both
            if ends and METRICS[self.metric].is_share
        ]


def card_of(
    metric: str,
    meaning: str,
    now: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    kind: str = "",
    test: PairedTest | None = None,
) -> Card:
    """Returns the card of a metric from two metrics files; of text search as `kind` "text_"."""

    def found(document: Mapping[str, Any] | None, what: str) -> Any:
        return ((document or {}).get(f"{kind}{what}") or {}).get(metric)

    return Card(
        metric, meaning, found(now, "metrics"), found(now, "intervals"),
        found(before, "metrics"), found(before, "intervals"), test,
    )  # fmt: skip


def text_cards_of(history: History) -> list[Card]:
    """Returns the metrics of text search beside the first epoch's; none where there are none."""
    measured = history.current.get("text_metrics") or {}
    return [
        card_of(name, METRICS[name].text_meaning or "", history.current, history.before, "text_")
        for name in text_headline()
        if name in measured
    ]


def in_units(metric: str, value: float | None) -> str:
    """Returns a value of a metric as people read it: a share in percent, a rank as a number.

    >>> in_units("mAP", 0.25), in_units("median rank", 12.0)
    ('25.0%', '12')
    """
    if value is None or METRICS[metric].is_share:
        return percent(value)
    return f"{value:.4g}"
