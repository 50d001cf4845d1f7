"""AdamW, its groups of parameters, and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import find_layers


def make_optimizer(
    encoder: CLIPEncoder, config: TrainConfig, objective_parameters: Iterable[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019) of what is trained.

    Only weight matrices (and convolutions) are decayed, as BEiT (Bao et al., ICLR 2022) does it:
    shrinking biases, norms, position embeddings and class tokens does not regularise.

    With `layer_decay` the learning rate of layer l of n is `layer_decay ** (n + 1 - l)` times
    that of the head (ELECTRA, Clark et al., ICLR 2020; BEiT): the first layers know what all
    images have in common, and change least.

    Each group has, beside the settings of AdamW, its own share of the learning rate
    (`lr_share`), and whether it is of the head (`is_head`).

    Args:
        encoder: its trainable parameters are grouped.
        config: learning rates, decays, warm-up of the head.
        objective_parameters: of the objective; they go with the head, and are not decayed.

    Raises:
        ConfigError: the head is to be warmed up, and nothing of it is trained.
        ModelError: an option needs the encoder's layers, and they cannot be found.
    """
    share_of, is_head = _layer_rules(encoder, config)
    embeddings = {
        f"{name}.weight" for name, part in encoder.named_modules() if isinstance(part, nn.Embedding)
    }  # of positions, in CLIP and SigLIP: rows of tokens, no matrix
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in encoder.trainable_parameters():
        is_matrix = name.endswith("weight") and parameter.ndim >= 2
        decays = is_matrix and name not in embeddings
        key = (share_of(name), config.weight_decay if decays else 0.0, is_head(name))
        groups.setdefault(key, []).append(parameter)
    if config.head_warmup_steps and not any(in_head for _, _, in_head in groups):
        raise ConfigError(
            f"head_warmup_steps is {config.head_warmup_steps}, and nothing of {encoder.model_name} "
            "that is trained comes after its last layer; leave head_warmup_steps out"
        )
    settings: list[dict[str, Any]] = [
        {"params": groups[key], "weight_decay": key[1], "lr_share": key[0], "is_head": key[2]}
        for key in sorted(groups, reverse=True)
    ]
    if objectives := list(objective_parameters):
        share = config.center_learning_rate / config.learning_rate
        settings.append(
            {"params": objectives, "weight_decay": 0.0, "lr_share": share, "is_head": True}
        )
    return torch.optim.AdamW(settings, lr=config.learning_rate, fused=True)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, learning_rate: float, *, only_head: bool
) -> None:
    """Gives each group of `make_optimizer` its share of the learning rate.

    Args:
        optimizer: made by `make_optimizer`.
        learning_rate: that of the head.
        only_head: all other groups get none: they keep their weights to the last bit, while
            their gradients still go into AdamW's means, which are settled when it is their turn.
    """
    for group in optimizer.param_groups:
        rests = only_head and not group["is_head"]
        group["lr"] = 0.0 if rests else learning_rate * group["lr_share"]


def _layer_rules(
    encoder: CLIPEncoder, config: TrainConfig
) -> tuple[Callable[[str], float], Callable[[str], bool]]:
    """Of a parameter's name: its share of the learning rate, and whether it is of the head.

    The layers are only looked for where an option needs them: not every backbone tells.
    """
    if config.layer_decay == 1 and not config.head_warmup_steps:
        return lambda _: 1.0, lambda _: False
    option = "layer_decay" if config.layer_decay != 1 else "head_warmup_steps"
    layers = find_layers(encoder, option)
    return (
        lambda name: config.layer_decay ** (layers.head - layers.of(name)),
        lambda name: layers.of(name) == layers.head,
    )


def learning_rate_at(
    step: int,
    *,
    peak: float,
    schedule: Literal["constant", "cosine"],
    warmup_steps: float,
    total_steps: int,
) -> float:
    """The learning rate of a step, counted from 0.

    It rises in a straight line over the first `warmup_steps` (already the first step moves),
    then stays, or falls along half a cosine to zero after the last of `total_steps`. Below 1,
    `warmup_steps` is a share of all steps.

    >>> learning_rate_at(0, peak=1.0, schedule="constant", warmup_steps=4, total_steps=10)
    0.25
    >>> learning_rate_at(5, peak=1.0, schedule="cosine", warmup_steps=0, total_steps=10)
    0.5
    """
    warmup_steps = whole_warmup(warmup_steps, total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def whole_warmup(warmup_steps: float, total_steps: int) -> int:
    """The steps of a warm-up that may be a share of all steps.

    >>> whole_warmup(0.1, 44), whole_warmup(20, 44)
    (4, 20)
    """
    return round(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)
