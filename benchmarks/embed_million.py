"""Embeds a million small images: memory, speed, and what ten kills do to the rows.

    python benchmarks/embed_million.py FOLDER                                  # FOLDER/shards-*.tar
    python benchmarks/embed_million.py FOLDER --count 5000 --source folder --kills 3

The images (8 px, PNG and JPEG in turn) are made once, as 64 tar shards or as a folder, and so is
a random CLIP of two layers. Three processes of their own then embed all of them: through
`Embedder.stream`, whose rows are only hashed; by `lookalike.embed` into a folder of shards; and by
`lookalike.embed` again, killed with SIGKILL when random numbers of parts are done and started anew
each time. The files of the last two folders are compared byte for byte. Memory is the largest sum
of the resident sizes of a process and its readers, looked at four times a second; pages they share
count for each.

Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from lookalike import EmbedConfig, Embedder, embed
from lookalike.embedding.shards import open_shards

SHARDS = 64
SIDE_PX = 16  # of the model
LOOK_EVERY_S = 0.25


@dataclass
class Life:
    """One process: how long it lived, the most memory it held, and what it printed."""

    seconds: float
    peak_bytes: int
    killed: bool
    printed: str


def make_model(folder: Path) -> None:
    """Saves a random CLIP vision tower of two layers."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                              num_attention_heads=2, image_size=SIDE_PX, patch_size=8,
                              projection_dim=64)  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=size).save_pretrained(folder)


def image_file(number: int) -> tuple[str, bytes]:
    """Name and bytes of one image, the same each time."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer, ending = io.BytesIO(), "jpg" if number % 2 else "png"
    Image.fromarray(pixels).save(buffer, "jpeg" if number % 2 else "png")
    return f"{number:07}.{ending}", buffer.getvalue()


def make_images(folder: Path, count: int, kind: str) -> str:
    """Writes the images unless they are there; what to give as a source."""
    if kind == "folder":
        for number in range(count):
            below = folder / f"images-{count}" / f"{number % SHARDS:02}"
            below.mkdir(parents=True, exist_ok=True)
            name, content = image_file(number)
            if not (below / name).exists():
                (below / name).write_bytes(content)
        return str(folder / f"images-{count}")
    last = folder / f"tar-{count}"
    last.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        path = last / f"shards-{shard:04}.tar"
        if path.exists():
            continue
        with tarfile.open(path.with_suffix(".part"), "w") as tar:
            for number in range(count * shard // SHARDS, count * (shard + 1) // SHARDS):
                name, content = image_file(number)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        path.with_suffix(".part").rename(path)
    return str(last / f"shards-{{0000..{SHARDS - 1:04}}}.tar")


def work(settings: dict[str, Any]) -> None:
    """What a process of its own does."""
    if settings.pop("stream"):
        embedder = Embedder(settings["model_name"], device="cpu",
                            precision=settings["precision"], num_workers=settings["num_workers"],
                            batch_size=settings["eval_batch_size"])  # fmt: skip
        digest, rows = hashlib.sha256(), 0
        for part in embedder.stream(settings["data"]):
            digest.update(part.embeddings.numpy().tobytes())
            rows += len(part.embeddings)
        print(json.dumps({"rows": rows, "sha256": digest.hexdigest()}))
        return
    result = embed(EmbedConfig(device="cpu", **settings))
    print(json.dumps({"rows": result.num_rows, "parts_before": result.num_parts_before}))


def live(settings: dict[str, Any], is_over: Callable[[], bool] | None = None) -> Life:
    """Runs `work` as a process, which is killed once its time is over."""
    command = [sys.executable, __file__, "--work", json.dumps(settings)]
    start, peak, killed = time.monotonic(), 0, False
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True) as child:
        family = psutil.Process(child.pid)
        while child.poll() is None:
            if is_over is not None and is_over():
                others = family.children(recursive=True)
                child.kill()
                killed = True
                for other in others:  # as a machine that goes down would
                    with_suppressed_kill(other)
                break
            peak = max(peak, resident(family))
            time.sleep(LOOK_EVERY_S)
        printed = child.stdout.read() if child.stdout else ""
    if child.returncode and not killed:
        sys.exit(f"it failed with {child.returncode}")
    return Life(time.monotonic() - start, peak, killed, printed)


def with_suppressed_kill(process: psutil.Process) -> None:
    """Kills a process, unless it has gone by itself."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def resident(family: psutil.Process) -> int:
    """Bytes in memory of a process and all below it."""
    total = 0
    try:
        for one in (family, *family.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:  # it ended while it was looked at
        return total
    return total


def same_files(one: Path, other: Path) -> bool:
    """True where two folders hold the same files, byte for byte."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names[0]
    )


def main(options: argparse.Namespace) -> None:
    """Makes what is needed, runs all of it, and prints the table."""
    options.folder.mkdir(parents=True, exist_ok=True)
    model = options.folder / "model"
    if not (model / "config.json").exists():
        make_model(model)
    data = make_images(options.folder, options.count, options.source)
    whole, out = options.folder / "whole", options.folder / "killed"
    for folder in (whole, out):
        shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "data": data, "model_name": str(model), "precision": "fp32", "stream": False,
        "num_workers": options.num_workers, "eval_batch_size": options.batch_size,
        "images_per_part": options.images_per_part,
    }  # fmt: skip
    nothing = options.folder / "empty"
    nothing.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(nothing / "one.png")
    idle = live(settings | {"data": str(nothing), "stream": True})
    streamed = live(settings | {"stream": True})
    written = live(settings | {"out": str(whole)})

    rng, lives = random.Random(options.seed), list[Life]()
    num_parts = len(list(whole.glob("part-*.json")))
    for moment in sorted(rng.sample(range(num_parts), options.kills)):

        def is_over(moment: int = moment) -> bool:
            if len(list(out.glob("part-*.json"))) < moment:
                return False
            time.sleep(rng.uniform(0, 2))  # into the start, a part, or the writing of one
            return True

        lives.append(live(settings | {"out": str(out)}, is_over))
    lives.append(live(settings | {"out": str(out)}))
    killed = sum(life.killed for life in lives)

    shards = open_shards(out)
    rows = sum(map(len, shards.embeddings))
    digest = hashlib.sha256()
    for part in shards.embeddings:
        digest.update(part.tobytes())
    same = same_files(whole, out)
    as_streamed = digest.hexdigest() == json.loads(streamed.printed)["sha256"]
    table = [
        ("one image: start and stop", idle.seconds, 1, idle.peak_bytes),
        ("`Embedder.stream`", streamed.seconds, options.count, streamed.peak_bytes),
        ("`lookalike.embed`", written.seconds, options.count, written.peak_bytes),
        (f"`lookalike.embed`, killed {killed} times", sum(life.seconds for life in lives),
         options.count, max(life.peak_bytes for life in lives)),
    ]  # fmt: skip
    print(f"{options.count:,} images of 8 px ({options.source}), {os.cpu_count()} cores of "
          f"{platform.machine()}, torch {version('torch')}, {options.num_workers} readers, "
          f"batches of {options.batch_size}, {options.images_per_part:,} images a part, "
          f"{date.today()}.\n")  # fmt: skip
    print("| what | seconds | images/s | peak memory, MB |\n|---|---|---|---|")
    for what, seconds, images, peak in table:
        print(f"| {what} | {seconds:.1f} | {images / seconds:,.0f} | {peak / 1e6:,.0f} |")
    done = [json.loads(life.printed)["parts_before"] for life in lives if life.printed]
    print(
        f"\nRows after {killed} kills: {rows:,} of {options.count:,}, each image once: "
        f"{rows == len(shards.names) == len(set(shards.names)) == options.count}; "
        f"{done[-1]:,} parts were done before the last start. Files the same to the bit as without "
        f"kills: {same}; rows the same to the bit as `Embedder.stream`'s: {as_streamed}."
    )
    if not (same and as_streamed and rows == options.count):
        sys.exit("the rows are not what they should be")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--source", choices=["tar", "folder"], default="tar")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--images-per-part", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(json.loads(given.work))
    elif given.folder is None:
        parser.error("name a folder to work in")
    else:
        main(given)
