"""The options of `lookalike check`."""

from __future__ import annotations

from dataclasses import dataclass

from lookalike.config.groups import BatchShape, Shared
from lookalike.config.options import option, same_option


@dataclass(frozen=True, kw_only=True)
class CheckConfig(BatchShape, Shared):
    """All that `lookalike check` can be told; raises ConfigError for a value out of its range."""

    data: str | None = option(
        None,
        "images to check: one folder per class, a flat folder, a table, or shards; the splits "
        "of a table are told apart",
        group="Training images",
    )
    test: str | None = same_option(Shared, "test", help="test images, likewise")
    query: str | None = same_option(
        Shared, "query", help="queries, to be checked for copies of other images"
    )
    gallery: str | None = same_option(Shared, "gallery", help="a gallery, likewise")
    model_name: str | None = same_option(
        Shared,
        "model_name",
        default=None,
        help="a hub id, a local Transformers folder, or a Lookalike checkpoint (.pth); with a "
        "model the check also finds likely wrong labels, and copies that only an embedding finds",
    )
    num_neighbors: int = option(
        20,
        "how many nearest images are consulted about a label",
        group="Model",
        at_least=2,
        at_most=10_000,
    )
    out: str = same_option(
        Shared,
        "out",
        default="check",
        help="folder for the findings, and for what was read, so that the next check is quick",
    )
