"""The measurement itself: embed what a protocol names, rank, score."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lookalike.data.images import ImageSet, Unreadable
from lookalike.data.reading.loader import ImageLoader
from lookalike.embedding.embed import embed
from lookalike.embedding.embedder import Embedder
from lookalike.errors import DataError
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.scoring.scores import QueryScores, joined, score_ranks
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import Progress, counted
from lookalike.runtime.world import ALONE, World
from lookalike.search.exclusions import Exclude
from lookalike.search.ranks import QUERIES_AT_A_TIME, ranks_of_relevant
from lookalike.search.rows import Rows
from lookalike.search.topk import MEMORY_BYTES, top_k

_ROWS_AT_A_TIME = 2**14


@dataclass(frozen=True)
class Retrieval:
    """One model's retrievals under one protocol.

    `positions` are places in `gallery`, best first, -1 where a row runs out; `scores` is None
    without labels. Row i of the embeddings is image i of `query` or `gallery`; `exclude` are
    the id columns that `top_k` was given.
    """

    query: ImageSet
    gallery: ImageSet
    query_embeddings: Float32[Tensor, "queries dim"] | Rows
    gallery_embeddings: Float32[Tensor, "gallery dim"] | Rows
    similarities: Float32[Tensor, "queries top_k"]
    positions: Int64[Tensor, "queries top_k"]
    scores: QueryScores | None
    unreadable: list[Unreadable]
    exclude: Exclude = ()

    @property
    def metrics(self) -> dict[str, float] | None:
        """Means over the queries that have an answer in the gallery; None without labels."""
        return self.scores.micro() if self.scores else None

    def fingerprint(self) -> str:
        """Returns a hash of which images were searched in which, less those that cannot be read."""
        sides = f"{self.query.fingerprint()} {self.gallery.fingerprint()}"
        return hashlib.sha256(sides.encode()).hexdigest()[:16]

    @property
    def num_without_answer(self) -> int:
        """Queries that have no answer in the gallery, and count nowhere else."""
        return self.scores.num_without_answer if self.scores else 0


def evaluate_encoder(
    embedder: Embedder,
    protocol: Protocol,
    loader: ImageLoader,
    *,
    top_k_wanted: int,
    progress: Progress,
    title: str = "evaluating",
) -> Retrieval:
    """Embeds each file of a protocol once, ranks the gallery for each query, and scores it.

    Raises:
        DataError: no query, or no gallery image, can be read.
    """
    embedded = embed(embedder, loader, title=title)
    row_of = np.full(loader.num_images, -1)
    row_of[embedded.positions] = np.arange(len(embedded.positions))
    query, query_ids = _still_readable(protocol.query, protocol.query_ids, row_of, "query")
    gallery, ids = _still_readable(protocol.gallery, protocol.gallery_ids, row_of, "gallery")
    query_embeddings = embedded.embeddings[row_of[query_ids]]
    both = query_ids == ids  # leave-one-out: one copy is enough
    return retrieve(
        query_embeddings,
        query_embeddings if both else embedded.embeddings[row_of[ids]],
        query,
        gallery,
        exclude=exclusions(query, gallery, query_ids, ids),
        top_k_wanted=top_k_wanted,
        progress=progress,
        unreadable=list(dict.fromkeys(protocol.unreadable + embedded.unreadable)),
        world=embedder.runtime.world,
    )


def retrieve(
    query_embeddings: Float32[Tensor, "queries dim"] | Rows,
    gallery_embeddings: Float32[Tensor, "gallery dim"] | Rows,
    query: ImageSet,
    gallery: ImageSet,
    *,
    exclude: Exclude,
    top_k_wanted: int,
    progress: Progress,
    unreadable: Sequence[Unreadable] = (),
    memory_bytes: int = MEMORY_BYTES,
    world: World = ALONE,
) -> Retrieval:
    """Finds the first `top_k_wanted` of each query and, with labels on both sides, scores it.

    Embeddings may come from anywhere; they are used as they are, L2-normalised or not. Of
    several processes, all of which have them, the first ranks and tells the others.

    Raises:
        DataError: an embedding is zero or not finite; or no query has an answer.
    """
    for side, embeddings in ((query, query_embeddings), (gallery, gallery_embeddings)):
        _check_embeddings(embeddings, side)
    sides = query_embeddings, gallery_embeddings
    labels = query.labels if gallery.labels is not None else None

    def rank() -> tuple[Tensor, Tensor, QueryScores | None]:
        """Similarities and positions of the first of each query, and scores, if of labels."""
        some: Iterable[tuple[slice, Tensor | None, Tensor | None]] = (
            (slice(start, start + QUERIES_AT_A_TIME), None, None)
            for start in range(0, len(query), QUERIES_AT_A_TIME)
        )
        if labels is not None:
            numbers = label_numbers(query, gallery)
            some = ranks_of_relevant(*sides, *numbers, exclude=exclude, memory_bytes=memory_bytes)
        found, scores = [], []
        with progress.task("ranking", len(query), "queries") as task:
            for part, ranks, num_relevant in some:
                banned = [(query_ids[part], gallery_ids) for query_ids, gallery_ids in exclude]
                asked = query_embeddings[part]
                found.append(
                    top_k(asked, sides[1], top_k_wanted, exclude=banned, memory_bytes=memory_bytes)
                )
                if labels is not None and ranks is not None and num_relevant is not None:
                    scores.append(score_ranks(labels[part], ranks, num_relevant))
                task.advance(len(asked))
        similarities, positions = map(torch.cat, zip(*found, strict=True))
        return similarities, positions, joined(scores) if scores else None

    similarities, positions, scores = world.on_main(rank)
    retrieval = Retrieval(
        query, gallery, *sides, similarities, positions, scores, list(unreadable), exclude
    )
    if scores is not None and retrieval.num_without_answer == len(query):
        raise DataError(
            f"none of the {len(query):,} queries has another image of its class in the "
            "gallery; add some, or leave the labels out to retrieve without metrics"
        )
    return retrieval


def _check_embeddings(embeddings: Float32[Tensor, "n dim"] | Rows, images: ImageSet) -> None:
    """Finds embeddings that have no direction, and names their images."""
    # The largest entry of a row says both: NaN and infinity are never below it.
    starts = range(0, len(embeddings), _ROWS_AT_A_TIME)
    parts = [embeddings[start : start + _ROWS_AT_A_TIME].abs().amax(dim=1) for start in starts]
    largest = torch.cat([torch.empty(0), *parts])
    for what, bad in (("not finite", ~largest.isfinite()), ("zero", largest == 0)):
        rows = bad.nonzero()[:, 0].tolist()
        if rows:
            names = ", ".join(shown(images.names[i]) for i in rows[:3])
            raise DataError(
                f"the embeddings of {counted(len(rows), 'image')} are {what}, such as {names}; "
                "leave them out, or look at the model"
            )


def _still_readable(
    images: ImageSet, ids: list[int], row_of: Int64[np.ndarray, " files"], side: str
) -> tuple[ImageSet, list[int]]:
    """The images of one side whose embedding there is, with their ids."""
    keep = [i for i, identity in enumerate(ids) if row_of[identity] >= 0]
    if not keep:
        raise DataError(f"no {side} image in {shown(images.root)} can be decoded")
    return (images, ids) if len(keep) == len(ids) else (images.subset(keep), [ids[i] for i in keep])


def exclusions(
    query: ImageSet, gallery: ImageSet, query_ids: list[int], gallery_ids: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """Returns id columns for `top_k`: the same file, and the same group where groups are known."""
    columns = [(torch.tensor(query_ids), torch.tensor(gallery_ids))]
    if query.groups is not None and gallery.groups is not None:
        # An image without a group shares it with none on the other side.
        sides = (
            [g or side for g in groups]
            for side, groups in enumerate((query.groups, gallery.groups))
        )
        columns.append(_numbered(*sides))
    return columns


def label_numbers(query: ImageSet, gallery: ImageSet) -> tuple[Tensor, Tensor]:
    """Returns the labels of both sides as numbers that are equal where the labels are."""
    return _numbered(query.labels or (), gallery.labels or ())


def _numbered(query: Sequence[Hashable], gallery: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """Both as numbers that are equal where the entries are."""
    numbers: dict[Hashable, int] = {}
    first, second = (
        torch.tensor([numbers.setdefault(one, len(numbers)) for one in side])
        for side in (query, gallery)
    )
    return first, second


def refuse_learned_classes(encoder: CLIPEncoder, protocol: Protocol) -> None:
    """Refuses to test a model on held-out classes of which it has learned some.

    Raises:
        DataError: it has.
    """
    if protocol.holdout is None:
        return
    learned = sorted(encoder.trained_on & set(protocol.holdout.classes))
    if learned:
        raise DataError(
            f"{encoder.model_name} has learned {len(learned):,} of the "
            f"{len(protocol.holdout.classes):,} held-out classes, such as {shown(learned[0])}; use "
            "the holdout_classes and holdout_seed it was trained with"
        )
