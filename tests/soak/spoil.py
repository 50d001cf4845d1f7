"""How files are spoilt, at random."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from random import Random

from PIL import Image


def spoil(file: Path, draw: Random) -> None:
    """Flips a bit, or some."""
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 1, 8])):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, draw: Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(max(1, len(content)))])


def empty(file: Path, _: Random) -> None:
    file.write_bytes(b"")


def remove(file: Path, _: Random) -> None:
    file.unlink()


def deep(file: Path, _: Random) -> None:
    file.write_text("[" * 100_000)


def huge_png() -> bytes:
    """A PNG that says it is of 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)
