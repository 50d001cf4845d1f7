"""CLIP's activation, x * sigmoid(1.702 x), in fewer passes over memory.

Its argument is the largest tensor of a batch, and as Transformers computes it three operations
forwards and five backwards wait for memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from lookalike.model.encoder import CLIPEncoder

_SLOPE = 1.702
_FLAT = 100.0  # beyond it the derivative is 0 or 1, whatever the precision


class QuickGELU(QuickGELUActivation):
    """The same values to the bit, of which only x is kept for the way back."""

    def forward(self, input: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Returns x * sigmoid(1.702 x)."""
        activated: Tensor = _QuickGELU.apply(input)
        return activated


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (_SLOPE * x).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        y = _SLOPE * x  # the derivative is that of SiLU, y * sigmoid(y)
        if y.dtype == torch.float16:  # whose infinity would make nothing of the derivative, 1
            y.clamp_(-_FLAT, _FLAT)
        return torch.ops.aten.silu_backward(gradient, y)


def train_in_fewer_passes(model: nn.Module) -> None:
    """Puts `QuickGELU` in the place of Transformers' own, which has no weights."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is QuickGELUActivation:
                setattr(module, name, QuickGELU())


def scales_for_silu(encoder: CLIPEncoder) -> dict[str, float]:
    """Returns factors of parameters, by name, with which `put_silu` changes no embedding.

    SiLU of 1.702 y is 1.702 times what is wanted of y: the layer before brings the factor in, the
    one after takes it out, and one operation is left. Images alone have it, not texts.
    """
    vision = {name for name, _ in encoder.vision_parameters()}
    scales: dict[str, float] = {}
    for name, module in encoder.named_modules():
        # A layer, this activation, and a layer, as CLIP has them.
        layers = [type(getattr(module, one, None)) for one in ("fc1", "fc2")]
        is_quick = isinstance(getattr(module, "activation_fn", None), QuickGELUActivation)
        if is_quick and layers == [nn.Linear] * 2 and f"{name}.fc1.weight" in vision:
            scales |= {f"{name}.fc1.weight": _SLOPE, f"{name}.fc1.bias": _SLOPE}
            scales[f"{name}.fc2.weight"] = 1 / _SLOPE
    return scales


def put_silu(encoder: CLIPEncoder, scales: Mapping[str, float]) -> None:
    """Makes SiLU the activation where parameters were scaled by `scales_for_silu`."""
    for name in scales:
        encoder.get_submodule(name.rsplit(".", 2)[0]).activation_fn = nn.SiLU()
