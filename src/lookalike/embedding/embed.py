"""Many images to one matrix of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lookalike.data.images import Unreadable, list_unreadable, shown_path
from lookalike.data.reading.loader import ImageLoader, chunks_of
from lookalike.errors import DataError, ModelError
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.model.inference import inference_form
from lookalike.progress import Progress, counted
from lookalike.runtime.device import Runtime
from lookalike.runtime.memory import enough_memory


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the images that could be read.

    Row i belongs to the loader's image `positions[i]`; positions rise.
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
    """Embeds all images of a loader, in evaluation mode, on the CPU in the end.

    Unreadable images are left out and listed. Several processes embed a share of them each,
    and all get the rows of all, the same to the last bit as one process's with as many threads.

    Raises:
        DataError: not one image can be read.
        ModelError: an embedding is not finite, or the device has too little memory for a batch.
    """
    rows: list[Tensor] = []
    positions: list[int] = []
    unreadable: list[Unreadable] = []
    world = runtime.world
    black, left = encoder.preprocessing.black(1), loader.num_images
    requests = chunks_of(world, loader.num_images, batch_size)
    at_a_time = counted(batch_size, "image")
    smaller = f"--eval-batch-size {batch_size // 2}, or " if batch_size > 1 else ""
    with (
        enough_memory(
            ModelError,
            f"{runtime.device} has too little memory to embed {at_a_time} at a time",
            f"set {smaller}--device cpu",
        ),
        evaluation_mode(encoder),
        torch.no_grad(),  # inference_mode would spoil sharded weights for training
        progress.task(title, loader.num_images) as task,
    ):
        embed_batch = inference_form(encoder, runtime)
        for batch in loader.read(requests):
            unreadable += batch.unreadable
            positions += batch.indices
            pixels = batch.pixels if batch.indices else black  # see chunks_of
            embedded = embed_batch(pixels.to(runtime.device, non_blocking=True))
            rows.append(embedded[: len(batch.indices)].cpu())
            # The others are about as far as this one.
            done = min(left, world.size * (len(batch.indices) + len(batch.unreadable)))
            left -= done
            task.advance(done)
        shares = world.all_gather_objects((positions, unreadable))
        task.advance(left)
    positions = [position for share, _ in shares for position in share]
    unreadable = list(dict.fromkeys(bad for _, share in shares for bad in share))
    if not positions:
        raise DataError(f"none of the {loader.num_images:,} images can be read: "
                        f"{list_unreadable(unreadable)}")  # fmt: skip
    embeddings, _ = world.all_gather_rows(torch.cat(rows))
    if not embeddings.isfinite().all():
        first = positions[int((~embeddings.isfinite()).any(dim=1).nonzero()[0])]
        raise ModelError(
            "the model gives numbers that are not finite, first for "
            f"{shown(shown_path(loader.refs[first]))}; "
            "try --precision fp32, or an earlier checkpoint"
        )
    return Embedded(embeddings, np.array(positions, dtype=np.int64), unreadable)
