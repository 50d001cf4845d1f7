"""The encoder as a step calls it: what each process computes becomes one gradient."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lookalike.model.encoder import CLIPEncoder
from lookalike.runtime.world import World
from lookalike.training.sharding import is_sharded


class Spread:
    """The encoder as a step calls it: gradients become means over the processes.

    Args:
        encoder: on its device, whole or sharded.
        world: the processes that train it together.
    """

    def __init__(self, encoder: CLIPEncoder, world: World) -> None:
        self._ddp: DistributedDataParallel | None = None
        self._call: nn.Module = encoder
        if world.size > 1 and not is_sharded(encoder):
            # It would wait for the gradients of all parameters, and send buffers, none of which
            # changes, with each pass.
            left_out = [*_without_gradient(encoder), *(name for name, _ in encoder.named_buffers())]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(encoder, left_out)
            # Gradients are views of what is sent: one copy of them in memory, not two.
            self._ddp = DistributedDataParallel(encoder, gradient_as_bucket_view=True)
            self._call = self._ddp

    def __call__(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self._call(pixels)
        return embeddings

    def keeping_gradients(self) -> AbstractContextManager[Any]:
        """Inside the block gradients add up in this process; the next pass outside spreads them.

        Sharded gradients go to the process they belong to at once: no other has room for them.
        """
        return self._ddp.no_sync() if self._ddp else nullcontext()


def _without_gradient(encoder: CLIPEncoder) -> list[str]:
    """Returns trainable parameters that no embedding depends on, as DINOv2's token for masks."""
    encoder(encoder.preprocessing.black(1).to(encoder.device)).sum().backward()
    names = [name for name, p in encoder.trainable_parameters() if p.grad is None]
    encoder.zero_grad(set_to_none=True)
    return names
