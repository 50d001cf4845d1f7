"""The knobs of `lookalike bench`."""

from __future__ import annotations

from dataclasses import dataclass

from lookalike.config.groups import Basics
from lookalike.config.options import knob, same_knob


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Basics):
    """All that `lookalike bench` can be told.

    Raises:
        ConfigError: a value is out of its range.
    """

    data: str | None = knob(
        None,
        "the pictures to measure with: a folder, however deep, or a table",
        group="Pictures",
        metavar="PICTURES",
    )
    model_name: str = same_knob(Basics, "model_name")
    num_pictures: int = knob(
        256, "pictures taken at most, evenly spread over all", group="Measurement", at_least=1
    )
    seconds: float = knob(
        10.0, "about how long each stage is measured at most", group="Measurement", above=0
    )
