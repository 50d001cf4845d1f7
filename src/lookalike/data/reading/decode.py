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
from contextlib import suppress
from functools import cache
from typing import NamedTuple, cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from lookalike.config import DEFAULT_MAX_MEGAPIXELS, MAX_PILLOW_MEGAPIXELS
from lookalike.data.images import ImageRef, InMemory, Span, shown_path
from lookalike.data.reading.content import read_content
from lookalike.errors import ImageError

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


class Header(NamedTuple):
    """What a file's header says; sides in px as stored."""

    format: str
    mode: str
    width: int
    height: int


def read_image(
    ref: ImageRef,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    *,
    draft_px: int | None = None,
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
        try:
            if draft_px is not None:
                image.draft(None, (draft_px, draft_px))  # does nothing but for JPEG
            image.load()
            return _flattened(_upright(image))
        # Decoders meet hostile bytes and raise nearly everything: OSError, SyntaxError,
        # ValueError, struct.error, IndexError, MemoryError. All of it means: unreadable.
        except Exception as error:
            raise ImageError(shown_path(ref), _reason(error)) from error


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


def _opened(ref: ImageRef, max_megapixels: float) -> Image.Image:
    """The file with its header read and its pixels not yet decoded."""
    _load_plugins()
    # Limits and reasons are ours to tell. (Adding a filter is safe in threads; catching is not.)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    path = shown_path(ref)
    content = None if isinstance(ref, str) else read_content(ref)
    try:
        num_bytes = _file_size(path) if content is None else len(content)
        if num_bytes == 0:
            raise ImageError(path, "empty file (0 bytes)")
        image = Image.open(path if content is None else io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageError(
            path, f"above {MAX_PILLOW_MEGAPIXELS:.0f} megapixels, which Pillow never decodes"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(path, _what_instead(content or _start_of(path))) from error
    except ImageError:
        raise
    except Exception as error:  # see read_image: format plug-ins raise nearly everything
        raise ImageError(path, _reason(error)) from error
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        image.close()
        raise ImageError(
            path,
            f"{megapixels:.1f} megapixels ({image.width}x{image.height}), above the limit of "
            f"{max_megapixels:g}; raise it with --max-megapixels",
        )
    return image


def _file_size(path: str) -> int:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(path, "no file but a pipe, socket, device or folder")
    return status.st_size


_loading_plugins = threading.Lock()


@cache
def _load_plugins() -> None:
    """Loads all of Pillow's formats and HEIC, once a process.

    Pillow loads formats when it first needs them, which threads do not survive together.
    """
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
    """Any mode to RGB."""
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
    """Deep grey to L, or LA where one grey value stands for transparent."""
    grey = np.asarray(image)
    if image.mode in _SIXTEEN_BIT:
        # Rounded division by 257 that stays within 16 bits: a large scan must fit in memory.
        eight_bits = ((np.minimum(grey, 65407) + 128) // 257).astype(np.uint8)
    else:
        eight_bits = _stretched(grey.astype(np.float32), is_float=image.mode == "F")
    result = Image.fromarray(eight_bits)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(grey == transparent, 0, 255).astype(np.uint8)
        result.putalpha(Image.fromarray(alpha))
    return result


def _stretched(grey: np.ndarray, *, is_float: bool) -> np.ndarray:
    """32-bit grey to 0..255, by what the range of its values looks like."""
    finite = grey[np.isfinite(grey)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if is_float and low >= 0 and high <= 1:
        grey *= 255
    elif low >= 0 and high <= 255:
        pass
    elif low >= 0 and high <= 65535:
        grey /= 257
    else:
        grey -= low
        grey *= 255 / (high - low) if high > low else 0
    rounded = np.nan_to_num(grey, posinf=255, neginf=0).round().clip(0, 255)
    eight_bits: np.ndarray = rounded.astype(np.uint8)
    return eight_bits


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


def _start_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _what_instead(content: bytes) -> str:
    """What a file that is no image seems to be."""
    start = content[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "not an image: an HTML page (a failed download?)"
    if start.startswith((b"<?xml", b"<svg")):
        return "not an image that can be decoded: XML or SVG"
    return "not an image, or one too damaged to be recognised"


def _reason(error: Exception) -> str:
    """One short line of an exception, without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


def as_seen(image: Image.Image) -> Image.Image:
    """Returns an image that Pillow has opened or made as `read_image` returns one of a file.

    Raises:
        ImageError: its pixels cannot be decoded; names no path.
    """
    _load_plugins()
    try:
        image.load()
        return _flattened(_upright(image))
    except Exception as error:  # see read_image
        raise ImageError("", _reason(error)) from error
