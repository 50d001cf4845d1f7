"""What a stranger's file may cost, and what it may start: nothing that was not asked for."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.limits import PEAK_BYTES, linux_only
from PIL import ExifTags, Image, PngImagePlugin

from lookalike.data.images import ImageRef, InMemory
from lookalike.data.reading import decode
from lookalike.data.reading.decode import probe_image, read_image
from lookalike.errors import ImageError


def reasons_of(ref: ImageRef, max_megapixels: float = 89) -> list[str]:
    """Why a file is refused: when it is listed, and when it is read."""
    reasons = []
    for look in (probe_image, read_image):
        with pytest.raises(ImageError) as refused:
            look(ref, max_megapixels)
        reasons.append(refused.value.reason)
    return reasons


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# What starts a program, or asks whoever registered for it

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 60\n%%EndComments\n{ } loop\n"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (EPS, "PostScript"),
        (struct.pack("<4sIIIIIIH", b"\xc5\xd0\xd3\xc6", 30, len(EPS), 0, 0, 0, 0, 0) + EPS,
         "PostScript"),
        (b"%PDF-1.7\n1 0 obj\n", "PDF"),
        (b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 60, 60, 72) + bytes(8)
         + b"\x01\0\x09\0\0\x03" + bytes(80), "WMF"),
        (b"\x01\0\0\0" + struct.pack("<I8i", 108, 0, 0, 60, 60, 0, 0, 1000, 1000) + b" EMF"
         + bytes(80), "EMF"),
        (b"GRIB" + bytes(3) + b"\x01" + bytes(80), "GRIB"),
        (b"BUFR" + bytes(80), "BUFR"),
        (b"\x89HDF\r\n\x1a\n" + bytes(80), "HDF5"),
        (b"SIMPLE  =                    T" + b" " * 50 + bytes(80), "FITS"),
        (b"BLP2" + bytes(80), "BLP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    ],
)  # fmt: skip
@pytest.mark.skipif(os.name != "posix", reason="a script stands for the program")
def test_what_would_be_handed_on_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, named: str
) -> None:
    log = tmp_path / "started"
    for name in ("gs", "djpeg", "inkscape", "convert"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho {name} >> {log}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for ref in (str(path), InMemory("photo.jpg", content)):
        for reason in reasons_of(ref):
            assert named in reason
    assert not log.exists()


def test_a_format_that_somebody_registers_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setitem(Image.OPEN, "OURS", (lambda *_: asked.append("opened"), None))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "OURS"])
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"anything")
    reasons_of(str(path))
    assert asked == []


# Text and profiles that are larger than Pillow takes


@pytest.mark.parametrize("megabytes", [2, 20])
@pytest.mark.parametrize("what", ["zTXt", "tEXt", "iTXt", "iCCP", "after the pixels"])
def test_a_png_with_much_text_or_a_large_profile_is_read(what: str, megabytes: int) -> None:
    image = Image.new("RGB", (8, 6), (10, 200, 30))
    info, text = PngImagePlugin.PngInfo(), "x" * megabytes * 10**6
    if what == "iTXt":
        info.add_itxt("workflow", text, zip=True)
    elif what == "after the pixels":
        info.add(b"zTXt", b"workflow\0\0" + zlib.compress(text.encode()), after_idat=True)
    elif what != "iCCP":
        info.add_text("workflow", text, zip=what == "zTXt")
    profile = os.urandom(100) + bytes(megabytes * 10**6) if what == "iCCP" else None
    content = encoded(image, "PNG", pnginfo=info, icc_profile=profile)
    assert read_image(InMemory("", content)).tobytes() == image.tobytes()


def test_a_png_with_text_without_end_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * 2**27, zip=True)
    content = encoded(Image.new("RGB", (8, 6)), "PNG", pnginfo=info)
    for reason in reasons_of(InMemory("", content)):
        assert "too large" in reason


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("count", [3, 300])
def test_a_png_of_very_many_packed_texts_or_profiles_is_refused(kind: bytes, count: int) -> None:
    name = {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\x01\0\0\0"}[kind]
    data = kind + name + zlib.compress(bytes(100))
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    content = encoded(Image.new("RGB", (8, 6)), "PNG")
    image = InMemory("", content[:33] + count * chunk + content[33:])  # behind the header
    if count == 3:
        assert read_image(image).size == (8, 6)
        return
    for reason in reasons_of(image):
        assert f"{count} compressed texts and colour profiles" in reason


# Sizes that a header tells, or hides


def png_of(width: int, height: int) -> bytes:
    """The start of a PNG of any size, without its pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    parts = [head, data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in parts
    )


def ico_of(*images: bytes, told: int = 16) -> bytes:
    """An icon of images whose directory says that they are small."""
    head, offset = struct.pack("<HHH", 0, 1, len(images)), 6 + 16 * len(images)
    for image in images:
        head += struct.pack("<BBBBHHII", told, told, 0, 0, 1, 32, len(image), offset)
        offset += len(image)
    return head + b"".join(images)


def dib_of(width: int, height: int) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(99)


def icns_of(kind: bytes, image: bytes) -> bytes:
    block = kind + struct.pack(">I", 8 + len(image)) + image
    return b"icns" + struct.pack(">I", 8 + len(block)) + block


def webp_of(width: int, height: int, kind: bytes) -> bytes:
    """34 bytes that ask for a canvas."""
    if kind == b"VP8X":
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides + bytes(4)
    elif kind == b"VP8L":
        bits = (width - 1) | (height - 1) << 14
        body = b"VP8L" + struct.pack("<I", 9) + b"\x2f" + struct.pack("<I", bits) + bytes(5)
    else:
        body = (b"VP8 " + struct.pack("<I", 10) + b"\x10\x02\0\x9d\x01\x2a"
                + struct.pack("<HH", width, height))  # fmt: skip
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff_of(width: int, height: int, tile_width: int, tile_height: int) -> bytes:
    """Grey, in one tile that holds nothing."""
    long, short = 4, 3
    entries = [(256, long, width), (257, long, height), (258, short, 8), (259, short, 8),
               (262, short, 1), (277, short, 1), (322, long, tile_width), (323, long, tile_height),
               (324, long, 134), (325, long, 4)]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    start = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return start + directory + bytes(4) + bytes(4)


SIDE = 4000  # 16 megapixels, where 10 are the limit
HUGE = {
    "PNG": png_of(SIDE, SIDE),
    "ICO of a PNG": ico_of(png_of(SIDE, SIDE)),
    "ICO whose second image is huge": ico_of(png_of(16, 16), png_of(SIDE, SIDE)),
    "ICO of a bitmap": ico_of(dib_of(SIDE, SIDE)),
    "ICNS of a PNG": icns_of(b"ic07", png_of(SIDE, SIDE)),
    "TIFF": tiff_of(SIDE, SIDE, 16, 16),
    "TIFF whose tile is larger than it": tiff_of(16, 16, SIDE, SIDE),
    "WebP, extended": webp_of(SIDE, SIDE, b"VP8X"),
    "WebP, lossless": webp_of(SIDE, SIDE, b"VP8L"),
    "WebP, lossy": webp_of(SIDE, SIDE, b"VP8 "),
    "GIF": b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0, 0, 0) + b"\x2c"
    + struct.pack("<HHHHB", 0, 0, SIDE, SIDE, 0) + b"\x02\x02\x4c\x01\0;",
    "GIF whose frame is larger than it": b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\x2c"
    + struct.pack("<HHHHB", 0, 0, SIDE, SIDE, 0) + b"\x02\x02\x4c\x01\0;",
}  # fmt: skip


@pytest.mark.parametrize("kind", HUGE)
def test_the_limit_holds_before_anything_is_decoded(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    for reason in reasons_of(InMemory("", HUGE[kind]), 10):
        assert "16.0 megapixels (4000x4000)" in reason
        assert "--max-megapixels" in reason


@pytest.mark.parametrize("format", ["TIFF", "AVIF", "HEIF", "JPEG2000", "ICNS"])
def test_the_limit_holds_for_formats_that_are_hard_to_make_up(format: str) -> None:
    probe_image(InMemory("", png_of(1, 1)))  # loads HEIC
    # The least of which AVIF and HEIC are made; an ICNS holds images up to 1024 px.
    content = encoded(Image.new("RGB", (128, 128)), format)
    for reason in reasons_of(InMemory("", content), 0.01):
        assert "0.0 megapixels (128x128)" in reason or "1.0 megapixels (1024x1024)" in reason


def test_a_look_at_a_folder_decodes_no_icon(monkeypatch: pytest.MonkeyPatch) -> None:
    icon = encoded(Image.new("RGB", (64, 64), (1, 2, 3)), "ICO", sizes=[(16, 16), (64, 64)])
    seen = read_image(InMemory("", icon))
    assert (seen.size, seen.getpixel((9, 9))) == ((64, 64), (1, 2, 3))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    assert probe_image(InMemory("", icon))[:1] + probe_image(InMemory("", icon))[2:] == (
        "ICO", 64, 64,
    )  # fmt: skip


@pytest.mark.parametrize("content", [b"\0\0\x01\0", ico_of(), ico_of(b"junk"), b"icns" + bytes(30)])
def test_a_broken_icon_is_an_image_error(content: bytes) -> None:
    reasons_of(InMemory("", content))


@pytest.mark.parametrize(
    ("format", "what"), [("WEBP", "memory"), ("JPEG2000", "memory"), ("QOI", "time")]
)
def test_formats_that_cost_more_have_a_lower_limit_and_say_so(format: str, what: str) -> None:
    content = b"qoif" + struct.pack(">IIBB", 100, 100, 3, 0) + b"\xfd" * 162 + bytes(7) + b"\x01"
    if format != "QOI":
        content = encoded(Image.new("RGB", (100, 100)), format)
    for reason in reasons_of(InMemory("", content), 0.0101):
        assert f"far more {what}" in reason
        assert "--max-megapixels" in reason
    assert read_image(InMemory("", content), 0.11).size == (100, 100)


# Scans of a JPEG


def with_scans(content: bytes, count: int) -> bytes:
    """The same JPEG, its last scan repeated."""
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * count + content[-2:]


@pytest.mark.parametrize("many", [False, True])
def test_a_jpeg_of_very_many_scans_is_refused_and_others_are_read(many: bool) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    progressive = encoded(image, "JPEG", progressive=True)
    content = with_scans(progressive, 200 if many else 0)
    if not many:
        assert read_image(InMemory("", content)).size == (48, 40)
        return
    for reason in reasons_of(InMemory("", content)):
        assert "scans" in reason


@pytest.mark.parametrize("form", ["JPEG", "MPO"])
def test_scans_are_counted_of_the_image_alone(form: str) -> None:
    """Phones put a film behind the image, in which any two bytes come often."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    content = encoded(
        image, form, progressive=True, **({"save_all": True} if form == "MPO" else {})
    )
    film = b"\xff\xda\0\x02" * 2_000
    assert read_image(InMemory("", content + film)).size == (48, 40)
    exif = b"\xff\xe1" + struct.pack(">H", 2 + 8_000) + film[:8_000]  # as a small image has one
    assert read_image(InMemory("", content[:2] + exif + content[2:])).size == (48, 40)
    for reason in reasons_of(InMemory("", with_scans(content, 200) + film)):
        assert "scans" in reason


def test_a_sequential_jpeg_of_very_many_scans_is_refused_too() -> None:
    plain = encoded(Image.new("RGB", (48, 40)), "JPEG")
    start = plain.index(b"\xff\xda")
    # Of all colours together there is one scan; of single ones as many as one likes.
    for colours, refused in ((b"\x03\x01\0\x02\x11\x03\x11", False), (b"\x01\x01\0", True)):
        scan = b"\xff\xda" + struct.pack(">H", 5 + len(colours)) + colours + b"\0\x3f\0" + b"\0" * 9
        content = plain[:start] + scan * 300 + b"\xff\xd9"
        if refused:
            assert all("scans" in reason for reason in reasons_of(InMemory("", content)))
        else:
            probe_image(InMemory("", content))


# Memory

PEAK = (
    PEAK_BYTES
    + """
import sys
from lookalike.data.reading.decode import read_image
from lookalike.data.transforms import Preprocessing, preprocess
how = Preprocessing(64, 64, 64, 3, 1 / 255, (0, 0, 0), (1, 1, 1), exact=False)

preprocess(read_image(sys.argv[1]), how)
before = peak_bytes()
image = read_image(sys.argv[2])
preprocess(image, how)
print((peak_bytes() - before) / (image.width * image.height))
"""
)


@linux_only
@pytest.mark.parametrize(
    "kind",
    [
        "RGBA, rotated",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("16 bits", "float", "CMYK")),
    ],
)
def test_a_large_image_takes_about_twelve_bytes_a_pixel(tmp_path: Path, kind: str) -> None:
    size, small, large = (5000, 3000), tmp_path / "small.png", tmp_path / "large"
    Image.new("RGBA", (80, 60)).save(small)
    rotated = Image.Exif()
    rotated[ExifTags.Base.Orientation] = 6
    make: dict[str, Callable[[], None]] = {
        "RGBA, rotated": lambda: Image.new("RGBA", size).save(
            large, "PNG", compress_level=1, exif=rotated),
        "16 bits": lambda: Image.new("I;16", size).save(large, "PNG", compress_level=1),
        "float": lambda: Image.new("F", size, 7).save(large, "TIFF"),
        "CMYK": lambda: Image.new("CMYK", size).save(large, "TIFF"),
    }  # fmt: skip
    make[kind]()
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(small), str(large)], capture_output=True, check=True
    )
    assert float(found.stdout) < 16  # and 4 megapixels at a time on the way


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "I", "F", "CMYK", "L", "1"])
def test_rows_at_a_time_give_the_pixels_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (37, 23, 4), dtype=np.uint8), "RGBA")
    if mode == "P":
        image = noise.convert("RGB").quantize(17)
        image.info["transparency"] = 3
    elif mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(rng.integers(0, 65536, (37, 23)).astype(kind))
        image.info["transparency"] = 3
    else:
        image = noise.convert("RGB" if mode == "CMYK" else "RGBA").convert(mode)
    at_once = decode.as_seen(image)
    monkeypatch.setattr("lookalike.data.extent.BAND_PX", 50)
    assert decode.as_seen(image).tobytes() == at_once.tobytes()
