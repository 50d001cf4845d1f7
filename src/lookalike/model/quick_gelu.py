"""CLIP's activation, x * sigmoid(1.702 x), in fewer passes over memory.

In a large batch its argument is the largest tensor there is, and each operation on it waits for
memory: as Transformers computes it that is three operations forwards and five backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

_SLOPE = 1.702


class QuickGELU(QuickGELUActivation):
    """The same values to the bit, of which only x is kept for the way back.

    Backwards it is the derivative of SiLU, y * sigmoid(y), at y = 1.702 x: in one operation, where
    torch would multiply and add up five times.
    """

    def forward(self, input: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Computes it."""
        activated: Tensor = _QuickGELU.apply(input)
        return activated


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (_SLOPE * x).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        found: Tensor = torch.ops.aten.silu_backward(gradient, _SLOPE * x)
        return found


def train_in_fewer_passes(model: nn.Module) -> None:
    """Puts `QuickGELU` in the place of Transformers' own, which has no weights."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is QuickGELUActivation:
                setattr(module, name, QuickGELU())


def scales_for_silu(model: nn.Module) -> dict[str, float]:
    """What parameters, by name, are to be multiplied by so that `put_silu` changes no result.

    SiLU of 1.702 y is 1.702 times what is wanted of y: the layer before brings the factor in, the
    one after takes it out, and one operation is left.
    """
    scales: dict[str, float] = {}
    for name, _ in _perceptrons(model):
        scales |= {f"{name}.fc1.weight": _SLOPE, f"{name}.fc1.bias": _SLOPE}
        scales[f"{name}.fc2.weight"] = 1 / _SLOPE
    return scales


def put_silu(model: nn.Module) -> None:
    """Makes SiLU the activation of a model whose parameters were scaled by `scales_for_silu`."""
    for _, perceptron in list(_perceptrons(model)):
        perceptron.activation_fn = nn.SiLU()


def _perceptrons(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of what is a layer, this activation, and a layer, as CLIP has it."""
    for name, module in model.named_modules():
        layers = (getattr(module, "fc1", None), getattr(module, "fc2", None))
        is_quick = isinstance(getattr(module, "activation_fn", None), QuickGELUActivation)
        if is_quick and all(type(layer) is nn.Linear for layer in layers):
            yield name, module
