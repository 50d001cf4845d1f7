"""One step of training: a batch of any size, in the memory of a part of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad

from lookalike.errors import NonFiniteError, TrainingError
from lookalike.model.adapters import merge_for_good, merged
from lookalike.model.encoder import CLIPEncoder
from lookalike.processes import ALONE, Processes
from lookalike.runtime import Runtime, random_state, restore_random_state
from lookalike.training.optimization.averaging import WeightAverage
from lookalike.training.parallel import Spread


@dataclass(frozen=True)
class Stepped:
    """What a step came to. The norm is that of the gradient before it was shortened."""

    loss: float
    grad_norm: float


class Learner:
    """An encoder in training, with all that changes its weights.

    Args:
        encoder: its trainable parameters are trained.
        objective: called once a step, as `objective(embeddings, labels)`, with the whole batch.
        optimizer: of the encoder's parameters and the objective's.
        runtime: device, precision and processes.
        chunk_size: pictures that go through the encoder at a time, in each process.
        max_grad_norm: the encoder's gradient is shortened to it; None: never.
        average: takes in the weights after each step, and is what is measured; None: off.
    """

    def __init__(
        self,
        encoder: CLIPEncoder,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        runtime: Runtime,
        *,
        chunk_size: int,
        max_grad_norm: float | None,
        average: WeightAverage | None = None,
    ) -> None:
        self.encoder, self.objective, self.optimizer = encoder, objective, optimizer
        self.runtime, self.scaler = runtime, runtime.grad_scaler()
        self.chunk_size = chunk_size
        self.max_grad_norm = max_grad_norm
        self.average = average
        self.parameters = [p for _, p in encoder.trainable_parameters()]
        self._spread = Spread(encoder, runtime.processes)
        self.between_steps = True  # False while weights and optimiser are being changed

    def step(
        self,
        pixels: UInt8[Tensor, "part 3 height width"],
        labels: Int64[Tensor, " batch"],
    ) -> Stepped:
        """Changes the weights once; the gradient is that of the whole batch.

        Args:
            pixels: the batch, or this process's part of it.
            labels: of the whole batch.

        Raises:
            NonFiniteError: loss or gradient is; no weight was changed.
            TrainingError: the device has too little memory; no weight was changed.
        """
        self.encoder.train()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss = backward_in_chunks(
                self._embed,
                pixels,
                lambda embeddings: self._loss(embeddings, labels),
                chunk_size=self.chunk_size,
                scale=self.scaler.scale,
                processes=self.runtime.processes,
                keeping_gradients=self._spread.keeping_gradients,
            )
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{self.runtime.device} has too little memory for {self.chunk_size} pictures at a "
                f"time ({str(error).partition('.')[0]}); set --batch-memory "
                f"{max(1, self.chunk_size // 2)}, or add --gradient-checkpointing"
            ) from error
        self.scaler.unscale_(self.optimizer)
        limit = self.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # With gradient scaling an overflow is expected now and then, and the scaler skips it.
        if not self.scaler.is_enabled():
            _check_finite("gradient", norm)
        self.between_steps = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        self.between_steps = True
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:  # 17 overflows in a row
            _check_finite("gradient", norm)
        return Stepped(loss.item(), norm.item())

    @contextmanager
    def measured(self) -> Iterator[CLIPEncoder]:
        """Inside the block the encoder has the weights that are measured and saved: averaged, and
        with LoRA merged into them. Afterwards it goes on with its own, the same to the bit.
        """
        with self.average.applied() if self.average else nullcontext(), merged(self.encoder):
            yield self.encoder

    def finish(self) -> CLIPEncoder:
        """The encoder with the weights that were measured, for good; it is trained no more."""
        if self.average is not None:
            self.average.swap()
        merge_for_good(self.encoder)
        return self.encoder.eval()

    def _embed(self, pixels: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        with self.runtime.autocast():
            return self._spread(pixels)

    def _loss(
        self, embeddings: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        loss: Tensor = self.objective(embeddings, labels)
        _check_finite("loss", loss)
        return loss


def backward_in_chunks(
    embed: Callable[[Tensor], Tensor],
    pixels: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    chunk_size: int,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    processes: Processes = ALONE,
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
        embed: pictures to embeddings, each picture for itself; called with gradients on or off.
        pixels: the whole batch, or this process's part of it.
        loss_of: the loss of the whole batch's embeddings; called once.
        chunk_size: pictures at a time.
        scale: applied to the loss before it is derived.
        processes: that share the batch.
        keeping_gradients: all backward passes but the last one are done inside of it.

    Returns:
        The loss before scaling.
    """
    *chunks, last_chunk = _chunks(pixels, chunk_size, processes)
    states, embeddings = [], []
    for chunk in chunks:
        states.append(random_state(pixels.device))
        with torch.no_grad():
            embeddings.append(embed(chunk))
    kept = keeping_gradients if chunks else nullcontext
    with kept():
        last = embed(last_chunk)
    after = random_state(pixels.device)

    mine = torch.cat([*embeddings, last.detach()])[: len(pixels)]
    leaf, own = processes.gather_rows(mine)
    leaf.requires_grad_()
    loss = loss_of(leaf)
    scale(loss).backward()
    assert leaf.grad is not None, "the loss does not depend on the embeddings"
    # Means over the processes are what they will make of it.
    gradient = leaf.grad[own] * processes.count
    sizes = [len(chunk) for chunk in (*chunks, last_chunk)]
    filled = pad(gradient, (0, 0, 0, sum(sizes) - len(gradient)))
    *gradients, last_gradient = filled.split(sizes)
    with kept():
        last.backward(last_gradient)
    for chunk, state, part in zip(chunks, states, gradients, strict=True):
        restore_random_state(state, pixels.device)
        with nullcontext() if chunk is chunks[-1] else keeping_gradients():
            embed(chunk).backward(part)
    restore_random_state(after, pixels.device)
    return loss.detach()


def _chunks(pixels: Tensor, chunk_size: int, processes: Processes) -> tuple[Tensor, ...]:
    """The pictures in chunks of one size, the last one smaller; or, of several processes, in as
    many chunks in each, because all compute at a time. Black pictures fill up what would be empty.
    """
    if processes.count == 1:
        return tuple(pixels.split(chunk_size))
    num_chunks = max(processes.gather_objects(math.ceil(len(pixels) / chunk_size)))
    black = pixels.new_zeros(max(0, num_chunks - len(pixels)), *pixels.shape[1:])
    chunks: tuple[Tensor, ...] = torch.cat([pixels, black]).tensor_split(num_chunks)
    return chunks


def _check_finite(what: str, value: Tensor) -> None:
    if not value.isfinite():
        raise NonFiniteError(f"the {what} became {value.item()}")
