"""The part of a loader that lives in each process that reads: requests in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lookalike.data.images import ImageRef, Unreadable, shown_path
from lookalike.data.reading.cache import CachedReader, Reads
from lookalike.data.reading.decode import read_image
from lookalike.data.reading.shared import SharedArray, SharedList
from lookalike.data.sampler import grouped_by_class, number_classes
from lookalike.data.transforms import Augmentation, Preprocessing, augment, preprocess
from lookalike.errors import ImageError


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


class Reader:
    """Reads what is asked for; takes what `ImageLoader` does. Sent to a process, it shares what
    grows with the images. `begins` is told the position of each image before it is read.
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
        self.begins: Callable[[int], None] = _tell_nobody
        self.draft_px = how.draft_px(augmentation.least_area if augmentation else 1.0)
        self._classes: SharedArray | None = None
        if labels is not None:
            classes, sizes = number_classes(labels)
            self._classes = SharedArray(classes)
            # Class c's images are by_class[ends[c - 1] : ends[c]], in their order.
            self._by_class = SharedArray(grouped_by_class(classes))
            self._ends = SharedArray(np.cumsum(sizes))

    def path_of(self, index: int) -> str:
        """Returns where an image lies, for people."""
        return shown_path(self._refs[index])

    def read(self, request: Request, given_up: Mapping[int, str] | None = None) -> Batch:
        """Reads a batch; images that were given up before are unreadable, for the reasons given."""
        pixels, indices, lost = list[Tensor](), list[int](), list[int]()
        unreadable: dict[int, Unreadable] = {}
        given_up = given_up or {}
        asked = {*request.indices, *request.whole}
        for place, wanted in enumerate(request.indices, start=request.first):
            for index in self._candidates(wanted, {*asked, *indices}):
                if index in unreadable:
                    continue
                try:
                    if index in given_up:
                        raise ImageError(self.path_of(index), given_up[index])
                    self.begins(index)
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


def _tell_nobody(_index: int) -> None:
    """Stands where nobody asks which image is being read."""
