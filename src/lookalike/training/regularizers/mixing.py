"""Mixtures of the weights at the end of a run with those it began with (WiSE-FT)."""

from __future__ import annotations

import torch
from torch import Tensor

from lookalike.model.encoder import CLIPEncoder
from lookalike.model.lora import layers_under_lora
from lookalike.training.regularizers.original import OriginalWeights


class MixedWeights:
    """An encoder's weights anywhere on the line between two models, and beyond neither.

    `(1 - alpha) * original + alpha * trained`, weight by weight: WiSE-FT (Wortsman et al., CVPR
    2022, equation 1). It costs nothing to search with, for the mixture is one model.

    Args:
        encoder: trained no more, with LoRA merged into it.
        original: of some of its weights, by name; the others are the same in both models.
    """

    def __init__(self, encoder: CLIPEncoder, original: dict[str, Tensor]) -> None:
        parameters = dict(encoder.named_parameters())
        self._ends = [
            (parameters[name], began, parameters[name].detach().clone())
            for name, began in original.items()
        ]

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Gives the encoder a share `alpha` of the trained weights; 0 and 1 are exact."""
        for parameter, began, ended in self._ends:
            parameter.copy_(torch.lerp(began, ended, alpha))


def plain_originals(encoder: CLIPEncoder, original: OriginalWeights) -> dict[str, Tensor]:
    """The weights that training changes, as they were, by the names they have without LoRA.

    To be called while LoRA is not yet merged: what lies under it is the original.
    """
    under_lora = layers_under_lora(encoder)
    if not under_lora:
        return original.values
    return {
        name.replace(".base_layer.", "."): tensor.detach().clone()
        for name, tensor in under_lora.items()
    }


def alphas(count: int) -> list[float]:
    """The mixtures that are measured: `count` even steps from one end to the other.

    >>> alphas(4)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return [step / count for step in range(count + 1)]
