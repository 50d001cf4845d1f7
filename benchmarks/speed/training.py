"""A training step beside a plain loop, and what reading the pictures costs it.

    python benchmarks/speed/training.py

CLIP with random weights. A plain step is what a loop of one's own does: Transformers' model,
normalised embeddings, the loss with its whole matrix, AdamW, in float32 or under autocast. Ours is
the step of `lookalike train` with its defaults. Both have pixels in memory. Then ours
once more, with the pictures read from JPEG files by its readers and changed at random: the share of
its speed that is left. Writes Markdown to stdout.
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
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

import torch
from ceilings import ceiling
from machine import MODELS, describe, gigaflops, in_turns, table, write_clip, write_photos

from lookalike.config import TrainConfig
from lookalike.data.reading.reader import Request
from lookalike.data.sources import load_images
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import on_device
from lookalike.progress import SilentProgress
from lookalike.recipes import config_from
from lookalike.runtime import make_runtime
from lookalike.training.making import make_learner, make_loader
from lookalike.training.stepping.learner import Learner

BATCHES = {"B/32": 64, "B/16": 32, "L/14-336": 8}


def main() -> None:
    """Measures each model in turn, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, name, folder = given.one
        case = _ours if kind == "ours" else partial(_plain, kind)
        print(json.dumps(case(name, Path(folder), given.rounds)))
        return
    print(f"{describe('torch', 'transformers')}\n")
    most = ceiling("bf16" if make_runtime("cpu").precision == "bf16" else "fp32")
    rows = []
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_row(name, Path(folder), given.rounds, most))
    columns = ["model", "batch", "plain fp32", "plain autocast", "lookalike", "/ plain fp32",
               "/ plain autocast", "of the ceiling", "from files", "of that in memory"]  # fmt: skip
    print(f"Pictures a second; the ceiling is {most:.2f} TFLOP/s:\n\n{table(columns, rows)}")


def _row(name: str, folder: Path, rounds: int, most: float) -> list[str]:
    """Each case in a process of its own: memory is enough for one, and settings stay its own."""
    size = BATCHES[name]
    write_clip(folder / "model", MODELS[name])
    for label in range(size // 4):
        write_photos(folder / "photos" / f"class{label:02}", 4, (640, 480))
    found: dict[str, dict[str, float]] = {}
    for kind in ("fp32", "autocast", "ours"):
        command = [sys.executable, __file__, "--rounds", str(rounds), "--one", kind, name]
        done = subprocess.run([*command, str(folder)], stdout=subprocess.PIPE, check=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}, {kind}: {found[kind]}", file=sys.stderr)
    rates = {kind: size / times["step"] for kind, times in found.items()}
    ours = found["ours"]
    share = 3 * gigaflops(MODELS[name]) * rates["ours"] / 1e3 / most  # backwards is twice forwards
    return [
        name, str(size), *(f"{rate:.3g}" for rate in rates.values()),
        f"{rates['ours'] / rates['fp32']:.2f}", f"{rates['ours'] / rates['autocast']:.2f}",
        f"{share:.0%}", f"{size / ours['from files']:.3g}",
        f"{ours['in memory'] / ours['from files']:.1%}",
    ]  # fmt: skip


def _plain(kind: str, name: str, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of a plain step."""
    size, shape = BATCHES[name], MODELS[name]
    generator = torch.Generator().manual_seed(0)
    sides = (size, 3, shape["side"], shape["side"])
    pixels = torch.randint(0, 256, sides, dtype=torch.uint8, generator=generator)
    labels = torch.arange(size // 4).repeat_interleave(4)
    step = _plain_step(str(folder / "model"), pixels, labels, kind == "autocast")
    return {"step": in_turns({"": step}, rounds)[""]}


def _ours(name: str, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of a step: one by one, and of several in a row from memory and from files."""
    size = BATCHES[name]
    num_classes = size // 4
    config = config_from(
        TrainConfig,
        {"train": str(folder / "photos"), "model_name": str(folder / "model"), "device": "cpu",
         "n_classes_per_batch": num_classes, "n_samples_per_class": 4},
    )  # fmt: skip
    runtime = make_runtime("cpu")
    encoder = on_device(CLIPEncoder(config.model_name), runtime)
    loader = make_loader(config, runtime, encoder, load_images(folder / "photos"), None)
    labels = torch.arange(num_classes).repeat_interleave(4)
    (batch,) = loader.read([Request(range(size), (0,))])
    learner = _learner(config, runtime, encoder, num_classes, size)
    one = in_turns({"": lambda: learner.step(batch.pixels, labels)}, rounds)[""]
    steps = max(3, min(20, round(20 / one)))
    read = loader.read(Request(range(size), (0, number)) for number in range(steps + 1))
    in_memory = (batch for _ in range(steps + 1))
    return {
        "step": one,
        "in memory": _steps(learner, labels, in_memory, steps),
        "from files": _steps(learner, labels, read, steps),
    }


def _learner(config: Any, runtime: Any, encoder: Any, num_classes: int, size: int) -> Learner:
    return make_learner(
        config, runtime, encoder, [str(label) for label in range(num_classes)], SilentProgress(),
        part_size=size, total_steps=100, side=None, saved=None,
    )  # fmt: skip


def _steps(learner: Learner, labels: torch.Tensor, batches: Any, count: int) -> float:
    """Seconds a step, of `count` after a first one."""
    batches = iter(batches)
    learner.step(next(batches).pixels, labels)
    start = time.perf_counter()
    for _ in range(count):
        learner.step(next(batches).pixels, labels)
    return (time.perf_counter() - start) / count


def _plain_step(
    model: str, pixels: torch.Tensor, labels: torch.Tensor, autocast: bool
) -> Callable[[], None]:
    """A step as it is written when nothing but PyTorch and Transformers is at hand."""
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(model).train()
    optimizer = torch.optim.AdamW(encoder.vision_model.parameters(), lr=1e-7)
    normalised = (pixels.float() / 255 - 0.5) / 0.5
    itself = torch.eye(len(labels), dtype=torch.bool)
    positives = (labels[:, None] == labels) & ~itself

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
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
