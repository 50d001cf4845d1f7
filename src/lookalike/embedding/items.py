"""Single images in whatever form a program has them: paths, bytes, file objects, arrays."""

from __future__ import annotations

import os
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image

from lookalike.data.images import InMemory
from lookalike.data.reading.decode import as_seen, read_image
from lookalike.errors import ImageError, first_line

Item: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray"


def is_file(item: Any) -> bool:
    """Returns whether something is a file object, such as `open` and `tempfile` return."""
    return hasattr(item, "read")


def own_copy(item: Item, max_megapixels: float) -> Any:
    """Returns an image whose pixels nobody else can change, or why not; others as they are."""
    try:
        if isinstance(item, Image.Image):
            return decode(item, max_megapixels, None).copy()
    except ImageError as error:
        return error
    return item.copy() if isinstance(item, np.ndarray) else item


def content_of(item: Item) -> Any:
    """Returns the bytes of a binary file object, or the error; anything else as it is."""
    if not hasattr(item, "read"):
        return item
    try:
        content = item.read()
    except (OSError, ValueError) as error:  # closed, or open for writing
        return ImageError("", f"a file object that cannot be read: {first_line(error)}")
    if not content:
        return ImageError("", "a file object that is empty, or at its end (then seek(0) first)")
    return content if isinstance(content, bytes) else item


def decode(item: Any, max_megapixels: float, draft_px: int | None) -> Image.Image:
    """Returns what `read_image` would make of an item in a file."""
    if isinstance(item, ImageError):
        raise item
    if isinstance(item, (str, bytes, os.PathLike)):
        ref = InMemory("", item) if isinstance(item, bytes) else os.fspath(item)
        return read_image(ref, max_megapixels, draft_px=draft_px)
    if isinstance(item, np.ndarray):
        is_image = item.ndim == 2 or (item.ndim == 3 and item.shape[2] == 3)
        if item.dtype != np.uint8 or not is_image or not item.size:
            raise ImageError("", f"an array of {item.dtype} of shape {item.shape}; expected uint8 "
                             "of shape (height, width, 3) or (height, width)")  # fmt: skip
        item = Image.fromarray(item)
    if not isinstance(item, Image.Image):
        raise ImageError("", f"a {type(item).__name__}; expected a path, bytes, a binary file "
                         "object, a Pillow image or a uint8 array")  # fmt: skip
    if not item.width * item.height:
        raise ImageError("", f"{item.width}x{item.height} px, which is empty")
    if item.width * item.height > max_megapixels * 1e6:
        raise ImageError("", f"{item.width}x{item.height} px, above the limit of "
                         f"{max_megapixels:g} megapixels; raise max_megapixels")  # fmt: skip
    return as_seen(item)  # not drafted, which would change the caller's own image
