"""All images of a loader to one matrix of embeddings, by one process or several."""

from __future__ import annotations

import numpy as np
import torch

from lookalike.data.images import list_unreadable, shown_path
from lookalike.data.reading.loader import ImageLoader, chunks_of
from lookalike.embedding.embedder import Embedded, Embedder, check_finite
from lookalike.errors import DataError


def embed(embedder: Embedder, loader: ImageLoader, *, title: str = "embedding") -> Embedded:
    """Embeds all images of a loader, and returns their rows together, on the CPU.

    Several processes embed a share of them each, and all get the rows of all, the same to the last
    bit as one process's with as many threads.

    Raises:
        DataError: not one image can be read.
        ModelError: an embedding is not finite, or the device has too little memory for a batch.
    """
    world, names = embedder.runtime.world, [shown_path(ref) for ref in loader.refs]
    requests = chunks_of(world, loader.num_images, embedder.batch_size)
    parts = list(embedder.read(loader, requests, names, embedder.batch_size, title=title))
    shares = world.all_gather_objects(
        ([part.positions for part in parts], [bad for part in parts for bad in part.unreadable])
    )
    positions = np.concatenate([some for share, _ in shares for some in share])
    unreadable = list(dict.fromkeys(bad for _, share in shares for bad in share))
    if not len(positions):
        raise DataError(f"none of the {loader.num_images:,} images can be read: "
                        f"{list_unreadable(unreadable)}")  # fmt: skip
    embeddings, _ = world.all_gather_rows(torch.cat([part.embeddings for part in parts]))
    readable = [names[position] for position in positions]
    check_finite(embeddings, readable)
    return Embedded(embeddings, positions, readable, unreadable)
