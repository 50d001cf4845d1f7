"""A training step beside a plain loop, and what reading the images costs it.

    python benchmarks/speed/training.py
    python benchmarks/speed/training.py --device cuda

CLIP with random weights. A plain step is what a loop of one's own does: Transformers' model,
normalised embeddings, the loss with its whole matrix, AdamW, in float32 or under autocast. Ours is
the step of `lookalike train` with its defaults; on a GPU also with its layers compiled, as it has
them in long runs. All have pixels on the device. Then ours once more, with the images read from
JPEG files by its readers and changed at random: the share of its speed that is left. Writes
Markdown to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

import torch
from ceilings import ceiling
from machine import MODELS, describe, gigaflops, in_turns, table, write_clip, write_photos

from lookalike.config import TrainConfig
from lookalike.config.settings import config_from
from lookalike.data.reading.reader import Request
from lookalike.data.sampler import BalancedBatchSampler
from lookalike.progress import SilentProgress
from lookalike.runtime.device import make_runtime
from lookalike.training.data import TrainingData, read_training_images
from lookalike.training.make import make_encoder, make_loader, make_step
from lookalike.training.step.compiling import compile_layers
from lookalike.training.step.step import TrainingStep

PLAIN = ("fp32", "autocast")
BATCHES = {
    "cpu": {"B/32": 64, "B/16": 32, "L/14-336": 8},
    "cuda": {"B/32": 256, "B/16": 128, "L/14-336": 48},
}


def main() -> None:
    """Measures each model in turn, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=BATCHES)
    parser.add_argument("--batch", type=int, help="images; none: what suits model and device")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, name, folder = given.one
        case = Case(name, Path(folder), given.rounds, given.device, given.batch)
        print(json.dumps(_plain(case, kind) if kind in PLAIN else _ours(case, kind)))
        return
    print(f"{describe('torch', 'transformers', device=given.device)}\n")
    most = ceiling("bf16" if make_runtime(given.device).precision == "bf16" else "fp32",
                   given.device)  # fmt: skip
    rows = []
    for name in given.models:
        size = given.batch or BATCHES[given.device][name]
        with tempfile.TemporaryDirectory() as folder:
            rows += _rows(Case(name, Path(folder), given.rounds, given.device, size), most)
    columns = ["model", "batch", "plain fp32", "plain autocast", "lookalike", "/ plain fp32",
               "/ plain autocast", "of the ceiling", "from files", "of that in memory",
               "first step, s"]  # fmt: skip
    print(f"Images a second; the ceiling is {most:.2f} TFLOP/s:\n\n{table(columns, rows)}")


@dataclass(frozen=True)
class Case:
    """A model in a folder, and how it is trained."""

    name: str
    folder: Path
    rounds: int
    device: str
    size: int


def _rows(case: Case, most: float) -> list[list[str]]:
    """Each kind in a process of its own: memory is enough for one, and settings stay its own."""
    size, name = case.size, case.name
    write_clip(case.folder / "model", MODELS[name])
    for label in range(size // 4):
        write_photos(case.folder / "photos" / f"class{label:02}", 4, (640, 480))
    ours = ["lookalike"] if case.device == "cpu" else ["lookalike", "lookalike, compiled"]
    found: dict[str, dict[str, float]] = {}
    for kind in (*PLAIN, *ours):
        command = [sys.executable, __file__, "--rounds", str(case.rounds), "--device", case.device,
                   "--batch", str(size), "--one", kind, name, str(case.folder)]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}, {kind}: {found[kind]}", file=sys.stderr)
    rates = {kind: size / times["step"] for kind, times in found.items()}
    rows = []
    for kind in ours:
        times, rate = found[kind], rates[kind]
        share = 3 * gigaflops(MODELS[name]) * rate / 1e3 / most  # backwards is twice forwards
        rows.append([
            name + kind.removeprefix("lookalike"), str(size),
            *(f"{rates[plain]:.3g}" for plain in PLAIN), f"{rate:.3g}",
            *(f"{rate / rates[plain]:.2f}" for plain in PLAIN),
            f"{share:.0%}", f"{size / times['from files']:.3g}",
            f"{times['in memory'] / times['from files']:.1%}", f"{times['first']:.1f}",
        ])  # fmt: skip
    return rows


def _plain(case: Case, kind: str) -> dict[str, float]:
    """Seconds of a plain step."""
    size, shape = case.size, MODELS[case.name]
    generator = torch.Generator().manual_seed(0)
    sides = (size, 3, shape["side"], shape["side"])
    pixels = torch.randint(0, 256, sides, dtype=torch.uint8, generator=generator)
    labels = torch.arange(size // 4).repeat_interleave(4)
    step = _plain_step(str(case.folder / "model"), pixels.to(case.device), labels.to(case.device),
                       kind == "autocast")  # fmt: skip
    return {"step": in_turns({"": step}, case.rounds, case.device)[""]}


def _ours(case: Case, kind: str) -> dict[str, float]:
    """Seconds of a step: one by one, and of several in a row from memory and from files; and of
    the first one, with what is done for it.
    """
    size, num_classes = case.size, case.size // 4
    photos = case.folder / "photos"
    config = config_from(
        TrainConfig,
        {"train": str(photos), "model_name": str(case.folder / "model"), "device": case.device,
         "n_classes_per_batch": num_classes, "n_samples_per_class": 4,
         "compile": "on" if "compiled" in kind else "off"},
    )  # fmt: skip
    runtime = make_runtime(case.device)
    encoder = make_encoder(config, runtime, None)
    images = read_training_images(config, None, SilentProgress())
    loader = make_loader(config, runtime, encoder, images.images)
    sampler = BalancedBatchSampler(images.images.labels or [], num_classes, 4)
    data = TrainingData(config, images, sampler, loader, None, runtime.world, SilentProgress())
    labels = torch.arange(num_classes).repeat_interleave(4).to(runtime.device)
    (batch,) = loader.read([Request(range(size), (0,))])
    pixels = batch.pixels.to(runtime.device)
    start = time.perf_counter()
    step = make_step(config, runtime, encoder, data, SilentProgress())
    compile_layers(config, encoder, runtime, SilentProgress(), chunk_size=step.chunk_size,
                   part_size=size, steps_left=100)  # fmt: skip
    step.take(pixels, labels)
    first = time.perf_counter() - start
    one = in_turns({"": lambda: step.take(pixels, labels)}, case.rounds, case.device)[""]
    steps = max(3, min(20, round(20 / one)))
    read = loader.read(Request(range(size), (0, number)) for number in range(steps + 1))
    in_memory = (batch for _ in range(steps + 1))
    return {
        "first": first,
        "step": one,
        "in memory": _steps(step, labels, in_memory, steps),
        "from files": _steps(step, labels, read, steps),
    }


def _steps(step: TrainingStep, labels: torch.Tensor, batches: Any, count: int) -> float:
    """Seconds a step, of `count` after a first one."""
    batches = iter(batches)
    device = labels.device
    step.take(next(batches).pixels.to(device), labels)
    start = time.perf_counter()
    for _ in range(count):
        step.take(next(batches).pixels.to(device, non_blocking=True), labels)
    return (time.perf_counter() - start) / count


def _plain_step(
    model: str, pixels: torch.Tensor, labels: torch.Tensor, autocast: bool
) -> Callable[[], None]:
    """A step as it is written when nothing but PyTorch and Transformers is at hand."""
    from transformers import AutoModel

    device = pixels.device
    encoder = AutoModel.from_pretrained(model).train().to(device)
    optimizer = torch.optim.AdamW(encoder.vision_model.parameters(), lr=1e-7)
    normalised = (pixels.float() / 255 - 0.5) / 0.5
    itself = torch.eye(len(labels), dtype=torch.bool, device=device)
    positives = (labels[:, None] == labels) & ~itself

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found = encoder.get_image_features(pixel_values=normalised)
        rows = torch.nn.functional.normalize(getattr(found, "pooler_output", found).float(), dim=-1)
        logits = (rows @ rows.T / 0.07).masked_fill(itself, float("-inf"))
        log_prob = logits - logits.logsumexp(dim=1, keepdim=True)
        loss = -(log_prob.where(positives, 0).sum(dim=1) / positives.sum(dim=1)).mean()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
