"""Batches of pixels, read by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from lookalike.data.images import ImageRef
from lookalike.data.reading.cache import DecodeCache, Reads
from lookalike.data.reading.reader import Batch, Reader, Request, leave_interrupts_alone
from lookalike.data.transforms import Augmentation, Preprocessing
from lookalike.errors import DataError, first_line
from lookalike.runtime.device import Runtime
from lookalike.runtime.world import World

# What is read ahead of training lies in shared memory and, for a GPU, in pinned memory: a gigabyte
# of it is enough for any model, and a batch of 1,024 images at 336 px would be a third of that.
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
    ) -> None:
        reader = Reader(
            refs, how, max_megapixels, augmentation, labels, cache.reader if cache else None
        )
        if cache is not None:
            cache.draft_sizes.add(reader.draft_px)
        self._cache = cache
        self._requests = _Requests()
        self.refs, self.num_images = refs, len(refs)
        self._part_size = max(1, _PART_BYTES // (3 * how.height * how.width))
        self._labels = labels
        workers = runtime.num_workers
        self._loader: DataLoader[Batch] = DataLoader(
            reader,
            batch_size=None,  # a request is several images already
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=max(1, min(2, _PARTS_AHEAD // workers)) if workers else None,
            pin_memory=runtime.device.type == "cuda",
            worker_init_fn=_start_worker,
            multiprocessing_context=_worker_context() if workers else None,
            generator=torch.Generator(),  # its own, so that reading never moves torch's
        )

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yields the batches asked for, in order; a few are read ahead.

        Raises:
            DataError: a worker died.
        """
        counts: deque[int] = deque()
        self._requests.pending = self._in_parts(requests, counts)
        try:
            batches: Any = iter(self._loader)  # the same workers each time
            done = getattr(batches, "_workers_done_event", None)  # there is no public way to it
            if done is not None and not isinstance(done, _DoneEvent):
                batches._workers_done_event = _DoneEvent(done)
            for first in batches:
                parts = [first, *islice(batches, counts.popleft() - 1)]
                batch = _joined(parts, self._loader.pin_memory)
                if self._cache is not None:
                    self._cache.count(batch.reads)
                yield batch
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A dead worker shows as torch's own message, or as the pipe to it that broke.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a process that reads images died ({first_line(error)}); often "
                "memory or shared memory ran out: try --num-workers 0. A script of your own has to "
                'do its work below `if __name__ == "__main__":`, since these processes import it'
            ) from error

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


def _start_worker(number: int) -> None:
    """Prepares a worker, which ends when the process that asked for it is gone, even killed.

    Else it would stay: torch looks at the parent, which is the fork server, and that one waits for
    its workers.
    """
    leave_interrupts_alone(number)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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


class _DoneEvent:
    """Torch's word to its workers that they are done, which never waits for the dead."""

    # A worker that is killed while it looks at the event takes the event's lock with it, and torch
    # would ask for it without end (pytorch/pytorch#39570). This process set the event or did not,
    # and so knows; without the lock, torch ends living workers by a signal some seconds later.

    def __init__(self, event: Any) -> None:
        self._event, self._is_set = event, False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if self._event._cond.acquire(timeout=1):  # the living hold it for the length of a look
            self._event._cond.release()
            self._event.set()


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


class _Requests:
    """The requests that workers are to read next; iterated in the main process."""

    pending: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.pending)


def _worker_context() -> multiprocessing.context.BaseContext:
    """Returns how workers start: never by fork, which breaks threads and CUDA in its copy."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not in each worker
    return context
