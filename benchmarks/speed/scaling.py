"""Training over many GPUs, simulated step by step: what docs/scaling.md says on paper.

    python benchmarks/speed/scaling.py

Every GPU embeds its share of a batch, waits for the slowest one (as gathering embeddings and
adding up gradients make it), and its readers fill a queue of batches meanwhile. Times of steps and
of reading vary at random. Nothing is measured here: the rates are arguments, by default those of
benchmarks/results/gpu.md. Writes Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plant:
    """Machines and rates. Times in seconds, of one GPU; sizes in bytes."""

    images_per_s: float  # a GPU's training, with nothing else to wait for
    cores: int  # that read for a GPU
    core_ms_per_image: float
    network_bytes_per_s: float  # of a GPU to the others
    weights: float = 304e6  # of CLIP ViT-L/14-336's vision side
    dim: int = 768
    flops_of_loss: float = 3.5e14  # a second
    step_spread: float = 0.03  # standard deviation of a step's time, as a share of it
    read_spread: float = 0.5  # the same of an image's
    queued: int = 2  # batches read ahead


def main() -> None:
    """Prints the table of GPU counts, paper beside simulation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images-per-s", type=float, default=375, help="of a GPU")
    parser.add_argument("--core-ms", type=float, default=6.0, help="of reading an image")
    parser.add_argument("--cores", type=int, default=16, help="that read for a GPU")
    parser.add_argument("--network-gb-per-s", type=float, default=40, help="of a GPU")
    parser.add_argument("--per-gpu", type=int, default=64, help="images of a batch")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512, 4096])
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    plant = Plant(given.images_per_s, given.cores, given.core_ms, given.network_gb_per_s * 1e9)
    print(f"{plant}\n")
    columns = ["GPUs", "batch", "step on paper", "simulated", "share that embeds", "loss", "gather",
               "gradients", "for the slowest", "for images", "100 million images"]  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for gpus in given.gpus:
        print(_row(plant, gpus, given.per_gpu, given.steps))


def paper_step(plant: Plant, gpus: int, per_gpu: int) -> dict[str, float]:
    """Seconds of the parts of a step, each as if nothing varied."""
    batch = gpus * per_gpu
    ring = 2 * (gpus - 1) / gpus  # how often each byte crosses a GPU's network in a ring
    return {
        "embed": per_gpu / plant.images_per_s,
        # Every process computes the whole loss: two products of 2 B^2 D.
        "loss": 4 * batch**2 * plant.dim / plant.flops_of_loss,
        "gather": ring / 2 * 4 * batch * plant.dim / plant.network_bytes_per_s,
        "gradients": ring * 4 * plant.weights / plant.network_bytes_per_s,
        "read": per_gpu * plant.core_ms_per_image / 1e3 / plant.cores,
    }


def simulate(plant: Plant, gpus: int, per_gpu: int, steps: int, seed: int = 0) -> dict[str, float]:
    """Mean seconds of a step, and of what is waited for in it."""
    rng = np.random.default_rng(seed)
    parts = paper_step(plant, gpus, per_gpu)
    # Gradients travel while the backward pass, two thirds of a step, makes further ones.
    shown = max(0.0, parts["gradients"] - parts["embed"] * 2 / 3)
    fixed = parts["loss"] + parts["gather"] + shown
    now = slowest = starved = 0.0
    read_until = np.zeros(gpus)  # when each GPU's readers are done with all they were asked for
    ready = np.zeros((plant.queued, gpus))  # when each batch that is read ahead is there
    for place in range(plant.queued):
        read_until += _reading(plant, parts, per_gpu, gpus, rng)
        ready[place] = read_until
    now = float(ready[0].max())  # the first batches are not counted
    begun = now
    for step in range(steps):
        place = step % plant.queued
        start = np.maximum(now, ready[place])
        starved += float(start.max()) - now
        read_until = np.maximum(read_until, start) + _reading(plant, parts, per_gpu, gpus, rng)
        ready[place] = read_until
        embed = parts["embed"] * np.maximum(0.5, 1 + plant.step_spread * rng.normal(size=gpus))
        end = float((start + embed).max())
        slowest += end - float(start.max()) - parts["embed"]
        now = end + fixed
    return {
        "step": (now - begun) / steps,
        "slowest": slowest / steps,
        "starved": starved / steps,
        "gradients": shown,
    }


def _reading(
    plant: Plant, parts: dict[str, float], per_gpu: int, gpus: int, rng: np.random.Generator
) -> np.ndarray:
    """Seconds of reading a batch, of each GPU: a mean over its images varies less than one."""
    spread = plant.read_spread / np.sqrt(per_gpu)
    varied: np.ndarray = parts["read"] * np.maximum(0.1, 1 + spread * rng.normal(size=gpus))
    return varied


def _row(plant: Plant, gpus: int, per_gpu: int, steps: int) -> str:
    parts = paper_step(plant, gpus, per_gpu)
    found = simulate(plant, gpus, per_gpu, steps)
    paper = parts["embed"] + parts["loss"] + parts["gather"] + found["gradients"]
    paper = max(paper, parts["read"])
    hours = 100e6 / (gpus * per_gpu) * found["step"] / 3600
    seconds = [paper, found["step"], parts["loss"], parts["gather"], found["gradients"],
               found["slowest"], found["starved"]]  # fmt: skip
    told = [f"{value * 1e3:.3g} ms" for value in seconds]
    share = f"{parts['embed'] / found['step']:.0%}"
    cells = [f"{gpus:,}", f"{gpus * per_gpu:,}", *told[:2], share, *told[2:], f"{hours:.3g} h"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
