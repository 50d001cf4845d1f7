"""The weights of the baseline, which is the model before training, beside those in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.func import functional_call

from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.training.sharding import part_of


class BaselineWeights:
    """A copy of an encoder's trainable weights, from before the first step.

    `values` has them by the names of the encoder's parameters.

    Args:
        encoder: not yet trained; or, of a resumed run, trained already.
        saved: what a resumed run had; None: what the encoder has now.
    """

    def __init__(self, encoder: CLIPEncoder, saved: Mapping[str, Tensor] | None = None) -> None:
        self._encoder = encoder
        self.values = {
            name: p.detach().clone() if saved is None else part_of(saved[name], p).to(p.device)
            for name, p in encoder.trainable_parameters()
        }

    @torch.no_grad()
    def embed(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch dim"]:
        """Returns what the encoder gave before the first step, in evaluation mode."""
        with evaluation_mode(self._encoder):
            embeddings: Tensor = functional_call(self._encoder, self.values, (pixels,))
        return embeddings
