"""Every kind of file against what a viewer would show, written out by hand."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from helpers.limits import PEAK_BYTES
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lookalike.config import DEFAULT_MAX_MEGAPIXELS
from lookalike.data.reading.decode import probe_image, read_image
from lookalike.errors import ImageError

Colour = tuple[int, int, int]

LETTERS: dict[str, Colour] = {
    "A": (255, 0, 0),
    "B": (0, 255, 0),
    "C": (0, 0, 255),
    "D": (0, 0, 0),
    "E": (255, 255, 255),
    "F": (128, 128, 128),
}
BLOCK_PX = 16
UPRIGHT = ["ABC", "DEF"]
# What a camera stores for each value of the tag: "6" means that the first stored row is the
# right side of the scene and the first stored column its top (EXIF 2.32, table of Orientation).
STORED = {
    1: ["ABC", "DEF"],
    2: ["CBA", "FED"],
    3: ["FED", "CBA"],
    4: ["DEF", "ABC"],
    5: ["AD", "BE", "CF"],
    6: ["CF", "BE", "AD"],
    7: ["FC", "EB", "DA"],
    8: ["DA", "EB", "FC"],
}


def painted(rows: list[str]) -> Image.Image:
    """An image of one coloured block a letter."""
    small = np.array([[LETTERS[letter] for letter in row] for row in rows], dtype=np.uint8)
    return Image.fromarray(small.repeat(BLOCK_PX, axis=0).repeat(BLOCK_PX, axis=1))


def letters_of(image: Image.Image) -> list[str]:
    """The letter whose colour is nearest to the middle of each block."""
    columns, rows = image.width // BLOCK_PX, image.height // BLOCK_PX
    middle = BLOCK_PX // 2

    def nearest(x: int, y: int) -> str:
        seen = colour_at(image, x * BLOCK_PX + middle, y * BLOCK_PX + middle)
        away = {
            name: max(abs(a - b) for a, b in zip(seen, colour, strict=True))
            for name, colour in LETTERS.items()
        }
        best = min(away, key=lambda name: away[name])
        assert away[best] <= 12, f"{seen} is none of the colours painted"
        return best

    return ["".join(nearest(x, y) for x in range(columns)) for y in range(rows)]


def colour_at(image: Image.Image, x: int, y: int) -> Colour:
    red, green, blue = np.asarray(image)[y, x].tolist()
    return red, green, blue


def row_of(path: str | Path) -> list[Colour]:
    """The colours of an image of one row, which must have been read as RGB."""
    image = read_image(str(path))
    assert image.mode == "RGB"
    assert image.height == 1
    return [colour_at(image, x, 0) for x in range(image.width)]


def greys(path: str | Path) -> list[int]:
    """The values of a grey image of one row."""
    row = row_of(path)
    assert all(red == green == blue for red, green, blue in row)
    return [red for red, _, _ in row]


def reason_of(path: str | Path, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> str:
    """Why a file is refused; one short line that does not name the path."""
    with pytest.raises(ImageError) as caught:
        read_image(str(path), max_megapixels)
    assert caught.value.path == str(path)
    assert_clean(caught.value.reason)
    assert str(path) not in caught.value.reason
    return caught.value.reason


def assert_clean(reason: str) -> None:
    assert reason.strip()
    assert len(reason.splitlines()) == 1
    assert len(reason) <= 250


def png_without_pixels(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and which holds no pixels at all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    if format == "HEIF":
        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels))
    return Image.fromarray(values.astype(np.uint8).squeeze())


# Orientation


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_image_is_read_as_a_viewer_shows_it(
    tmp_path: Path, orientation: int, format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image"
    content = encoded(painted(STORED[orientation]), format, exif=exif.tobytes(), quality=95)
    path.write_bytes(content)
    upright = read_image(str(path))
    assert upright.size == (3 * BLOCK_PX, 2 * BLOCK_PX)
    assert letters_of(upright) == UPRIGHT


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    painted(UPRIGHT).save(tmp_path / "image.png", exif=exif)
    assert letters_of(read_image(str(tmp_path / "image.png"))) == UPRIGHT


@pytest.mark.parametrize(
    ("tag", "kind"),
    [(0x0132, 5), (0x011A, 1)],
    ids=["a date that is a fraction", "a resolution that is a byte"],
)
def test_another_tag_of_a_wrong_kind_does_not_cost_the_orientation(
    tmp_path: Path, tag: int, kind: int
) -> None:
    entries = sorted(
        [struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), struct.pack(">HHII", tag, kind, 1, 38)]
    )
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + b"".join(entries) + bytes(4)
    exif += struct.pack(">II", 72, 1)  # at 38
    painted(STORED[6]).save(tmp_path / "image.png", exif=exif)
    assert letters_of(read_image(str(tmp_path / "image.png"))) == UPRIGHT


@pytest.mark.filterwarnings("ignore")  # Pillow's remark on it
def test_metadata_without_a_header_does_not_cost_the_image(tmp_path: Path) -> None:
    painted(UPRIGHT).save(tmp_path / "image.png", exif=b"Exif\0\0no TIFF header here")
    assert letters_of(read_image(str(tmp_path / "image.png"))) == UPRIGHT


BROKEN_EXIF = b"Exif\0\0MM\0*\xff\xff\xff\xff and junk"


@pytest.mark.filterwarnings("ignore")  # Pillow's remark on it
def test_broken_metadata_does_not_cost_the_image(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    painted(UPRIGHT).save(path, quality=95, exif=BROKEN_EXIF)
    assert letters_of(read_image(str(path))) == UPRIGHT


# Modes


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_divided_by_257_and_rounded(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)).save(path)
    assert greys(path) == [0, 0, 1, 1, 128, 255]


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    path = tmp_path / "dark.png"
    Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint16)).save(path)
    assert greys(path) == [0, 0, 1]


def test_big_endian_16_bit_grey_is_read_alike(tmp_path: Path) -> None:
    # A TIFF by hand: 3 x 1 px, 16 bits, MM byte order, Pillow's mode I;16B.
    values = struct.pack(">3H", 0, 25700, 51400)
    tags = [(256, 3, 3), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (277, 3, 1),
            (278, 3, 1)]  # fmt: skip
    directory = b"".join(struct.pack(">HHIHH", tag, kind, 1, value, 0) for tag, kind, value in tags)
    directory += struct.pack(">HHII", 279, 4, 1, len(values))
    offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    strip = struct.pack(">HHII", 273, 4, 1, offset)
    # Tags must ascend: 273 stands before 277.
    entries = directory[: 12 * 5] + strip + directory[12 * 5 :]
    path = tmp_path / "big.tif"
    path.write_bytes(
        b"MM\0*" + struct.pack(">IH", 8, len(tags) + 2) + entries + b"\0\0\0\0" + values
    )
    with Image.open(path) as image:
        assert image.mode == "I;16B"
    assert greys(path) == [0, 100, 200]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),  # 0..1
        ([0.0, 0.1, 0.8], [0, 26, 204]),  # 0..1 too: the range is not stretched
        ([0.0, 2.0, 100.0, 254.6], [0, 2, 100, 255]),  # 0..255
        ([100.0, 255.0], [100, 255]),
        ([0.0, 257.0, 25700.0, 65535.0], [0, 1, 100, 255]),  # 0..65535
        ([0.0, 257.0, 25700.0, 40092.0], [0, 1, 100, 156]),  # 0..65535, not stretched either
        ([-1.0, 0.0, 1.0, 3.0], [0, 64, 128, 255]),  # anything else is stretched
        ([0.0, 100000.0, 200000.0], [0, 128, 255]),
        ([-5.0, -5.0], [0, 0]),  # flat: nothing to stretch
        ([float("nan"), 0.0, float("inf"), 1.0, float("-inf")], [0, 0, 255, 255, 0]),
        ([float("nan"), float("nan")], [0, 0]),
    ],
)
def test_float_grey_is_taken_for_what_its_range_looks_like(
    tmp_path: Path, values: list[float], expected: list[int]
) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.array([values], dtype=np.float32)).save(path)
    assert greys(path) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 2, 255], [0, 2, 255]),
        ([0, 257, 25700, 40092], [0, 1, 100, 156]),
        ([0, 1 << 20, 1 << 21], [0, 128, 255]),
        ([-100, 0, 155], [0, 100, 255]),
    ],
)
def test_32_bit_grey_is_taken_for_what_its_range_looks_like(
    tmp_path: Path, values: list[int], expected: list[int]
) -> None:
    path = tmp_path / "int.tif"
    Image.fromarray(np.array([values], dtype=np.int32)).save(path)
    assert greys(path) == expected


def test_a_palette_is_resolved(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    image.save(tmp_path / "palette.png")
    assert row_of(tmp_path / "palette.png") == [(70, 80, 90), (10, 20, 30), (40, 50, 60)]


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [
        (1, [(255, 255, 255), (10, 20, 30)]),  # one entry is transparent
        (b"\xff\x80", [(147, 152, 157), (10, 20, 30)]),  # entry 1 half: 255 - 128/255 * (255-v)
    ],
)
def test_transparent_palette_entries_lie_over_white(
    tmp_path: Path, transparency: int | bytes, expected: list[Colour]
) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([1, 0])
    image.save(tmp_path / "palette.png", transparency=transparency)
    assert row_of(tmp_path / "palette.png") == expected


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_alpha_lies_over_white(tmp_path: Path, ending: str) -> None:
    pixels = [[(0, 0, 0, 0), (0, 0, 0, 51), (200, 100, 0, 51), (10, 20, 30, 255)]]
    path = tmp_path / f"alpha.{ending}"
    options: dict[str, Any] = {"lossless": True, "exact": True} if ending == "webp" else {}
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(path, **options)
    # A fifth of the colour and four fifths of white.
    assert row_of(path) == [(255, 255, 255), (204, 204, 204), (244, 224, 204), (10, 20, 30)]


def test_grey_with_alpha_lies_over_white(tmp_path: Path) -> None:
    pixels = [[(0, 0), (100, 51), (100, 255)]]
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(tmp_path / "la.png")
    assert greys(tmp_path / "la.png") == [255, 224, 100]


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "one.png")
    assert greys(tmp_path / "one.png") == [255, 0, 255]


@pytest.mark.parametrize(
    ("values", "type", "transparent", "expected"),
    [
        ([0, 100, 200], np.uint8, 100, [0, 255, 200]),
        ([0, 257, 25700], np.uint16, 257, [0, 255, 100]),
        ([0, 258, 257], np.uint16, 257, [0, 1, 255]),  # near the transparent value is not it
    ],
)
def test_the_transparent_grey_value_lies_over_white(
    tmp_path: Path, values: list[int], type: type, transparent: int, expected: list[int]
) -> None:
    path = tmp_path / "grey.png"
    Image.fromarray(np.array([values], dtype=type)).save(path, transparency=transparent)
    assert greys(path) == expected


def test_the_transparent_colour_lies_over_white(tmp_path: Path) -> None:
    pixels = np.array([[(1, 2, 3), (1, 2, 4)]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png", transparency=(1, 2, 3))
    assert row_of(tmp_path / "colour.png") == [(255, 255, 255), (1, 2, 4)]


# CMYK


def printing_profile() -> bytes:
    """A colour profile of a press that prints cyan as L* = 50 grey, other inks as black."""
    # L*, a*, b* in 8 bits, for the 16 ways to take full inks; cyan varies slowest.
    paper, grey, black = bytes([255, 128, 128]), bytes([128, 128, 128]), bytes([0, 128, 128])
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table += 4 * ramp + paper + 7 * black + grey + 7 * black + 3 * ramp
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)  # D50
    tags = {b"A2B0": table + bytes(-len(table) % 4), b"wtpt": white}
    offset = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        directory += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(">I", offset + len(body)) + bytes(4) + b"\x02\x10\0\0prtrCMYKLab "
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + directory + body


@pytest.mark.parametrize("ending", ["jpg", "tif"])
@pytest.mark.parametrize(
    ("inks", "expected"),
    [
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_cmyk_without_a_profile_is_the_plain_mixture(
    tmp_path: Path, inks: tuple[int, int, int, int], expected: Colour, ending: str
) -> None:
    path = tmp_path / f"inks.{ending}"
    Image.new("CMYK", (8, 8), inks).save(path, quality=100)
    seen = colour_at(read_image(str(path)), 4, 4)
    assert max(abs(a - b) for a, b in zip(seen, expected, strict=True)) <= 2


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_cmyk_goes_through_its_profile(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"inks.{ending}"
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(
        path, quality=100, icc_profile=printing_profile()
    )
    seen = colour_at(read_image(str(path)), 4, 4)
    assert max(abs(value - 119) for value in seen) <= 3  # L* = 50 is 119 in sRGB


@pytest.mark.parametrize("profile", ["junk", "for RGB"])
def test_a_profile_that_cannot_be_used_counts_as_none(tmp_path: Path, profile: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "inks.tif"
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(
        path, icc_profile=b"junk" * 50 if profile == "junk" else srgb
    )
    assert colour_at(read_image(str(path)), 4, 4) == (0, 255, 255)


# Formats


@pytest.mark.parametrize(
    ("format", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})],
)
def test_of_several_frames_the_first_counts(
    tmp_path: Path, format: str, options: dict[str, Any]
) -> None:
    red, blue = Image.new("RGB", (4, 1), (255, 0, 0)), Image.new("RGB", (4, 1), (0, 0, 255))
    path = tmp_path / "frames"
    red.save(path, format, save_all=True, append_images=[blue, red], **options)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert row_of(path) == [(255, 0, 0)] * 4


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_avif_and_heic_are_read(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"image.{format.lower()}"
    path.write_bytes(encoded(painted(UPRIGHT), format, quality=95))
    image = read_image(str(path))
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert letters_of(image) == UPRIGHT


@pytest.mark.parametrize("format", ["PNG", "WEBP", "AVIF", "GIF", "HEIF", "BMP", "TIFF"])
@pytest.mark.parametrize("name", ["image.jpg", "image.txt", "image"])
def test_the_extension_is_not_trusted(tmp_path: Path, format: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(painted(UPRIGHT), format, quality=95))
    assert letters_of(read_image(str(path))) == UPRIGHT
    probe_image(str(path))


# What is no image


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file (0 bytes)"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"  \n<HTML><head></head></HTML>", "HTML"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        (b"\0" * 2000, "not an image"),
        ("Thesaurus, nicht Bild: äöü".encode(), "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    assert said in reason_of(path)
    with pytest.raises(ImageError):
        probe_image(str(path))


def test_a_long_message_of_a_decoder_becomes_one_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object, **named: object) -> Image.Image:
        raise ValueError("bad\n\n  block " + "x" * 5000)

    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "open", fails)
    reason = reason_of(tmp_path / "image.png")
    assert reason.startswith("bad block xxx")


def test_a_missing_file_is_an_image_error(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "gone.jpg") == "No such file or directory"


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    assert reason_of(tmp_path)


def test_the_error_names_the_file_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "none.jpg").touch()
    with pytest.raises(ImageError) as caught:
        read_image(str(tmp_path / "none.jpg"))
    assert str(caught.value) == f"{tmp_path / 'none.jpg'}: empty file (0 bytes)"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_truncated_image_is_refused(tmp_path: Path, format: str) -> None:
    content = encoded(noise((64, 64)), format)
    path = tmp_path / "image"
    path.write_bytes(content)
    assert read_image(str(path)).size == (64, 64)
    path.write_bytes(content[: len(content) // 2])
    assert reason_of(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_truncation_is_called_by_its_name_and_passes_the_header_check(
    tmp_path: Path, format: str
) -> None:
    content = encoded(noise((64, 64)), format)
    path = tmp_path / "image"
    path.write_bytes(content[: len(content) * 3 // 4])
    probe_image(str(path))
    assert "truncated" in reason_of(path)


@cache
def seed_files() -> dict[str, bytes]:
    """Small whole files, with metadata, in many formats."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    image, grey = noise(), noise(mode="L")
    frames = {"save_all": True, "append_images": [Image.new("RGB", image.size)]}
    deep = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 100)
    return {
        "jpeg": encoded(image, "JPEG", exif=exif),
        "progressive": encoded(image, "JPEG", progressive=True),
        "cmyk": encoded(noise(mode="CMYK").convert("CMYK"), "JPEG", icc_profile=printing_profile()),
        "png": encoded(image, "PNG", exif=exif),
        "deep": encoded(deep, "PNG", transparency=100),
        "palette": encoded(image.quantize(16), "PNG", transparency=b"\x00\x80"),
        "apng": encoded(image, "PNG", **frames),
        "gif": encoded(image, "GIF", **frames),
        "webp": encoded(image, "WEBP", exif=exif),
        "tiff": encoded(image, "TIFF", exif=exif),
        "deflated": encoded(image, "TIFF", compression="tiff_deflate"),
        "float": encoded(grey.convert("F"), "TIFF"),
        "bmp": encoded(image, "BMP"),
        "ico": encoded(image.resize((16, 16)), "ICO"),
        "ppm": encoded(image, "PPM"),
        "tga": encoded(noise(mode="RGBA"), "TGA"),
        "avif": encoded(image, "AVIF", exif=exif),
        "heif": encoded(image, "HEIF", exif=exif),
    }


KINDS = ["jpeg", "progressive", "cmyk", "png", "deep", "palette", "apng", "gif", "webp", "tiff",
         "deflated", "float", "bmp", "ico", "ppm", "tga", "avif", "heif"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_to_be_corrupted_are_whole(tmp_path: Path, kind: str) -> None:
    (tmp_path / "whole").write_bytes(seed_files()[kind])
    assert read_image(str(tmp_path / "whole")).mode == "RGB"


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on strange metadata
@settings(deadline=None, max_examples=400)
@given(
    kind=st.sampled_from(KINDS),
    # Most of what steers a decoder stands at the front.
    flips=st.lists(
        st.tuples(st.one_of(st.integers(0, 200), st.integers(0, 5000)), st.integers(0, 255)),
        max_size=8,
    ),
    kept=st.one_of(st.none(), st.floats(0, 1)),
)
def test_corrupt_bytes_give_an_image_or_an_image_error_and_nothing_else(
    kind: str, flips: list[tuple[int, int]], kept: float | None
) -> None:
    content = bytearray(seed_files()[kind])
    for place, value in flips:
        content[place % len(content)] = value
    if kept is not None:
        content = content[: round(kept * len(content))]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "corrupt")
        Path(path).write_bytes(content)
        refused, image = None, None
        try:
            # A corrupt header may claim any size; one megapixel keeps this test small.
            image = read_image(path, max_megapixels=1)
        except ImageError as error:
            refused = error
    if image is not None:
        assert image.mode == "RGB"
        assert np.asarray(image).size > 0  # really decoded: the file is gone by now
    else:
        assert refused is not None
        assert refused.path == path
        assert_clean(refused.reason)


# The size limit


def test_an_image_above_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_without_pixels(9000, 9000))
    reason = reason_of(path, max_megapixels=80)
    for part in ("81.0 megapixels", "9000x9000", "80", "--max-megapixels"):
        assert part in reason
    with pytest.raises(ImageError, match=r"81\.0 megapixels"):
        probe_image(str(path), max_megapixels=80)
    # With the limit raised the decoder is reached, and finds that there is nothing to decode.
    assert "truncated" in reason_of(path, max_megapixels=82)


def test_an_image_of_just_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "just.png"
    Image.new("RGB", (1000, 250)).save(path)
    assert read_image(str(path), max_megapixels=0.25).size == (1000, 250)
    assert "0.2 megapixels (1000x250)" in reason_of(path, max_megapixels=0.249)


@pytest.mark.filterwarnings("ignore")  # see the next test
@pytest.mark.parametrize("side", [10_000, 13_000])
def test_where_pillow_would_warn_our_own_limit_decides(tmp_path: Path, side: int) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_without_pixels(side, side))
    assert "above the limit of 89; raise it with --max-megapixels" in reason_of(path)
    assert "truncated" in reason_of(path, max_megapixels=170)  # the decoder was reached


def test_remarks_of_pillow_do_not_reach_the_terminal(tmp_path: Path) -> None:
    # Above 89 megapixels Pillow warns of a "decompression bomb", and broken metadata makes it
    # warn too. Limits and reasons are ours to tell; warnings with line numbers help nobody.
    (tmp_path / "huge.png").write_bytes(png_without_pixels(10_000, 10_000))
    painted(UPRIGHT).save(tmp_path / "odd.jpg", exif=BROKEN_EXIF)
    script = (
        "import sys; from lookalike.data.reading.decode import probe_image, read_image\n"
        "probe_image(sys.argv[1], max_megapixels=150); read_image(sys.argv[2])"
    )
    files = [str(tmp_path / "huge.png"), str(tmp_path / "odd.jpg")]
    done = subprocess.run(
        [sys.executable, "-c", script, *files], check=True, capture_output=True, timeout=60
    )
    assert done.stderr == b""


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_what_pillow_never_decodes_is_refused_whatever_the_limit(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_without_pixels(side, side))
    assert "above 178 megapixels" in reason_of(path, max_megapixels=1e9)


# The real files that give trouble

READ_ALL = (
    PEAK_BYTES
    + """
import json, os, sys
from lookalike.data.reading.decode import read_image
from lookalike.errors import ImageError

found = {}
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(folder, name)
        try:
            image = read_image(path)
        except ImageError as error:
            found[os.path.relpath(path, sys.argv[1])] = error.reason
        else:
            image.tobytes()
            found[os.path.relpath(path, sys.argv[1])] = [image.mode, *image.size]
print(json.dumps({"found": found, "peak_bytes": peak_bytes()}))
"""
)


@pytest.fixture(scope="module")
def hard_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each of the real hard files, and the manifest's word on them."""
    archive = Path(os.environ.get("LOOKALIKE_REAL_DATA", "")) / "data" / "hard-images.tar"
    if not os.environ.get("LOOKALIKE_REAL_DATA") or not archive.is_file():
        pytest.skip("LOOKALIKE_REAL_DATA names no folder with data/hard-images.tar")
    if not sys.platform.startswith("linux"):
        pytest.skip("some names are no UTF-8, which other systems refuse to write")
    folder = tmp_path_factory.mktemp("hard")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="fully_trusted")
    root = folder / "hard"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ_ALL, str(root)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    lines = (root / "MANIFEST.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    report["manifest"] = {
        row[0].encode("latin-1").decode("unicode_escape"): dict(
            zip(lines[0].split("\t"), row, strict=True)
        )
        for row in rows
    }
    return report


def test_every_real_hard_file_is_read_or_named_with_a_reason(hard_files: dict[str, Any]) -> None:
    found, manifest = hard_files["found"], hard_files["manifest"]
    assert len(manifest) == 120
    assert set(manifest) <= set(found)
    for outcome in found.values():
        if isinstance(outcome, str):
            assert_clean(outcome)
        else:
            assert outcome[0] == "RGB"


def test_the_real_files_that_can_be_read_are_read_in_their_size(hard_files: dict[str, Any]) -> None:
    readable = 0
    for name, row in hard_files["manifest"].items():
        if row["load_with_Pillow13+pillow_heif"] != "ok":
            continue
        width, height = map(int, row["size"].split("x"))
        if width * height > 89e6:
            continue
        outcome = hard_files["found"][name]
        assert not isinstance(outcome, str), f"{name!r}: {outcome}"
        assert sorted(outcome[1:]) == sorted([width, height]), name
        readable += 1
    assert readable > 80


@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
def test_the_real_rotated_photographs_all_come_out_upright(
    hard_files: dict[str, Any], shape: str
) -> None:
    sizes = {
        tuple(outcome[1:])
        for name, outcome in hard_files["found"].items()
        if f"exif__{shape}" in name
    }
    assert sizes == {(1800, 1200) if shape == "Landscape" else (1200, 1800)}


def test_reading_all_hard_files_takes_less_than_a_gigabyte(hard_files: dict[str, Any]) -> None:
    assert hard_files["peak_bytes"] < 1e9
