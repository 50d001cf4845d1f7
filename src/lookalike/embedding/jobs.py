"""A source cut into numbered parts that are embedded apart, in any order, and may be done again.

The rows of a part depend on its images alone: not on how many processes there are, which of them
embeds it, or which parts were done before. What hands out the numbers is somebody else's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from lookalike.data.images import ImageSet, Unreadable
from lookalike.data.reading.reader import Request
from lookalike.embedding.embedder import Embedder, check_finite


@dataclass(frozen=True)
class Plan:
    """How a source is cut: into parts of `images_per_part`, of which the last may have fewer.

    Each part is embedded in batches of `batch_size` of its own.
    """

    num_images: int
    images_per_part: int
    batch_size: int

    @property
    def num_parts(self) -> int:
        """How many parts there are."""
        return -(-self.num_images // self.images_per_part)

    def images_of(self, number: int) -> range:
        """Returns the positions of a part's images."""
        start = number * self.images_per_part
        return range(start, min(start + self.images_per_part, self.num_images))

    def requests_of(self, number: int) -> list[Request]:
        """Returns a part's batches."""
        images = self.images_of(number)
        size = self.batch_size
        return [Request(images[start : start + size]) for start in range(0, len(images), size)]


@dataclass(frozen=True)
class Part:
    """One part, embedded: a row for each image that could be read, in order.

    `unreadable` are the others, by their positions in the source.
    """

    number: int
    embeddings: Float32[Tensor, "n dim"]
    unreadable: dict[int, Unreadable]


def embed_parts(
    embedder: Embedder, images: ImageSet, plan: Plan, numbers: Sequence[int]
) -> Iterator[Part]:
    """Embeds some parts of a source, and yields each when it is done, in the order of `numbers`.

    Images are read ahead across parts. Of several processes each is given numbers of its own.

    Raises:
        DataError: a reading process died.
        ModelError: an embedding is not finite, or the device has too little memory.
    """
    if not numbers:
        return  # and no reading process is started
    requests = [request for number in numbers for request in plan.requests_of(number)]
    batches = embedder.read(embedder.loader(images.refs), requests, images.names)
    for number in numbers:
        rows: list[Tensor] = []
        unreadable: dict[int, Unreadable] = {}
        for request in plan.requests_of(number):
            batch = next(batches)
            check_finite(batch.embeddings, batch.names)
            rows.append(batch.embeddings)
            missing = sorted({*request.indices} - {*batch.positions.tolist()})
            unreadable |= zip(missing, batch.unreadable, strict=True)
        yield Part(number, torch.cat(rows), unreadable)
    next(batches, None)  # its display ends
