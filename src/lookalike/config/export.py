"""The options of `lookalike export`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lookalike.config.groups import Shared
from lookalike.config.options import option, same_option, settle
from lookalike.errors import ConfigError

# The hub's own rules: no dash or dot at an end, no two of them in a row.
_PART = r"[A-Za-z0-9_](?:[.-]?[A-Za-z0-9_])*"
_REPOSITORY = re.compile(f"(?=.{{1,96}}$){_PART}/{_PART}")
_hub = partial(option, group="Hugging Face Hub")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """All that `lookalike export` can be told.

    Raises:
        ConfigError: a value is out of its range, or no name for a place on the hub.
    """

    model_name: str | None = same_option(
        Shared,
        "model_name",
        default=None,
        help="a Lookalike checkpoint (.pth), a local Transformers folder, or a hub id",
    )
    embedding: Literal["auto", "projected", "pooled"] = same_option(Shared, "embedding")
    to: Literal["transformers", "sentence-transformers", "onnx"] = option(
        "transformers",
        "a folder that from_pretrained loads, one that SentenceTransformer loads, or a graph from "
        "pixels to embeddings for any ONNX runtime",
        group="Output",
    )
    out: str = option(
        "export", "new folder; it appears whole or not at all", group="Output", metavar="FOLDER"
    )
    overwrite: bool = option(False, "replace an earlier export there", group="Output")
    push_to_hub: str | None = _hub(
        None,
        "also upload the folder to this repository, creating it if need be; the token comes from "
        "HF_TOKEN or `hf auth login`",
        metavar="OWNER/NAME",
    )
    private: bool = _hub(
        True,
        "make a new repository private; one that exists already stays as it is",
    )
    license: str | None = _hub(
        None,
        "licence of the weights, as the hub spells it, such as mit; none: the model card states "
        "none",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        settle(self)
        for name in ("model_name", "out", "license"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name} is empty; name something, or leave it out")
        if self.push_to_hub is not None and not _REPOSITORY.fullmatch(self.push_to_hub):
            raise ConfigError(
                f"push_to_hub is {self.push_to_hub!r}; expected a repository on the hub as "
                "OWNER/NAME, such as jane/shop-clip"
            )
