"""Copies among images: exact ones by hash, near ones by small descriptors and a closer look."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from lookalike.checks.copies.alignment import align
from lookalike.checks.copies.colour import of_one_colour
from lookalike.checks.reading.image import BLANK_CONTRAST, ImageFacts, chroma_of, luma_of
from lookalike.data.images import ImageRef
from lookalike.data.reading.decode import read_image
from lookalike.errors import ImageError
from lookalike.progress import Progress
from lookalike.search.topk import top_k

# Chosen from measured distributions: docs/experiments.md, "What a copy looks like".
MIN_DESCRIPTOR_SIMILARITY = 0.72
MIN_EMBEDDING_SIMILARITY = 0.8
MIN_HALF_AGREEMENT = 0.5  # of 16 px thumbs
MIN_COARSE_AGREEMENT = 0.75  # of 32 px thumbs
MIN_AGREEMENT = 0.85  # of the images at 96 px
MAX_SPILL = 0.03

_NEIGHBORS = 5
_CHROMA_WEIGHT = 0.2
_LOOK_PX = 96
_KEPT_PX = 192
_QUERIES_AT_A_TIME = 16384
_PAIRS_AT_A_TIME = 256  # what a processor's cache holds
_LOOKS_AT_A_TIME = 256


@dataclass(frozen=True)
class NearCopy:
    """Two images of which one is a changed copy of the other, by position."""

    first: int
    second: int
    agreement: float


def exact_groups(facts: Sequence[ImageFacts]) -> list[list[int]]:
    """Returns positions of images with the same pixels, whatever the files, two or more a group."""
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for position, one in enumerate(facts):
        if one.readable:
            groups[one.pixels_sha256].append(position)
    return [group for group in groups.values() if len(group) > 1]


def near_copies(
    refs: Sequence[ImageRef],
    facts: Sequence[ImageFacts],
    embeddings: Float32[Tensor, "n dim"] | None,
    *,
    max_megapixels: float,
    device: torch.device,
    progress: Progress,
) -> list[NearCopy]:
    """Returns pairs of images that are copies without being exact ones.

    Candidates are neighbours by descriptor, and by embedding where there are embeddings. Of
    exact copies the first stands for all; images that show nothing are copies of nothing.

    Args:
        refs, facts: of all files; those that cannot be read take no part.
        embeddings: L2-normalised, one row a file; rows of zeros for those that have none.
        max_megapixels: as in the scan.
        device: where neighbours are searched.
        progress: shows how far it is.
    """
    first_of: dict[bytes, int] = {}
    for position, one in enumerate(facts):
        if one.readable and one.contrast >= BLANK_CONTRAST:
            first_of.setdefault(one.pixels_sha256, position)
    if len(first_of) < 2:
        return []
    thumbs = [facts[position].thumb for position in first_of.values()]
    descriptors = describe_thumbs(thumbs)
    pairs = _neighbors(descriptors.to(device), MIN_DESCRIPTOR_SIMILARITY, progress)
    rows = torch.tensor(list(first_of.values()))
    if embeddings is not None:
        more = _neighbors(embeddings[rows].to(device), MIN_EMBEDDING_SIMILARITY, progress)
        pairs = torch.cat([pairs, more]).unique(dim=0)
    hopeful = _look_from_afar(facts, rows[pairs], progress)
    return _look_closely(refs, hopeful, max_megapixels, progress)


def describe_thumbs(thumbs: Sequence[bytes]) -> Float32[Tensor, "n 96"]:
    """Returns L2-normalised descriptors: 8x8 luma without brightness and contrast, 4x4 colour."""
    result = torch.empty(len(thumbs), 96)
    for row, thumb in enumerate(thumbs):
        luma = luma_of(thumb).reshape(8, 4, 8, 4).mean(axis=(1, 3)).ravel()
        luma -= luma.mean()
        luma /= np.linalg.norm(luma) + 1e-6
        chroma = chroma_of(thumb).reshape(2, 4, 2, 4, 2).mean(axis=(2, 4)).ravel()
        chroma = (chroma - 128) * (_CHROMA_WEIGHT / 40)
        result[row] = torch.from_numpy(np.concatenate([luma, chroma]))
    return normalize(result, dim=1)


def clusters(num: int, pairs: Sequence[tuple[int, int]]) -> Int64[np.ndarray, " num"]:
    """Returns for each of `num` things the smallest one that pairs connect it to (union-find)."""
    above = list(range(num))

    def root(one: int) -> int:
        while above[one] != one:
            above[one] = above[above[one]]
            one = above[one]
        return one

    for first, second in pairs:
        a, b = root(first), root(second)
        above[max(a, b)] = min(a, b)
    return np.array([root(one) for one in range(num)], dtype=np.int64)


def _neighbors(
    vectors: Float32[Tensor, "n dim"], least: float, progress: Progress
) -> Int64[Tensor, "pairs 2"]:
    """Returns pairs, each once, of rows of which one is near the other and similar enough."""
    everyone = torch.arange(len(vectors), device=vectors.device)
    found = [torch.empty(0, 2, dtype=torch.int64)]
    with progress.task("finding neighbours", len(vectors), "images") as task:
        for some in everyone.split(_QUERIES_AT_A_TIME):
            exclude = [(some, everyone)]
            similarities, places = top_k(vectors[some], vectors, _NEIGHBORS, exclude=exclude)
            rows, ranks = ((places >= 0) & (similarities >= least)).nonzero().unbind(dim=1)
            found.append(torch.stack([some[rows], places[rows, ranks]], dim=1).cpu())
            task.advance(len(some))
    once: Tensor = torch.cat(found).sort(dim=1).values.unique(dim=0)
    return once


def _look_from_afar(
    facts: Sequence[ImageFacts], pairs: Int64[Tensor, "pairs 2"], progress: Progress
) -> list[tuple[int, int, Tensor]]:
    """Returns the pairs whose thumbs can be laid over each other, with how."""
    hopeful: list[tuple[int, int, Tensor]] = []
    with progress.task("comparing thumbs", len(pairs), "pairs") as task:
        for begin in range(0, len(pairs), _PAIRS_AT_A_TIME):
            some = pairs[begin : begin + _PAIRS_AT_A_TIME]
            first, second = (
                torch.from_numpy(np.stack([luma_of(facts[i].thumb) for i in side]))
                for side in some.T.tolist()
            )
            # Most pairs are told apart at half the size, at a quarter of the cost.
            half = align(avg_pool2d(first, 2), avg_pool2d(second, 2), sides=(8, 16))
            rows = (half.agreement >= MIN_HALF_AGREEMENT).nonzero()[:, 0]
            start = half.placement[rows]
            whole = align(first[rows], second[rows], start=start, sides=(32,))
            passed = (whole.agreement >= MIN_COARSE_AGREEMENT) & (whole.spill <= 2 * MAX_SPILL)
            for which in passed.nonzero()[:, 0].tolist():
                a, b = some[rows[which]].tolist()
                hopeful.append((a, b, whole.placement[which]))
            task.advance(len(some))
    return hopeful


def _look_closely(
    refs: Sequence[ImageRef],
    hopeful: Sequence[tuple[int, int, Tensor]],
    max_megapixels: float,
    progress: Progress,
) -> list[NearCopy]:
    """Returns those of these pairs, by position in `refs`, that agree in detail."""

    def small(position: int) -> Image.Image | None:
        try:
            image = read_image(refs[position], max_megapixels, draft_px=2 * _KEPT_PX)
        except ImageError:
            return None  # it has changed since the scan
        image = image.convert("YCbCr")
        image.thumbnail((_KEPT_PX, _KEPT_PX), Image.Resampling.BOX)
        return image

    found: list[NearCopy] = []
    with (
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
        progress.task("comparing closely", len(hopeful), "pairs") as task,
    ):
        for start in range(0, len(hopeful), _LOOKS_AT_A_TIME):
            some = hopeful[start : start + _LOOKS_AT_A_TIME]
            wanted = sorted({i for first, second, _ in some for i in (first, second)})
            opened = zip(wanted, pool.map(small, wanted), strict=True)
            image_of = {position: image for position, image in opened if image is not None}
            known = [pair for pair in some if pair[0] in image_of and pair[1] in image_of]
            found += _agreeing(image_of, known) if known else []
            task.advance(len(some))
    return found


def _agreeing(
    image_of: dict[int, Image.Image], pairs: Sequence[tuple[int, int, Tensor]]
) -> list[NearCopy]:
    """Returns those of these pairs whose images agree."""
    squares = [_alike_squares(image_of[a], image_of[b]) for a, b, _ in pairs]
    first, second = (torch.stack(side) for side in zip(*squares, strict=True))
    start = torch.stack([placement for _, _, placement in pairs])
    aligned = align(first[:, 0], second[:, 0], start=start, sides=(_LOOK_PX,), iterations=6)
    passed = (aligned.agreement >= MIN_AGREEMENT) & (aligned.spill <= MAX_SPILL)
    passed &= of_one_colour(first, second, aligned.placement)
    found = zip(pairs, aligned.agreement.tolist(), passed.tolist(), strict=True)
    return [NearCopy(a, b, agreement) for (a, b, _), agreement, is_copy in found if is_copy]


def _alike_squares(a: Image.Image, b: Image.Image) -> list[Tensor]:
    """Returns two images as squares of one size, both as sharp as the smaller one; Y, Cb, Cr."""
    size = (min(a.width, b.width), min(a.height, b.height))
    shrunk = [image.resize(size, Image.Resampling.BOX) for image in (a, b)]
    squares = [image.resize((_LOOK_PX, _LOOK_PX)) for image in shrunk]
    planes = [np.moveaxis(np.asarray(square, dtype=np.float32), 2, 0) for square in squares]
    return [torch.from_numpy(np.ascontiguousarray(one)) for one in planes]
