"""The knobs of `lookalike check`."""

from __future__ import annotations

from dataclasses import dataclass

from lookalike.config.groups import BatchShape, Shared
from lookalike.config.options import knob, same_knob


@dataclass(frozen=True, kw_only=True)
class CheckConfig(BatchShape, Shared):
    """All that `lookalike check` can be told.

    Raises:
        ConfigError: a value is out of its range.
    """

    data: str | None = knob(
        None,
        "the pictures to check: a class-per-folder tree, a flat folder, or a table, each of whose "
        "splits counts as one",
        group="Training pictures",
        metavar="PICTURES",
    )
    test: str | None = same_knob(Shared, "test", help="test pictures, likewise")
    query: str | None = same_knob(
        Shared, "query", help="queries, to look for copies of other pictures among them"
    )
    gallery: str | None = same_knob(Shared, "gallery", help="a gallery, likewise")
    model_name: str | None = same_knob(
        Shared,
        "model_name",
        default=None,
        help="a hub id, a local Transformers folder, or a checkpoint of ours (.pth); with a model "
        "the check also finds likely wrong labels, and near copies by embedding",
    )
    num_neighbors: int = knob(
        20,
        "nearest pictures that have a say in whether a label is right",
        group="Model",
        at_least=2,
    )
    out: str = same_knob(
        Shared,
        "out",
        default="check",
        help="folder that the findings are written to, and that remembers what was read",
    )
