"""Mixtures of the weights that a run ended with and those it began with, once it is over (WiSE-FT).

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022), equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from lookalike.config import TrainConfig
from lookalike.data.reading.cache import DecodeCache
from lookalike.errors import CheckpointError, ConfigError, ModelError
from lookalike.evaluation.interpolation import Mixture, TradeOff, read_trade_off, write_trade_off
from lookalike.evaluation.metrics import METRICS
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import (
    interpolation_file,
    remove_mixture_results,
    write_results,
)
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import on_device
from lookalike.model.pretrained import read_checkpoint
from lookalike.progress import Progress
from lookalike.runtime.device import Runtime
from lookalike.training.checkpoints.checkpoint import write_checkpoint
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.evaluator import Evaluator, no_measure
from lookalike.training.history import TrainingState, TrainResult

IMAGE_METRIC, TEXT_METRIC = "mAP@R", "mAP"
# What a checkpoint says of the model and the run, beside the weights.
_ABOUT = (
    "format", "epoch", "state", "loss", "model", "config", "train_fingerprint", "train_classes",
    "holdout", "versions",
)  # fmt: skip


def check_can_choose(config: TrainConfig, protocol: Protocol | None) -> None:
    """Refuses, before a run begins, mixtures of which none could be called the best.

    Raises:
        ConfigError: there are no test images with labels.
    """
    if config.interpolation and (protocol is None or not protocol.labelled):
        raise ConfigError(no_measure("interpolation", config.interpolation))


def interpolate(
    baseline: str,
    checkpoint: Path,
    config: TrainConfig,
    result: TrainResult,
    folder: RunFolder,
    protocol: Protocol,
    runtime: Runtime,
    progress: Progress,
    *,
    cache: DecodeCache | None = None,
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
        config, folder, protocol, runtime, progress, cache: those of the run.
        result: what the run came to; its first and last epoch need not be measured again.

    Returns:
        The result with the mixture as its encoder and its last retrieval. Where the baseline is
        out of reach that is said, and the result comes back as it is.

    Raises:
        LookalikeError: nothing can be read, or a file cannot be written.
    """
    world, trained = runtime.world, read_checkpoint(checkpoint)
    trained.pop("optimizer_state_dict")  # twice the size of the model
    state = TrainingState(**trained["state"])
    # Text has its own metric.
    metric = config.best_metric if config.best_metric in METRICS else IMAGE_METRIC
    fingerprint = protocol.facts()["fingerprint"]
    mixture = folder.path / "weights" / "encoder_interpolated.pth"
    facts = (state.epoch, metric, fingerprint)
    known = world.on_main(lambda: _known(folder.path, mixture, config, state.run, facts))
    if known is not None:
        encoder = on_device(CLIPEncoder(str(mixture), embedding=config.embedding), runtime)
        return replace(result, encoder=encoder, trade_off=known)
    try:
        began = CLIPEncoder(baseline, embedding=config.embedding).state_dict()
    except (CheckpointError, ModelError) as error:
        progress.warn(f"no mixtures of weights, for the baseline is out of reach: {error}")
        return result
    ended: Mapping[str, Tensor] = trained["model_state_dict"]
    if {k: v.shape for k, v in began.items()} != {k: v.shape for k, v in ended.items()}:
        progress.warn(
            f"no mixtures of weights, for {baseline} is not the model that the run began with any "
            "more: its weights have other names or sizes"
        )
        return result
    encoder = CLIPEncoder(str(checkpoint), embedding=config.embedding, checkpoint=trained)
    encoder = on_device(encoder, runtime)
    about = {key: trained.pop(key) for key in _ABOUT} | {"config": asdict(config)}
    del trained
    evaluator = Evaluator(config, protocol, encoder, runtime, progress, folder, cache)
    evaluator.resume(state)

    mixtures, end = list[Mixture](), result.retrieval
    first, last = result.history[0], result.history[-1]
    for alpha in alphas(config.interpolation):
        if alpha == 0 and first.epoch == 0 and first.metrics is not None:
            mixtures.append(Mixture(alpha, first.metrics, first.text_metrics))
        elif alpha == 1 and end is not None and last.metrics is not None:
            mixtures.append(Mixture(alpha, last.metrics, last.text_metrics))
        else:
            set_mixture(encoder, began, ended, alpha)
            found = evaluator.evaluate(f"evaluating mixtures of weights, alpha {alpha:g}")
            metrics = found.retrieval.metrics or {}
            mixtures.append(Mixture(alpha, metrics, found.text_metrics))
            end = found.retrieval if alpha == 1 else end
    trade_off = TradeOff(state.run, state.epoch, metric, TEXT_METRIC, tuple(mixtures), fingerprint)
    chosen = trade_off.chosen

    # Earlier results go before the weights they were measured of.
    world.on_main(lambda: remove_mixture_results(folder.path))
    set_mixture(encoder, began, ended, chosen.alpha)
    content = about | {"interpolation": asdict(chosen), "model_state_dict": encoder.state_dict()}
    world.on_main(lambda: write_checkpoint(mixture, content))
    measured = evaluator.evaluate(f"evaluating the chosen mixture, alpha {chosen.alpha:g}")

    def write() -> list[Path]:
        said = evaluator.about(state, measured) | {"alpha": chosen.alpha}
        files = write_results(
            folder.path, state.epoch, measured.retrieval, protocol, about=said, of_mixture=True
        )
        path = interpolation_file(folder.path)
        write_trade_off(path, trade_off)
        report = evaluator.report(state.epoch, end) if config.report and end else []
        return [*files, path, *report]

    written = world.on_main(write)
    files = [path for path in result.files if path not in written] + [mixture, *written]
    return replace(
        result, encoder=encoder, retrieval=measured.retrieval, files=files, trade_off=trade_off
    )


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


def _known(
    folder: Path, mixture: Path, config: TrainConfig, run: str, facts: tuple[int, str, str]
) -> TradeOff | None:
    """Returns what an earlier process of this run has measured to the end."""
    found = read_trade_off(interpolation_file(folder), run)
    if found is None or not mixture.is_file():
        return None
    same = facts == (found.epoch, found.metric, found.fingerprint)
    measured = [one.alpha for one in found.mixtures]
    return found if same and measured == alphas(config.interpolation) else None
