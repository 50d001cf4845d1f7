"""The part of a loader that lives in each process that reads: requests in, batches out."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import context, reduction
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from lookalike.data.images import ImageRef, Unreadable, shown_path
from lookalike.data.reading.cache import CachedReader, Reads
from lookalike.data.reading.decode import read_image
from lookalike.data.sampler import grouped_by_class, number_classes
from lookalike.data.transforms import Augmentation, Preprocessing, augment, preprocess
from lookalike.errors import ImageError

Item = TypeVar("Item")


class SharedArray:
    """A read-only array of any shape whose memory a process that is started with it shares.

    It lies in a file without a name, which the system removes with the last process that has it
    open, however that ends. (Shared memory proper is often limited to 64 MB in containers.) On
    Windows, which has no such files, each process gets a copy.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self._file: int | None = None
        if os.name == "posix" and values.size:
            # No room for temporary files is no reason to stop: then each process has a copy.
            with suppress(OSError), tempfile.TemporaryFile() as file:
                file.write(np.ascontiguousarray(values).data)
                file.flush()
                self._adopt(os.dup(file.fileno()), values.dtype, values.shape)

    def _adopt(self, file: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)  # __del__ may come when the interpreter is half gone
        seen = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        self.values = np.frombuffer(seen, dtype=dtype).reshape(shape)

    def __reduce__(self) -> tuple[Callable[..., SharedArray], tuple[Any, ...]]:
        if self._file is None or context.get_spawning_popen() is None:
            return SharedArray, (np.array(self.values),)
        return _opened, (reduction.DupFd(self._file), self.values.dtype, self.values.shape)


def _opened(file: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> SharedArray:
    """Returns, in the process that was started, the array in a file that came with it."""
    array = SharedArray(np.empty(0, dtype))
    array._adopt(file.detach(), dtype, shape)
    return array


class SharedList(Sequence[Item]):
    """Items, such as the references of images, in shared memory: their pickles and 8 bytes each."""

    def __init__(self, items: Iterable[Item]) -> None:
        parts = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = SharedArray(np.cumsum([len(part) for part in parts], dtype=np.int64))
        self._bytes = SharedArray(np.frombuffer(b"".join(parts), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._ends.values)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        ends: Int64[np.ndarray, " items"] = self._ends.values
        index = range(len(self))[index]  # from the end, or an IndexError
        start = ends[index - 1] if index else 0
        item: Item = pickle.loads(self._bytes.values[start : ends[index]].data)  # noqa: S301 - ours
        return item


class Request(NamedTuple):
    """A batch to be read: positions of images, and the seed of their augmentation.

    Of several processes each reads a part: images `first` to `first + len(indices)` of `whole`.
    """

    indices: Sequence[int]
    seed: tuple[int, ...] | None = None
    first: int = 0
    whole: Sequence[int] = ()


class Batch(NamedTuple):
    """A batch that was read. `indices` says which images it really holds.

    `lost` are positions that were asked for and have no readable image to stand in for them.
    Where several processes have read it together, `pixels` are of `indices[own]` only. `reads` is
    the part that a cache of decoded images had in it.
    """

    pixels: UInt8[Tensor, "batch 3 height width"]
    indices: list[int]
    unreadable: list[Unreadable]
    lost: list[int]
    own: slice = slice(None)
    reads: Reads = Reads()


class Reader(Dataset[Batch]):
    """Reads what is asked for; takes what `ImageLoader` does. Sent to a process, it shares what
    grows with the images.
    """

    def __init__(
        self,
        refs: Sequence[ImageRef],
        how: Preprocessing,
        max_megapixels: float,
        augmentation: Augmentation | None,
        labels: Sequence[str] | None,
        cache: CachedReader | None,
    ) -> None:
        self._refs = SharedList(refs)  # of each reader a copy would be hundreds of bytes an image
        self._how, self._max_megapixels = how, max_megapixels
        self._augmentation, self._cache = augmentation, cache
        self.draft_px = how.draft_px(augmentation.least_area if augmentation else 1.0)
        self._classes: SharedArray | None = None
        if labels is not None:
            classes, sizes = number_classes(labels)
            self._classes = SharedArray(classes)
            # Class c's images are by_class[ends[c - 1] : ends[c]], in their order.
            self._by_class = SharedArray(grouped_by_class(classes))
            self._ends = SharedArray(np.cumsum(sizes))

    def __getitem__(self, request: Request) -> Batch:
        pixels, indices, lost = list[Tensor](), list[int](), list[int]()
        unreadable: dict[int, Unreadable] = {}
        asked = {*request.indices, *request.whole}
        for place, wanted in enumerate(request.indices, start=request.first):
            for index in self._candidates(wanted, {*asked, *indices}):
                if index in unreadable:
                    continue
                try:
                    pixels.append(self._pixels(index, (*(request.seed or ()), place)))
                except ImageError as error:
                    unreadable[index] = Unreadable(error.path, error.reason)
                else:
                    indices.append(index)
                    break
            else:
                lost.append(wanted)
        empty = torch.empty(0, 3, self._how.height, self._how.width, dtype=torch.uint8)
        stacked = torch.stack(pixels) if pixels else empty
        reads = self._cache.take_reads() if self._cache else Reads()
        return Batch(stacked, indices, list(unreadable.values()), lost, reads=reads)

    def _candidates(self, wanted: int, taken: set[int]) -> Iterator[int]:
        """Yields the image itself, then those of its class that may stand in: free ones first."""
        yield wanted
        if self._classes is None:
            return
        number = self._classes.values[wanted]
        start, end = self._ends.values[number - 1] if number else 0, self._ends.values[number]
        mates = self._by_class.values[start:end]
        place = int(np.searchsorted(mates, wanted))
        others = [*mates[place + 1 :].tolist(), *mates[:place].tolist()]
        yield from sorted(others, key=taken.__contains__)

    def _pixels(self, index: int, seed: tuple[int, ...]) -> UInt8[Tensor, "3 height width"]:
        ref = self._refs[index]
        read = self._cache.read if self._cache else read_image
        image = read(ref, self._max_megapixels, draft_px=self.draft_px)
        try:
            if self._augmentation is None:
                return preprocess(image, self._how)
            return augment(image, self._how, self._augmentation, np.random.default_rng(seed))
        except (MemoryError, ValueError) as error:
            reason = f"cannot be resized ({image.width}x{image.height} px)"
            raise ImageError(shown_path(ref), reason) from error


def leave_interrupts_alone(_worker: int) -> None:
    """Ignores Ctrl-C in a reading process: it is for the main one, which finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
