"""Copies and colour: what differs in colour alone is no copy, what is toned a little is one."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photos import photo
from PIL import Image, ImageDraw, ImageEnhance

from lookalike.checks.copies.duplicates import near_copies
from lookalike.checks.reading.image import describe_file
from lookalike.progress import SilentProgress

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (200, 30, 30), "blue": (30, 60, 200), "green": (30, 150, 60),
    "yellow": (220, 200, 40), "orange": (230, 130, 30), "purple": (130, 40, 160),
    "black": (20, 20, 20),
}  # fmt: skip


def near(tmp_path: Path, images: list[Image.Image]) -> set[tuple[int, int]]:
    paths = [str(tmp_path / f"{nth:02}.png") for nth in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    facts = [describe_file(path, 10) for path in paths]
    found = near_copies(
        paths, facts, None, max_megapixels=10, device=torch.device("cpu"),
        progress=SilentProgress(),
    )  # fmt: skip
    return {(one.first, one.second) for one in found}


def thing(colour: Colour, size: float = 1.0) -> Image.Image:
    """A cap or so, in the middle of a white page."""
    image = Image.new("RGB", (160, 160), "white")
    points = 80 + (np.random.default_rng(0).integers(20, 140, (6, 2)) - 80) * size
    ImageDraw.Draw(image).polygon([(x, y) for x, y in points.tolist()], fill=colour)
    return image


def fabric(colour: Colour) -> Image.Image:
    """A weave that fills the image."""
    weave = np.random.default_rng(0).uniform(0.6, 1.0, (160, 160, 1))
    coarse = np.asarray(Image.fromarray((weave[..., 0] * 255).astype(np.uint8)).resize((40, 40)))
    light = np.asarray(Image.fromarray(coarse).resize((160, 160), Image.Resampling.NEAREST)) / 255
    return Image.fromarray((light[..., None] * np.array(colour)).astype(np.uint8))


@pytest.mark.parametrize("size", [1.0, 0.4])
def test_a_thing_in_other_colours_is_no_copy(tmp_path: Path, size: float) -> None:
    for nth, (one, other) in enumerate(combinations(COLOURS.values(), 2)):
        folder = tmp_path / str(nth)
        folder.mkdir()
        assert near(folder, [thing(one, size), thing(other, size)]) == set(), (one, other)


@pytest.mark.parametrize("colour", ["blue", "green", "yellow"])
def test_a_fabric_in_another_colour_is_no_copy(tmp_path: Path, colour: str) -> None:
    assert near(tmp_path, [fabric(COLOURS["red"]), fabric(COLOURS[colour])]) == set()


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def warmer(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image) * np.array([1.1, 1.0, 0.9])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        warmer,
        lambda image: recompressed(image.resize((120, 90))),
        lambda image: image.crop((4, 0, image.width, image.height - 3)),
        lambda image: ImageEnhance.Color(image).enhance(0.5),
        lambda image: ImageEnhance.Color(image).enhance(1.5),
        lambda image: ImageEnhance.Brightness(image).enhance(0.75),
        lambda image: recompressed(image.convert("L").convert("RGB")),
    ],
)
def test_a_copy_may_be_toned_a_little(
    tmp_path: Path, change: Callable[[Image.Image], Image.Image]
) -> None:
    for nth in range(3):
        for made in (thing(COLOURS["red"]), photo(nth)):
            assert near(tmp_path, [made, change(made)]) == {(0, 1)}, nth


def test_two_photos_without_colour_may_be_copies(tmp_path: Path) -> None:
    grey = photo(1).convert("L").convert("RGB")
    assert near(tmp_path, [grey, ImageEnhance.Brightness(grey).enhance(0.7)]) == {(0, 1)}


def turned(image: Image.Image, degrees: int) -> Image.Image:
    pixels = np.asarray(image.convert("HSV")).copy()
    pixels[..., 0] = (pixels[..., 0].astype(int) + degrees * 256 // 360) % 256
    return Image.fromarray(pixels, "HSV").convert("RGB")


def test_a_photo_with_all_its_colours_turned_is_no_copy(tmp_path: Path) -> None:
    for degrees in (60, 120, 180):
        folder = tmp_path / str(degrees)
        folder.mkdir()
        coloured = ImageEnhance.Color(photo(2)).enhance(2)
        assert near(folder, [coloured, turned(coloured, degrees)]) == set(), degrees
