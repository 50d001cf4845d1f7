"""Many pictures to one matrix of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from lookalike.data.reading.loader import ImageLoader, chunks_of
from lookalike.data.sources import Unreadable, list_unreadable
from lookalike.errors import DataError, ModelError
from lookalike.files import shown
from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.progress import Progress, counted
from lookalike.runtime import Runtime, enough_memory

EmbedBatch: TypeAlias = Callable[
    [UInt8[Tensor, "batch 3 height width"]], Float32[Tensor, "batch dim"]
]


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

    Unreadable pictures are left out and listed. Several processes embed a share of them each,
    and all get the rows of all, the same to the last bit as one process's with as many threads.

    Raises:
        DataError: not one picture can be read.
        ModelError: an embedding is not finite, or the device has too little memory for a batch.
    """
    rows: list[Tensor] = []
    positions: list[int] = []
    unreadable: list[Unreadable] = []
    processes = runtime.processes
    black, left = encoder.preprocessing.black(1), loader.num_images
    requests = chunks_of(processes, loader.num_images, batch_size)
    at_a_time = counted(batch_size, "picture")
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
            done = min(left, processes.count * (len(batch.indices) + len(batch.unreadable)))
            left -= done
            task.advance(done)
        shares = processes.gather_objects((positions, unreadable))
        task.advance(left)
    positions = [position for share, _ in shares for position in share]
    unreadable = list(dict.fromkeys(bad for _, share in shares for bad in share))
    if not positions:
        raise DataError(f"none of the {loader.num_images:,} pictures can be read: "
                        f"{list_unreadable(unreadable)}")  # fmt: skip
    embeddings, _ = processes.gather_rows(torch.cat(rows))
    if not embeddings.isfinite().all():
        first = positions[int((~embeddings.isfinite()).any(dim=1).nonzero()[0])]
        raise ModelError(
            f"the model gives numbers that are not finite, first for {shown(loader.paths[first])}; "
            "try --precision fp32, or an earlier checkpoint"
        )
    return Embedded(embeddings, np.array(positions, dtype=np.int64), unreadable)


def inference_form(encoder: CLIPEncoder, runtime: Runtime) -> EmbedBatch:
    """What embeds pictures as `encoder(pixels)` does, for many batches of them.

    In bf16 all weights are cast once, and what goes from layer to layer is bf16 as well, where
    autocast has most of it in float32 and casts again in each call. Embeddings have a cosine of
    about 0.9999 to those in float32 (`benchmarks/results/speed.md`). fp16, whose range is small,
    stays with autocast, and so do models with running statistics and those that are spread over
    processes.

    Args:
        encoder: in evaluation mode, on the runtime's device. Changes of its weights after this
            need another form.
        runtime: device and precision.
    """
    weights = _weights_in_bf16(encoder) if runtime.precision == "bf16" else None

    def embed_batch(pixels: Tensor) -> Tensor:
        if weights is None:
            with runtime.autocast():
                embeddings: Tensor = encoder(pixels)
        else:
            normalised = encoder.normalised(pixels).to(torch.bfloat16)
            embeddings = functional_call(encoder, weights, (normalised,))
        return embeddings

    return embed_batch


def _weights_in_bf16(encoder: CLIPEncoder) -> dict[str, Tensor] | None:
    """What `functional_call` takes; None where the encoder cannot be called with it."""
    is_spread = any(isinstance(p, DTensor) for p in encoder.parameters())
    has_statistics = any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules()
    )
    if is_spread or has_statistics:
        return None
    return {name: p.detach().to(torch.bfloat16) for name, p in encoder.vision_parameters()}
