"""The first thing that is read: whether it got better, the metrics, and where to look next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.scoring.statistics import PairedTest, paired_tests
from lookalike.report.cards import Card, cards_of
from lookalike.report.history import History, query_column
from lookalike.report.page import percent, points
from lookalike.report.section import Context, Section

_FLIPS = 5 * 10**7  # random signs a test may draw: few queries get 10,000 resamples, many 500
_SURE = 0.05


@dataclass(frozen=True)
class Verdict:
    """The answer to whether it got better, in a sentence, and how sure that is."""

    kind: Literal["better", "worse", "unclear", "alone"]
    sentence: str
    how_sure: str | None


def make(context: Context) -> Section | None:
    """Returns the verdict with its cards and links; None where there are no labels."""
    history = context.history
    if not history.measured:
        return None
    cards = cards_of(history, history.headline, tests_of(history, by_class=False))
    by_class = tests_of(history, by_class=True) if history.num_few_classes else {}
    facts = {
        "verdict": verdict_on(
            cards[0],
            history.current["epoch"],
            history.epochs[0]["epoch"],
            by_class=by_class.get(cards[0].metric),
            num_classes=history.num_few_classes,
        ),
        "cards": cards,
        "text": next(iter(cards_of(history, ["mAP"], {}, "text_")), None),
    }
    return Section("verdict", "overview", "Overview", facts)


def tests_of(history: History, *, by_class: bool) -> dict[str, PairedTest]:
    """Tests headline metrics now against the first epoch's, where both read the same images."""
    now = history.current
    scored = np.array((now["per_query"] or {}).get("num_relevant", ())) > 0
    a, b = {}, {}
    for name in history.headline:
        column, mine = query_column(history.before, now, name), query_column(now, now, name)
        if column is None or mine is None or METRICS[name].over_queries != "mean":
            continue
        if np.isfinite(column[scored]).all() and np.isfinite(mine[scored]).all():
            a[name], b[name] = column[scored], mine[scored]
    resamples = min(10_000, max(500, _FLIPS // max(1, int(scored.sum()))))
    clusters = history.scored_labels if by_class else None
    return paired_tests(a, b, clusters=clusters, resamples=resamples) if a else {}


def verdict_on(
    card: Card,
    epoch: int,
    first_epoch: int = 0,
    *,
    by_class: PairedTest | None = None,
    num_classes: int = 0,
) -> Verdict:
    """Returns the verdict, by recall@1: what people see first is the first result.

    With a test `by_class`, of so few classes, it says what that comes to as well.
    """
    now = f"the first result is right for {percent(card.now)} of the queries"
    if card.before is None:
        return Verdict("alone", f"{now[0].upper()}{now[1:]}.", None)
    then = "before" if first_epoch == 0 else f"after epoch {first_epoch}"
    told = f"{now}; it was {percent(card.before)} {then}."
    if card.test is None:
        why = "The difference is not tested: the epochs could not read the same images."
        return Verdict("unclear", f"Now {told}", why)
    kind: Literal["better", "worse", "unclear"] = "better" if card.test.difference > 0 else "worse"
    if card.test.p_value >= _SURE:
        kind = "unclear"
    change = "No clear change" if kind == "unclear" else kind.capitalize()
    since = f"after {epoch} {'epoch' if epoch == 1 else 'epochs'} of training"
    how_sure = in_words(card.test, card.change)
    if by_class is not None:
        number = "a single class" if num_classes == 1 else f"only {num_classes} classes"
        how_sure += (
            f" The queries are of {number}: by class the change lies between "
            f"{points(by_class.low)} and {points(by_class.high)}, and chance would bring one as "
            f"large {_by_chance(by_class)}."
        )
    return Verdict(kind, f"{change} {since}: {told}", how_sure)


def in_words(test: PairedTest, change: str) -> str:
    """Returns what a paired test says of a change, for people who have no use for a p-value."""
    return (
        f"A change of {change} points, between {points(test.low)} and {points(test.high)} with 95% "
        f"confidence. If training made no difference, chance alone would bring a change as large "
        f"{_by_chance(test)}."
    )


def _by_chance(test: PairedTest) -> str:
    if test.p_value >= 0.995:
        return "nearly always"
    if test.p_value >= 0.01:
        return f"in about {100 * test.p_value:.0f} of 100 cases"
    return f"in at most {10_000 * test.p_value:.0f} of 10,000 cases"
