"""Every option: its name, its default, its unit, and what it may be.

A configuration is one flat, frozen dataclass; the same names are keyword arguments in Python,
keys in a recipe (YAML) and flags on the command line (`learning_rate` is `--learning-rate`).
`None` means off. Nothing here reads an image or touches a device.
"""

from lookalike.config.bench import BenchConfig
from lookalike.config.check import CheckConfig
from lookalike.config.embed import EmbedConfig
from lookalike.config.evaluate import EvaluateConfig
from lookalike.config.export import ExportConfig
from lookalike.config.groups import (
    DEFAULT_MAX_MEGAPIXELS,
    DEFAULT_MODEL,
    MAX_PILLOW_MEGAPIXELS,
    holdout_bounds,
)
from lookalike.config.train import TrainConfig

__all__ = [
    "DEFAULT_MAX_MEGAPIXELS",
    "DEFAULT_MODEL",
    "MAX_PILLOW_MEGAPIXELS",
    "BenchConfig",
    "CheckConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExportConfig",
    "TrainConfig",
    "holdout_bounds",
]
