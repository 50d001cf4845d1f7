"""How many images' activations fit into memory at once."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lookalike.errors import ConfigError, TrainingError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import has_batch_norm
from lookalike.runtime.device import Runtime
from lookalike.runtime.memory import enough_memory, free_bytes
from lookalike.runtime.randomness import random_state, restore_random_state

# Kernels need room of their own, allocators lose some to gaps, and others want memory, too.
_USABLE_SHARE = 0.7


def find_chunk_size(
    wanted: int | Literal["auto"] | None,
    batch_size: int,
    encoder: CLIPEncoder,
    runtime: Runtime,
    *,
    saved: int | None,
    side: int | None = None,
) -> int:
    """Returns how many images go through the encoder at a time, in training.

    Args:
        wanted: a number; None for the whole batch; "auto" for as many as fit into the memory
            that is free now, in chunks as even as can be.
        batch_size: images in a batch, of several processes in the part of each.
        encoder: on its device, not yet trained.
        saved: what a resumed run had, which "auto" keeps where it fits: other chunks round
            otherwise.
        side: of the images it is trained on, in px; None for the model's own.

    Raises:
        ConfigError: a number is wanted, and the encoder computes statistics of the whole batch.
        TrainingError: not even one image fits.
    """
    whole_only = has_batch_norm(encoder)
    if whole_only and isinstance(wanted, int) and wanted < batch_size:
        raise ConfigError(
            f"batch_memory is {wanted}, and {encoder.model_name} normalises over the whole batch "
            f"(BatchNorm), which chunks would change; set it to none"
        )
    if wanted is None or whole_only:
        return batch_size
    if wanted != "auto":
        return wanted
    free = free_bytes(runtime.device) * _USABLE_SHARE
    if runtime.device.type != "cuda":  # which each process has for itself
        free /= runtime.world.local_size
    free -= _bytes_of_training(encoder)
    free = min(runtime.world.all_gather_objects(free))  # a try is of all processes, or of none
    what = f"not one image fits into the free memory of {runtime.device}"
    advice = "free some, use a smaller model, or add --gradient-checkpointing or --lora-rank 8"
    fitting = 0
    if free > 0:
        with enough_memory(TrainingError, what, advice):
            fitting = int(free / bytes_per_image(encoder, runtime, side))
        fitting = min(runtime.world.all_gather_objects(fitting))
    if fitting < 1:
        raise TrainingError(f"{what}; {advice}")
    if saved is not None and saved <= fitting:
        return saved
    return math.ceil(batch_size / math.ceil(batch_size / fitting))


def bytes_per_image(encoder: CLIPEncoder, runtime: Runtime, side: int | None = None) -> int:
    """Returns the bytes that one more image takes at the fullest moment of a step, by trying."""
    with only_tried(encoder, runtime):
        # Gradients of the weights are counted apart: they must be there before, or the moment when
        # the last of them is made could be fuller than any that one or two images fill.
        _peak_bytes(encoder, runtime, side, 1)
        return _peak_bytes(encoder, runtime, side, 2) - _peak_bytes(encoder, runtime, side, 1)


@contextmanager
def only_tried(encoder: CLIPEncoder, runtime: Runtime) -> Iterator[None]:
    """Inside the block an encoder is in training; afterwards in evaluation mode, without gradients,
    with running statistics and random numbers as before.
    """
    state = random_state(runtime.device)
    buffers = [(buffer, buffer.clone()) for buffer in encoder.buffers()]
    encoder.train()
    try:
        yield
    finally:
        encoder.zero_grad(set_to_none=True)
        encoder.eval()
        for buffer, before in buffers:
            buffer.copy_(before)
        restore_random_state(state, runtime.device)


def _peak_bytes(encoder: CLIPEncoder, runtime: Runtime, side: int | None, num_images: int) -> int:
    """Returns the most that was allocated at once in a forward and backward pass."""
    device, pixels = runtime.device, black(encoder, runtime, side, num_images)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        forward_and_backward(encoder, runtime, pixels)
        return int(torch.cuda.max_memory_allocated(device)) - before
    there_before = [*encoder.parameters(), *encoder.buffers()]
    there_before += [p.grad for p in encoder.parameters() if p.grad is not None]
    allocations = _Allocations(there_before)
    with allocations:
        forward_and_backward(encoder, runtime, pixels)
    return allocations.peak


def black(
    encoder: CLIPEncoder, runtime: Runtime, side: int | None, num_images: int
) -> UInt8[Tensor, "n 3 height width"]:
    """Returns black images of the encoder's own size, or of `side` px, on the device."""
    how = encoder.preprocessing.at(side) if side else encoder.preprocessing
    return how.black(num_images).to(runtime.device)


def forward_and_backward(encoder: CLIPEncoder, runtime: Runtime, pixels: Tensor) -> None:
    """Does what a step does with a chunk, but for the loss."""
    with runtime.autocast():
        embeddings = encoder(pixels)
    embeddings.sum().backward()


class _Allocations(TorchDispatchMode):
    """Counts bytes of tensors that operations make, while these live; none that were there."""

    def __init__(self, there_before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in there_before}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        for storage in (one.untyped_storage() for one in tree_leaves(made) if torch.is_tensor(one)):
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, storage._cdata)
        return made

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _bytes_of_training(encoder: CLIPEncoder) -> int:
    """Returns what gradients and AdamW's two means take, which the first step allocates."""
    trained = [p for _, p in encoder.trainable_parameters()]
    here = [p.to_local() if isinstance(p, DTensor) else p for p in trained]
    return 3 * sum(part.numel() for part in here) * torch.float32.itemsize
