"""The objectives that ship, by the names that the option `objective` has for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import nn

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError
from lookalike.training.losses.arcface import ArcFaceLoss
from lookalike.training.losses.memory import CrossBatchMemory
from lookalike.training.losses.supcon import SupConLoss


@dataclass(frozen=True)
class ShippedObjective:
    """How an objective is made, and the options that it reads, which others refuse."""

    make: Callable[[TrainConfig, int, int, int], nn.Module]  # called as `make_objective` is
    options: tuple[str, ...]


def _supcon(config: TrainConfig, _: int, dim: int, warmup_steps: int) -> nn.Module:
    size, temperature = config.cross_batch_memory, config.temperature
    if not size:
        return SupConLoss(temperature)
    # Embeddings move most while the learning rate rises.
    return CrossBatchMemory(size, dim, temperature, warmup_batches=warmup_steps)


def _arcface(config: TrainConfig, num_classes: int, dim: int, _: int) -> nn.Module:
    return ArcFaceLoss(num_classes, dim, config.temperature, config.margin)


OBJECTIVES = {
    "supcon": ShippedObjective(_supcon, ("temperature", "cross_batch_memory")),
    "arcface": ShippedObjective(_arcface, ("temperature", "margin")),
}


def name_objective(config: TrainConfig, objective: nn.Module | None) -> TrainConfig:
    """Returns the configuration with the class name of an objective that was passed in.

    So it stands in every checkpoint and result, and a run is resumed with the same one only.

    Raises:
        ConfigError: `config.objective` names none that ships, and none was passed in; or another
            than was; or an option is set that the objective does not read.
    """
    if objective is None:
        if config.objective not in OBJECTIVES:
            raise ConfigError(
                f"objective is {config.objective!r}; expected {' or '.join(OBJECTIVES)}, or the "
                f"module of that class, passed in from Python: train(..., objective=...)"
            )
    elif not isinstance(objective, nn.Module):
        raise ConfigError(
            f"objective is {objective!r}; expected a torch.nn.Module that is called as "
            "objective(embeddings, labels)"
        )
    else:
        name, default = type(objective).__name__, TrainConfig().objective
        if name in OBJECTIVES or config.objective not in (default, name):
            raise ConfigError(
                f"objective is {config.objective!r}, and the module passed in is a {name}; leave "
                "one of them out"
            )
        config = replace(config, objective=name)
    defaults = {one.name: one.default for one in fields(config)}
    read = OBJECTIVES[config.objective].options if config.objective in OBJECTIVES else ()
    for name, one in OBJECTIVES.items():
        for option in set(one.options).difference(read):
            if getattr(config, option) != defaults[option]:
                raise ConfigError(
                    f"{option} works with the objective {name}, not {config.objective}; leave one "
                    "of them out"
                )
    return config


def make_objective(config: TrainConfig, num_classes: int, dim: int, warmup_steps: int) -> nn.Module:
    """Returns the objective that `config.objective` names, one that ships, for embeddings of `dim`
    numbers with labels from 0 to num_classes - 1; over `warmup_steps` the learning rate rises.
    """
    return OBJECTIVES[config.objective].make(config, num_classes, dim, warmup_steps)
