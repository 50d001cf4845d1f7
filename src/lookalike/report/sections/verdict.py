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
    cards = cards_of(history, history.headline, tests_of(history))
    sentence = verdict_on(cards[0], history.current["epoch"], history.epochs[0]["epoch"])
    texts = cards_of(history, ["mAP"], {}, "text_")
    facts = {"verdict": sentence, "cards": cards, "text": texts[0] if texts else None}
    return Section("verdict", "overview", "Overview", facts)


def tests_of(history: History) -> dict[str, PairedTest]:
    """Tests headline metrics now against the first epoch's, where both read the same images."""
    now, before = history.current, history.before
    scored = np.array((now["per_query"] or {}).get("num_relevant", ())) > 0
    known_a, known_b = {}, {}
    for name in history.headline:
        a, b = query_column(before, now, name), query_column(now, now, name)
        if a is not None and b is not None and METRICS[name].over_queries == "mean":
            known_a[name], known_b[name] = a[scored], b[scored]
    if not known_a:
        return {}
    resamples = min(10_000, max(500, _FLIPS // max(1, int(scored.sum()))))
    return paired_tests(known_a, known_b, resamples=resamples)


def verdict_on(card: Card, epoch: int, first_epoch: int = 0) -> Verdict:
    """Returns the verdict, by recall@1: what people see first is the first result."""
    then = "before" if first_epoch == 0 else f"after epoch {first_epoch}"
    now = f"the first result is right for {percent(card.now)} of the queries"
    if card.before is None:
        return Verdict("alone", f"{now[0].upper()}{now[1:]}.", None)
    if card.test is None:
        sentence = f"Now {now}; it was {percent(card.before)} {then}."
        return Verdict("unclear", sentence, "The difference is not tested: the epochs could not "
                       "read the same images.")  # fmt: skip
    word = "epoch" if epoch == 1 else "epochs"
    since = f"after {epoch} {word} of training"
    if card.test.p_value >= _SURE:
        return Verdict(
            "unclear",
            f"No clear change {since}: {now}; it was {percent(card.before)} {then}.",
            in_words(card.test),
        )
    kind: Literal["better", "worse"] = "better" if card.test.difference > 0 else "worse"
    sentence = f"{kind.capitalize()} {since}: {now}; it was {percent(card.before)} {then}."
    return Verdict(kind, sentence, in_words(card.test))


def in_words(test: PairedTest) -> str:
    """Returns what a paired test says, for people who have no use for a p-value."""
    low, high = points(test.low), points(test.high)
    if test.p_value >= 0.995:
        by_chance = "nearly always"
    elif test.p_value >= 0.01:
        by_chance = f"in about {100 * test.p_value:.0f} of 100 cases"
    else:
        by_chance = f"in at most {10_000 * test.p_value:.0f} of 10,000 cases"
    return (
        f"A change of {points(test.difference)} points, between {low} and {high} with 95% "
        f"confidence. If training made no difference, chance alone would bring a change as large "
        f"{by_chance}."
    )
