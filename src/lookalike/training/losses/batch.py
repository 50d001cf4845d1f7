"""What every objective asks of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lookalike.errors import NoPositivesError


def check_batch(embeddings: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"]) -> None:
    """Refuses what is no batch.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings of shape {tuple(embeddings.shape)} and labels of shape "
            f"{tuple(labels.shape)}; expected (batch, dim) and (batch,)"
        )


def check_temperature(temperature: float) -> float:
    """Returns the temperature, where it is one.

    Raises:
        ValueError: it is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return temperature


def in_full_precision(embeddings: Tensor) -> Tensor:
    """Returns float32, or float64 as it is: losses are differences of close numbers."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def no_positives(num_images: int) -> NoPositivesError:
    """Returns the error to raise where no image of a batch has another of its class."""
    return NoPositivesError(
        f"none of the {num_images} images of the batch has another of its class; "
        "draw at least 2 of each class (n_samples_per_class)"
    )
