"""Colour: whether two images that lie over each other show a thing of one colour.

A copy may be paler or stronger in colour, a little warmer or colder, or without any. What differs
in colour alone, as a cap that is sold in red and in blue, is no copy.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lookalike.checks.copies.alignment import moved

# Chosen from measured distributions: docs/experiments.md, "What a copy looks like".
MIN_AGREEMENT = 0.85  # of colours
MIN_STRONG_AGREEMENT = 0.94  # of strong ones, which a light tint does not turn
STRONG = 60.0  # levels from grey
GREY = 4.0  # levels: what compression makes of an image without colour
MAX_TINT = 16.0  # levels
MAX_GAIN = 1.1  # of an image whose colour was taken away

_SIDE = 16  # compression keeps colour coarsely


def of_one_colour(
    first: Float[Tensor, "pairs 3 side side"],
    second: Float[Tensor, "pairs 3 side side"],
    placement: Float[Tensor, "pairs 4"],
) -> Bool[Tensor, " pairs"]:
    """Returns where the colours of two images agree.

    They agree where the cosine of their planes of colour is high: colour counts from grey, so the
    background, which is mostly grey, says nothing, however large; and a stronger colour is the
    same one. A tint that all of an image has is taken away first, if it is light. Of an image
    without colour only the light can tell: it is a copy made grey if that is as it was.

    Args:
        first, second: Y, Cb and Cr, 0 to 255.
        placement: how the second lies over the first (see `Alignment`).
    """
    planes = [moved(second[:, channel], placement)[:2] for channel in range(3)]
    weights = adaptive_avg_pool2d(planes[0][1].float(), _SIDE)[:, None]
    seen = torch.stack([plane for plane, _ in planes], dim=1)
    light_a, light_b = (adaptive_avg_pool2d(one[:, :1], _SIDE) for one in (first, seen))
    a, b = (adaptive_avg_pool2d(one[:, 1:] - 128, _SIDE) for one in (first, seen))

    tints = [_mean(colours, weights) for colours in (a, b)]
    is_light = (tints[0] - tints[1]).norm(dim=1).flatten() <= MAX_TINT
    plain, untinted = _cosine(a, b, weights), _cosine(a - tints[0], b - tints[1], weights)
    agreement = torch.where(is_light, torch.maximum(plain, untinted), plain)
    strong = torch.minimum(_strength(a, weights), _strength(b, weights)) >= STRONG
    agree = agreement >= torch.where(strong, MIN_STRONG_AGREEMENT, MIN_AGREEMENT)

    are_grey = [_size(colours, weights) < GREY for colours in (a, b)]
    varied_a, varied_b = (light - _mean(light, weights) for light in (light_a, light_b))
    gain = _product(varied_a, varied_b, weights) / _product(varied_a, varied_a, weights).clamp(1e-6)
    made_grey = (gain <= MAX_GAIN) & (gain >= 1 / MAX_GAIN)
    return torch.where(are_grey[0] | are_grey[1], (are_grey[0] & are_grey[1]) | made_grey, agree)


def _mean(images: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    return (images * weights).sum(dim=(2, 3), keepdim=True) / total


def _product(a: Tensor, b: Tensor, weights: Tensor) -> Float[Tensor, " pairs"]:
    return _mean(a * b, weights).sum(dim=(1, 2, 3))


def _size(colours: Tensor, weights: Tensor) -> Float[Tensor, " pairs"]:
    """Root mean square of the distance from grey."""
    return _product(colours, colours, weights).sqrt()


def _strength(colours: Tensor, weights: Tensor) -> Float[Tensor, " pairs"]:
    """The distance from grey of what has colour, however little of the image that is."""
    squares = (colours**2).sum(dim=1, keepdim=True)
    return (
        _product(squares, squares, weights) / _mean(squares, weights).flatten().clamp(1e-6)
    ).sqrt()


def _cosine(a: Tensor, b: Tensor, weights: Tensor) -> Float[Tensor, " pairs"]:
    return _product(a, b, weights) / (_size(a, weights) * _size(b, weights)).clamp(min=1e-6)
