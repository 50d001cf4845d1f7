"""Mixtures of the weights that a run ended with and those it began with, once it is over (WiSE-FT).

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022), equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from lookalike.config.settings import kept_settings
from lookalike.errors import CheckpointError, ModelError
from lookalike.evaluation.interpolation import Mixture, TradeOff, read_trade_off, write_trade_off
from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.results import interpolation_file, remove_mixture_results
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import on_device
from lookalike.model.pretrained import read_checkpoint
from lookalike.training.checkpoints.saving import write_checkpoint
from lookalike.training.evaluator import Evaluator
from lookalike.training.history import TrainingState, TrainResult

IMAGE_METRIC, TEXT_METRIC = "mAP@R", "mAP"
# What a checkpoint says of the model and the run, beside the weights.
_ABOUT = (
    "format", "epoch", "state", "loss", "model", "config", "train_fingerprint", "train_classes",
    "holdout", "versions",
)  # fmt: skip


def interpolate(
    baseline: str, checkpoint: Path, evaluator: Evaluator, result: TrainResult
) -> TrainResult:
    """Measures mixtures of two models' weights, and saves the one that trades best.

    `(1 - alpha) * baseline + alpha * trained`, weight by weight, in `config.interpolation` even
    steps. The choice is `TradeOff.chosen`; it costs nothing to search with, for a mixture is one
    model. Writes `weights/encoder_interpolated.pth`, `results/interpolation.json` and the two
    result files of the mixture, and the report anew. What an earlier process of the run has
    measured to the end is not measured again.

    Of several processes each must call it; the first one writes.

    Args:
        baseline: the name of the model that the run began with.
        checkpoint: of the run's last epoch.
        evaluator: the run's, with something to measure on.
        result: what the run came to; its first and last epoch need not be measured again.

    Returns:
        The result with the mixture as its encoder and its last retrieval. Where the baseline is
        out of reach that is said, and the result comes back as it is.

    Raises:
        LookalikeError: nothing can be read, or a file cannot be written.
    """
    config, runtime, folder = evaluator.config, evaluator.runtime, evaluator.folder.path
    assert evaluator.protocol is not None, "there is nothing to measure on"
    world, trained = runtime.world, read_checkpoint(checkpoint)
    trained.pop("optimizer_state_dict")  # twice the size of the model
    state = TrainingState(**trained["state"])
    # Text has its own metric.
    metric = config.best_metric if config.best_metric in METRICS else IMAGE_METRIC
    fingerprint = evaluator.protocol.facts()["fingerprint"]
    wanted = TradeOff(state.run, state.epoch, metric, TEXT_METRIC, (), fingerprint)
    steps, mixture = alphas(config.interpolation), folder / "weights" / "encoder_interpolated.pth"

    def read_known() -> TradeOff | None:
        found = read_trade_off(interpolation_file(folder), state.run)
        if found is None or not mixture.is_file() or replace(found, mixtures=()) != wanted:
            return None
        return found if [one.alpha for one in found.mixtures] == steps else None

    known = world.on_main(read_known)
    if known is not None:
        encoder = on_device(CLIPEncoder(str(mixture), embedding=config.embedding), runtime)
        return replace(result, encoder=encoder, trade_off=known)
    try:
        began = CLIPEncoder(baseline, embedding=config.embedding).state_dict()
    except (CheckpointError, ModelError) as error:
        evaluator.progress.warn(
            f"mixtures of weights were skipped: the baseline cannot be loaded: {error}"
        )
        return result
    ended: Mapping[str, Tensor] = trained["model_state_dict"]
    if {k: v.shape for k, v in began.items()} != {k: v.shape for k, v in ended.items()}:
        evaluator.progress.warn(
            f"mixtures of weights were skipped: {baseline} is no longer the model that the run "
            "began with: its weights have other names or sizes"
        )
        return result
    encoder = CLIPEncoder(str(checkpoint), embedding=config.embedding, checkpoint=trained)
    encoder = on_device(encoder, runtime)
    about = {key: trained.pop(key) for key in _ABOUT} | {"config": kept_settings(asdict(config))}
    del trained
    evaluator = replace(evaluator, encoder=encoder)
    evaluator.resume(state)

    mixtures, end = list[Mixture](), result.retrieval
    first, last = result.history[0], result.history[-1]
    for alpha in steps:
        if alpha == 0 and first.epoch == 0 and first.metrics is not None:
            mixtures.append(Mixture(alpha, first.metrics, first.text_metrics))
        elif alpha == 1 and end is not None and last.metrics is not None:
            mixtures.append(Mixture(alpha, last.metrics, last.text_metrics))
        else:
            set_mixture(encoder, began, ended, alpha)
            found, text = evaluator.evaluate(f"evaluating mixtures of weights, alpha {alpha:g}")
            mixtures.append(Mixture(alpha, found.metrics or {}, text["text_metrics"]))
            end = found if alpha == 1 else end
    trade_off = replace(wanted, mixtures=tuple(mixtures))
    chosen = trade_off.chosen

    # Earlier results go before the weights they were measured of.
    world.on_main(lambda: remove_mixture_results(folder))
    set_mixture(encoder, began, ended, chosen.alpha)
    content = about | {"interpolation": asdict(chosen), "model_state_dict": encoder.state_dict()}
    world.on_main(lambda: write_checkpoint(mixture, content))
    retrieval, text = evaluator.evaluate(f"evaluating the chosen mixture, alpha {chosen.alpha:g}")

    def write() -> list[Path]:
        _, files = evaluator.write(state, retrieval, text, chosen.alpha)
        path = interpolation_file(folder)
        write_trade_off(path, trade_off)
        report = evaluator.report(state.epoch, end) if config.report and end else []
        return [*files, path, *report]

    written = world.on_main(write)
    files = [path for path in result.files if path not in written] + [mixture, *written]
    return replace(result, encoder=encoder, retrieval=retrieval, files=files, trade_off=trade_off)


@torch.no_grad()
def set_mixture(
    encoder: CLIPEncoder,
    baseline: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    alpha: float,
) -> None:
    """Gives an encoder a share `alpha` of trained weights, the rest of the baseline; 0 and 1 are
    exact, and so is whatever is the same in both.
    """
    for name, tensor in encoder.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(baseline[name], trained[name], alpha))


def alphas(count: int) -> list[float]:
    """Returns the mixtures that are measured: `count` even steps from one end to the other.

    >>> alphas(4)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return [step / count for step in range(count + 1)]
