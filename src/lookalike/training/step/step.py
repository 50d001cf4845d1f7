"""One step of training: what changes an encoder's weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lookalike.errors import NonFiniteError, TrainingError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import patches_drawn_by
from lookalike.model.lora import merge_for_good, merged
from lookalike.runtime.device import Runtime
from lookalike.runtime.memory import enough_memory
from lookalike.runtime.randomness import random_state, restore_random_state
from lookalike.runtime.world import World
from lookalike.training.regularizers import NO_REGULARIZERS, Regularizers
from lookalike.training.sharding import is_sharded
from lookalike.training.step.compiling import leave_uncompiled, uncompiled
from lookalike.training.step.gradient_cache import backward_in_chunks


@dataclass(frozen=True)
class Stepped:
    """What a step came to. The norm is that of the gradient before it was shortened."""

    loss: float
    grad_norm: float


class TrainingStep:
    """An encoder in training, with all that changes its weights.

    Args:
        objective: called once a step, as `objective(embeddings, labels)`, with the whole batch.
        optimizer: of the encoder's parameters and the objective's.
        chunk_size: images that go through the encoder at a time, in each process.
        max_grad_norm: the gradient of all that is trained is shortened to it; None: never.
        regularizers: what holds the encoder near its baseline.
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
        regularizers: Regularizers = NO_REGULARIZERS,
    ) -> None:
        self.encoder, self.objective, self.optimizer = encoder, objective, optimizer
        self.runtime, self.scaler = runtime, runtime.grad_scaler()
        self.chunk_size, self.max_grad_norm = chunk_size, max_grad_norm
        self.regularizers = regularizers
        self.parameters = _all_parameters(encoder, optimizer)
        self._parallel = _parallel(encoder, runtime.world)
        self.weights_are_whole = True  # False while weights and optimizer are being changed

    def take(
        self,
        pixels: UInt8[Tensor, "part 3 height width"],
        labels: Int64[Tensor, " part"],
        *,
        seed: tuple[int, ...] | None = None,
    ) -> Stepped:
        """Changes the weights once; the gradient is that of the whole batch, of which `pixels` are
        all or this process's part, with their `labels`.

        With a `seed` of this step the patches that are left out depend on it and on the place of
        an image in the whole batch alone, not on processes and chunks.

        Raises:
            NonFiniteError: loss or gradient is; no weight was changed.
            TrainingError: the device has too little memory; no weight was changed.
        """
        with self._undone_on_failure():
            loss = self._backward(pixels, labels, seed)
            self.scaler.unscale_(self.optimizer)
            norm = _clip_gradient(self.parameters, self.max_grad_norm)
            # With gradient scaling an overflow is expected now and then, and the scaler skips it.
            if not self.scaler.is_enabled():
                _check_finite("gradient", norm)
            self.weights_are_whole = False
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.weights_are_whole = True
            least = 1 / self.runtime.world.size  # after 17 overflows in a row
            if self.scaler.is_enabled() and self.scaler.get_scale() < least:
                _check_finite("gradient", norm)
            return Stepped(loss.item(), norm.item())

    def _backward(
        self, pixels: Tensor, labels: Tensor, seed: tuple[int, ...] | None
    ) -> Float[Tensor, ""]:
        """Makes the gradient of a batch, which may be scaled; returns the loss, which is not."""
        if not self.encoder.training:  # to say so to hundreds of modules takes a while
            self.encoder.train()
        self.optimizer.zero_grad(set_to_none=True)
        all_labels, own = self.runtime.world.all_gather_rows(labels)
        with enough_memory(
            TrainingError,
            f"{self.runtime.device} has too little memory for {self.chunk_size} images at a time",
            f"set --batch-memory {max(1, self.chunk_size // 2)}, or add --gradient-checkpointing",
        ):
            baseline = self.regularizers.embed_baseline(
                pixels, self.runtime, chunk_size=self.chunk_size
            )

            def loss_of(embeddings: Tensor) -> Tensor:
                loss: Tensor = self.objective(embeddings, all_labels)
                loss = loss + self.regularizers.loss(embeddings, all_labels, baseline)
                _check_finite("loss", loss)
                return loss

            def embed(chunk: Tensor, place: int) -> Tensor:
                with patches_drawn_by(self.encoder, seed, own.start + place):
                    return self._embed(chunk)

            return backward_in_chunks(
                embed, pixels, loss_of, chunk_size=self.chunk_size, scale=self.scaler.scale,
                world=self.runtime.world, keeping_gradients=self._keeping_gradients,
            )  # fmt: skip

    def _embed(self, pixels: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        with self.runtime.autocast():
            embeddings: Tensor = self._parallel(pixels)
        return embeddings

    def _keeping_gradients(self) -> AbstractContextManager[Any]:
        """Inside the block gradients add up in this process; the next pass outside spreads them."""
        # Sharded ones go to the process they belong to at once: no other has room for them.
        if isinstance(self._parallel, DistributedDataParallel):
            return self._parallel.no_sync()
        return nullcontext()

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Takes back random numbers and the objective's memory where no weight was changed."""
        device = self.runtime.device
        numbers = random_state(device)
        remembered = {name: value.clone() for name, value in self.objective.named_buffers()}
        try:
            yield
        except Exception:
            if self.weights_are_whole:
                restore_random_state(numbers, device)
                for name, value in self.objective.named_buffers():
                    value.copy_(remembered[name])
            raise

    @contextmanager
    def measured(self) -> Iterator[CLIPEncoder]:
        """Inside the block the encoder has the weights that are measured and saved, with LoRA
        merged into them. Afterwards it goes on with its own, the same to the bit.
        """
        with merged(self.encoder), uncompiled(self.encoder):
            yield self.encoder

    def finish(self) -> CLIPEncoder:
        """Returns the encoder with the weights that were measured; it is trained no more."""
        merge_for_good(self.encoder)
        leave_uncompiled(self.encoder)
        return self.encoder.eval()


def _parallel(encoder: CLIPEncoder, world: World) -> nn.Module:
    """Returns what a step calls: gradients become means over the processes."""
    if world.size == 1 or is_sharded(encoder):
        return encoder
    # DDP would wait for the gradients of all parameters, also of those that no embedding depends
    # on, as DINOv2's token for masks; and send buffers, none of which changes, with each pass.
    encoder(encoder.preprocessing.black(1).to(encoder.device)).sum().backward()
    left_out = [name for name, p in encoder.trainable_parameters() if p.grad is None]
    encoder.zero_grad(set_to_none=True)
    left_out += [name for name, _ in encoder.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(encoder, left_out)
    # Gradients are views of what is sent: one copy of them in memory, not two.
    return DistributedDataParallel(encoder, gradient_as_bucket_view=True)


def _all_parameters(encoder: CLIPEncoder, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Returns what is trained: the encoder's parameters, and the others that the optimizer has."""
    parameters = [p for _, p in encoder.trainable_parameters()]
    known = set(map(id, parameters))
    others = (p for group in optimizer.param_groups for p in group["params"])
    return parameters + [p for p in others if id(p) not in known]


def _clip_gradient(parameters: list[nn.Parameter], limit: float | None) -> Float[Tensor, ""]:
    """Shortens the gradient to the limit, if there is one; returns the norm that it had."""
    in_parts = [p for p in parameters if isinstance(p.grad, DTensor)]
    whole = [p for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if not in_parts or not whole:
        return _whole(nn.utils.clip_grad_norm_(parameters, limit or math.inf))
    # Torch's function takes one kind only; with an infinite limit it just tells the norm.
    norms = [_whole(nn.utils.clip_grad_norm_(some, math.inf)) for some in (in_parts, whole)]
    norm: Tensor = torch.stack(norms).norm()
    share = min(1.0, limit / (norm.item() + 1e-6)) if limit is not None else 1.0
    for parameter in (*in_parts, *whole):
        assert parameter.grad is not None
        parameter.grad.mul_(share)
    return norm


def _whole(norm: Tensor) -> Float[Tensor, ""]:
    whole: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return whole


def _check_finite(what: str, value: Tensor) -> None:
    if not value.isfinite():
        raise NonFiniteError(f"the {what} became {value.item()}")
