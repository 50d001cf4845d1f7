"""One file read once, and told in numbers that everything else is found from.

This module loads no torch: the processes that scan files start in an instant.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from PIL import Image

from lookalike.data.extent import bands
from lookalike.data.images import ImageRef
from lookalike.data.reading.content import held, read_content
from lookalike.data.reading.decode import probe_image, read_image
from lookalike.errors import ImageError

LUMA_PX = 32
CHROMA_PX = 8
BLANK_CONTRAST = 3.0
"""Levels of grey; an image that varies less than this shows nothing."""

_MIDDLE_PX = 256  # what contrast is measured at: small print on a page still counts
_READ_BYTES = 2**20


@dataclass(frozen=True)
class ImageFacts:
    """The facts that the scan found out about one file.

    A file that cannot be read as an image has a `reason` and nothing after `sha256`; one that
    could not be read for reasons of the moment (no permission, no memory) has no `sha256`.
    """

    reason: str | None = None
    sha256: bytes = b""  # of the file
    pixels_sha256: bytes = b""  # of size and decoded pixels: the same for lossless copies
    format: str = ""
    mode: str = ""
    width: int = 0  # px, upright, as are all pixels here
    height: int = 0
    contrast: float = 0.0  # standard deviation of luma, 0 to 127.5
    thumb: bytes = b""  # the image stretched square: 32x32 luma, then 8x8 of Cb and of Cr

    @property
    def readable(self) -> bool:
        """True where it is an image."""
        return self.reason is None


def describe_file(ref: ImageRef, max_megapixels: float) -> ImageFacts:
    """Decodes a file in full and returns what it is; never raises for what a file holds."""
    if isinstance(ref, str) and os.path.exists(ref) and not os.path.isfile(ref):
        return ImageFacts(
            reason="not a regular file (a pipe, socket, device or folder)"
        )  # would wait
    try:
        ref = held(ref)
        sha256 = _sha256(ref)
    except OSError as error:
        return ImageFacts(reason=error.strerror or type(error).__name__)
    except ImageError as error:
        return ImageFacts(reason=error.reason)
    try:
        image = read_image(ref, max_megapixels)
        header = probe_image(ref, max_megapixels)
        return _describe(image, sha256, header.format, header.mode)
    except ImageError as error:
        if _may_pass(error.__cause__):
            return ImageFacts(reason=f"cannot be read just now ({error.reason})")
        return ImageFacts(reason=error.reason, sha256=sha256)
    except (MemoryError, OSError, ValueError) as error:
        return ImageFacts(reason=f"cannot be read just now ({error or type(error).__name__})")


def _may_pass(cause: BaseException | None) -> bool:
    """True where the machine failed and not the file: no memory left, a disk or network fault."""
    return isinstance(cause, MemoryError) or (
        isinstance(cause, OSError) and cause.errno is not None
    )


def luma_of(thumb: bytes) -> Float32[np.ndarray, "32 32"]:
    """Returns the small grey image in a thumb, 0 to 255."""
    flat = np.frombuffer(thumb, np.uint8, LUMA_PX**2)
    return flat.reshape(LUMA_PX, LUMA_PX).astype(np.float32)


def chroma_of(thumb: bytes) -> Float32[np.ndarray, "2 8 8"]:
    """Returns the colour planes Cb and Cr in a thumb, 0 to 255; 128 is grey."""
    flat = np.frombuffer(thumb, np.uint8, offset=LUMA_PX**2)
    return flat.reshape(2, CHROMA_PX, CHROMA_PX).astype(np.float32)


def _sha256(ref: ImageRef) -> bytes:
    if not isinstance(ref, str):
        return hashlib.sha256(read_content(ref)).digest()
    digest = hashlib.sha256()
    with open(ref, "rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.digest()


def _describe(image: Image.Image, sha256: bytes, format: str, mode: str) -> ImageFacts:
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    for box in bands(image.size):
        digest.update(image.crop(box).tobytes())
    size = (min(image.width, _MIDDLE_PX), min(image.height, _MIDDLE_PX))
    middle = image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    return ImageFacts(
        sha256=sha256,
        pixels_sha256=digest.digest(),
        format=format,
        mode=mode,
        width=image.width,
        height=image.height,
        contrast=float(np.asarray(middle.convert("L"), dtype=np.float32).std()),
        thumb=_thumb(middle),
    )


def _thumb(image: Image.Image) -> bytes:
    box = Image.Resampling.BOX
    luma, blue, red = image.resize((LUMA_PX, LUMA_PX), box).convert("YCbCr").split()
    planes = [luma, *(plane.resize((CHROMA_PX, CHROMA_PX), box) for plane in (blue, red))]
    return b"".join(plane.tobytes() for plane in planes)
