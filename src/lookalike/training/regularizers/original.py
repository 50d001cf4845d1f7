"""The weights of the model as it came, beside those that are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.func import functional_call

from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.training.step.parallel import part_of


class OriginalWeights:
    """A copy of what is trained of an encoder, from before the first step.

    `values` has them by the names of the encoder's parameters.

    Args:
        encoder: not yet trained; or, of a resumed run, trained already.
        saved: what a resumed run had; None: what the encoder has now.
    """

    def __init__(self, encoder: CLIPEncoder, saved: Mapping[str, Tensor] | None = None) -> None:
        self._encoder = encoder
        self._parameters = dict(encoder.trainable_parameters())
        self.values = {
            name: p.detach().clone() if saved is None else part_of(saved[name], p).to(p.device)
            for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def embed(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch dim"]:
        """What the encoder gave before the first step, in evaluation mode."""
        with evaluation_mode(self._encoder):
            embeddings: Tensor = functional_call(self._encoder, self.values, (pixels,))
        return embeddings

    @torch.no_grad()
    def pull(self, optimizer: torch.optim.Optimizer, strength: float) -> None:
        """Draws each weight towards where it began: L2-SP (Li et al., ICML 2018), decoupled.

        As AdamW does with weight decay, apart from the gradient: `w -= lr * strength * (w - w0)`,
        with the learning rate of the weight's group, right before the optimiser's step. AdamW
        moves a weight by about lr a step, so the two are even where it is 1 / strength away.
        """
        began = {p: self.values[name] for name, p in self._parameters.items()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in began:
                    parameter.lerp_(began[parameter], group["lr"] * strength)
