"""Images drawn on the spot, and folders of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """An image with detail at every scale, as photos have; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((*size[::-1], 3))
    for cells in (3, 6, 12, 24, 48):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)) / 5
    return Image.fromarray(pixels.astype(np.uint8))


def draw(label: int, copy: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """An image of a class: a colour and a stripe pattern of its own, with noise."""
    rng = np.random.default_rng([label, copy])
    base = np.random.default_rng(label).integers(40, 216, 3)
    width, height = size
    stripes = 30 * np.sign(np.sin(np.arange(width) * (label + 2) / 6))
    pixels = base + stripes[None, :, None] + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_tree(root: Path, counts: dict[str, int], first: int = 0) -> Path:
    """A class-per-folder tree with so many images of each class."""
    for label, (name, count) in enumerate(sorted(counts.items())):
        folder = root / name
        folder.mkdir(parents=True)
        for copy in range(first, first + count):
            draw(label, copy).save(folder / f"{name}_{copy:03}.png")
    return root


def write_twins(folder: Path) -> list[str]:
    """Writes two images that differ in nothing but their pixels: size and time are the same."""
    paths = []
    for name, grey in (("one", 40), ("other", 200)):
        (folder / name).mkdir()
        path = folder / name / "image.bmp"
        Image.new("RGB", (12, 10), (grey, grey, grey)).save(path)
        os.utime(path, ns=(10**18, 10**18))
        paths.append(str(path))
    return paths


def swap(paths: list[str], what: str) -> None:
    """Has two files change places ("files", "folders"), or the first be a "copy" of the second."""
    if what == "copy":
        shutil.copy2(paths[1], paths[0])
        return
    first, second = (Path(path) if what == "files" else Path(path).parent for path in paths)
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
