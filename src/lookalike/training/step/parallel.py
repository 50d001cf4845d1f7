"""An encoder that several processes train: whole in each of them, or each holding a part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from lookalike.config import TrainConfig
from lookalike.data.reading.reader import Batch
from lookalike.errors import ConfigError, LookalikeError
from lookalike.model.encoder import CLIPEncoder
from lookalike.runtime.device import Runtime
from lookalike.runtime.world import World


def share_of_batch(world: World, n_classes: int, n_samples: int) -> slice:
    """The places in each batch that are one process's.

    Raises:
        ConfigError: the batch cannot be divided into equal parts.
    """
    size, count = n_classes * n_samples, world.size
    if size % count:
        more = next(
            p for p in range(n_classes, n_classes + count + 1) if p * n_samples % count == 0
        )
        raise ConfigError(
            f"a batch of {n_classes} classes x {n_samples} images = {size} cannot be divided "
            f"among {count} processes; set --n-classes-per-batch {more}, or start another number "
            "of processes"
        )
    return world.share_of(size)


def read_together(batches: Iterator[Batch], world: World) -> Iterator[Batch]:
    """Batches with the pixels that this process has read, and all else of what all have.

    Raises:
        LookalikeError: one of them could not read its part; all raise it, at the same step.
    """
    if world.size == 1:
        yield from batches
        return
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except LookalikeError as error:
            failure = error
        parts = world.all_gather_objects((failure, batch and batch[1:4]))
        for one, _ in parts:
            if one is not None:
                raise one
        if batch is None:
            return
        indices, unreadable, lost = zip(*(told for _, told in parts if told), strict=True)
        start = sum(len(of_one) for of_one in indices[: world.rank])
        yield Batch(
            batch.pixels,
            list(chain(*indices)),
            list(dict.fromkeys(chain(*unreadable))),
            list(chain(*lost)),
            slice(start, start + len(batch.indices)),
        )


def check_trainable(encoder: CLIPEncoder, runtime: Runtime, config: TrainConfig) -> None:
    """Refuses what several processes, or one of them, cannot do.

    Raises:
        ConfigError: says what to change.
    """
    count = runtime.world.size
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    if count > 1 and batch_norm:
        raise ConfigError(
            f"{encoder.model_name} normalises over the whole batch (BatchNorm), of which each of "
            f"{count} processes sees a part; train it in one process"
        )
    if config.sharding == "none":
        return
    if count == 1:
        raise ConfigError(
            "sharding is full, and this is the only process; start several (torchrun "
            "--nproc-per-node 2 -m lookalike train ...), or set --sharding none"
        )
    if config.lora_rank is not None:
        raise ConfigError(
            "sharding is full, and LoRA trains so few weights that each process has room for all; "
            "set --sharding none"
        )
    if runtime.precision == "fp16":
        raise ConfigError(
            "sharding is full, and precision fp16, whose gradient scaling would have to look at "
            "all parts at once; set --precision bf16 or fp32"
        )


def shard(encoder: CLIPEncoder, runtime: Runtime) -> None:
    """Leaves each process a part of each parameter, on its device (FSDP2).

    A layer's parameters are put together while it computes, and no longer. The layers are those
    that Transformers says not to split. A text tower stays whole: it is frozen, so it takes no
    room for gradients, and it computes by other ways than the encoder's own.

    Raises:
        ConfigError: it names none.
    """
    names = set(encoder.backbone._no_split_modules or ())
    vision = {p for _, p in encoder.vision_parameters()}
    layers = [
        part
        for part in encoder.backbone.modules()
        if type(part).__name__ in names and not vision.isdisjoint(part.parameters())
    ]
    if not layers:
        raise ConfigError(
            f"Transformers does not say what the layers of {encoder.model_name} are, so it cannot "
            "be divided among processes; set --sharding none"
        )
    mesh = init_device_mesh(runtime.device.type, (runtime.world.size,))
    for layer in reversed(layers):  # inner ones before those around them
        fully_shard(layer, mesh=mesh)
    # Left together, as the outermost parameters are if nobody says otherwise, they would be other
    # objects after the first pass: whoever asked for the parameters then trained nothing.
    fully_shard(
        encoder,
        mesh=mesh,
        reshard_after_forward=True,
        ignored_params=set(encoder.parameters()) - vision,
    )


class Spread:
    """The encoder as a step calls it: gradients become means over the processes.

    Args:
        encoder: on its device, whole or sharded.
        world: that train it together.
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
    """Trainable parameters on which no embedding depends, such as DINOv2's token for masks."""
    encoder(encoder.preprocessing.black(1).to(encoder.device)).sum().backward()
    names = [name for name, p in encoder.trainable_parameters() if p.grad is None]
    encoder.zero_grad(set_to_none=True)
    return names


def is_sharded(encoder: nn.Module) -> bool:
    """Whether a process holds a part of it only."""
    return any(isinstance(p, DTensor) for p in encoder.parameters())


def whole_tensors(state: Any, world: World) -> Any:
    """A state with its sharded tensors put together, on the CPU, in the first process.

    All processes must call it; the others get None in their place.
    """

    def whole(tensor: DTensor) -> Tensor | None:
        together = tensor.full_tensor()
        return together.cpu() if world.is_main else None

    return tree_map_only(DTensor, whole, state)


def part_of(value: Any, like: Tensor) -> Any:
    """The part of a whole tensor that one process has of `like`, a parameter of that shape."""
    if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def sharded_like(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's saved state, whole, as the parts that fit the parameters it has here."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        number: {name: part_of(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    return {**state, "state": parts}
