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
        "images to check: one folder per class, a flat folder, a table, or shards, each of whose "
        "splits counts as one",
        group="Training images",
    )
    test: str | None = same_option(Shared, "test", help="test images, likewise")
    query: str | None = same_option(
        Shared, "query", help="queries, to look for copies of other images among them"
    )
    gallery: str | None = same_option(Shared, "gallery", help="a gallery, likewise")
    model_name: str | None = same_option(
        Shared,
        "model_name",
        default=None,
        help="a hub id, a local Transformers folder, or a checkpoint of ours (.pth); with a model "
        "the check also finds likely wrong labels, and near copies by embedding",
    )
    num_neighbors: int = option(
        20, "nearest images that have a say in whether a label is right", group="Model", at_least=2
    )
    out: str = same_option(
        Shared,
        "out",
        default="check",
        help="folder that the findings are written to, and that remembers what was read",
    )
