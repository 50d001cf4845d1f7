"""The part of a loader that lives in each process that reads: requests in, batches out."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from lookalike.data.images import ImageRef, Unreadable, shown_path
from lookalike.data.reading.cache import CachedReader, Reads
from lookalike.data.reading.decode import read_image
from lookalike.data.reading.shared import SharedArray, SharedList
from lookalike.data.sampler import grouped_by_class, number_classes
from lookalike.data.transforms import Augmentation, Preprocessing, augment, preprocess
from lookalike.errors import ImageError


class Request(NamedTuple):
    """A batch to be read: positions of images, and the seed of their augmentation.

    Of several processes each reads a part of a batch: images `first` to `first + len(indices)`
    of `whole`.
    """

    indices: Sequence[int]
    seed: tuple[int, ...] | None = None
    first: int = 0
    whole: Sequence[int] = ()


class Batch(NamedTuple):
    """A batch that was read. `indices` says which images it really holds.

    `lost` are positions that were asked for and have no readable image to stand in for them.
    Where several processes have read it together, `pixels` are of `indices[own]` only. `reads` are
    what a cache of decoded images had to do with it.
    """

    pixels: UInt8[Tensor, "batch 3 height width"]
    indices: list[int]
    unreadable: list[Unreadable]
    lost: list[int]
    own: slice = slice(None)
    reads: Reads = Reads()


class Reader(Dataset[Batch]):
    """Reads what is asked for. Sent to a process, it shares what grows with the images.

    Args:
        refs: the images.
        how: cut and size of the pixels.
        max_megapixels: larger images are unreadable.
        augmentation: changes for training; None: as evaluation sees them.
        labels: class of each image, for those that stand in for unreadable ones.
        cache: of decoded images.
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
        pixels: list[Tensor] = []
        indices: list[int] = []
        lost: list[int] = []
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
        """The image itself, then those of its class that may stand in: free ones first."""
        yield wanted
        if self._classes is None:
            return
        number = self._classes.values[wanted]
        start, end = self._ends.values[number - 1] if number else 0, self._ends.values[number]
        mates = self._by_class.values[start:end]
        place = int(np.searchsorted(mates, wanted))
        others = [*mates[place + 1 :].tolist(), *mates[:place].tolist()]
        yield from (mate for mate in others if mate not in taken)
        yield from (mate for mate in others if mate in taken)

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
