"""The end of a run that mixes what it learned with the model it began from (WiSE-FT)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from lookalike.evaluation.interpolation import Mixture, TradeOff, read_trade_off
from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.results import interpolation_file, remove_mixture_results
from lookalike.evaluation.retrieval import Retrieval
from lookalike.training.checkpoints.checkpoint import save_mixture
from lookalike.training.regularizers.mixing import MixedWeights, alphas, plain_originals

if TYPE_CHECKING:
    from lookalike.training.run import Run

IMAGE_METRIC = "mAP@R"
TEXT_METRIC = "mAP"


def finish_with_mixture(run: Run) -> TradeOff | None:
    """Ends training, and leaves the encoder with the best mixture of two models' weights: the one
    trained and the one that came. Where none is asked for, with the trained ones.

    Mixtures are measured as epochs are, and the best one is saved; a run that was stopped in
    between measures them again, and one that was not has its file.
    """
    before = run.learner.anchors.original
    if not run.config.interpolation or before is None or run.state.epoch == 0:
        run.learner.finish()
        return None
    original = plain_originals(run.encoder, before)
    weights = MixedWeights(run.learner.finish(), original)
    trade_off = run.world.on_main(lambda: _known(run))
    if trade_off is not None:
        weights.set(trade_off.chosen.alpha)
        return trade_off
    trade_off, end = _measure(run, weights)
    weights.set(trade_off.chosen.alpha)
    _keep(run, trade_off, end)
    return trade_off


def _known(run: Run) -> TradeOff | None:
    """What an earlier process of this run has measured to the end."""
    found = read_trade_off(interpolation_file(run.folder.path), run.state.run)
    if found is None or not run.folder.mixture.is_file():
        return None
    same = _facts(run) == (found.epoch, found.metric, found.fingerprint)
    measured = [one.alpha for one in found.mixtures]
    return found if same and measured == alphas(run.config.interpolation) else None


def _facts(run: Run) -> tuple[int, str, str]:
    """What must be the same for two trade-offs of a run to be of the same models and test."""
    protocol = run.measurements.protocol
    assert protocol is not None, "a run without one has nothing to choose by"
    return run.state.epoch, _image_metric(run), protocol.facts()["fingerprint"]


def _measure(run: Run, weights: MixedWeights) -> tuple[TradeOff, Retrieval]:
    """What each mixture comes to, and the retrieval of the last one. The model as it came was
    measured as epoch 0; so was the end as the last epoch, but by a process before this one, maybe.
    """
    measured, mixtures = run.measurements, []
    first, last = measured.history[0], measured.history[-1]
    for alpha in alphas(run.config.interpolation):
        if alpha == 0 and first.epoch == 0 and first.metrics is not None:
            mixtures.append(Mixture(alpha, first.metrics, first.text_metrics))
        elif alpha == 1 and measured.retrieval is not None and last.metrics is not None:
            mixtures.append(Mixture(alpha, last.metrics, last.text_metrics))
            end = measured.retrieval
        else:
            weights.set(alpha)
            found = measured.evaluate(f"evaluating mixtures of weights, alpha {alpha:g}")
            mixtures.append(Mixture(alpha, found.retrieval.metrics or {}, found.text_metrics))
            end = found.retrieval
    epoch, metric, fingerprint = _facts(run)
    trade_off = TradeOff(run.state.run, epoch, metric, TEXT_METRIC, tuple(mixtures), fingerprint)
    return trade_off, end


def _keep(run: Run, trade_off: TradeOff, end: Retrieval) -> None:
    """Saves the encoder, which has the best mixture now, and writes down what was measured.

    What was measured of an earlier one goes first, so that no numbers lie beside other weights.
    """
    run.world.on_main(lambda: remove_mixture_results(run.folder.path))
    save_mixture(
        run.folder.mixture,
        run.state,
        trade_off,
        config=run.config,
        learner=run.learner,
        images=run.images,
        holdout=asdict(run.holdout) if run.holdout else None,
    )
    run.saved_epochs.append(run.folder.mixture)
    run.measurements.measure_mixture(run.state, trade_off, end)


def _image_metric(run: Run) -> str:
    """What decides which mixture finds images best: text has its own metric."""
    metric = run.config.best_metric
    return metric if metric in METRICS else IMAGE_METRIC
