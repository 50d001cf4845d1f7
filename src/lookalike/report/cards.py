"""A metric as a card: now, before training, and whether that is a change for the better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lookalike.evaluation.metrics import METRICS, is_better
from lookalike.evaluation.scoring.statistics import PairedTest
from lookalike.report.history import History
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
    is_share: bool
    interval_by_class: tuple[float, float] | None = None  # where classes are few

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
    now, then, ends, ends_then = (
        (document or {}).get(kind + what) or {}
        for what in ("metrics", "intervals")
        for document in (history.current, history.before)
    )
    by_class = history.current.get("intervals_by_class") or {}
    by_class = by_class if history.num_few_classes and not kind else {}
    cards = []
    for name in names:
        metric = METRICS[name]
        meaning = (metric.text_meaning if kind else "") or metric.meaning
        if now.get(name) is not None:
            cards.append(Card(
                name, meaning, now[name], ends.get(name), then.get(name), ends_then.get(name),
                tests.get(name), metric.is_share, by_class.get(name),
            ))  # fmt: skip
    return cards
