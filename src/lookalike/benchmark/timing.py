"""Times each step between files and embeddings, alone and all together."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TypeVar

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lookalike.benchmark.advice import READERS, Stage
from lookalike.data.images import ImageRef, Unreadable, list_unreadable, shown_path
from lookalike.data.reading.content import held, read_content
from lookalike.data.reading.decode import probe_image, read_image
from lookalike.data.reading.reader import Request
from lookalike.data.transforms import Preprocessing, preprocess
from lookalike.embedding.embedder import Embedder
from lookalike.errors import DataError, ImageError
from lookalike.model.encoder import CLIPEncoder, evaluation_mode
from lookalike.progress import Progress, counted

_TRANSFERS = 10
Ref = TypeVar("Ref", bound=ImageRef)


@dataclass(frozen=True)
class ReadImage:
    """One image that was read: what it is, and the seconds that each step took."""

    ref: ImageRef
    seconds: dict[str, float]
    num_bytes: int
    format: str
    stored: tuple[int, int]  # px, as the file has them
    decoded: tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """The images that were read, the pixels of the first of them, and files that are none."""

    images: list[ReadImage]
    pixels: UInt8[Tensor, "first 3 height width"]
    unreadable: list[Unreadable]

    def batch(self, size: int) -> UInt8[Tensor, "size 3 height width"]:
        """Returns so many images, some of them several times if need be."""
        return self.pixels[torch.arange(size) % len(self.pixels)]


def spread(refs: Sequence[Ref], most: int) -> list[Ref]:
    """Returns some of them, evenly spread, in an order whose first few are spread as well."""
    count = min(len(refs), most)
    chosen = [refs[i * len(refs) // count] for i in range(count)]
    random.Random(0).shuffle(chosen)  # noqa: S311 - no secret
    return chosen


def read_one_by_one(
    refs: Sequence[ImageRef],
    how: Preprocessing,
    *,
    keep: int,
    seconds: float,
    max_megapixels: float,
    progress: Progress,
) -> Sample:
    """Reads images on one core until the time is over; at least one that can be read.

    Args:
        refs, how, max_megapixels: the images, and how they are read.
        keep: of how many images the pixels are kept.
        seconds: after which no other image is begun.
        progress: where it is shown.

    Raises:
        DataError: there is none.
    """
    read: list[ReadImage] = []
    pixels: list[Tensor] = []
    unreadable: list[Unreadable] = []
    with suppress(ImageError):
        probe_image(refs[0])  # loads Pillow's formats, which is no image's own time
    preprocess(Image.new("RGB", (2 * how.width, 2 * how.height)), how)
    num_threads = torch.get_num_threads()
    end = time.perf_counter() + seconds
    with progress.task("reading one by one", len(refs)) as task, ExitStack() as stack:
        stack.callback(torch.set_num_threads, num_threads)
        torch.set_num_threads(1)  # as in a worker
        for ref in refs:
            try:
                image, its_pixels = _read(ref, how, max_megapixels)
            except ImageError as error:
                unreadable.append(Unreadable(error.path, error.reason))
            else:
                read.append(image)
                pixels += [its_pixels] if len(pixels) < keep else []
            task.advance()
            if read and time.perf_counter() > end:
                break
    if not read:
        raise DataError(f"none of the {len(refs):,} images that were tried can be read: "
                        f"{list_unreadable(unreadable)}")  # fmt: skip
    return Sample(read, torch.stack(pixels), unreadable)


def _read(
    ref: ImageRef, how: Preprocessing, max_megapixels: float
) -> tuple[ReadImage, UInt8[Tensor, "3 height width"]]:
    """Does step by step what the loader's workers do; decodes what the system has in memory."""
    given, num_bytes = ref, 0
    clock = [time.perf_counter()]
    if not isinstance(ref, str) or os.path.isfile(ref):  # opening a pipe would wait for ever
        ref = held(ref)
        num_bytes = len(read_content(ref))
    clock.append(time.perf_counter())
    image = read_image(ref, max_megapixels, draft_px=how.draft_px())
    clock.append(time.perf_counter())
    try:
        pixels = preprocess(image, how)
    except (MemoryError, ValueError) as error:
        reason = f"cannot be resized ({image.width}x{image.height} px)"
        raise ImageError(shown_path(ref), reason) from error
    clock.append(time.perf_counter())
    seconds = {name: clock[i + 1] - clock[i] for i, name in enumerate(READERS)}
    header = probe_image(ref, max_megapixels)
    return ReadImage(
        given, seconds, num_bytes, header.format or "unknown", header[2:], image.size
    ), pixels


def reader_stages(read: Sequence[ReadImage], at_a_time: int) -> list[Stage]:
    """Returns what reading them took, where so many processes do it."""
    return [_stage(name, [one.seconds[name] for one in read], 1, at_a_time) for name in READERS]


def time_device(
    embedder: Embedder, batch: UInt8[Tensor, "batch 3 height width"], *, seconds: float
) -> list[Stage]:
    """Times the way to the device (no time on a CPU), and the model on pixels that are there."""
    device, size, progress = embedder.runtime.device, len(batch), embedder.progress
    there = batch.to(device)
    pinned = batch.pin_memory() if device.type == "cuda" else batch

    def transfer() -> None:
        pinned.to(device, non_blocking=True)[0, 0, 0, 0].item()  # waits for it

    def forward() -> None:
        embedder.pixels(there)

    on_the_way = [0.0]
    if device.type != "cpu":
        on_the_way = [_took(transfer) for _ in range(1 + _TRANSFERS)][1:]
    embedder.pixels(there[:1])  # makes the fast form
    with progress.task("warming up", size) as task:
        one = _took(forward)
        task.advance(size)
    if one < seconds / 4:
        one = _took(forward)  # as quick as the next ones, which tells how many there is time for
    in_model = []
    runs = max(1, int(seconds / one))
    with progress.task("the model alone", size * runs) as task:
        for _ in range(runs):
            in_model.append(_took(forward))
            task.advance(size)
    return [_stage("transfer", on_the_way, size), _stage("model", in_model, size)]


def _took(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _stage(name: str, seconds: Sequence[float], size: int, at_a_time: int = 1) -> Stage:
    """A stage whose work took so many seconds each time, for `size` images."""
    times = [1000 / size * one for one in seconds]
    return Stage(name, statistics.median(times), statistics.mean(times), at_a_time)


def gigaflops(encoder: CLIPEncoder) -> float:
    """Counts what the model computes for one image; a multiplication and an addition are two."""
    math_only = sdpa_kernel(SDPBackend.MATH)  # the form of attention that counts on any device
    counter, black = FlopCounterMode(display=False), encoder.preprocessing.black(1)
    with evaluation_mode(encoder), torch.no_grad(), math_only, counter:
        encoder(black.to(encoder.device))
    return float(counter.get_total_flops()) / 1e9


def time_whole(
    embedder: Embedder, refs: Sequence[ImageRef], *, num_images: int
) -> tuple[float, float]:
    """Returns images a second from files to embeddings, and the seconds workers took to start.

    It begins to count when each worker could have brought a batch: then all are under way.

    Args:
        embedder: the model.
        refs: images that can be read; taken again and again.
        num_images: about how many are counted; a batch at least.
    """
    num_workers, batch_size = embedder.runtime.num_workers, embedder.batch_size
    uncounted, num_counted = max(1, num_workers), max(1, round(num_images / batch_size))
    taken = islice(cycle(refs), (uncounted + num_counted) * batch_size)
    loader = embedder.loader(list(taken))
    start_s = 0.0
    if num_workers:
        embedder.progress.note(f"starting {counted(num_workers, 'worker')}")
        start_s = _took(lambda: list(loader.read([Request(())] * num_workers)))
    done = [time.perf_counter() for _ in embedder.stream(loader, title="all together")]
    return num_counted * batch_size / (done[-1] - done[uncounted - 1]), start_s
