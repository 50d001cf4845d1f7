"""The options of `lookalike evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from lookalike.config.groups import Common
from lookalike.config.options import option
from lookalike.errors import ConfigError

_made_elsewhere = partial(option, None, group="Other systems", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Common):
    """All that `lookalike evaluate` can be told.

    Raises:
        ConfigError: a value is out of its range, or two of them contradict each other.
    """

    test_embeddings: str | None = _made_elsewhere(
        "embeddings of the test images, made elsewhere: a .npy beside a .csv of the same name "
        "that has a column path, or a .parquet with columns path and embedding"
    )
    query_embeddings: str | None = _made_elsewhere("the same for the queries")
    gallery_embeddings: str | None = _made_elsewhere("the same for the gallery")
    run: str | None = _made_elsewhere(
        "a ranking made elsewhere, as a TREC run file; scored against qrels, without images"
    )
    qrels: str | None = _made_elsewhere("the right images of each query of run, as TREC qrels")
    trec: bool = option(
        False,
        "also write a TREC run, top_k results deep, and qrels; raise top_k for metrics that look "
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
                    raise ConfigError(f"run and qrels are scored as they are; leave {name} out")
            if self.save_embeddings != "none":
                raise ConfigError("run and qrels have no embeddings; leave save_embeddings out")
        for side, partner in (("test", "test"), ("query", "gallery"), ("gallery", "query")):
            given, needed = f"{side}_embeddings", f"{partner}_embeddings"
            if getattr(self, given) is None:
                continue
            if getattr(self, side) is None:
                raise ConfigError(f"{given} needs {side}: the images, or a table of their paths "
                                  "and labels")  # fmt: skip
            if getattr(self, needed) is None:
                raise ConfigError(f"{given} is given without {needed}; give both")
