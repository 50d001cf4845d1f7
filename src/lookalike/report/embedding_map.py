"""A flat map of embeddings: images that lie close in it are mostly alike to the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.data.images import ImageSet
from lookalike.evaluation.retrieval import Retrieval

Point = tuple[bool, int]

MAX_POINTS = 1500
_FEW = 12  # too few neighbours for t-SNE to make sense of
_STEPS = 500  # as trustworthy a map as of the usual 1000 (docs/experiments.md), in half the time


@dataclass(frozen=True)
class EmbeddingMap:
    """A sample of images with a place each; `points` are (is a query, position on its side)."""

    points: list[Point]
    places: Float64[np.ndarray, "n 2"]
    method: str
    num_images: int  # of which the points are a sample


def has_tsne() -> bool:
    """Returns whether scikit-learn is installed."""
    return find_spec("sklearn") is not None


def choose_points(retrieval: Retrieval) -> list[Point]:
    """Returns images of queries and gallery; of many a sample, even over sides and classes."""
    sides = _sides(retrieval)
    return [
        (is_query, i)
        for is_query, images in sides.items()
        for i in sample_evenly(images, MAX_POINTS // len(sides), seed=0)
    ]


def draw_map(retrieval: Retrieval, points: list[Point]) -> EmbeddingMap:
    """Returns these images, queries and gallery together, with their places on one map."""
    embeddings = {True: retrieval.query_embeddings, False: retrieval.gallery_embeddings}
    rows = torch.stack([embeddings[is_query][i] for is_query, i in points])
    num_images = sum(map(len, _sides(retrieval).values()))
    return EmbeddingMap(points, *project(rows.float(), seed=0), num_images)


def _sides(retrieval: Retrieval) -> dict[bool, ImageSet]:
    """The images by whether they are queries; in leave-one-out each is one, and counts once."""
    if retrieval.query is retrieval.gallery:
        return {True: retrieval.query}
    return {True: retrieval.query, False: retrieval.gallery}


def sample_evenly(images: ImageSet, room: int, *, seed: int) -> list[int]:
    """Returns up to `room` images: a first one of each class, then a second one, and so on."""
    shuffled = np.random.default_rng(seed).permutation(len(images)).tolist()
    seen: Counter[str] = Counter()
    turns = []
    for place, i in enumerate(shuffled):
        label = images.labels[i] if images.labels is not None else ""
        turns.append((seen[label], place, i))
        seen[label] += 1
    return sorted(i for _, _, i in sorted(turns)[:room])


def project(
    embeddings: Float32[Tensor, "n dim"], *, seed: int
) -> tuple[Float64[np.ndarray, "n 2"], str]:
    """Returns two coordinates an image, and the method: t-SNE if it is installed, or PCA.

    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE" (JMLR 2008), on cosine
    distances, starting from the two principal components.
    """
    rows = normalize(embeddings, dim=1)
    places = principal_components(rows)
    if len(rows) <= _FEW or not has_tsne():
        return places, "PCA"
    from sklearn.manifold import TSNE

    # As small as t-SNE likes it; scikit-learn does the same to its own PCA.
    start = places / max(float(places[:, 0].std()), 1e-12) * 1e-4
    tsne = TSNE(
        metric="cosine",
        init=start.astype(np.float32),
        perplexity=min(30.0, (len(rows) - 1) / 3),
        max_iter=_STEPS,
        random_state=seed,
    )
    return tsne.fit_transform(rows.numpy()).astype(np.float64), "t-SNE"


def principal_components(rows: Float32[Tensor, "n dim"]) -> Float64[np.ndarray, "n 2"]:
    """Returns the two directions along which rows differ most, each with a sign that stays."""
    centred = rows.double() - rows.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    places = torch.zeros(len(rows), 2, dtype=torch.float64)
    places[:, : len(directions)] = centred @ (directions * largest.sign()).T
    return places.numpy()
