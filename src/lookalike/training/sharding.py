"""An encoder that several processes hold in parts (FSDP2), and its tensors put together again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import has_batch_norm
from lookalike.runtime.device import Runtime
from lookalike.runtime.world import World


def check_trainable(encoder: CLIPEncoder, runtime: Runtime, config: TrainConfig) -> None:
    """Raises ConfigError for what several processes, or one of them, cannot do."""
    count, full = runtime.world.size, config.sharding == "full"
    refusals = {
        f"{encoder.model_name} normalises over the whole batch (BatchNorm), of which each of "
        f"{count} processes sees a part; train it in one process": (
            count > 1 and has_batch_norm(encoder)
        ),
        "sharding is full, but this is the only process; start several (torchrun "
        "--nproc-per-node 2 -m lookalike train ...), or set --sharding none": full and count == 1,
        "sharding is full, but LoRA trains so few weights that each process has room for all; "
        "set --sharding none": full and config.lora_rank is not None,
        "sharding is full, and precision fp16, whose gradient scaling would have to look at "
        "all parts at once; set --precision bf16 or fp32": full and runtime.precision == "fp16",
    }
    for reason, applies in refusals.items():
        if applies:
            raise ConfigError(reason)


def shard(encoder: CLIPEncoder, runtime: Runtime) -> None:
    """Leaves each process a part of each parameter, on its device (FSDP2).

    A layer's parameters are put together while it computes, and no longer. The layers are those
    that Transformers says not to split; it raises ConfigError where there are none. A text tower
    stays whole: it is frozen, so it takes no room for gradients, and computes by other ways.
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
    others = set(encoder.parameters()) - vision
    fully_shard(encoder, mesh=mesh, reshard_after_forward=True, ignored_params=others)


def is_sharded(encoder: nn.Module) -> bool:
    """Returns true where a process holds only a part of the encoder."""
    return any(isinstance(p, DTensor) for p in encoder.parameters())


def whole_tensors(state: Any, world: World) -> Any:
    """Returns a state with its sharded tensors put together, on the CPU, in the first process.

    All processes must call it; the others get None in their place.
    """

    def whole(tensor: DTensor) -> Tensor | None:
        together = tensor.full_tensor()
        return together.cpu() if world.is_main else None

    return tree_map_only(DTensor, whole, state)


def part_of(value: Any, like: Tensor) -> Any:
    """Returns this process's part of a whole tensor, where `like` is a sharded parameter of its
    shape; anything else as it is.
    """
    if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    there = value.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def sharded_like(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns an optimizer's saved state, whole, as parts that fit the parameters it has here."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        number: {name: part_of(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    return {**state, "state": parts}
