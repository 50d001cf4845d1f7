"""Lookalike: image retrieval that works on your own images.

Fine-tune a CLIP vision encoder so that images of the same thing land together, and see how
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
    from lookalike.checks.findings import CheckResult
    from lookalike.commands.bench import BenchResult, bench
    from lookalike.commands.check import check
    from lookalike.commands.embed import EmbedResult, embed
    from lookalike.commands.evaluate import EvaluateResult, evaluate
    from lookalike.commands.export import ExportResult, export
    from lookalike.commands.train import train
    from lookalike.config import (
        BenchConfig,
        CheckConfig,
        EmbedConfig,
        EvaluateConfig,
        ExportConfig,
        TrainConfig,
    )
    from lookalike.data.sampler import BalancedBatchSampler
    from lookalike.embedding.embedder import Embedder
    from lookalike.errors import LookalikeError
    from lookalike.model.encoder import CLIPEncoder
    from lookalike.training.history import TrainResult
    from lookalike.training.losses.arcface import ArcFaceLoss
    from lookalike.training.losses.memory import CrossBatchMemory
    from lookalike.training.losses.supcon import SupConLoss

__version__ = "0.1.0"

_HOMES = {
    "ArcFaceLoss": "lookalike.training.losses.arcface",
    "BalancedBatchSampler": "lookalike.data.sampler",
    "BenchConfig": "lookalike.config",
    "BenchResult": "lookalike.commands.bench",
    "CLIPEncoder": "lookalike.model.encoder",
    "CheckConfig": "lookalike.config",
    "CheckResult": "lookalike.checks.findings",
    "CrossBatchMemory": "lookalike.training.losses.memory",
    "EmbedConfig": "lookalike.config",
    "EmbedResult": "lookalike.commands.embed",
    "Embedder": "lookalike.embedding.embedder",
    "EvaluateConfig": "lookalike.config",
    "EvaluateResult": "lookalike.commands.evaluate",
    "ExportConfig": "lookalike.config",
    "ExportResult": "lookalike.commands.export",
    "LookalikeError": "lookalike.errors",
    "SupConLoss": "lookalike.training.losses.supcon",
    "TrainConfig": "lookalike.config",
    "TrainResult": "lookalike.training.history",
    "bench": "lookalike.commands.bench",
    "check": "lookalike.commands.check",
    "embed": "lookalike.commands.embed",
    "evaluate": "lookalike.commands.evaluate",
    "export": "lookalike.commands.export",
    "train": "lookalike.commands.train",
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
    "EmbedConfig",
    "EmbedResult",
    "Embedder",
    "EvaluateConfig",
    "EvaluateResult",
    "ExportConfig",
    "ExportResult",
    "LookalikeError",
    "SupConLoss",
    "TrainConfig",
    "TrainResult",
    "bench",
    "check",
    "embed",
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
