"""From a decoded image to the pixels a model takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional

from lookalike.data.extent import BAND_PX, bands, extent_of, without_extent

_LARGEST_RESIZED_PX = 50_000_000
# Torch's filters by Pillow's numbers: the same windows, in arithmetic of which all rows are done
# at a time. Four times as fast, and rounded a little differently.
_QUICK_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
# A decoder that makes a JPEG file smaller shrinks it to no less than this, of what is wanted: what
# it does is coarser than the resizing that follows and must leave something to it.
_DRAFT_MARGIN = 2.0


@dataclass(frozen=True)
class Preprocessing:
    """The way that a model wants images cut, as its own preprocessor configuration says.

    An image is resized so that its shorter side is `shortest_edge` px and then centre-cropped,
    or, where `shortest_edge` is None, resized to `height` x `width` whatever its shape. The
    pixels a model computes with are `(value * scale - mean) / std`, value in 0..255.

    `exact` pixels are those of the model's own processor (Transformers with Pillow) to the last
    bit. The others come from quicker resizing (off by 1 of 255 here and there) and, of large JPEG
    files, quicker decoding; embeddings have a cosine of 0.9999 or more to the exact ones, also of
    sharp photos (docs/decisions/0012-quick-by-default.md).
    """

    height: int
    width: int
    shortest_edge: int | None
    resample: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    exact: bool = True

    def draft_px(self, min_crop_area: float = 1.0) -> int | None:
        """Returns the px that a decoded image's sides need, if `min_crop_area` of it may become
        all of it; None for all that there is.
        """
        if self.exact:
            return None
        side = max(self.shortest_edge or 0, self.height, self.width)
        return math.ceil(_DRAFT_MARGIN * side / math.sqrt(min_crop_area))

    def black(self, num_images: int) -> UInt8[Tensor, "n 3 height width"]:
        """Returns pixels of the right shape, for where it does not matter what is on them."""
        return torch.zeros(num_images, 3, self.height, self.width, dtype=torch.uint8)

    def at(self, side: int) -> Preprocessing:
        """Returns the preprocessing that makes the same part of an image a square of `side` px."""
        shortest = self.shortest_edge and round(self.shortest_edge * side / self.height)
        return replace(self, height=side, width=side, shortest_edge=shortest)

    def facts(self) -> dict[str, Any]:
        """Returns the steps in their order, for programs and people; sizes in px."""
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
    """Light changes a training image goes through, new ones each time it is seen.

    `color_jitter` is the largest share by which brightness, contrast and saturation change.
    """

    kind: Literal["crop-flip", "none"]
    min_crop_area: float
    color_jitter: float = 0.0

    @property
    def least_area(self) -> float:
        """Returns the smallest share of an image that may become all of it."""
        return self.min_crop_area if self.kind == "crop-flip" else 1.0


def preprocess(image: Image.Image, how: Preprocessing) -> UInt8[Tensor, "3 height width"]:
    """Returns the pixels of an RGB image as the model's own processor would cut them.

    Where `how.exact`, to the last bit (before normalisation), except for an image so long and thin
    that it would be resized to more than 50 million pixels: it is cut to its middle first.
    """
    if how.shortest_edge is None:
        return _resized(image, (how.width, how.height), how)
    image = _middle(image, how.shortest_edge)
    width, height = (extent_of(image) or image.size)[:2]
    new_long = int(how.shortest_edge * max(width, height) / min(width, height))
    size = (how.shortest_edge, new_long) if width <= height else (new_long, how.shortest_edge)
    left, top = (size[0] - how.width) // 2, (size[1] - how.height) // 2
    # A crop beyond the edge (a target larger than the resized image) is filled with black.
    around = (-left, left + how.width - size[0], -top, top + how.height - size[1])
    return functional.pad(_resized(image, size, how), around)


def augment(
    image: Image.Image, how: Preprocessing, changes: Augmentation, rng: np.random.Generator
) -> UInt8[Tensor, "3 height width"]:
    """Returns the pixels of an RGB image after random changes drawn from `rng`.

    "crop-flip" keeps a random part (area between `min_crop_area` and 1, aspect ratio between
    3:4 and 4:3 of the target's, or as near to that as the image has room for so large a part),
    resizes it to the target, and mirrors it half the time.
    "none" cuts it as `preprocess` does.

    Then, in random order, brightness, contrast and saturation (the difference from black, from an
    even grey of the mean lightness, from the image without colour) are multiplied by factors
    between 1 - `color_jitter` and 1 + `color_jitter`.
    """
    if changes.kind == "none":
        part = preprocess(image, how)
    else:
        size = (extent_of(image) or image.size)[:2]
        box = _random_box(size, how, changes.min_crop_area, rng)
        part = _resized(image, (how.width, how.height), how, box)
        if rng.random() < 0.5:
            part = part.flip(2)
    if not changes.color_jitter:
        return part
    changed = Image.fromarray(part.permute(1, 2, 0).numpy())
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    # Drawn last: without it, the part and its side are the same.
    factors = rng.uniform(1 - changes.color_jitter, 1 + changes.color_jitter, len(enhancers))
    for which in rng.permutation(len(enhancers)):
        changed = enhancers[which](changed).enhance(float(factors[which]))
    return to_tensor(changed)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """Returns an RGB image as a contiguous tensor, channels first."""
    return _pixels(image).permute(2, 0, 1).contiguous()


def _pixels(image: Image.Image) -> UInt8[Tensor, "height width 3"]:
    """Returns an RGB image as a tensor."""
    if image.width * image.height <= BAND_PX:
        return torch.from_numpy(np.array(image))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for box in bands(image.size):
        pixels[box[1] : box[3]] = np.asarray(image.crop(box))
    return torch.from_numpy(pixels)


def _resized(
    image: Image.Image,
    size: tuple[int, int],
    how: Preprocessing,
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[Tensor, "3 height width"]:
    """Returns an image, or its `box` (left, top, right, bottom), at `size` (width, height)."""
    extent = extent_of(image)
    if extent is not None:  # small by now, and its edges need not be at whole pixels
        box = extent.box if box is None else extent.within(box)
    quick = None if how.exact or extent else _QUICK_FILTERS.get(Image.Resampling(how.resample))
    if quick is None:
        return to_tensor(image.resize(size, Image.Resampling(how.resample), box=box))
    if box is not None:  # which ends at whole pixels here, and anywhere above
        left, top, right, bottom = box
        image = image.crop((int(left), int(top), math.ceil(right), math.ceil(bottom)))
    pixels = _pixels(image).permute(2, 0, 1)[None]
    resized: Tensor = functional.interpolate(pixels, size[::-1], mode=quick, antialias=True)
    return resized[0].contiguous()


def _middle(image: Image.Image, shortest_edge: int) -> Image.Image:
    """Returns the image, or its middle part where all of it would become too large."""
    width, height = image.size
    longest = min(width, height) * max(1, _LARGEST_RESIZED_PX // shortest_edge**2)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    part = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
    return without_extent(part)  # which told of all of it


def _random_box(
    size: tuple[int, int], how: Preprocessing, min_area: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of a random part of an image, in px."""
    width, height = size
    for _ in range(10):  # long images have room for few of the shapes that may be drawn
        area = width * height * rng.uniform(min_area, 1.0)
        aspect = how.width / how.height * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            break
    else:  # the share counts for more than the shape, which is the nearest that there is room for
        aspect = min(max(aspect, area / height**2), width**2 / area)
        box_width = min(width, math.sqrt(area * aspect))
        box_height = min(height, math.sqrt(area / aspect))
    left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
    return left, top, left + box_width, top + box_height
