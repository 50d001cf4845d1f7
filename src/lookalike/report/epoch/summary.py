"""What a report says in words and tables, from metrics files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lookalike.evaluation.interpolation import Mixture, TradeOff
from lookalike.evaluation.scoring.scores import HEADLINE, MEDIAN_RANK
from lookalike.evaluation.scoring.statistics import PairedTest, paired_tests
from lookalike.evaluation.text import TEXT_HEADLINE
from lookalike.report.epoch.history import Document, History, query_column
from lookalike.report.epoch.queries import Confusion

MAX_CLASSES = 2000
_FLIPS = 5 * 10**7  # random signs a test may draw: few queries get 10,000 resamples, many 500
_SURE = 0.05

MEANINGS = {
    "recall@1": "the first result is right",
    "recall@5": "one of the first 5 is right",
    "recall@10": "one of the first 10 is right",
    "mAP": "how far up all right images stand",
    "mAP@R": "how nearly they all come before any wrong one",
}
"""Each headline metric in half a sentence."""
TEXT_MEANINGS = {
    "recall@1": "the first image is of the class",
    "recall@5": "one of the first 5 is",
    "recall@10": "one of the first 10 is",
    "mAP": "how far up all its images stand",
}
"""The same of text search."""


@dataclass(frozen=True)
class Card:
    """One metric now, and before where there was a before; all of it between 0 and 1."""

    metric: str
    meaning: str
    now: float
    interval: tuple[float, float]
    before: float | None
    interval_before: tuple[float, float] | None
    test: PairedTest | None


@dataclass(frozen=True)
class Verdict:
    """Whether it got better, in a sentence, and how sure that is."""

    kind: Literal["better", "worse", "unclear", "alone"]
    sentence: str
    how_sure: str | None


@dataclass(frozen=True)
class ClassRow:
    """One row of the table of classes; what is None was not there to be measured."""

    label: str
    num_queries: int
    num_without_answer: int
    recall: float | None
    recall_before: float | None
    mean_precision: float | None
    taken_for: str | None
    taken_count: int


@dataclass(frozen=True)
class MixtureRow:
    """One mixture of weights as the table shows it; `what` says which one it is, if any."""

    alpha: float
    what: str
    is_chosen: bool
    images: str
    text: str | None


@dataclass(frozen=True)
class HealthRow:
    """One number on the embeddings, and what it means to somebody who never heard of it."""

    name: str
    before: float | None
    now: float | None
    digits: int
    meaning: str


def percent(share: float) -> str:
    """A share as people read it.

    >>> percent(0.8153)
    '81.5%'
    """
    return f"{100 * share:.1f}%"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points, with its sign.

    >>> points(0.1185)
    '+11.8'
    """
    return f"{100 * difference:+.1f}"


def cards_of(history: History) -> list[Card]:
    """The headline metrics of the current epoch beside the first one's."""
    now, before = history.current, history.before
    if now["metrics"] is None:
        return []
    tests = _tests(now, before)
    return [
        Card(
            metric,
            MEANINGS[metric],
            now["metrics"][metric],
            now["intervals"][metric],
            before["metrics"][metric] if before else None,
            before["intervals"][metric] if before else None,
            tests.get(metric),
        )
        for metric in HEADLINE
    ]


def text_cards_of(history: History) -> list[Card]:
    """The metrics of text search beside the first epoch's; nothing where there is none."""
    now, before = history.current, history.before or {}
    if now.get("text_metrics") is None:
        return []
    earlier, earlier_ends = before.get("text_metrics") or {}, before.get("text_intervals") or {}
    return [
        Card(
            metric,
            TEXT_MEANINGS[metric],
            now["text_metrics"][metric],
            now["text_intervals"][metric],
            earlier.get(metric),
            earlier_ends.get(metric),
            None,
        )
        for metric in TEXT_HEADLINE
    ]


def _tests(now: Document, before: Document | None) -> dict[str, PairedTest]:
    """Each headline metric now against the first epoch's, where both read the same images."""
    a = {metric: query_column(before, now, metric) for metric in HEADLINE}
    b = {metric: query_column(now, now, metric) for metric in HEADLINE}
    scored = np.array((now["per_query"] or {}).get("num_relevant", ())) > 0
    known_a = {metric: column[scored] for metric, column in a.items() if column is not None}
    known_b = {metric: column[scored] for metric, column in b.items() if column is not None}
    if not known_a or not known_b:
        return {}
    resamples = min(10_000, max(500, _FLIPS // max(1, int(scored.sum()))))
    return paired_tests(known_a, known_b, resamples=resamples)


def verdict_on(card: Card, epoch: int, first_epoch: int = 0) -> Verdict:
    """The verdict, by recall@1: what people see first is the first result."""
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
    """What a paired test says, for people who have no use for a p-value."""
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


def class_rows(
    now: Document, before: Document | None, confusions: Sequence[Confusion]
) -> list[ClassRow]:
    """All classes, worst first: by recall@1, then by mean average precision."""
    table: Mapping[str, Any] = now.get("per_class") or {}
    earlier: Mapping[str, Any] = (before or {}).get("per_class") or {}
    taken: dict[str, Confusion] = {}
    for one in confusions:  # the most frequent one comes first
        taken.setdefault(one.label, one)
    rows = []
    for label, found in table.items():
        confusion = taken.get(label)
        rows.append(
            ClassRow(
                label,
                found["num_queries"],
                found["num_without_answer"],
                found.get("recall@1"),
                earlier.get(label, {}).get("recall@1"),
                found.get("mAP"),
                confusion.taken_for if confusion else None,
                confusion.count if confusion else 0,
            )
        )

    def badness(row: ClassRow) -> tuple[float, float, str]:
        unmeasured = row.recall is None or row.mean_precision is None
        return (2.0, 2.0, row.label) if unmeasured else (
            row.recall or 0.0, row.mean_precision or 0.0, row.label
        )  # fmt: skip

    return sorted(rows, key=badness)


def health_rows(history: History) -> list[HealthRow]:
    """The health of the embeddings, now and before, each with what it means."""
    now, before = history.current["health"], (history.before or {}).get("health") or {}
    rows = [
        HealthRow(
            "Separation",
            before.get("separation"),
            now["separation"],
            3,
            "How often two images of one class are more alike to the model than two of "
            "different classes. 1 is always; 0.5 is chance.",
        ),
        HealthRow(
            "Alignment",
            before.get("alignment"),
            now["alignment"],
            3,
            "How far apart two images of one class lie, on average (squared distance). Lower is "
            "tighter: 0 if they coincide, 2 if they have nothing in common. It may rise while "
            "everything spreads out, which the next line shows.",
        ),
        HealthRow(
            "Uniformity",
            before.get("uniformity"),
            now["uniformity"],
            3,
            "How evenly all images spread out. Lower is more even, with more room to tell things "
            "apart; 0 if everything falls on one point.",
        ),
        HealthRow(
            "Effective rank",
            before.get("effective_rank"),
            now["effective_rank"],
            1,
            f"How many of the {now['dim']:,} dimensions are really used. It should not collapse: "
            "near 1, everything looks the same to the model.",
        ),
    ]
    return [row for row in rows if row.now is not None]


def mixture_rows(trade_off: TradeOff) -> list[MixtureRow]:
    """All mixtures, from the original to the fine-tuned model."""
    names = {0.0: "before training", 1.0: "after training"}
    return [
        MixtureRow(
            one.alpha,
            names.get(one.alpha, ""),
            one is trade_off.chosen,
            _images(trade_off, one),
            _text(trade_off, one) if one.text_metrics else None,
        )
        for one in trade_off.mixtures
    ]


def trade_in_words(trade_off: TradeOff) -> str:
    """What the chosen mixture keeps, and what it costs."""
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
    value = one.metrics[trade_off.metric]
    return f"{value:g}" if trade_off.metric == MEDIAN_RANK else percent(value)


def _text(trade_off: TradeOff, one: Mixture) -> str:
    return percent((one.text_metrics or {})[trade_off.text_metric])
