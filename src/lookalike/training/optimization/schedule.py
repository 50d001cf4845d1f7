"""The course of the learning rate over a run."""

from __future__ import annotations

import math

import torch

from lookalike.config import TrainConfig


def learning_rate_at(config: TrainConfig, step: int, total_steps: int) -> float:
    """Returns the learning rate of a step, counted from 0.

    It rises in a straight line over the first `warmup_steps` (already the first step moves),
    then stays, or falls along half a cosine to zero after the last of `total_steps`. Below 1,
    `warmup_steps` is a share of all steps.

    >>> learning_rate_at(TrainConfig(learning_rate=1, warmup_steps=4), 0, total_steps=10)
    0.25
    >>> learning_rate_at(TrainConfig(learning_rate=1, schedule="cosine"), 5, total_steps=10)
    0.5
    """
    peak, warmup_steps = config.learning_rate, whole_warmup(config.warmup_steps, total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return peak
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def whole_warmup(warmup_steps: float, total_steps: int) -> int:
    """Returns the steps of a warm-up that may be a share of all steps.

    >>> whole_warmup(0.1, 44), whole_warmup(20, 44)
    (4, 20)
    """
    return round(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives each group of `make_optimizer` its share of the learning rate, which is the head's."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_share"]
