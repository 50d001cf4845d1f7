"""From a decoded picture to the pixels a model takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from torch import Tensor

_LARGEST_RESIZED_PX = 50_000_000


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants done to a picture, as its own preprocessor configuration says.

    A picture is resized so that its shorter side is `shortest_edge` px and then centre-cropped,
    or, where `shortest_edge` is None, resized to `height` x `width` whatever its shape. The
    pixels a model computes with are `(value * scale - mean) / std`, value in 0..255.
    """

    height: int
    width: int
    shortest_edge: int | None
    resample: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def black(self, num_pictures: int) -> UInt8[Tensor, "n 3 height width"]:
        """Pixels of the right shape, where it does not matter what is on them."""
        return torch.zeros(num_pictures, 3, self.height, self.width, dtype=torch.uint8)

    def at(self, side: int) -> Preprocessing:
        """The same part of a picture, as a square of `side` px."""
        shortest = self.shortest_edge and round(self.shortest_edge * side / self.height)
        return replace(self, height=side, width=side, shortest_edge=shortest)

    def facts(self) -> dict[str, Any]:
        """The steps in their order, for programs and people; sizes in px."""
        size = {"height": self.height, "width": self.width}
        cropped = self.shortest_edge is not None
        return {
            "color": "RGB",
            "resize": {"shortest_edge": self.shortest_edge} if cropped else size,
            "resample": Image.Resampling(self.resample).name.lower(),
            "center_crop": size if cropped else None,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }


@dataclass(frozen=True)
class Augmentation:
    """Light changes a training picture goes through, new ones each time it is seen.

    `color_jitter` is the largest share by which brightness, contrast and saturation change.
    """

    kind: Literal["crop-flip", "none"]
    min_crop_area: float
    color_jitter: float = 0.0


def preprocess(image: Image.Image, how: Preprocessing) -> UInt8[Tensor, "3 height width"]:
    """The pixels of an RGB picture as the model's own processor would cut them.

    Agrees with Transformers' Pillow processors to the last bit before normalisation, except for
    a picture so long and thin that all of it, resized, would have more than 50 million pixels:
    it is cut to its middle first, because a file of a few bytes could take any memory else.
    """
    return to_tensor(_cut(image, how))


def augment(
    image: Image.Image, how: Preprocessing, changes: Augmentation, rng: np.random.Generator
) -> UInt8[Tensor, "3 height width"]:
    """The pixels of an RGB picture after random changes drawn from `rng`.

    "crop-flip" keeps a random part (area between `min_crop_area` and 1, aspect ratio between
    3:4 and 4:3 of the target's), resizes it to the target, and mirrors it half the time.
    "none" cuts it as `preprocess` does.

    Then, in random order, brightness, contrast and saturation are multiplied by factors between
    1 - `color_jitter` and 1 + `color_jitter`: what the picture differs by from black, from an
    even grey of its mean lightness, and from itself without colour.
    """
    if changes.kind == "none":
        part = _cut(image, how)
    else:
        box = _random_box(image.size, how, changes.min_crop_area, rng)
        mirrored = bool(rng.random() < 0.5)
        part = image.resize((how.width, how.height), how.resample, box=box)
        if mirrored:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if changes.color_jitter:  # drawn last: without it, the part and its side are the same
        part = _jittered(part, changes.color_jitter, rng)
    return to_tensor(part)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """An RGB picture as a contiguous tensor, channels first."""
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _cut(image: Image.Image, how: Preprocessing) -> Image.Image:
    """The part of a picture that its model sees, at the size it sees it."""
    if how.shortest_edge is None:
        return image.resize((how.width, how.height), how.resample)
    image = _middle(image, how.shortest_edge)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(how.shortest_edge * long / short)
    size = (how.shortest_edge, new_long) if width <= height else (new_long, how.shortest_edge)
    resized = image.resize(size, how.resample)
    left, top = (size[0] - how.width) // 2, (size[1] - how.height) // 2
    # A crop beyond the edge (a target larger than the resized picture) is filled with black.
    return resized.crop((left, top, left + how.width, top + how.height))


def _jittered(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """The picture with brightness, contrast and saturation changed."""
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform(1 - strength, 1 + strength, len(changes))
    for which in rng.permutation(len(changes)):
        image = changes[which](image).enhance(float(factors[which]))
    return image


def _middle(image: Image.Image, shortest_edge: int) -> Image.Image:
    """The picture, or its middle part where all of it would become too large."""
    width, height = image.size
    longest = min(width, height) * max(1, _LARGEST_RESIZED_PX // shortest_edge**2)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _random_box(
    size: tuple[int, int], how: Preprocessing, min_area: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a random part of a picture, in px."""
    width, height = size
    for _ in range(10):  # long thin pictures have room for few of the shapes that may be drawn
        area = width * height * rng.uniform(min_area, 1.0)
        aspect = how.width / how.height * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            break
    else:
        box_width = min(width, height * how.width / how.height)
        box_height = min(height, box_width * how.height / how.width)
    left = rng.uniform(0, width - box_width)
    top = rng.uniform(0, height - box_height)
    return left, top, left + box_width, top + box_height
