"""The options of `lookalike embed`."""

from __future__ import annotations

from dataclasses import dataclass

from lookalike.config.groups import Basics
from lookalike.config.options import option, same_option


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Basics):
    """All that `lookalike embed` can be told; raises ConfigError for a value out of its range."""

    data: str | None = option(
        None, "images to embed: a folder, however deep, a table, or shards", group="Images"
    )
    model_name: str = same_option(Basics, "model_name")
    images_per_part: int = option(
        4096,
        "images in each part, rounded up to whole batches; a command that is killed loses the "
        "part it was working on",
        group="Output",
        at_least=1,
        at_most=1_000_000,
        because="the embeddings of a part are in memory at once",
    )
    out: str = option(
        "embeddings",
        "folder for the embeddings; if it holds some parts of the same embeddings already, only "
        "the missing ones are embedded",
        group="Output",
        metavar="FOLDER",
    )
    overwrite: bool = option(False, "replace the embeddings that are there", group="Output")
