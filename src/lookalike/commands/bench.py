"""`lookalike.bench`: where the time goes between files and embeddings, and what to change."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lookalike.benchmark.advice import Images, Machine, Speed, advice, expected
from lookalike.benchmark.timing import (
    ReadImage,
    gigaflops,
    read_one_by_one,
    reader_stages,
    spread,
    time_device,
    time_whole,
)
from lookalike.config import BenchConfig
from lookalike.data.images import Unreadable
from lookalike.data.sources import load_unlabelled
from lookalike.data.transforms import Preprocessing
from lookalike.embedding.embedder import make_embedder
from lookalike.errors import ConfigError
from lookalike.progress import Progress, default_progress
from lookalike.runtime.device import Runtime, cpu_gains_by_int8, has_fast_bf16, make_runtime

_MANY = (1_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class BenchResult:
    """The speed at which images become embeddings here, what limits it, and what to change."""

    model_name: str
    kind: str
    dim: int
    device: str
    speed: Speed
    workers_start_s: float
    unreadable: list[Unreadable]
    config: BenchConfig

    @property
    def advice(self) -> list[str]:
        """Sentences that say what limits, and what to change."""
        return advice(self.speed)

    def seconds_for(self) -> dict[int, float]:
        """Returns seconds by number of images."""
        return {number: number / self.speed.whole for number in _MANY}

    def document(self) -> dict[str, Any]:
        """Returns all of it as JSON has it."""
        speed, shares = self.speed, self.speed.shares()
        return {
            "model": {"name": self.model_name, "embedding": self.kind, "dim": self.dim,
                      "gigaflops": speed.gigaflops},
            "machine": asdict(speed.machine) | {"description": self.device},
            "images": asdict(speed.images),
            "stages": {
                one.name: {**asdict(one), "images_per_s": one.images_per_s,
                           "share": shares[one.name]}
                for one in speed.stages
            },
            "model_alone_images_per_s": speed.model_alone,
            "whole_images_per_s": speed.whole,
            "whole_of_model_alone": speed.reached,
            "workers_start_s": self.workers_start_s,
            "limit": speed.limit,
            "advice": self.advice,
            "seconds_for": {str(number): took for number, took in self.seconds_for().items()},
            "unreadable": [asdict(one) for one in self.unreadable],
            "config": asdict(self.config),
        }  # fmt: skip


def bench(config: BenchConfig, *, progress: Progress | None = None) -> BenchResult:
    """Measures each stage between files and embeddings alone, and then all of it together.

    Reading, decoding and preprocessing are measured image by image on one core; files come as
    the system has them, from memory where it has read them before. The model is measured on
    pixels that are there already; the whole as evaluation goes about it, with its workers, on
    the same images over and over. Nothing is written.

    Raises:
        ConfigError: no images are named, or the device or precision is not available.
        DataError: there are no images, or not one that can be read.
        ModelError, CheckpointError: the model cannot be loaded.
    """
    progress = progress or default_progress()
    if config.data is None:
        raise ConfigError("there is nothing to measure with; give a folder of images or a table: "
                          "lookalike bench IMAGES")  # fmt: skip
    refs = load_unlabelled(config.data, progress).refs
    runtime = make_runtime(config.device, config.precision, config.num_workers)
    embedder = make_embedder(config, runtime, progress)
    kind, dim, how, device = (
        embedder.kind, embedder.dim, embedder.preprocessing, runtime.describe()
    )  # fmt: skip
    progress.note(f"model    {embedder.encoder.title} · {kind} {dim}-d")
    progress.note(f"device   {device}")
    sample = read_one_by_one(
        spread(refs, config.num_images),
        how,
        keep=config.eval_batch_size,
        seconds=config.seconds,
        max_megapixels=config.max_megapixels,
        progress=progress,
    )
    machine = _machine(runtime, config)
    at_a_time = max(1, min(machine.num_workers, machine.num_cores))
    stages = (
        *reader_stages(sample.images, at_a_time),
        *time_device(embedder, sample.batch(config.eval_batch_size), seconds=config.seconds),
    )
    images = _images(sample.images, len(refs), how)
    parts = Speed(stages, math.nan, gigaflops(embedder.encoder), images, machine)
    num_images = round(config.seconds * expected(parts, max(1, machine.num_workers)))
    whole, start_s = time_whole(embedder, [one.ref for one in sample.images], num_images=num_images)
    speed = replace(parts, whole=whole)
    return BenchResult(
        config.model_name, kind, dim, device, speed, start_s, sample.unreadable, config
    )


def _images(read: Sequence[ReadImage], num_found: int, how: Preprocessing) -> Images:
    """Describes the files, as far as it matters to speed."""
    enough = replace(how, exact=False).draft_px() or 0
    in_full = [one for one in read if sum(one.decoded) == sum(one.stored)]  # they may be turned
    reduced = [one for one in read if sum(one.decoded) < sum(one.stored)]
    oversized = Counter(one.format for one in in_full if min(one.stored) >= 2 * enough)
    return Images(
        num_found,
        len(read),
        formats=dict(Counter(one.format for one in read).most_common()),
        median_megapixels=statistics.median(math.prod(one.stored) / 1e6 for one in read),
        median_kilobytes=statistics.median(one.num_bytes / 1e3 for one in read),
        oversized=dict(oversized.most_common()),
        large=sum(min(one.stored) >= 4 * enough for one in reduced),
        enough_px=enough,
        exact=how.exact,
    )


def _machine(runtime: Runtime, config: BenchConfig) -> Machine:
    best = make_runtime().device.type
    return Machine(
        device=runtime.device.type,
        precision=runtime.precision,
        fast_bf16=has_fast_bf16(runtime.device),
        num_cores=os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        num_workers=runtime.num_workers,
        batch_size=config.eval_batch_size,
        better_device=best if runtime.device.type == "cpu" != best else None,
        fast_int8=runtime.device.type == "cpu" and cpu_gains_by_int8(),
    )
