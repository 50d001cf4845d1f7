"""The gradient of a batch of any size, in the memory of a part of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from lookalike.runtime.randomness import random_state, restore_random_state
from lookalike.runtime.world import ALONE, World


def backward_in_chunks(
    embed: Callable[[Tensor, int], Tensor],
    pixels: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    chunk_size: int,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    world: World = ALONE,
    keeping_gradients: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Float[Tensor, ""]:
    """Adds the gradient of `scale(loss_of(embed(pixels)))`, with one chunk's activations at a time.

    Gradient caching (Gao et al., RepL4NLP 2021): all chunks are embedded, the loss of all
    embeddings is computed and derived by them, and each chunk is embedded once more, now for the
    backward pass, from the random state it had the first time, so that dropout drops the same.
    The last chunk need not be: its activations are still there. With a single chunk this is the
    plain step.

    Of several processes each embeds its part of the batch, computes the loss of the embeddings of
    all, and derives it by its own; the mean of what they add is the gradient.

    Args:
        embed: images to embeddings, each image for itself; called with gradients on or off, and
            told the place of the first image among `pixels`.
        pixels: the whole batch, or this process's part of it, of which `chunk_size` go at a time.
        loss_of: the loss of the whole batch's embeddings; called once, and returned.
        keeping_gradients: all backward passes but the last one are done inside of it.
    """
    *chunks, last_chunk = split_in_chunks(pixels, chunk_size, world)
    sizes = [len(chunk) for chunk in (*chunks, last_chunk)]
    *places, last_place = accumulate([0, *sizes[:-1]])
    states, embeddings = [], []
    for chunk, place in zip(chunks, places, strict=True):
        states.append(random_state(pixels.device))
        with torch.no_grad():
            embeddings.append(embed(chunk, place))
    kept = keeping_gradients if chunks else nullcontext
    with kept():
        last = embed(last_chunk, last_place)
    after = random_state(pixels.device)

    mine = torch.cat([*embeddings, last.detach()])[: len(pixels)]
    leaf, own = world.all_gather_rows(mine)
    leaf.requires_grad_()
    loss = loss_of(leaf)
    scale(loss).backward()
    assert leaf.grad is not None, "the loss does not depend on the embeddings"
    # Means over the processes are what they will make of it.
    gradient = leaf.grad[own] * world.size
    filled = pad(gradient, (0, 0, 0, sum(sizes) - len(gradient)))
    *gradients, last_gradient = filled.split(sizes)
    with kept():
        last.backward(last_gradient)
    for chunk, place, state, part in zip(chunks, places, states, gradients, strict=True):
        restore_random_state(state, pixels.device)
        with nullcontext() if chunk is chunks[-1] else keeping_gradients():
            embed(chunk, place).backward(part)
    restore_random_state(after, pixels.device)
    return loss.detach()


def split_in_chunks(pixels: Tensor, chunk_size: int, world: World) -> tuple[Tensor, ...]:
    """Returns the images in chunks of one size, the last one smaller; of several processes, in as
    many chunks in each, because all compute at a time. Black images fill up what would be empty.
    """
    if world.size == 1:
        return tuple(pixels.split(chunk_size))
    num_chunks = max(world.all_gather_objects(math.ceil(len(pixels) / chunk_size)))
    black = pixels.new_zeros(max(0, num_chunks - len(pixels)), *pixels.shape[1:])
    chunks: tuple[Tensor, ...] = torch.cat([pixels, black]).tensor_split(num_chunks)
    return chunks
