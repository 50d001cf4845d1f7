"""A metric as a card: now, before training, and whether that is a change for the better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lookalike.evaluation.metrics import METRICS, is_better
from lookalike.evaluation.scoring.statistics import PairedTest
from lookalike.report.history import Document, History
from lookalike.report.page import NO_NUMBER, points


@dataclass(frozen=True)
class Card:
    """One metric now, and before where there was a before; what is None was not measured."""

    metric: str
    meaning: str
    now: float | None
    interval: tuple[float, float] | None
    before: float | None
    interval_before: tuple[float, float] | None
    test: PairedTest | None

    @property
    def is_share(self) -> bool:
        """It has its place on a scale from 0 to 100%."""
        return METRICS[self.metric].is_share

    @property
    def change(self) -> str:
        """The gain, with its sign."""
        if self.now is None or self.before is None:
            return NO_NUMBER
        gained = self.now - self.before
        return points(gained) if self.is_share else f"{gained:+g}"

    @property
    def colour(self) -> str:
        """The class of a change for the better, for the worse, and of none."""
        if self.now is None or self.before is None or self.now == self.before:
            return "muted"
        return "right" if is_better(self.metric, self.now, self.before) else "wrong"


def cards_of(
    history: History, names: Sequence[str], tests: Mapping[str, PairedTest], kind: str = ""
) -> list[Card]:
    """Returns the metrics of the current epoch beside the first one's; as `kind` "text_" those of
    text search. A metric that the epoch was not measured by has no card.
    """

    def found(document: Document | None, what: str, name: str) -> Any:
        return ((document or {}).get(f"{kind}{what}") or {}).get(name)

    now, before = history.current, history.before
    return [
        Card(
            name, (METRICS[name].text_meaning if kind else "") or METRICS[name].meaning,
            found(now, "metrics", name), found(now, "intervals", name),
            found(before, "metrics", name), found(before, "intervals", name), tests.get(name),
        )
        for name in names
        if name in (now.get(f"{kind}metrics") or {})
    ]  # fmt: skip
