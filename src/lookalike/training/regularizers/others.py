"""Images without labels, on which an encoder is held to what it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lookalike.config import TrainConfig
from lookalike.data.images import ImageSet, Unreadable
from lookalike.data.reading.probing import keep_readable
from lookalike.data.reading.reader import Request
from lookalike.data.sources import load_unlabelled
from lookalike.progress import Progress


@dataclass(frozen=True)
class OtherImages:
    """Some images a step, each once before any comes again, in an order drawn for each pass.

    The order depends on seed and step alone, so a resumed run sees what it would have seen.
    """

    images: ImageSet
    unreadable: list[Unreadable]
    per_step: int
    seed: int

    def requests(self, first_step: int, count: int, own: slice) -> Iterator[Request]:
        """What is to be read for some steps in a row.

        Args:
            first_step: its number, of all epochs together, counted from 0.
            count: of steps.
            own: which of the images of a step are this process's.
        """
        for step in range(first_step, first_step + count):
            whole = self._positions(step)
            # One number more than a batch's, so that none is changed as an image there is.
            yield Request(whole[own], (self.seed, step, 0, 0), own.start, whole)

    def _positions(self, step: int) -> list[int]:
        places = np.arange(step * self.per_step, (step + 1) * self.per_step)
        passes, within = np.divmod(places, len(self.images))
        orders = {one: self._order(one) for one in np.unique(passes)}
        return [int(orders[one][place]) for one, place in zip(passes, within, strict=True)]

    def _order(self, number: int) -> np.ndarray:
        return _order(len(self.images), self.seed, int(number))


@lru_cache(maxsize=2)  # a step has images of two passes at most, if there are enough of them
def _order(count: int, seed: int, number: int) -> np.ndarray:
    """The order of the images in a pass through them."""
    return np.random.default_rng((seed, number)).permutation(count)


def read_other_images(config: TrainConfig, progress: Progress) -> OtherImages | None:
    """The images that `distillation_images` names, as many a step as the batch has; None
    where it names none.

    Raises:
        DataError: there are none, or none that can be read.
    """
    if config.distillation_images is None:
        return None
    listed = load_unlabelled(config.distillation_images, progress).of_split("train")
    images, unreadable = keep_readable(listed, config.max_megapixels, progress)
    return OtherImages(
        images, unreadable, config.n_classes_per_batch * config.n_samples_per_class, config.seed
    )
