"""One file to one RGB image, whatever the file really is, and wherever its bytes are.

The format of a file is read from its bytes, never from its extension. Every way a file can fail
ends in one `ImageError` with a short reason, so that callers can name it, count it and go on.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from typing import cast

import numpy as np
from PIL import ExifTags, Image, ImageCms

from lookalike.config import DEFAULT_MAX_MEGAPIXELS
from lookalike.data.extent import Extent, bands
from lookalike.data.images import (
    ImageRef,
    ImageSet,
    InMemory,
    Span,
    Unreadable,
    list_unreadable,
    shown_path,
)
from lookalike.data.reading.content import read_content
from lookalike.data.reading.formats import Header, header_of, load_formats, opened, reason_of
from lookalike.errors import DataError, ImageError
from lookalike.files import shown
from lookalike.progress import Progress, SilentProgress

# What makes an image upright, by the orientation that EXIF says it was stored in.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# Of several threads one at a time decodes images larger than this, which takes their memory once.
_LARGE_PX = 12_000_000
_one_large_image = threading.Lock()
_HEADER_BYTES = 2**16  # more than the headers of most files take
_PROBED_AT_A_TIME = 4096


def read_image(
    ref: ImageRef, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS, *, draft_px: int | None = None
) -> Image.Image:
    """Decodes a file as people see it: upright, in RGB, over white, 8 bits a channel.

    - The EXIF (or XMP, AVIF, HEIF) orientation is applied.
    - Alpha and transparent palette entries are laid over white.
    - 16-bit grey is divided by 257; 32-bit and float grey by what its range asks for (0..1,
      0..255 and 0..65535 are taken for what they look like, anything else is stretched).
    - CMYK goes through its colour profile where the file has one.
    - Of an animation or a multi-page file the first frame counts.

    Args:
        ref: the file; every format that Pillow decodes by itself, AVIF and (by pillow-heif) HEIC.
        max_megapixels: a larger image is refused before its pixels are decoded; so is a smaller
            one in a format that takes more memory or time for it than others.
        draft_px: a JPEG file may come out at a half, a quarter or an eighth of its size, its sides
            at least this, which is quicker; `extent_of` says of it what its size was.

    Raises:
        ImageError: the file is missing, no image, too large, truncated or corrupt.
    """
    with opened(ref, max_megapixels) as image:
        return _as_seen(image, shown_path(ref), draft_px, close=True)


def as_seen(image: Image.Image) -> Image.Image:
    """Returns an image that Pillow has opened or made as `read_image` returns one of a file.

    Raises:
        ImageError: it cannot be decoded.
    """
    load_formats()
    return _as_seen(image, "", None)


def _as_seen(
    image: Image.Image, path: str, draft_px: int | None, *, close: bool = False
) -> Image.Image:
    """Returns an image upright and flat; closes the opened one, if so, as soon as it can."""
    try:
        extent = _drafted(image, draft_px) if draft_px is not None else None
        is_large = image.width * image.height > _LARGE_PX
        with _one_large_image if is_large else nullcontext():
            image.load()
            turn = _turn_of(image)
            flat = _flattened(image)
            if close and flat is not image:
                image.close()  # two copies at a time are enough
            if turn is not None:
                extent = extent and extent.turned(turn, flat.size)
                flat = flat.transpose(turn)
            return flat if extent is None else extent.put_on(flat)
    # Decoders meet hostile bytes and raise nearly everything: OSError, SyntaxError,
    # ValueError, struct.error, IndexError, MemoryError. All of it means: unreadable.
    except Exception as error:
        raise ImageError(path, reason_of(error)) from error


def probe_image(ref: ImageRef, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Header:
    """Reads a file's header only, which says whether it is an image, and not too large.

    A file that passes can still turn out truncated when it is decoded.

    Raises:
        ImageError: as `read_image` does, for what the header shows.
    """
    if isinstance(ref, Span) and ref.size > _HEADER_BYTES:  # else all of a tar would be read
        start = InMemory(shown_path(ref), read_content(ref, _HEADER_BYTES))
        with suppress(ImageError):  # some formats have more before the pixels, or it behind them
            return probe_image(start, max_megapixels)
    return header_of(ref, max_megapixels)


def why_no_image(ref: ImageRef, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> str | None:
    """Returns why a file's header is not that of an image that can be read; None where it is."""
    try:
        probe_image(ref, max_megapixels)
    except ImageError as error:
        return error.reason
    return None


def keep_readable(
    images: ImageSet,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    progress: Progress | None = None,
) -> tuple[ImageSet, list[Unreadable]]:
    """Reads every file's header and returns the images, and the files that are none.

    Raises:
        DataError: not one of the files is an image.
    """
    progress = progress or SilentProgress()
    reason = partial(why_no_image, max_megapixels=max_megapixels)
    refs = images.refs
    reasons: list[str | None] = []
    with (
        ThreadPoolExecutor(max_workers=8) as pool,
        progress.task("looking at files", len(refs), "files") as task,
    ):
        for start in range(0, len(refs), _PROBED_AT_A_TIME):  # map would queue all at once
            for one in pool.map(reason, refs[start : start + _PROBED_AT_A_TIME]):
                reasons.append(one)
                task.advance()
    bad = [Unreadable(shown_path(ref), why) for ref, why in zip(refs, reasons, strict=True) if why]
    if len(bad) == len(images):
        raise DataError(f"none of the {len(images):,} files in {shown(images.root)} is an image "
                        f"that can be read: {list_unreadable(bad)}")  # fmt: skip
    if bad:
        images = images.subset(i for i, why in enumerate(reasons) if why is None)
    return images, bad


def _drafted(image: Image.Image, draft_px: int) -> Extent | None:
    """Has a JPEG decoded at a part of its size; returns what that will be of, None if of all."""
    width, height = image.size
    image.draft(None, (draft_px, draft_px))  # does nothing but for JPEG
    for scale in (2, 4, 8):
        if image.size == (-(-width // scale), -(-height // scale)) != (width, height):
            return Extent(width, height, (0, 0, width / scale, height / scale))
    return None


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """Returns what makes an image upright; None where it is, or nothing is said of it."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # Metadata is as hostile as pixels are. Where it cannot be read it says nothing about
    # orientation, and the pixels are fine.
    except Exception:
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _flattened(image: Image.Image) -> Image.Image:
    """Returns an image of any mode in RGB, in which a large one is made some rows at a time."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    to_rgb = _way_to_rgb(image)
    rgb: Image.Image | None = None
    for box in bands(image.size):
        if box == (0, 0, *image.size):
            return to_rgb(image)
        rgb = rgb or Image.new("RGB", image.size)
        rgb.paste(to_rgb(image.crop(box)), box)
    return rgb or Image.new("RGB", image.size)


def _way_to_rgb(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Returns what makes RGB of an image, and of any part of it."""
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image.info.get("icc_profile"))
    if image.mode in _SIXTEEN_BIT:
        return lambda part: _over_white(_grey_of(part, _divided(np.asarray(part))))
    if image.mode in ("I", "F"):
        scale, offset = _stretch_of(image)
        return lambda part: _over_white(_grey_of(part, _stretched(part, scale, offset)))
    return _over_white


def _over_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_of(image: Image.Image, eight_bits: np.ndarray) -> Image.Image:
    """Returns deep grey as L, or LA where one grey value stands for transparent."""
    result = Image.fromarray(eight_bits)
    if isinstance(transparent := image.info.get("transparency"), int):
        alpha = np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
        result.putalpha(Image.fromarray(alpha))
    return result


def _divided(grey: np.ndarray) -> np.ndarray:
    """Returns 16-bit grey in 8 bits; rounded division that stays within 16 bits."""
    eight_bits: np.ndarray = ((np.minimum(grey, 65407) + 128) // 257).astype(np.uint8)
    return eight_bits


def _stretch_of(image: Image.Image) -> tuple[float, float]:
    """Returns the factor, and what is taken off before it, that make 0..255 of 32-bit grey, by
    what the range of its values looks like.
    """
    lows, highs = [], []
    for box in bands(image.size):
        grey = np.asarray(image.crop(box)).astype(np.float32)
        if (finite := grey[np.isfinite(grey)]).size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    low, high = (min(lows), max(highs)) if lows else (0.0, 0.0)
    if image.mode == "F" and low >= 0 and high <= 1:
        return 255.0, 0.0
    if low >= 0 and 255 < high <= 65535:
        return 1 / 257, 0.0
    if low < 0 or high > 255:
        return (255 / (high - low) if high > low else 0.0), low
    return 1.0, 0.0


def _stretched(image: Image.Image, factor: float, offset: float) -> np.ndarray:
    grey = np.asarray(image).astype(np.float32)
    grey -= offset
    grey *= factor
    rounded: np.ndarray = np.nan_to_num(grey, posinf=255, neginf=0).round().clip(0, 255)
    return rounded.astype(np.uint8)


def _cmyk_to_rgb(profile: bytes | None) -> Callable[[Image.Image], Image.Image]:
    """Returns what converts ink to colour, by its profile where it has one that can be used."""
    try:
        if not profile:
            raise OSError("no profile")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        way = ImageCms.buildTransform(source, target, "CMYK", "RGB")
    except (ImageCms.PyCMSError, OSError):
        return lambda part: part.convert("RGB")  # none, broken, or for another kind of colour
    return lambda part: cast(Image.Image, ImageCms.applyTransform(part, way))
