"""The objective that a configuration asks for."""

from __future__ import annotations

from torch import nn

from lookalike.config import TrainConfig
from lookalike.training.losses.arcface import ArcFaceLoss
from lookalike.training.losses.memory import CrossBatchMemory
from lookalike.training.losses.smooth_ap import SmoothAPLoss
from lookalike.training.losses.supcon import SupConLoss
from lookalike.training.optimization.optimizer import whole_warmup


def make_objective(
    config: TrainConfig, *, num_classes: int, dim: int, total_steps: int
) -> nn.Module:
    """What training makes small, to be called as `objective(embeddings, labels)` once a step.

    Its parameters, if it has any, are trained along; its state_dict belongs in a checkpoint.

    Args:
        config: objective, temperature, and what goes with them.
        num_classes: labels are 0 to num_classes - 1.
        dim: numbers in an embedding.
        total_steps: of the whole run.
    """
    if config.objective == "arcface":
        return ArcFaceLoss(num_classes, dim, config.temperature, config.margin)
    if config.objective == "smooth-ap":
        return SmoothAPLoss(config.temperature)
    if config.cross_batch_memory:
        return CrossBatchMemory(
            config.cross_batch_memory,
            dim,
            config.temperature,
            # Embeddings move most when the encoder, or what comes after its head, begins to.
            warmup_batches=max(
                whole_warmup(config.warmup_steps, total_steps), config.head_warmup_steps
            ),
        )
    return SupConLoss(config.temperature)
