"""The options of `lookalike bench`."""

from __future__ import annotations

from dataclasses import dataclass

from lookalike.config.groups import Basics
from lookalike.config.options import option, same_option


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Basics):
    """All that `lookalike bench` can be told; raises ConfigError for a value out of its range."""

    data: str | None = option(
        None,
        "images to measure with: a folder, however deep, a table, or shards; labels do not matter",
        group="Images",
    )
    model_name: str = same_option(Basics, "model_name")
    num_images: int = option(
        256,
        "at most this many images, spread evenly over all",
        group="Measurement",
        at_least=1,
        at_most=1_000_000,
    )
    seconds: float = option(
        10.0,
        "about how long to measure each stage at most",
        group="Measurement",
        above=0,
        at_most=86_400,
    )
