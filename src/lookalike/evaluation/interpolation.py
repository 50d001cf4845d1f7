"""The trade-off between finding images and finding by text, over mixtures of two models' weights.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022), WiSE-FT: weights that
lie between those of the baseline and those it was fine-tuned to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any

from lookalike.errors import DataError
from lookalike.evaluation.documents import (
    by_name,
    is_count,
    is_number,
    is_text,
    optional,
    read_json,
    record,
)
from lookalike.evaluation.metrics import METRICS, TEXT_PREFIX, is_better
from lookalike.files import shown, write_json


@dataclass(frozen=True)
class Mixture:
    """A model whose weights are `alpha` of the fine-tuned one's, the rest the baseline's.

    `text_metrics` are those of text search by class name, None without a text tower.
    """

    alpha: float
    metrics: dict[str, float]
    text_metrics: dict[str, float] | None


@dataclass(frozen=True)
class TradeOff:
    """What mixtures of the baseline with an epoch's model come to, all measured on one test.

    `metric` tells which of them finds images best, and `text_metric`, where larger is better,
    which of them finds by text best. `mixtures` are in ascending order of alpha, from 0, the
    baseline, to 1, the epoch's own model. `fingerprint` is that of the test's protocol.
    """

    run: str
    epoch: int
    metric: str
    text_metric: str
    mixtures: tuple[Mixture, ...]
    fingerprint: str = ""

    @property
    def original(self) -> Mixture:
        """The baseline."""
        return self.mixtures[0]

    @property
    def end(self) -> Mixture:
        """The fine-tuned model, with nothing of the baseline mixed in."""
        return self.mixtures[-1]

    @property
    def chosen(self) -> Mixture:
        """The mixture to take.

        Where fine-tuning gained on images and lost on text, it is the one with the largest
        difference of shares: how much of the gain on images it keeps, less how much of the loss
        on text it has. Both ends have 0, so where no mixture does better, and of equals, it is the
        one nearer to the end: what was trained is not thrown away for nothing.

        Where there is nothing to be traded, for text lost nothing, images gained nothing or there
        is no text tower, it is the best on images, of equals the one nearer to the baseline.

        >>> table = [(0.0, 0.2, 0.8), (0.5, 0.6, 0.7), (1.0, 0.7, 0.3)]
        >>> mixtures = tuple(Mixture(a, {"mAP": m}, {"mAP": t}) for a, m, t in table)
        >>> TradeOff("run", 1, "mAP", "mAP", mixtures).chosen.alpha  # 80% gained for 20% lost
        0.5
        """
        if self.loses_text:
            from_the_end = reversed(self.mixtures)  # of equals `max` finds the first
            return max(from_the_end, key=lambda one: self.gain_kept(one) - self.loss_kept(one))
        return reduce(lambda a, b: b if self._finds_more(b, a) else a, self.mixtures)

    @property
    def loses_text(self) -> bool:
        """True where fine-tuning gained on images and lost on text."""
        first, last = self.original, self.end
        if not first.text_metrics or not last.text_metrics:
            return False
        return self._finds_more(last, first) and self._text(last) < self._text(first)

    def gain_kept(self, one: Mixture) -> float:
        """Returns the share of fine-tuning's gain on images that a mixture has."""
        before, now, after = (m.metrics[self.metric] for m in (self.original, one, self.end))
        return (now - before) / (after - before)

    def loss_kept(self, one: Mixture) -> float:
        """Returns the share of fine-tuning's loss on text that it has; negative where it gained."""
        before, now, after = map(self._text, (self.original, one, self.end))
        return (before - now) / (before - after)

    def _finds_more(self, one: Mixture, than: Mixture) -> bool:
        return is_better(self.metric, one.metrics[self.metric], than.metrics[self.metric])

    def _text(self, one: Mixture) -> float:
        assert one.text_metrics is not None, "a model with a text tower has it in every mixture"
        return one.text_metrics[self.text_metric]


def write_trade_off(path: Path, trade_off: TradeOff) -> None:
    """Writes a trade-off whole, and beside the mixtures which one is chosen.

    Raises:
        OutputError: the file cannot be written.
    """
    write_json(path, asdict(trade_off) | {"chosen": trade_off.chosen.alpha})


def read_trade_off(path: Path, run: str) -> TradeOff | None:
    """Reads the trade-off of a run; None where it has none.

    Raises:
        DataError: the file is not one of ours.
    """
    if not path.exists():
        return None
    advice = "remove it and resume the run to measure mixtures of weights again"
    document = read_json(path, advice)
    if not _is_trade_off(document):
        raise DataError(
            f"{shown(path)} is damaged (it does not hold mixtures of weights and what they "
            f"come to); {advice}"
        )
    facts = {field.name: document[field.name] for field in fields(TradeOff)}
    facts["mixtures"] = tuple(
        Mixture(one["alpha"], one["metrics"], one["text_metrics"]) for one in document["mixtures"]
    )
    return TradeOff(**facts) if facts["run"] == run else None


_is_mixture = record(
    alpha=is_number, metrics=by_name(is_number), text_metrics=optional(by_name(is_number))
)
_has_parts = record(
    run=is_text, epoch=is_count, metric=is_text, text_metric=is_text, fingerprint=is_text,
    mixtures=lambda value: isinstance(value, list) and len(value) > 1,
)  # fmt: skip


def _is_trade_off(document: Any) -> bool:
    """Whether all is there that a trade-off is computed from."""
    if not _has_parts(document) or not all(map(_is_mixture, document["mixtures"])):
        return False
    metric, text_metric = document["metric"], document["text_metric"]
    texts = [one["text_metrics"] for one in document["mixtures"]]
    return (
        metric.removeprefix(TEXT_PREFIX) in METRICS
        and all(metric in one["metrics"] for one in document["mixtures"])
        and (not any(texts) or all(one and text_metric in one for one in texts))
    )
