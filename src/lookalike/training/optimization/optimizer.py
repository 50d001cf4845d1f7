"""AdamW and the course of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019) with decay on matrices only.

    Biases, norms and other vectors are not decayed: shrinking them does not regularise.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for _, parameter in parameters:
        (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def learning_rate_at(
    step: int,
    *,
    peak: float,
    schedule: Literal["constant", "cosine"],
    warmup_steps: int,
    total_steps: int,
) -> float:
    """The learning rate of a step, counted from 0.

    It rises in a straight line over the first `warmup_steps` (already the first step moves),
    then stays, or falls along half a cosine to zero after the last of `total_steps`.

    >>> learning_rate_at(0, peak=1.0, schedule="constant", warmup_steps=4, total_steps=10)
    0.25
    >>> learning_rate_at(5, peak=1.0, schedule="cosine", warmup_steps=0, total_steps=10)
    0.5
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
