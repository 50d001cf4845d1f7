"""What of a file's image a decoded one is, and large images some rows at a time. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

BAND_PX = 2**22
"""Pixels of a large image that are converted at a time."""

_DRAFTED = "lookalike drafted"  # the key in an image's `info`


class Extent(NamedTuple):
    """What an image that a decoder made smaller is of.

    Sides are divided and rounded up, so the last row or column may stand for less than the others;
    which part of the image is kept is for the sides of the file to say.
    """

    width: int  # px, of all of it in the file
    height: int
    box: tuple[float, float, float, float]  # of all of it in the decoded one: left, top, ...

    def put_on(self, image: Image.Image) -> Image.Image:
        """Returns the image, which carries this from now on."""
        image.info[_DRAFTED] = self
        return image

    def within(self, part: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Returns where a part of the file's image is in the decoded one."""
        left, top, right, bottom = self.box
        across, down = (right - left) / self.width, (bottom - top) / self.height
        moved = (left + across * part[0], top + down * part[1],
                 left + across * part[2], top + down * part[3])  # fmt: skip
        return moved[0], moved[1], min(moved[2], right), min(moved[3], bottom)

    def turned(self, turn: Image.Transpose, size: tuple[int, int]) -> Extent:
        """Returns the same of the decoded image, which had that size, when it is turned."""
        (wide, high), (left, top, right, bottom) = size, self.box
        way = Image.Transpose
        if turn in (way.FLIP_LEFT_RIGHT, way.ROTATE_180, way.ROTATE_90, way.TRANSVERSE):
            left, right = wide - right, wide - left
        if turn in (way.FLIP_TOP_BOTTOM, way.ROTATE_180, way.ROTATE_270, way.TRANSVERSE):
            top, bottom = high - bottom, high - top
        if turn in (way.ROTATE_90, way.ROTATE_270, way.TRANSPOSE, way.TRANSVERSE):
            return Extent(self.height, self.width, (top, left, bottom, right))
        return Extent(self.width, self.height, (left, top, right, bottom))


def without_extent(image: Image.Image) -> Image.Image:
    """Returns an image that is known by its own size again."""
    image.info.pop(_DRAFTED, None)
    return image


def extent_of(image: Image.Image) -> Extent | None:
    """Returns what a decoder has made smaller; None for an image of its own size."""
    extent = image.info.get(_DRAFTED)
    return extent if isinstance(extent, Extent) else None


def bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields boxes of some rows (left, top, right, bottom) that are an image of a size together,
    so that what is made of a large one on the way is small.
    """
    width, height = size
    rows = max(1, BAND_PX // max(1, width))
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)
