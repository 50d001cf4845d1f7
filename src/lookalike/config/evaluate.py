"""The options of `lookalike evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lookalike.config.groups import Common
from lookalike.config.options import option
from lookalike.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Common):
    """All that `lookalike evaluate` can be told.

    Raises:
        ConfigError: a value is out of its range, or two of them contradict each other.
    """

    test_embeddings: str | None = option(
        None,
        "embeddings of the test images, made elsewhere: a .npy beside a .csv of the same name "
        "that has a column path, or a .parquet with columns path and embedding",
        group="Other systems",
        metavar="FILE",
    )
    query_embeddings: str | None = option(
        None, "the same for the queries", group="Other systems", metavar="FILE"
    )
    gallery_embeddings: str | None = option(
        None, "the same for the gallery", group="Other systems", metavar="FILE"
    )
    run: str | None = option(
        None,
        "a ranking made elsewhere, as a TREC run file; scored against qrels, without images",
        group="Other systems",
        metavar="FILE",
    )
    qrels: str | None = option(
        None,
        "what is right for each query of run, as a TREC qrels file",
        group="Other systems",
        metavar="FILE",
    )
    trec: bool = option(
        False,
        "also write a TREC run, as deep as top_k, and qrels; raise top_k for metrics that look "
        "further down",
        group="Output",
    )
    save_embeddings: Literal["none", "npy", "parquet"] = option(
        "none", "also write the embeddings, with the images' names", group="Output"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.run is None) != (self.qrels is None):
            given, missing = ("run", "qrels") if self.run else ("qrels", "run")
            raise ConfigError(f"{given} is given without {missing}; give both")
        if self.run is not None:
            for name in ("test", "query", "gallery", "holdout_classes", "group_pattern", "trec"):
                if getattr(self, name):
                    raise ConfigError(f"run and qrels are scored as they stand; leave {name} out")
            if self.save_embeddings != "none":
                raise ConfigError("run and qrels have no embeddings; leave save_embeddings out")
        for side, needed in (("test", ("test",)), ("query", ("gallery",)), ("gallery", ("query",))):
            if getattr(self, f"{side}_embeddings") is None:
                continue
            partner = f"{needed[0]}_embeddings"
            if getattr(self, side) is None:
                raise ConfigError(f"{side}_embeddings needs {side}: the images, or a table of "
                                  "their paths and labels")  # fmt: skip
            if getattr(self, partner) is None:
                raise ConfigError(f"{side}_embeddings is given without {partner}; give both")
