"""What is searched in what: query and gallery, or leave-one-out; and the measurement itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.data.loader import ImageLoader
from lookalike.data.sources import (
    TABLE_ENDINGS,
    ImageSet,
    Unreadable,
    keep_readable,
    load_images,
)
from lookalike.embedding.embed import embed
from lookalike.embedding.topk import CHUNK_BYTES, top_k
from lookalike.errors import DataError
from lookalike.evaluation.metrics import average_precision, average_precision_at_r, recall_at_k
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import Progress
from lookalike.runtime import Runtime

RECALL_KS = (1, 5, 10)


@dataclass(frozen=True)
class Protocol:
    """Queries, gallery, and which of their pictures must not match.

    `query_ids` and `gallery_ids` name the file each picture is: one file has one id wherever
    it stands, so a picture is kept from finding itself even where the two sides overlap.
    """

    kind: Literal["query-gallery", "leave-one-out"]
    query: ImageSet
    gallery: ImageSet
    query_ids: list[int]
    gallery_ids: list[int]
    files: list[str]
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether there are labels on both sides, and so metrics."""
        return self.query.labels is not None and self.gallery.labels is not None

    def repeated_names(self) -> int:
        """Pictures whose file name another of their side has as well."""
        sides = [self.query, self.gallery]
        return sum(
            len(side) - len({os.path.basename(name) for name in side.names}) for side in sides
        )

    def describe(self) -> str:
        """One line for the start of a run."""
        if self.kind == "leave-one-out":
            classes = len(set(self.query.labels or ()))
            word = "class" if classes == 1 else "classes"
            return f"{len(self.query):,} pictures, {classes:,} {word}, leave-one-out"
        sides = {"queries": self.query.labels, "gallery": self.gallery.labels}
        bare = " and ".join(side for side, labels in sides.items() if labels is None)
        return f"{len(self.query):,} queries in a gallery of {len(self.gallery):,}" + (
            f"; no labels for {bare}, so no metrics" if bare else ""
        )

    def facts(self) -> dict[str, Any]:
        """What the numbers were measured on, for the metrics file."""
        return {
            "kind": self.kind,
            "num_queries": len(self.query),
            "num_gallery": len(self.gallery),
            "num_query_classes": len(set(self.query.labels)) if self.query.labels else None,
            "num_gallery_classes": len(set(self.gallery.labels)) if self.gallery.labels else None,
            "excluded": "the query's own file; pictures of its group, where groups are given",
            "query_fingerprint": self.query.fingerprint(),
            "gallery_fingerprint": self.gallery.fingerprint(),
        }


@dataclass(frozen=True)
class Retrieval:
    """What one model retrieves under one protocol.

    `positions` are places in `gallery`, best first, -1 where a row runs out; `metrics` is None
    without labels, otherwise means over the queries that have an answer in the gallery.
    """

    query: ImageSet
    gallery: ImageSet
    similarities: Float32[Tensor, "queries top_k"]
    positions: Int64[Tensor, "queries top_k"]
    metrics: dict[str, float] | None
    num_without_answer: int
    unreadable: list[Unreadable]


def load_protocol(config: TrainConfig | EvaluateConfig, progress: Progress) -> Protocol | None:
    """The protocol a configuration asks for; None if it names no test pictures.

    `query` and `gallery` are two sources, or one table with a column `is_query`. A `test`
    source is leave-one-out, or, if it is a table with `is_query`, query against gallery. Of
    tables with a column `split` the rows of split `test` count (`query` and `gallery` are
    understood as well).

    Raises:
        DataError: sources that are missing, empty, or unlabelled where labels are needed.
    """
    protocol = _load(config, progress)
    if protocol is not None:
        _check_labels_meet(protocol)
    repeated = protocol.repeated_names() if protocol else 0
    if repeated:
        progress.warn(
            f"{repeated:,} test pictures share their file name with another; results name pictures "
            "by their path below the folder instead"
        )
    return protocol


def _load(config: TrainConfig | EvaluateConfig, progress: Progress) -> Protocol | None:
    test = config.test
    if test is None and config.query is None and isinstance(config, TrainConfig):
        test = _table_with_test_rows(config.train)
    if test is not None:
        return _single_source(test, config.max_megapixels, progress)
    if config.query is None or config.gallery is None:
        return None
    query, bad_queries = _readable_side(config.query, "query", config.max_megapixels, progress)
    gallery, bad_gallery = _readable_side(
        config.gallery, "gallery", config.max_megapixels, progress
    )
    return _protocol("query-gallery", query, gallery, _once(bad_queries + bad_gallery))


def evaluate_encoder(
    encoder: CLIPEncoder,
    protocol: Protocol,
    loader: ImageLoader,
    runtime: Runtime,
    *,
    top_k_wanted: int,
    batch_size: int,
    progress: Progress,
    title: str = "evaluating",
) -> Retrieval:
    """Embeds each file of a protocol once, ranks the gallery for each query, and scores it.

    Raises:
        DataError: no query, or no gallery picture, can be read.
    """
    embedded = embed(
        encoder, loader, runtime, batch_size=batch_size, progress=progress, title=title
    )
    row_of = np.full(loader.num_images, -1)
    row_of[embedded.positions] = np.arange(len(embedded.positions))
    query, query_ids = _still_readable(protocol.query, protocol.query_ids, row_of, "query")
    gallery, gallery_ids = _still_readable(
        protocol.gallery, protocol.gallery_ids, row_of, "gallery"
    )
    return _rank(
        embedded.embeddings[row_of[query_ids]],
        embedded.embeddings[row_of[gallery_ids]],
        query,
        gallery,
        exclude=_exclusions(query, gallery, query_ids, gallery_ids),
        top_k_wanted=top_k_wanted,
        unreadable=_once(protocol.unreadable + embedded.unreadable),
    )


def _rank(
    query_embeddings: Float32[Tensor, "queries dim"],
    gallery_embeddings: Float32[Tensor, "gallery dim"],
    query: ImageSet,
    gallery: ImageSet,
    *,
    exclude: list[tuple[Tensor, Tensor]],
    top_k_wanted: int,
    unreadable: list[Unreadable],
) -> Retrieval:
    """Ranks the whole gallery for a few queries at a time; keeps top k and scores."""
    labelled = query.labels is not None and gallery.labels is not None
    query_labels, gallery_labels = _label_numbers(query, gallery) if labelled else (None, None)
    kept = min(top_k_wanted, len(gallery))
    similarities, positions = [], []
    scores: dict[str, list[Tensor]] = {}
    without_answer = 0
    rows = max(1, CHUNK_BYTES // (16 * len(gallery)))
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        similarity, position = top_k(
            query_embeddings[part],
            gallery_embeddings,
            k=len(gallery) if labelled else kept,
            exclude=[(query_ids[part], gallery_ids) for query_ids, gallery_ids in exclude],
        )
        similarities.append(similarity[:, :kept].clone())
        positions.append(position[:, :kept].clone())
        if query_labels is None or gallery_labels is None:
            continue
        relevant = (gallery_labels[position] == query_labels[part, None]) & (position >= 0)
        num_relevant = relevant.sum(dim=1)
        answerable = num_relevant > 0
        without_answer += int((~answerable).sum())
        for name, values in _scores(relevant[answerable], num_relevant[answerable]).items():
            scores.setdefault(name, []).append(values)
    metrics = {name: float(torch.cat(values).mean()) for name, values in scores.items()}
    if labelled and without_answer == len(query):
        raise DataError(
            f"not one of the {len(query):,} queries has another picture of its class in the "
            "gallery; add some, or leave the labels out to retrieve without metrics"
        )
    return Retrieval(
        query,
        gallery,
        torch.cat(similarities),
        torch.cat(positions),
        metrics if labelled else None,
        without_answer,
        unreadable,
    )


def _scores(relevant: Tensor, num_relevant: Tensor) -> dict[str, Tensor]:
    """The numbers that are reported, one a query."""
    scores = {f"recall@{k}": recall_at_k(relevant, k) for k in RECALL_KS}
    scores["mAP"] = average_precision(relevant, num_relevant)
    scores["mAP@R"] = average_precision_at_r(relevant, num_relevant)
    return scores


def _single_source(source: str, max_megapixels: float, progress: Progress) -> Protocol:
    images = load_images(source, progress).of_split("test", "query", "gallery")
    if images.labels is None:
        raise DataError(
            f"{shown(source)} has no labels, and a test searches each picture's class among the "
            "others; give a class-per-folder tree, a table with labels, or --query and --gallery"
        )
    images, bad = keep_readable(images, max_megapixels, progress)
    if images.is_query is None:
        return _protocol("leave-one-out", images, images, bad)
    flags = images.is_query
    query = images.subset(i for i, flag in enumerate(flags) if flag)
    gallery = images.subset(i for i, flag in enumerate(flags) if not flag)
    if not len(query) or not len(gallery):
        raise DataError(f"{shown(source)} needs rows with is_query true and rows with it false")
    return _protocol("query-gallery", query, gallery, bad)


def _readable_side(
    source: str, side: str, max_megapixels: float, progress: Progress
) -> tuple[ImageSet, list[Unreadable]]:
    """One side of a query/gallery protocol."""
    images = load_images(source, progress).of_split("test", side)
    if images.is_query is not None:
        wanted = side == "query"
        images = images.subset(i for i, flag in enumerate(images.is_query) if flag == wanted)
    if not len(images):
        raise DataError(f"{shown(source)} has no {side} rows; its column is_query or split "
                        "leaves none over")  # fmt: skip
    return keep_readable(images, max_megapixels, progress)


def _table_with_test_rows(source: str | None) -> str | None:
    """A training table that brings its own test rows is also the test."""
    if source is None or Path(source).suffix.lower() not in TABLE_ENDINGS:
        return None
    splits = load_images(source).splits
    return source if splits is not None and "test" in splits else None


def _protocol(
    kind: Literal["query-gallery", "leave-one-out"],
    query: ImageSet,
    gallery: ImageSet,
    unreadable: list[Unreadable],
) -> Protocol:
    """Gives each file one id, across both sides."""
    ids: dict[str, int] = {}
    files: list[str] = []
    columns: list[list[int]] = []
    for side in (query, gallery):
        columns.append([])
        for path in side.paths:
            identity = ids.setdefault(os.path.realpath(path), len(ids))
            if identity == len(files):
                files.append(path)
            columns[-1].append(identity)
    return Protocol(kind, query, gallery, columns[0], columns[1], files, unreadable)


def _still_readable(
    images: ImageSet, ids: list[int], row_of: Int64[np.ndarray, " files"], side: str
) -> tuple[ImageSet, list[int]]:
    """The pictures of one side whose embedding there is, with their ids."""
    keep = [i for i, identity in enumerate(ids) if row_of[identity] >= 0]
    if not keep:
        raise DataError(f"not one {side} picture in {shown(images.root)} can be decoded")
    if len(keep) == len(ids):
        return images, ids
    return images.subset(keep), [ids[i] for i in keep]


def _check_labels_meet(protocol: Protocol) -> None:
    """Finds labels that can never match before anything is embedded."""
    query, gallery = protocol.query.labels, protocol.gallery.labels
    if query is None or gallery is None or set(query) & set(gallery):
        return
    raise DataError(
        f"queries and gallery have no class in common (query classes such as {shown(query[0])!r}, "
        f"gallery classes such as {shown(gallery[0])!r}); use the same class names on both sides"
    )


def _exclusions(
    query: ImageSet, gallery: ImageSet, query_ids: list[int], gallery_ids: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """Id columns for `top_k`: the same file, and the same group where groups are known."""
    columns = [(torch.tensor(query_ids), torch.tensor(gallery_ids))]
    if query.groups is not None and gallery.groups is not None:
        numbers: dict[str, int] = {}
        both = []
        for side, groups in enumerate((query.groups, gallery.groups)):
            alone = -1 - side  # a picture without a group shares it with none on the other side
            both.append(
                torch.tensor([numbers.setdefault(g, len(numbers)) if g else alone for g in groups])
            )
        columns.append((both[0], both[1]))
    return columns


def _label_numbers(query: ImageSet, gallery: ImageSet) -> tuple[Tensor, Tensor]:
    """Labels of both sides as numbers that are equal where the labels are."""
    numbers: dict[str, int] = {}
    query_numbers, gallery_numbers = (
        torch.tensor([numbers.setdefault(label, len(numbers)) for label in side.labels or ()])
        for side in (query, gallery)
    )
    return query_numbers, gallery_numbers


def _once(unreadable: list[Unreadable]) -> list[Unreadable]:
    """Without those told of before: a file may stand on both sides."""
    return list(dict.fromkeys(unreadable))
