"""Alignment: images laid over each other, to see if one is a copy of the other.

A copy may be resized, recompressed, brighter or darker, and cut at its edges. So one image is
laid over the other by scales and shifts along both axes and a gain and bias of brightness, all
found by Gauss-Newton from coarse to fine (Lucas and Kanade, "An Iterative Image Registration
Technique", IJCAI 1981). What counts is how well the fine detail agrees then: two photos of one
shelf agree in light and layout, and not in that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

_MAX_CROP = 0.25  # of a side
_STEP = 0.1  # the most one iteration moves, in half sides
_DAMPING = 1e-4


@dataclass(frozen=True)
class Alignment:
    """Pairs of images laid over each other; one row a pair.

    Attributes:
        placement: scale and shift along x, then along y: the point p of the first image, from
            -1 at one edge to 1 at the other, is the point `scale * p + shift` of the second.
        agreement: correlation of their fine detail where they overlap, 1 for a perfect copy.
        spill: by how much, in half sides, neither image lies within the other. A copy that
            was cut has none; two photos from two standpoints have.
    """

    placement: Float[Tensor, "pairs 4"]
    agreement: Float[Tensor, " pairs"]
    spill: Float[Tensor, " pairs"]


def align(
    first: Float[Tensor, "pairs side side"],
    second: Float[Tensor, "pairs side side"],
    *,
    start: Float[Tensor, "pairs 4"] | None = None,
    sides: tuple[int, ...] = (8, 16, 32),
    iterations: int = 8,
) -> Alignment:
    """Lays grey images over each other, each stretched to a square.

    Args:
        first, second: luma, 0 to 255.
        start: where to begin (default: one exactly over the other).
        sides: the sizes, in px, at which to refine; the last is that of the images.
        iterations: at each of them.
    """
    placement = first.new_tensor([1.0, 0, 1, 0]).repeat(len(first), 1) if start is None else start
    for side in sides:
        a, b = (functional.adaptive_avg_pool2d(images, side) for images in (first, second))
        for _ in range(iterations):
            placement = _improved(a, b, placement)
    seen, overlap, _ = moved(second, placement)
    agreement = _correlation(_detail(first), _detail(seen), overlap)
    return Alignment(placement, agreement, _spill(placement))


def moved(
    images: Float[Tensor, "pairs side side"], placement: Float[Tensor, "pairs 4"]
) -> tuple[Float[Tensor, "pairs side side"], Bool[Tensor, "pairs side side"], Tensor]:
    """Returns images as the first one's grid sees them, where that lies inside, and the grid."""
    side = images.shape[-1]
    grid = (torch.arange(side, dtype=images.dtype) + 0.5) / side * 2 - 1
    x = placement[:, 0:1] * grid + placement[:, 1:2]
    y = placement[:, 2:3] * grid + placement[:, 3:4]
    points = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    seen = functional.grid_sample(
        images[:, None], points, padding_mode="border", align_corners=False
    )[:, 0]
    return seen, (x.abs() <= 1)[:, None, :] & (y.abs() <= 1)[:, :, None], grid


def _improved(
    first: Tensor, second: Tensor, placement: Float[Tensor, "pairs 4"]
) -> Float[Tensor, "pairs 4"]:
    """Takes one step of Gauss-Newton on the squared difference, gain and bias fitted along."""
    side = first.shape[-1]
    slope_x, slope_y = torch.zeros_like(second), torch.zeros_like(second)
    slope_x[:, :, 1:-1] = (second[:, :, 2:] - second[:, :, :-2]) * side / 4
    slope_y[:, 1:-1] = (second[:, 2:] - second[:, :-2]) * side / 4
    seen, overlap, grid = moved(second, placement)
    by_x, by_y = moved(slope_x, placement)[0], moved(slope_y, placement)[0]
    columns = [by_x * grid, by_x, by_y * grid[:, None], by_y, -first, -torch.ones_like(first)]
    jacobian = (torch.stack(columns, dim=-1) * overlap[..., None]).flatten(1, 2)
    residual = (seen * overlap).flatten(1)[:, :, None]
    normal = jacobian.mT @ jacobian
    size = normal.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    normal = normal + (_DAMPING * size + 1e-6) * torch.eye(6)
    step = -torch.linalg.solve(normal, jacobian.mT @ residual)[:, :4, 0]
    better = placement + step.clamp(-_STEP, _STEP)
    scale = better[:, 0::2].clamp(1 - _MAX_CROP, 1 / (1 - _MAX_CROP))
    shift = better[:, 1::2].clamp(-_MAX_CROP, _MAX_CROP)
    return torch.stack([scale[:, 0], shift[:, 0], scale[:, 1], shift[:, 1]], dim=1)


def _detail(images: Float[Tensor, "pairs side side"]) -> Float[Tensor, "pairs side side"]:
    """Returns the detail that a blur over 5 px takes away."""
    padded = functional.pad(images[:, None], (2, 2, 2, 2), mode="replicate")
    return images - functional.avg_pool2d(padded, 5, stride=1)[:, 0]


def _correlation(a: Tensor, b: Tensor, where: Tensor) -> Float[Tensor, " pairs"]:
    """Returns Pearson's correlation over the pixels of `where`; 0 where an image is flat."""
    count = where.sum(dim=(1, 2)).clamp(min=1)[:, None, None]
    a = (a - (a * where).sum(dim=(1, 2), keepdim=True) / count) * where
    b = (b - (b * where).sum(dim=(1, 2), keepdim=True) / count) * where
    norms = ((a * a).sum(dim=(1, 2)) * (b * b).sum(dim=(1, 2))).sqrt()
    return (a * b).sum(dim=(1, 2)) / norms.clamp(min=1e-3)


def _spill(placement: Float[Tensor, "pairs 4"]) -> Float[Tensor, " pairs"]:
    scale, shift = placement[:, 0::2], placement[:, 1::2].abs()
    first_within_second = (shift - (1 - scale)).amax(dim=1)
    second_within_first = (shift - (scale - 1)).amax(dim=1)
    return torch.minimum(first_within_second, second_within_first).clamp(min=0)
