"""What an export says of opening images, against how they are opened when a model is measured."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import lookalike
from lookalike.config import ExportConfig
from lookalike.data.images import InMemory
from lookalike.data.reading.decode import read_image
from lookalike.progress import SilentProgress


@pytest.fixture(scope="module")
def exported(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    lookalike.export(
        ExportConfig(model_name=str(tiny_clip), out=str(out)), progress=SilentProgress()
    )
    return out


@pytest.fixture(scope="module")
def photo(exported: Path) -> Callable[[Any], Image.Image]:
    scope: dict[str, Any] = {}
    exec((exported / "prepare.py").read_text(encoding="utf-8"), scope)
    made: Callable[[Any], Image.Image] = scope["photo"]
    return made


NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
RGBA = Image.fromarray(NOISE, "RGBA")
RGB, GREY = RGBA.convert("RGB"), NOISE[..., 0]
WIDE = np.random.default_rng(1).integers(0, 65536, (30, 40))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


KINDS: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "RGB": (RGB, "PNG", {}),
    "JPEG": (RGB, "JPEG", {}),
    "grey": (RGB.convert("L"), "PNG", {}),
    "bits": (RGB.convert("1"), "PNG", {}),
    "transparent": (RGBA, "PNG", {}),
    "transparent WebP": (RGBA, "WEBP", {"lossless": True}),
    "grey and transparent": (RGBA.convert("LA"), "PNG", {}),
    "palette": (RGB.quantize(30), "PNG", {}),
    "palette, transparent": (RGB.quantize(30), "PNG", {"transparency": 3}),
    "palette, half transparent": (RGB.quantize(30), "PNG", {"transparency": bytes(range(30))}),
    "GIF": (RGB.quantize(30), "GIF", {"transparency": 2}),
    "a transparent colour": (RGB, "PNG", {"transparency": RGB.getpixel((3, 3))}),
    "a transparent grey": (RGB.convert("L"), "PNG", {"transparency": int(GREY[0, 0])}),
    "16 bits": (Image.fromarray(WIDE.astype(np.uint16)), "PNG", {}),
    "16 bits, dark": (Image.fromarray((WIDE // 200).astype(np.uint16)), "PNG", {}),
    "16 bits, TIFF": (Image.fromarray(WIDE.astype(np.uint16)), "TIFF", {}),
    "32 bits": (Image.fromarray(WIDE.astype(np.int32)), "TIFF", {}),
    "32 bits, below zero": (Image.fromarray(WIDE.astype(np.int32) - 9000), "TIFF", {}),
    "32 bits, small": (Image.fromarray(GREY.astype(np.int32)), "TIFF", {}),
    "float to 1": (Image.fromarray((WIDE / 65535).astype(np.float32)), "TIFF", {}),
    "float to 255": (Image.fromarray((WIDE / 257).astype(np.float32)), "TIFF", {}),
    "float, wide": (Image.fromarray((WIDE * 9.5 - 4).astype(np.float32)), "TIFF", {}),
    "float, no numbers": (Image.fromarray(np.full((30, 40), np.nan, np.float32)), "TIFF", {}),
    "CMYK": (RGB.convert("CMYK"), "JPEG", {}),
    "CMYK, broken profile": (RGB.convert("CMYK"), "JPEG", {"icc_profile": b"none"}),
    "CMYK, profile of RGB": (RGB.convert("CMYK"), "TIFF", {
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}),
    **{f"turned {n}": (RGB, "JPEG", {"exif": turned(n)}) for n in range(1, 9)},
    "turned and transparent": (RGBA, "PNG", {"exif": turned(6)}),
    "turned CMYK": (RGB.convert("CMYK"), "JPEG", {"exif": turned(8)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_an_export_opens_images_as_they_were_measured(
    photo: Callable[[Any], Image.Image], kind: str
) -> None:
    image, kind_of_file, options = KINDS[kind]
    file = io.BytesIO()
    image.save(file, kind_of_file, **options)
    expected = read_image(InMemory("", file.getvalue()))
    opened = photo(io.BytesIO(file.getvalue()))
    assert (opened.mode, opened.size) == ("RGB", expected.size)
    difference = np.abs(np.asarray(opened).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= (1 if "float" in kind or "32" in kind else 0)  # a rounding


def test_the_code_of_an_export_starts_no_program(photo: Callable[[Any], Image.Image]) -> None:
    with pytest.raises(OSError, match="cannot identify"):
        photo(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 60\n%%EndComments\n"))


def test_the_card_holds_the_same_code(exported: Path) -> None:
    code = (exported / "prepare.py").read_text(encoding="utf-8").split('images."""\n\n')[1]
    assert code.strip() in (exported / "README.md").read_text(encoding="utf-8")
