"""Lookalike: image retrieval that works on your own pictures.

Fine-tune a CLIP vision encoder so that pictures of the same thing land together, and see how
much better it retrieves:

    import lookalike

    result = lookalike.train(lookalike.TrainConfig(
        train="photos/train", query="photos/test/query", gallery="photos/test/gallery",
    ))
    print(result.history[0].metrics, result.history[-1].metrics)

Names are imported when first used, so that `import lookalike` itself loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.checkup.findings import CheckResult
    from lookalike.checkup.run import check
    from lookalike.config import BenchConfig, CheckConfig, EvaluateConfig, ExportConfig, TrainConfig
    from lookalike.data.sampler import BalancedBatchSampler
    from lookalike.errors import LookalikeError
    from lookalike.exporting.run import ExportResult, export
    from lookalike.measure.bench import BenchResult, bench
    from lookalike.measure.evaluate import EvaluateResult, evaluate
    from lookalike.model.encoder import CLIPEncoder
    from lookalike.training.objectives.arcface import ArcFaceLoss
    from lookalike.training.objectives.memory import CrossBatchMemory
    from lookalike.training.objectives.smooth_ap import SmoothAPLoss
    from lookalike.training.objectives.supcon import SupConLoss
    from lookalike.training.outcome import TrainResult
    from lookalike.training.trainer import train

__version__ = "0.1.0"

_HOMES = {
    "ArcFaceLoss": "lookalike.training.objectives.arcface",
    "BalancedBatchSampler": "lookalike.data.sampler",
    "BenchConfig": "lookalike.config",
    "BenchResult": "lookalike.measure.bench",
    "CLIPEncoder": "lookalike.model.encoder",
    "CheckConfig": "lookalike.config",
    "CheckResult": "lookalike.checkup.findings",
    "CrossBatchMemory": "lookalike.training.objectives.memory",
    "EvaluateConfig": "lookalike.config",
    "EvaluateResult": "lookalike.measure.evaluate",
    "ExportConfig": "lookalike.config",
    "ExportResult": "lookalike.exporting.run",
    "LookalikeError": "lookalike.errors",
    "SmoothAPLoss": "lookalike.training.objectives.smooth_ap",
    "SupConLoss": "lookalike.training.objectives.supcon",
    "TrainConfig": "lookalike.config",
    "TrainResult": "lookalike.training.outcome",
    "bench": "lookalike.measure.bench",
    "check": "lookalike.checkup.run",
    "evaluate": "lookalike.measure.evaluate",
    "export": "lookalike.exporting.run",
    "train": "lookalike.training.trainer",
}

__all__ = [
    "ArcFaceLoss",
    "BalancedBatchSampler",
    "BenchConfig",
    "BenchResult",
    "CLIPEncoder",
    "CheckConfig",
    "CheckResult",
    "CrossBatchMemory",
    "EvaluateConfig",
    "EvaluateResult",
    "ExportConfig",
    "ExportResult",
    "LookalikeError",
    "SmoothAPLoss",
    "SupConLoss",
    "TrainConfig",
    "TrainResult",
    "bench",
    "check",
    "evaluate",
    "export",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lookalike' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
