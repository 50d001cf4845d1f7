"""Many pictures to one matrix of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lookalike.data.loader import ImageLoader, chunks
from lookalike.data.sources import Unreadable, list_unreadable
from lookalike.errors import DataError, ModelError
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.progress import Progress
from lookalike.runtime import Runtime


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the pictures that could be read.

    Row i belongs to the loader's picture `positions[i]`; positions rise.
    """

    embeddings: Float32[Tensor, "n dim"]
    positions: Int64[np.ndarray, " n"]
    unreadable: list[Unreadable]


def embed(
    encoder: CLIPEncoder,
    loader: ImageLoader,
    runtime: Runtime,
    *,
    batch_size: int,
    progress: Progress,
    title: str = "embedding",
) -> Embedded:
    """Embeds all pictures of a loader, in evaluation mode, on the CPU in the end.

    Unreadable pictures are left out and listed.

    Raises:
        DataError: not one picture can be read.
        ModelError: an embedding is not finite.
    """
    rows: list[Tensor] = []
    positions: list[int] = []
    unreadable: list[Unreadable] = []
    requests = chunks(loader.num_images, batch_size)
    with (
        evaluation_mode(encoder),
        torch.inference_mode(),
        progress.task(title, loader.num_images) as task,
    ):
        for batch in loader.read(requests):
            unreadable += batch.unreadable
            positions += batch.indices
            if batch.indices:
                with runtime.autocast():
                    rows.append(encoder(batch.pixels.to(runtime.device, non_blocking=True)).cpu())
            task.advance(len(batch.indices) + len(batch.unreadable))
    if not rows:
        raise DataError(f"none of the {loader.num_images:,} pictures can be read: "
                        f"{list_unreadable(unreadable)}")  # fmt: skip
    embeddings = torch.cat(rows)
    if not embeddings.isfinite().all():
        first = positions[int((~embeddings.isfinite()).any(dim=1).nonzero()[0])]
        raise ModelError(
            f"the model gives numbers that are not finite, first for {shown(loader.paths[first])}; "
            "try --precision fp32, or an earlier checkpoint"
        )
    return Embedded(embeddings, np.array(positions, dtype=np.int64), unreadable)
