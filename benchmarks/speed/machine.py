"""What the tables of speed have in common: the machine they are of, fair turns, pictures."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from PIL import Image


def describe(*packages: str) -> str:
    """Date, processor with its units for low precision, and versions, in a line."""
    units = [name for name in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx2")
             if name in _flags()]  # fmt: skip
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    return (
        f"{date.today()}, {os.cpu_count()} cores of {_processor()} ({', '.join(units) or 'none'}); "
        f"Python {platform.python_version()}, {versions}"
    )


def in_turns(cases: Mapping[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Seconds of each case: the median of `rounds`, taken in turns, so that a slow minute of the
    machine hits all of them. What is done once (loading, tuning) is done before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEG files like photos (noise with the spectrum of natural pictures), quality 90."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        paths.append(folder / f"{number:05}.jpg")
        photo(size, number).save(paths[-1], quality=90)
    return paths


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """One picture whose amplitudes fall as 1 / frequency, in colours that go together."""
    width, height = size
    rng = np.random.default_rng(seed)
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    falloff = 1 / np.maximum(np.hypot(across, down), 1 / max(size))
    planes = []
    for _ in range(3):
        noise = rng.normal(size=falloff.shape) + 1j * rng.normal(size=falloff.shape)
        plane = np.fft.irfft2(noise * falloff, s=(height, width))
        planes.append(plane / plane.std())
    light = planes[0]
    pixels = np.stack([light + 0.3 * planes[i] for i in (1, 2, 2)], axis=2)
    return Image.fromarray((128 + 45 * pixels).clip(0, 255).astype(np.uint8))


def _flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return {word for line in text.splitlines() if line.startswith("flags") for word in line.split()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
                platform.machine())  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
