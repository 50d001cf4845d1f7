"""One file to one RGB image, whatever the file really is, and wherever its bytes are.

The format of a file is read from its bytes, never from its extension. Every way a file can fail
ends in one `ImageError` with a short reason, so that callers can name it, count it and go on.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from typing import NamedTuple, cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from lookalike.config import DEFAULT_MAX_MEGAPIXELS, MAX_PILLOW_MEGAPIXELS
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
_HEADER_BYTES = 2**16  # more than the headers of most files take
_PROBED_AT_A_TIME = 4096


class Header(NamedTuple):
    """The facts in a file's header; sides in px as stored."""

    format: str
    mode: str
    width: int
    height: int


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
        ref: the file; every format Pillow reads, AVIF and (through pillow-heif) HEIC.
        max_megapixels: a larger image is refused before its pixels are decoded.
        draft_px: a JPEG file may come out at a half, a quarter or an eighth of its size, its sides
            at least this, which is quicker.

    Raises:
        ImageError: the file is missing, no image, too large, truncated or corrupt.
    """
    with _opened(ref, max_megapixels) as image:
        return as_seen(image, shown_path(ref), draft_px)


def as_seen(image: Image.Image, path: str = "", draft_px: int | None = None) -> Image.Image:
    """Returns an image that Pillow has opened or made as `read_image` returns one of a file."""
    _load_plugins()
    try:
        if draft_px is not None:
            image.draft(None, (draft_px, draft_px))  # does nothing but for JPEG
        image.load()
        return _flattened(_upright(image))
    # Decoders meet hostile bytes and raise nearly everything: OSError, SyntaxError,
    # ValueError, struct.error, IndexError, MemoryError. All of it means: unreadable.
    except Exception as error:
        raise ImageError(path, _reason(error)) from error


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
    with _opened(ref, max_megapixels) as image:
        return Header(image.format or "", image.mode, image.width, image.height)


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


def _opened(ref: ImageRef, max_megapixels: float) -> Image.Image:
    """Returns the file with its header read and its pixels not yet decoded."""
    _load_plugins()
    # Limits and reasons are ours to tell. (Adding a filter is safe in threads; catching is not.)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    path = shown_path(ref)
    content = None if isinstance(ref, str) else read_content(ref)
    try:
        status = os.stat(path) if content is None else None
        if status and not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "not a regular file (a pipe, socket, device or folder)")
        if not (status.st_size if status else content):
            raise ImageError(path, "empty file (0 bytes)")
        image = Image.open(path if content is None else io.BytesIO(content))
    except Image.DecompressionBombError as error:
        reason = f"above {MAX_PILLOW_MEGAPIXELS:.0f} megapixels, which Pillow never decodes"
        raise ImageError(path, reason) from error
    except UnidentifiedImageError as error:
        if content is None:
            with open(path, "rb") as file:
                content = file.read(512)
        raise ImageError(path, _what_instead(content)) from error
    except ImageError:
        raise
    except Exception as error:  # see as_seen: format plug-ins raise nearly everything
        raise ImageError(path, _reason(error)) from error
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        image.close()
        size = f"{megapixels:.1f} megapixels ({image.width}x{image.height})"
        raise ImageError(path, f"{size}, above the limit of {max_megapixels:g}; raise it with "
                         "--max-megapixels")  # fmt: skip
    return image


_loading_plugins = threading.Lock()


@cache
def _load_plugins() -> None:
    """Loads all of Pillow's formats and HEIC, once a process: threads do not survive doing so."""
    import pillow_heif

    with _loading_plugins:
        logging.getLogger("PIL").addHandler(logging.NullHandler())
        Image.init()
        pillow_heif.register_heif_opener()


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # Metadata is as hostile as pixels are. Where it cannot be read it says nothing about
    # orientation, and the pixels are fine.
    except Exception:
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _flattened(image: Image.Image) -> Image.Image:
    """Returns an image of any mode in RGB."""
    if image.mode in _SIXTEEN_BIT or image.mode in ("I", "F"):
        image = _grey_to_eight_bits(image)
    elif image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_eight_bits(image: Image.Image) -> Image.Image:
    """Returns deep grey as L, or LA where one grey value stands for transparent."""
    grey = np.asarray(image)
    if image.mode in _SIXTEEN_BIT:
        # Rounded division by 257 that stays within 16 bits: a large scan must fit in memory.
        eight_bits = ((np.minimum(grey, 65407) + 128) // 257).astype(np.uint8)
    else:
        eight_bits = _stretched(grey.astype(np.float32), is_float=image.mode == "F")
    result = Image.fromarray(eight_bits)
    if isinstance(transparent := image.info.get("transparency"), int):
        alpha = np.where(grey == transparent, 0, 255).astype(np.uint8)
        result.putalpha(Image.fromarray(alpha))
    return result


def _stretched(grey: np.ndarray, *, is_float: bool) -> np.ndarray:
    """Returns 32-bit grey as 0..255, by what the range of its values looks like."""
    finite = grey[np.isfinite(grey)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if is_float and low >= 0 and high <= 1:
        grey *= 255
    elif low >= 0 and 255 < high <= 65535:
        grey /= 257
    elif low < 0 or high > 255:
        grey -= low
        grey *= 255 / (high - low) if high > low else 0
    rounded: np.ndarray = np.nan_to_num(grey, posinf=255, neginf=0).round().clip(0, 255)
    return rounded.astype(np.uint8)


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")  # a broken profile, or one for another kind of colour
    return cast(Image.Image, converted)


def _what_instead(content: bytes) -> str:
    """Returns what a file that is no image seems to be."""
    start = content[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "not an image: an HTML page (a failed download?)"
    if start.startswith((b"<?xml", b"<svg")):
        return "not an image that can be decoded: XML or SVG"
    return "not an image, or one too damaged to be recognised"


def _reason(error: Exception) -> str:
    """Returns one short line of an exception, without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
