"""Which files are opened as images, and what one may cost: known before a pixel is decoded.

Files come from strangers. What starts a program, opens a file within it as whatever that is, or
takes memory or time without a bound is refused by name.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO, NamedTuple

from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from lookalike.config import MAX_PILLOW_MEGAPIXELS
from lookalike.data.images import ImageRef, shown_path
from lookalike.data.reading.content import read_content
from lookalike.errors import ImageError

# Formats that Pillow's own code decodes, and HEIC. Not among them are EPS, which runs Ghostscript;
# WMF, BUFR, GRIB and HDF5, which whoever registers a handler decodes; IPTC and BLP, which open a
# file within the file; FITS, which unpacks without a bound; MPEG, which is no image.
FORMATS = (
    "AVIF", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "GIF", "HEIF", "ICNS", "ICO",
    "IM", "IMT", "JPEG", "JPEG2000", "MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD",
    "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB",
)  # fmt: skip
# Formats whose decoders take more memory than 12 bytes a pixel, as that many times the pixels.
_WEIGHTS = {"WEBP": 1.8, "AVIF": 1.7, "HEIF": 1.7, "JPEG2000": 2.1}
_PYTHON_WEIGHT = 10.0  # of decoders written in Python, which take microseconds a pixel
_MOST_SCANS = 100  # of a JPEG; programs write about ten, and each goes over the whole image
_MOST_TEXT = 2**26  # bytes of text or colour profile in a PNG; Pillow's own limit is 2**20
_MOST_PACKED = 100  # texts and profiles in a PNG, each of which may unpack to so much
_MARKER = re.compile(rb"\xff[^\0\x01\xd0-\xd8\xff]")  # in a JPEG, that a length follows, or its end
_NEEDED = 2**16  # bytes that tell the size of an image within an icon
_SIGNATURES = (
    (b"%!ps", "PostScript (EPS), a program that is not run; export it as PNG"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS), a program that is not run; export it as PNG"),
    (b"%pdf", "a PDF document; export its pages as images"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF), which is drawn and not decoded"),
    (b"\x01\0\x09\0\0\x03", "a Windows metafile (WMF), which is drawn and not decoded"),
    (b"simple  =", "a FITS file, which is not supported"),
    (b"\x89hdf\r\n", "an HDF5 file, which is not supported"),
    (b"grib", "a GRIB file, which is not supported"),
    (b"bufr", "a BUFR file, which is not supported"),
    (b"blp", "a BLP texture, which is not supported"),
    (b"\0\0\x01\xb3", "an MPEG video"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file; fetch it with git lfs pull"),
    (b"<!doctype html", "an HTML page (a failed download?)"),
    (b"<html", "an HTML page (a failed download?)"),
)


class Header(NamedTuple):
    """The facts in a file's header; sides in px as stored."""

    format: str
    mode: str
    width: int
    height: int


def header_of(ref: ImageRef, max_megapixels: float) -> Header:
    """Reads a file's header and nothing else.

    Raises:
        ImageError: it is no image that may be opened, or too large.
    """
    load_formats()
    # Pillow decodes an icon when it opens it, which is too much for a look at a folder.
    with _file(ref) as file:
        icon = _icon_of(file, shown_path(ref), max_megapixels)
    if icon is not None:
        return icon
    with opened(ref, max_megapixels) as image:
        return Header(image.format or "", image.mode, image.width, image.height)


@contextmanager
def opened(ref: ImageRef, max_megapixels: float) -> Iterator[Image.Image]:
    """Opens a file inside the block, its header read and its pixels not yet decoded.

    Raises:
        ImageError: it is no image that may be opened, or decoding it would take too much.
    """
    load_formats()
    # Limits and reasons are ours to tell. (Adding a filter is safe in threads; catching is not.)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    path = shown_path(ref)
    with _file(ref) as file:
        start = file.read(512)
        try:
            image = _open(file, start, path, max_megapixels)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(path, what_instead(start)) from error
        except Image.DecompressionBombError as error:
            reason = f"above {MAX_PILLOW_MEGAPIXELS:.0f} megapixels, which Pillow never decodes"
            raise ImageError(path, reason) from error
        except Exception as error:  # plug-ins meet hostile bytes and raise nearly everything
            raise ImageError(path, reason_of(error)) from error
        with image:
            yield image


def _open(file: IO[bytes], start: bytes, path: str, max_megapixels: float) -> Image.Image:
    """Opens an image whose cost is known to be bounded."""
    if start.startswith(b"RIFF"):  # Pillow makes room for its pixels when it opens it
        _check_size(path, "WEBP", *_webp_size(start), max_megapixels)
    _icon_of(file, path, max_megapixels)
    if start.startswith(b"\x89PNG"):
        _check_chunks(path, file)
    file.seek(0)
    image = Image.open(file, formats=load_formats())
    in_python = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    weight = _PYTHON_WEIGHT if in_python else None
    _check_size(path, image.format or "", *image.size, max_megapixels, weight)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose tiles may be larger than it
        tile = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
        width, height = (image.tag_v2.get(side, 0) for side in tile)
        _check_size(path, "TIFF", width, height, max_megapixels)
    if image.format in ("JPEG", "MPO"):
        _check_scans(path, image, file)
    return image


def what_instead(content: bytes) -> str:
    """Returns what a file that is no image we decode seems to be."""
    start = content[:512].lstrip().lower()
    for signature, what in _SIGNATURES:
        if content[:16].lower().startswith(signature) or start.startswith(signature):
            return f"not an image: {what}"
    if content[:4] == b"\x01\0\0\0" and content[40:44] == b" EMF":
        return "not an image: a Windows metafile (EMF), which is drawn and not decoded"
    if start.startswith((b"<?xml", b"<svg")):
        return "not an image that can be decoded: XML or SVG"
    return "not an image, or one too damaged to be recognised"


def reason_of(error: Exception) -> str:
    """Returns one short line of an exception, without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "too little memory to decode it"
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


_loading = threading.Lock()


@cache
def load_formats() -> tuple[str, ...]:
    """Loads Pillow's formats and HEIC, once a process: threads do not survive doing so. Returns
    those of `FORMATS` that are there.
    """
    import pillow_heif

    with _loading:
        logging.getLogger("PIL").addHandler(logging.NullHandler())
        Image.init()
        pillow_heif.register_heif_opener()
        # Sound files of some programs hold megabytes of text (a workflow, edits, a profile).
        PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, _MOST_TEXT)
        most = max(PngImagePlugin.MAX_TEXT_MEMORY, 2 * _MOST_TEXT)
        PngImagePlugin.MAX_TEXT_MEMORY = most
        return tuple(name for name in FORMATS if name in Image.OPEN)


def _file(ref: ImageRef) -> IO[bytes]:
    """Returns an image's file, which is one: opening a pipe would wait for ever."""
    path = shown_path(ref)
    if not isinstance(ref, str):
        content = read_content(ref)
        if not content:
            raise ImageError(path, "empty file (0 bytes)")
        return io.BytesIO(content)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "not a regular file (a pipe, socket, device or folder)")
        if not status.st_size:
            raise ImageError(path, "empty file (0 bytes)")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        if isinstance(error, ImageError):
            raise
        raise ImageError(path, reason_of(error)) from error


def _check_size(
    path: str,
    format: str,
    width: int,
    height: int,
    max_megapixels: float,
    weight: float | None = None,
) -> None:
    """Raises where an image has too many pixels, or takes more memory or time than so many."""
    megapixels = width * height / 1e6
    size = f"{megapixels:.1f} megapixels ({width}x{height})"
    if megapixels > MAX_PILLOW_MEGAPIXELS * 1.01:  # Pillow's own word on what is just above
        raise ImageError(path, f"above {MAX_PILLOW_MEGAPIXELS:.0f} megapixels, which Pillow never "
                         "decodes")  # fmt: skip
    if megapixels > max_megapixels:
        raise ImageError(path, f"{size}, above the limit of {max_megapixels:g}; raise it with "
                         "--max-megapixels")  # fmt: skip
    most = max_megapixels / (weight or _WEIGHTS.get(format, 1.0))
    if megapixels > most:
        raise ImageError(
            path,
            f"{size} of {format}, which takes far more {'time' if weight else 'memory'} to decode "
            f"than other formats: at most {most:.1f} where the limit is {max_megapixels:g}; raise "
            "it with --max-megapixels, or convert the file",
        )


def _webp_size(start: bytes) -> tuple[int, int]:
    """Returns width and height in px by the start of a file in RIFF; (0, 0) if it is no WebP."""
    kind = start[12:16]
    if kind == b"VP8X":
        sides = (int.from_bytes(start[24:27], "little"), int.from_bytes(start[27:30], "little"))
        return sides[0] + 1, sides[1] + 1
    if kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        low = int.from_bytes(start[26:28], "little"), int.from_bytes(start[28:30], "little")
        return low[0] & 0x3FFF, low[1] & 0x3FFF
    return 0, 0


def _icon_of(file: IO[bytes], path: str, max_megapixels: float) -> Header | None:
    """Returns the header of the largest image in an icon (ICO, ICNS); None for other files.

    What the icon says of their sizes need not be true, so each one's own header is read.

    Raises:
        ImageError: the icon is damaged, or an image in it is too large.
    """
    file.seek(0)
    start = file.read(8)
    kind = "ICO" if start[:4] == b"\0\0\x01\0" else "ICNS" if start[:4] == b"icns" else ""
    if not kind:
        return None
    try:
        places = _ico_places(file, start) if kind == "ICO" else _icns_places(file)
        sizes = [size for place in places if (size := _size_within(file, *place)) is not None]
    except (struct.error, ValueError, OSError) as error:
        raise ImageError(path, f"a damaged {kind} icon") from error
    for size in sizes:
        _check_size(path, kind, *size, max_megapixels)
    if not sizes and kind == "ICO":
        raise ImageError(path, "an ICO icon without an image in it")
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(128, 128))
    return Header(kind, "RGBA", width, height)


def _ico_places(file: IO[bytes], start: bytes) -> Iterator[tuple[int, int]]:
    """Yields where the images of an ICO are, and their bytes."""
    (count,) = struct.unpack_from("<H", start, 4)
    file.seek(6)
    directory = file.read(16 * count)
    for number in range(count):
        size, offset = struct.unpack_from("<II", directory, 16 * number + 8)
        yield offset, size


def _icns_places(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Yields where the images of an ICNS are, and their bytes."""
    offset = 8
    while len(head := _read_at(file, offset, 8)) == 8:
        (size,) = struct.unpack_from(">I", head, 4)
        if size < 8:
            raise ValueError("a block without a size")
        yield offset + 8, size - 8
        offset += size


def _size_within(file: IO[bytes], offset: int, size: int) -> tuple[int, int] | None:
    """Returns the size in px of an image within an icon; None for the old kinds of 128 px at most.

    Raises:
        ValueError, OSError, struct.error: it is damaged.
    """
    content = _read_at(file, offset, min(size, _NEEDED))
    if content.startswith(b"\x89PNG"):
        sides: tuple[int, int] = struct.unpack_from(">II", content, 16)
        return sides
    if content.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")):
        with Image.open(io.BytesIO(content), formats=("JPEG2000",)) as image:
            return image.width, image.height
    if content[:4] in (b"\x28\0\0\0", b"\x0c\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"):
        width, height = struct.unpack_from("<ii", content, 4)
        return abs(width), abs(height) // 2  # the other half says what is transparent
    return None


def _read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _check_scans(path: str, image: Image.Image, file: IO[bytes]) -> None:
    """Raises for a JPEG of so many scans that decoding it takes minutes."""
    after = file.tell()
    if not image.info.get("progressive") and after:  # one scan of all colours, as a rule
        scan = _read_at(file, max(0, after - 14), 14)
        _, found, head = scan.rpartition(b"\xff\xda")
        is_whole = bool(found) and len(head) > 2 and head[2] == getattr(image, "layers", 0)
        file.seek(after)
        if is_whole:
            return
    scans = _num_scans(file)
    file.seek(after)
    if scans > _MOST_SCANS:
        raise ImageError(path, f"a JPEG of {scans:,} scans, each of which goes over the whole "
                         f"image; at most {_MOST_SCANS} are decoded")  # fmt: skip


def _num_scans(file: IO[bytes]) -> int:
    """Returns how many scans the image at the start of a JPEG file has; others may follow it."""
    scans, place = 0, 2
    while len(part := _read_at(file, place, 2**13)) > 1:
        found = _MARKER.search(part)
        if found is None:
            place += len(part) - 1  # the last byte may be half a marker
            continue
        if found[0] == b"\xff\xd9":  # the end
            break
        scans += found[0] == b"\xff\xda"
        place += found.end()
        place += int.from_bytes(_read_at(file, place, 2), "big")
    return scans


def _check_chunks(path: str, file: IO[bytes]) -> None:
    """Raises for a PNG of so many compressed texts and profiles that unpacking takes minutes."""
    packed, place = 0, 8
    while len(head := _read_at(file, place, 8)) == 8:
        packed += head[4:] in (b"iCCP", b"iTXt", b"zTXt")
        place += 12 + int.from_bytes(head[:4], "big")
    if packed > _MOST_PACKED:
        raise ImageError(path, f"a PNG of {packed:,} compressed texts and colour profiles; at "
                         f"most {_MOST_PACKED} are unpacked")  # fmt: skip
