"""Batches of pixels, read by worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch

from lookalike.data.images import ImageRef
from lookalike.data.reading.cache import DecodeCache, Reads
from lookalike.data.reading.reader import Batch, Reader, Request
from lookalike.data.reading.workers import WorkerPool
from lookalike.data.transforms import Augmentation, Preprocessing
from lookalike.progress import Progress, SilentProgress
from lookalike.runtime.device import Runtime
from lookalike.runtime.world import World

# What is read ahead of training lies in memory that two processes share and, for a GPU, in pinned
# memory: a gigabyte of it is enough for any model, and a batch of 1,024 images at 336 px would be a
# third of that.
_PART_BYTES = 2**25  # of pixels, which a worker reads at a time
_PARTS_AHEAD = 32  # of all workers


class ImageLoader:
    """Reads images in worker processes that stay alive between calls.

    With `augmentation` and `labels` (a class for each image) it reads for training: an unreadable
    image is replaced by another of its class, so a batch keeps its shape as long as its classes
    have readable images. Without, an unreadable image is left out. Each batch names what failed.

    A large batch is read in parts of some megabytes, by several workers, and put together again:
    what is read ahead has a bound. The random numbers of an augmentation depend on the request's
    seed and the place in the whole batch alone, never on the worker or process that reads it.

    Args:
        refs: the images, such as `images.refs`.
        how: cut and size of the pixels, and whether they are exact.
        runtime: tells how many workers, and whether a GPU wants pinned memory.
        max_megapixels: larger images are unreadable.
        augmentation, labels: for training, as above.
        cache: keeps decoded images; None: files are decoded each time.
        progress: where it is told that a worker was lost; None: nowhere.
    """

    def __init__(
        self,
        refs: Sequence[ImageRef],
        how: Preprocessing,
        runtime: Runtime,
        *,
        max_megapixels: float,
        augmentation: Augmentation | None = None,
        labels: Sequence[str] | None = None,
        cache: DecodeCache | None = None,
        progress: Progress | None = None,
    ) -> None:
        reader = Reader(
            refs, how, max_megapixels, augmentation, labels, cache.reader if cache else None
        )
        if cache is not None:
            cache.draft_sizes.add(reader.draft_px)
        self._cache = cache
        self.refs, self.num_images = refs, len(refs)
        self._part_size = max(1, _PART_BYTES // (3 * how.height * how.width))
        self._labels = labels
        self._reader, self._pool = reader, None
        self._pinned = runtime.device.type == "cuda"
        if workers := runtime.num_workers:
            self._pool = WorkerPool(
                reader,
                workers,
                ahead=max(1, min(2, _PARTS_AHEAD // workers)),
                batch_bytes=2 * _PART_BYTES,
                pinned=self._pinned,
                tell=(progress or SilentProgress()).warn,
            )

    def read(
        self, requests: Iterable[Request], stop: Callable[[], bool] | None = None
    ) -> Iterator[Batch]:
        """Yields the batches asked for, in order; a few are read ahead by worker processes.

        It ends early where it waits for them and `stop` says that nobody needs more.

        Raises:
            DataError: worker processes cannot be started, or die over one file after the other.
        """
        counts: deque[int] = deque()
        parts = self._in_parts(requests, counts)
        read = self._pool.read(parts, stop) if self._pool else self._read_here(parts)
        for first in read:
            batch = _joined([first, *islice(read, counts.popleft() - 1)], self._pinned)
            if self._cache is not None:
                self._cache.count(batch.reads)
            yield batch

    def _read_here(self, parts: Iterator[Request]) -> Iterator[Batch]:
        for part in parts:
            batch = self._reader.read(part)
            yield batch._replace(pixels=batch.pixels.pin_memory()) if self._pinned else batch

    def _in_parts(self, requests: Iterable[Request], counts: deque[int]) -> Iterator[Request]:
        """Yields the parts of all requests in order; `counts` is told how many each one has."""
        labels = self._labels
        for indices, seed, first, whole in requests:
            starts = [0]
            for place in range(1, len(indices)):
                # Images of a class that follow each other are in one part, since those that stand
                # in for unreadable ones are to be different, as if all were read at once.
                last, this = indices[place - 1], indices[place]
                same_class = labels is not None and labels[last] == labels[this]
                if place - starts[-1] >= self._part_size and not same_class:
                    starts.append(place)
            counts.append(len(starts))
            for start, end in zip(starts, [*starts[1:], len(indices)], strict=True):
                yield Request(indices[start:end], seed, first + start, whole or indices)


def _joined(parts: list[Batch], pinned: bool) -> Batch:
    """Returns the parts of a batch as one, in pinned memory as they are, if so."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(len(part.pixels) for part in parts), *parts[0].pixels.shape[1:])
    pixels = torch.empty(shape, dtype=parts[0].pixels.dtype, pin_memory=pinned)
    return Batch(
        torch.cat([part.pixels for part in parts], out=pixels),
        [index for part in parts for index in part.indices],
        [one for part in parts for one in part.unreadable],
        [index for part in parts for index in part.lost],
        reads=sum((part.reads for part in parts), start=Reads()),
    )


def chunks(num_images: int, batch_size: int) -> list[Request]:
    """Returns requests for all images in order."""
    images = range(num_images)
    return [Request(images[first : first + batch_size]) for first in images[::batch_size]]


def chunks_of(world: World, num_images: int, batch_size: int) -> list[Request]:
    """Returns one process's share of `chunks`, whole ones: rounding can depend on a batch's size.

    Each gets as many, empty ones if need be: a model may be spread over all of the processes.
    """
    requests = chunks(num_images, batch_size)
    mine = requests[world.share_of(len(requests))]
    return mine + [Request(())] * (-(-len(requests) // world.size) - len(mine))
