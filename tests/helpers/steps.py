"""One batch, a training step for it, and the gradients it leaves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lookalike.model.encoder import CLIPEncoder
from lookalike.runtime.device import make_runtime
from lookalike.training.losses.supcon import SupConLoss
from lookalike.training.regularizers import NO_REGULARIZERS, Regularizers
from lookalike.training.step.step import TrainingStep

LABELS = torch.arange(4).repeat_interleave(3)
PIXELS = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)


def step_of(
    model: Path, chunk_size: int, *, precision: str = "fp32", objective: nn.Module | None = None
) -> TrainingStep:
    encoder = CLIPEncoder(str(model))
    optimizer = torch.optim.SGD([p for _, p in encoder.trainable_parameters()], lr=0.0)
    return TrainingStep(
        encoder,
        objective or SupConLoss(),
        optimizer,
        make_runtime("cpu", precision, 0),
        chunk_size=chunk_size,
        max_grad_norm=None,
    )


def gradients_of(step: TrainingStep) -> dict[str, Tensor]:
    return {n: p.grad for n, p in step.encoder.trainable_parameters() if p.grad is not None}


def held_step(
    encoder: CLIPEncoder,
    regularizers: Regularizers = NO_REGULARIZERS,
    *,
    chunk_size: int = 5,
    lr: float = 0.05,
    objective: nn.Module | None = None,
) -> TrainingStep:
    optimizer = torch.optim.SGD([p for _, p in encoder.trainable_parameters()], lr=lr)
    return TrainingStep(
        encoder, objective or SupConLoss(), optimizer, make_runtime("cpu", "fp32", 0),
        chunk_size=chunk_size, max_grad_norm=None, regularizers=regularizers,
    )  # fmt: skip


def changed(encoder: CLIPEncoder) -> CLIPEncoder:
    """The same encoder, well away from where it began."""
    with torch.no_grad():
        for _, parameter in encoder.trainable_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return encoder
