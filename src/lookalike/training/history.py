"""How far a run has come, and what its epochs came to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lookalike.data.images import Unreadable
from lookalike.evaluation.documents import read_metrics
from lookalike.evaluation.drift import Drift
from lookalike.evaluation.interpolation import TradeOff
from lookalike.evaluation.metrics import is_better
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import result_files
from lookalike.evaluation.retrieval import Retrieval
from lookalike.evaluation.text import named_apart
from lookalike.model.encoder import CLIPEncoder


@dataclass
class TrainingState:
    """How far a run has come. `run` is a random name that ties a run's files together."""

    run: str
    epoch: int = 0  # epochs that are done
    step: int = 0  # steps of the running epoch that are done
    loss_sum: float = 0.0  # over these steps
    loss: float | None = None  # mean over the last epoch that was done

    def finish_step(self, loss: float) -> None:
        """Counts a step."""
        self.step += 1
        self.loss_sum += loss

    @property
    def mean_loss(self) -> float:
        """Returns the mean loss of the running epoch's steps so far."""
        return self.loss_sum / self.step

    def finish_epoch(self) -> None:
        """Counts an epoch; its mean loss stays."""
        self.loss = self.mean_loss
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0


@dataclass(frozen=True)
class EpochSummary:
    """One line of the closing table; epoch 0 is the baseline.

    `text_metrics` are those of text search by class name, where the model has a text tower.
    """

    epoch: int
    loss: float | None
    metrics: dict[str, float] | None
    text_metrics: dict[str, float] | None = None
    drift: Drift | None = None

    @property
    def all_metrics(self) -> dict[str, float]:
        """Returns the metrics of image search and of text search beside each other."""
        return (self.metrics or {}) | named_apart(self.text_metrics or {})


@dataclass(frozen=True)
class Best:
    """The first epoch that was best by a metric; 0 is the baseline, which has no checkpoint."""

    epoch: int
    metric: str
    value: float
    checkpoint: Path | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    `retrieval` is that of the last evaluation, if there was one; `best` is None where nothing
    was measured. With `interpolation` the encoder, and the last evaluation, is that of the
    mixture that `trade_off` tells about; otherwise it is the last epoch's.
    """

    history: list[EpochSummary]
    best: Best | None
    retrieval: Retrieval | None
    checkpoint: Path | None
    files: list[Path]
    unreadable: list[Unreadable]
    encoder: CLIPEncoder
    trade_off: TradeOff | None = None


def best_epoch(history: Sequence[EpochSummary], metric: str) -> Best | None:
    """Returns the best of the epochs so far; None where none has a number for the metric."""
    best: Best | None = None
    for one in history:
        value = one.all_metrics.get(metric, math.nan)
        if not math.isnan(value) and (best is None or is_better(metric, value, best.value)):
            best = Best(one.epoch, metric, value)
    return best


def earlier_epochs(out: Path, run: str, last: int, protocol: Protocol | None) -> list[EpochSummary]:
    """Reads the epochs up to `last` that a run measured, by this protocol, before it was stopped.

    Raises:
        DataError: a result file is damaged.
    """
    if protocol is None:
        return []
    summaries, facts = [], protocol.facts().items()
    for epoch in range(last + 1):
        path = result_files(out, epoch)[1]
        if not path.is_file():
            continue
        told = read_metrics(path, "remove it, and the run continues without the numbers of that "
                            "epoch", needs=("metrics",))  # fmt: skip
        same_test = all(told["protocol"].get(name) == value for name, value in facts)
        if told.get("run") == run and same_test:
            drift = Drift(**told["drift"]) if told.get("drift") else None
            of_both = _read_back(told["metrics"]), _read_back(told.get("text_metrics"))
            summaries.append(EpochSummary(epoch, told.get("loss"), *of_both, drift))
    return summaries


def _read_back(metrics: dict[str, float | None] | None) -> dict[str, float] | None:
    """Metrics as a file has them; of a rank beyond what was retrieved it has none."""
    if metrics is None:
        return None
    return {name: math.inf if value is None else value for name, value in metrics.items()}
