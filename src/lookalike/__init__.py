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

if TYPE_CHECKING:  # the names below for type checkers, which run no code
    from lookalike.checks.findings import CheckResult as CheckResult
    from lookalike.commands.bench import BenchResult as BenchResult
    from lookalike.commands.bench import bench as bench
    from lookalike.commands.check import check as check
    from lookalike.commands.embed import EmbedResult as EmbedResult
    from lookalike.commands.embed import embed as embed
    from lookalike.commands.evaluate import EvaluateResult as EvaluateResult
    from lookalike.commands.evaluate import evaluate as evaluate
    from lookalike.commands.export import ExportResult as ExportResult
    from lookalike.commands.export import export as export
    from lookalike.commands.train import train as train
    from lookalike.config import BenchConfig as BenchConfig
    from lookalike.config import CheckConfig as CheckConfig
    from lookalike.config import EmbedConfig as EmbedConfig
    from lookalike.config import EvaluateConfig as EvaluateConfig
    from lookalike.config import ExportConfig as ExportConfig
    from lookalike.config import TrainConfig as TrainConfig
    from lookalike.data.sampler import BalancedBatchSampler as BalancedBatchSampler
    from lookalike.embedding.embedder import Embedder as Embedder
    from lookalike.errors import LookalikeError as LookalikeError
    from lookalike.model.encoder import CLIPEncoder as CLIPEncoder
    from lookalike.training.history import TrainResult as TrainResult
    from lookalike.training.losses.arcface import ArcFaceLoss as ArcFaceLoss
    from lookalike.training.losses.memory import CrossBatchMemory as CrossBatchMemory
    from lookalike.training.losses.supcon import SupConLoss as SupConLoss

__version__ = "0.1.0"

_NAMES = {
    "checks.findings": "CheckResult",
    "commands.bench": "BenchResult bench",
    "commands.check": "check",
    "commands.embed": "EmbedResult embed",
    "commands.evaluate": "EvaluateResult evaluate",
    "commands.export": "ExportResult export",
    "commands.train": "train",
    "config": "BenchConfig CheckConfig EmbedConfig EvaluateConfig ExportConfig TrainConfig",
    "data.sampler": "BalancedBatchSampler",
    "embedding.embedder": "Embedder",
    "errors": "LookalikeError",
    "model.encoder": "CLIPEncoder",
    "training.history": "TrainResult",
    "training.losses.arcface": "ArcFaceLoss",
    "training.losses.memory": "CrossBatchMemory",
    "training.losses.supcon": "SupConLoss",
}
_HOMES = {name: f"lookalike.{home}" for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lookalike' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
