"""Text search by class name: one caption a class is the query, the gallery's images are searched.

The ranking and the metrics are those of image search (`search.ranks`, `metrics`): exact, and by
the same definitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from lookalike.data.images import ImageSet
from lookalike.errors import DataError
from lookalike.evaluation.metrics import TEXT_PREFIX, text_headline
from lookalike.evaluation.scoring.scores import QueryScores, joined, score_ranks
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.text import caption_of, embed_texts
from lookalike.progress import Progress
from lookalike.search.ranks import ranks_of_relevant
from lookalike.search.rows import Embeddings


@dataclass(frozen=True)
class TextQueries:
    """One query a class; row i of the embeddings is caption i."""

    labels: list[str]
    captions: list[str]
    embeddings: Float32[Tensor, "classes dim"]


def text_queries(
    encoder: CLIPEncoder, labels: Iterable[str], template: str, progress: Progress
) -> TextQueries:
    """Returns a query for each different label, in their order.

    Raises:
        ModelError: the model embeds no texts.
    """
    classes = sorted(set(labels))
    captions = [caption_of(label, template) for label in classes]
    return TextQueries(classes, captions, embed_texts(encoder, captions, progress=progress))


def search_by_text(
    queries: TextQueries, gallery: ImageSet, gallery_embeddings: Embeddings
) -> QueryScores:
    """Returns what each caption scores in the gallery, where the images of its class are right.

    A class without an image there counts apart, as a query without an answer does elsewhere.

    Raises:
        DataError: the gallery has no labels.
    """
    if gallery.labels is None:
        raise DataError("text search by class name needs labels in the gallery")
    number = {label: i for i, label in enumerate(queries.labels)}
    labels = torch.tensor([number.get(label, -1) for label in gallery.labels])
    classes = torch.arange(len(number))
    parts = ranks_of_relevant(queries.embeddings, gallery_embeddings, classes, labels)
    return joined(
        [score_ranks(queries.labels[one.queries], one.ranks, one.num_relevant) for one in parts]
    )


def text_metrics(scores: QueryScores) -> dict[str, float]:
    """Returns the metrics of text search that are reported, over classes."""
    over_classes = scores.micro()
    return {name: over_classes[name] for name in text_headline()}


def text_metric_names() -> tuple[str, ...]:
    """Returns the names that the metrics of text search have beside those of image search."""
    return tuple(TEXT_PREFIX + name for name in text_headline())


def named_apart(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics of text search under the names they have beside those of image search.

    >>> named_apart({"mAP": 0.25})
    {'text-mAP': 0.25}
    """
    return {TEXT_PREFIX + name: value for name, value in metrics.items()}


def text_document(scores: QueryScores | None) -> dict[str, Any]:
    """Returns what a metrics file says of text search: metrics, and how sure they are."""
    if scores is None:
        return {"text_metrics": None}
    intervals = {name: scores.intervals[name] for name in text_headline()}
    return {"text_metrics": text_metrics(scores), "text_intervals": intervals}
