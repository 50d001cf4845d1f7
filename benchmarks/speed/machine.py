"""What the tables of speed have in common: the machine, fair turns, models and images."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_DIFFERENT = 256  # photos; further ones are copies, which take no less to read
_FALLOFF = 1.3  # of amplitudes with frequency; at it files have the size of photos' files

MODELS: dict[str, dict[str, Any]] = {
    "B/32": {"open_clip": "ViT-B-32", "layers": 12, "width": 768, "heads": 12, "patch": 32,
             "side": 224, "dim": 512, "images": 256},
    "B/16": {"open_clip": "ViT-B-16", "layers": 12, "width": 768, "heads": 12, "patch": 16,
             "side": 224, "dim": 512, "images": 96},
    "L/14-336": {"open_clip": "ViT-L-14-336", "layers": 24, "width": 1024, "heads": 16,
                 "patch": 14, "side": 336, "dim": 768, "images": 16},
}  # fmt: skip


def describe(*packages: str, device: str = "cpu") -> str:
    """Date, processor with its units for low precision, GPU, and versions, in a line."""
    units = [name for name in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx2")
             if name in _flags()]  # fmt: skip
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    return (
        f"{date.today()}, {os.cpu_count()} cores of {_processor()} ({', '.join(units) or 'none'})"
        f"{_accelerator(device)}; Python {platform.python_version()}, {versions}"
    )


def in_turns(
    cases: Mapping[str, Callable[[], object]], rounds: int = 3, device: str = "cpu"
) -> dict[str, float]:
    """Seconds of each case: the median of `rounds`, taken in turns, so that a slow minute of the
    machine hits all of them. What is done once (loading, tuning) is done before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    wait_for(device)
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def wait_for(device: str) -> None:
    """Until it has done what it was told to do; a CPU has."""
    if device != "cpu":
        import torch

        torch.accelerator.synchronize()


def gigaflops(shape: Mapping[str, Any]) -> float:
    """What one image takes forwards: products of layers, attention and patches."""
    patches = (shape["side"] // shape["patch"]) ** 2
    tokens, width = patches + 1, shape["width"]
    layer = tokens * (24 * width**2 + 4 * tokens * width)
    return float(shape["layers"] * layer + 6 * patches * shape["patch"] ** 2 * width) / 1e9


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEG files like photos (noise with the spectrum of natural images), quality 90."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        paths.append(folder / f"{number:05}.jpg")
        if number < _DIFFERENT:
            photo(size, number).save(paths[-1], quality=90)
        else:
            shutil.copyfile(paths[number % _DIFFERENT], paths[-1])
    return paths


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """One image whose amplitudes fall as natural images' do, in colours that go together."""
    width, height = size
    rng = np.random.default_rng(seed)
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    falloff = np.maximum(np.hypot(across, down), 1 / max(size)) ** -_FALLOFF
    planes = []
    for _ in range(3):
        noise = rng.normal(size=falloff.shape) + 1j * rng.normal(size=falloff.shape)
        plane = np.fft.irfft2(noise * falloff, s=(height, width))
        planes.append(plane / plane.std())
    light = planes[0]
    pixels = np.stack([light + 0.3 * planes[i] for i in (1, 2, 2)], axis=2)
    return Image.fromarray((128 + 45 * pixels).clip(0, 255).astype(np.uint8))


def write_clip(folder: Path, shape: dict[str, Any]) -> None:
    """A CLIP with random weights, its tokenizer and processor, as a Transformers folder."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    side = {"height": shape["side"], "width": shape["side"]}
    processor = CLIPImageProcessorPil(size={"shortest_edge": shape["side"]}, crop_size=side)
    CLIPProcessor(processor, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={
            "hidden_size": shape["width"], "intermediate_size": 4 * shape["width"],
            "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
            "image_size": shape["side"], "patch_size": shape["patch"],
        },
        text_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "vocab_size": len(words), "bos_token_id": 0,
                     "eos_token_id": 1, "pad_token_id": 1},
        projection_dim=shape["dim"],
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)


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


def _accelerator(device: str) -> str:
    if not device.startswith("cuda"):
        return ""
    import torch

    return f", {torch.cuda.get_device_name(device)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
