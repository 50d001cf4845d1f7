"""Batches of exactly P classes x K images, every image of an epoch in its turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int32, Int64
from torch import Tensor
from torch.utils.data import Sampler

from lookalike.errors import CheckpointError, DataError


@dataclass(frozen=True)
class SamplerReport:
    """Counts of what a sampler makes of a set of labels."""

    num_classes: int
    num_images: int
    num_batches: int
    excluded_singletons: int
    small_classes: int
    repeated_images: int


class BalancedBatchSampler(Sampler[list[int]]):
    """Yields lists of dataset indices: P different classes, K images of each.

    **An epoch** shows every image of every class that takes part, and none a second time
    before all images of its class were shown. A class of n images fills ceil(n / K) places,
    a place being K images in one batch; where K does not divide n, the last place is filled
    up with images the class began the epoch with. The length of an epoch is

        max(ceil(sum of all places / P), places of the largest class)   batches,

    the smallest number that gives each batch P different classes; places that are then still
    empty go round the classes in random order. So classes are met in proportion to their size.

    With `class_balance="equal"` an epoch has as many batches, and all classes are met equally
    often in it. Of N batches each of C classes fills

        floor(N P / C)  or  ceil(N P / C)   places,

    the larger number falling to other classes in each epoch, by lot. A class with more images
    than places is not shown in full: others of its images have their turn in the next epoch.

    No image stands twice in a batch, unless its class has fewer than K: then its images
    are repeated, which `report` counts. A class with one image has no pair to learn from; it
    is left out (`singletons="exclude"`), or its image is repeated (`singletons="repeat"`).

    The order depends on `seed` and the epoch alone; `state_dict` and `load_state_dict` go on in
    the middle of one. Use it as `DataLoader(dataset, batch_sampler=BalancedBatchSampler(labels))`.

    Args:
        labels: the class of each image: integers of any size, or strings.
        n_classes_per_batch, n_samples_per_class: P and K.
        singletons, class_balance: as above; balance by "size" is in proportion to it.
        seed: of the order.

    Raises:
        DataError: fewer than P classes can take part.
        ValueError: P or K is below 1, or a word is not one of those above.
    """

    def __init__(
        self,
        labels: Sequence[int] | Sequence[str] | np.ndarray | Int64[Tensor, " n"],
        n_classes_per_batch: int = 4,
        n_samples_per_class: int = 2,
        *,
        singletons: Literal["exclude", "repeat"] = "exclude",
        class_balance: Literal["size", "equal"] = "size",
        seed: int = 0,
    ) -> None:
        if singletons not in ("exclude", "repeat"):
            raise ValueError(f"singletons is {singletons!r}; expected 'exclude' or 'repeat'")
        if class_balance not in ("size", "equal"):
            raise ValueError(f"class_balance is {class_balance!r}; expected 'size' or 'equal'")
        if n_classes_per_batch < 1 or n_samples_per_class < 1:
            raise ValueError(
                f"a batch of {n_classes_per_batch} classes x {n_samples_per_class} images is "
                "empty; both must be at least 1"
            )
        self._per_batch, self._per_class = n_classes_per_batch, n_samples_per_class
        classes, sizes = number_classes(labels)
        # A place of one image needs no second.
        taking_part = sizes >= (2 if singletons == "exclude" and n_samples_per_class > 1 else 1)
        num_usable = int(taking_part.sum())
        if num_usable < n_classes_per_batch:
            raise _too_few_classes(num_usable, len(sizes), n_classes_per_batch, singletons)

        # Images grouped by class: class c's are by_class[starts[c] : starts[c] + sizes[c]].
        by_class = grouped_by_class(classes)
        self._by_class = by_class[taking_part[classes[by_class]]]
        self._sizes = sizes[taking_part]
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._places = -(-self._sizes // n_samples_per_class)
        needed = -(-self._places.sum() // n_classes_per_batch)
        self._num_batches = int(max(needed, self._places.max()))
        small = self._sizes < n_samples_per_class
        self.report = SamplerReport(
            num_classes=num_usable,
            num_images=len(self._by_class),
            num_batches=self._num_batches,
            excluded_singletons=len(sizes) - num_usable,
            small_classes=int(small.sum()),
            repeated_images=int((n_samples_per_class - self._sizes[small]).sum()),
        )
        digest = hashlib.sha256(self._by_class.astype(np.int64))
        digest.update(self._sizes.tobytes())
        # Two samplers that agree in all of these draw the same batches.
        self._identity: dict[str, int | str] = {
            "seed": seed,
            "n_classes_per_batch": n_classes_per_batch,
            "n_samples_per_class": n_samples_per_class,
            "class_balance": class_balance,
            "num_batches": self._num_batches,
            "num_images": len(self._by_class),
            "images": digest.hexdigest()[:16],
        }
        self._seed, self._balance = seed, class_balance
        self._epoch = self._batches_done = 0

    def __len__(self) -> int:
        """Returns the number of batches in a whole epoch, however many of them are done."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches of the epoch that are not done yet."""
        for batch in self._plan()[self._batches_done :]:
            self._batches_done += 1
            yield batch.tolist()
        self._batches_done = 0

    def set_epoch(self, epoch: int) -> None:
        """Starts another epoch, from its first batch."""
        self._epoch, self._batches_done = epoch, 0

    def state_dict(self) -> dict[str, int | str]:
        """Returns where the sampler stands; `batches_done` counts batches handed out."""
        return {"epoch": self._epoch, "batches_done": self._batches_done, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where a saved sampler stood.

        Raises:
            CheckpointError: that one had other images, another batch shape or another seed.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise CheckpointError(
                    f"the saved run's sampler had {name} {state.get(name)}, this one has {value}: "
                    "the training images or the batch shape changed. Start a new run instead"
                )
        self._epoch, self._batches_done = state["epoch"], state["batches_done"]

    def _plan(self) -> Int[np.ndarray, "batches P_times_K"]:
        """Returns all batches of the epoch."""
        rng = np.random.default_rng([self._seed, self._epoch])
        # Images of a class in random order; whole numbers before the point keep classes apart.
        keys = rng.random(len(self._by_class))
        keys += np.repeat(np.arange(len(self._sizes), dtype=np.int32), self._sizes)
        shuffled = self._by_class[np.argsort(keys)]
        equal = self._balance == "equal"
        places = self._equal_places(rng) if equal else self._places + self._extra_places(rng)
        order = rng.permutation(len(places))
        owners = np.repeat(order, places[order])  # the class of each place, class by class
        columns = np.concatenate(list(self._deal(owners, rng)))  # the batch of each place

        # A class's places take their turn in the order of the batches they were dealt to.
        firsts = np.cumsum(places[order]) - places[order]
        row = np.repeat(np.arange(len(order)), places[order])
        nth = np.empty_like(owners)
        nth[np.lexsort((columns, row))] = np.arange(len(owners)) - np.repeat(firsts, places[order])

        # K images in a row of the class's shuffled circle: all different where there are K.
        steps = nth[:, None] * self._per_class + np.arange(self._per_class)
        steps %= self._sizes[owners][:, None]
        steps += self._starts[owners][:, None]
        batches: np.ndarray = shuffled[steps[np.argsort(columns, kind="stable")]]
        return batches.reshape(self._num_batches, -1)

    def _equal_places(self, rng: np.random.Generator) -> Int64[np.ndarray, " classes"]:
        """Returns as many places for each class, or one more; at most as many as batches."""
        each, over = divmod(self._num_batches * self._per_batch, len(self._sizes))
        places = np.full_like(self._sizes, each)
        places[rng.permutation(len(places))[:over]] += 1
        return places

    def _extra_places(self, rng: np.random.Generator) -> Int64[np.ndarray, " classes"]:
        """Returns the places that fill up the last batches, dealt evenly to classes with room."""
        extra = np.zeros_like(self._places)
        missing = self._num_batches * self._per_batch - int(self._places.sum())
        while missing > 0:
            room = self._num_batches - self._places - extra
            open_classes = rng.permutation(np.flatnonzero(room))
            # All together as long as none runs out of room, then those that come first once more.
            rounds = min(missing // len(open_classes), int(room[open_classes].min()))
            taken = open_classes if rounds else open_classes[:missing]
            extra[taken] += max(rounds, 1)
            missing -= len(taken) * max(rounds, 1)
        return extra

    def _deal(
        self, owners: Int64[np.ndarray, " places"], rng: np.random.Generator
    ) -> Iterator[Int64[np.ndarray, " batches"]]:
        """Deals places to batches in P layers, one place a batch and layer; yields their batches.

        Places of one class are neighbours, so a class can come twice into a batch only if it
        straddles two layers: its places in the second are dealt first, among the batches that it
        is not in yet; all others go anywhere.
        """
        batches = np.arange(self._num_batches)
        above = columns = batches[:0]
        for here in owners.reshape(self._per_batch, -1):
            taken = columns[above == here[0]]
            num_straddling = int((here == here[0]).sum()) if len(taken) else 0
            first = rng.permutation(np.setdiff1d(batches, taken))[:num_straddling]
            rest = rng.permutation(np.setdiff1d(batches, first))
            above, columns = here, np.concatenate([first, rest])
            yield columns


def number_classes(
    labels: Sequence[int] | Sequence[str] | np.ndarray | Int64[Tensor, " n"],
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " classes"]]:
    """Returns each image's class as a number from 0, in the order of labels, and class sizes.

    Takes little more memory than the result, whatever the labels are.
    """
    if isinstance(labels, (np.ndarray, Tensor)) or not isinstance(next(iter(labels), 0), str):
        array = np.asarray(labels)
        if array.dtype.kind in "iu":
            return _number_integers(array)
    # Text, whole numbers that no 64 bits hold, and other objects.
    if isinstance(labels, (np.ndarray, Tensor)):
        labels = labels.tolist()
    numbers: dict[Any, int] = {}
    classes = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), np.int32)
    if all(isinstance(label, (str, bytes)) for label in numbers):
        ranks = np.empty(len(numbers), dtype=np.int32)
        ranks[[numbers[label] for label in sorted(numbers)]] = np.arange(len(numbers))
        classes = ranks[classes]
    return classes, np.bincount(classes)


def _number_integers(
    labels: np.ndarray,
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " classes"]]:
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if high - low > 4 * len(labels):  # too far apart to count one by one
        _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        return classes.astype(np.int32), sizes
    above_low = (labels - labels.dtype.type(low)).astype(np.int64)
    sizes = np.bincount(above_low)
    numbers = np.cumsum(sizes > 0, dtype=np.int32) - 1
    return numbers[above_low], sizes[sizes > 0]


def grouped_by_class(classes: Int32[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns `numpy.argsort(classes, kind="stable")`, quicker."""
    keys = classes.astype(np.int64) * len(classes) + np.arange(len(classes))
    keys.sort()
    keys %= max(1, len(classes))
    return keys.astype(np.int32 if len(classes) < 2**31 else np.int64)


def _too_few_classes(usable: int, num_classes: int, needed: int, singletons: str) -> DataError:
    if usable >= 2:
        advice = f"Set --n-classes-per-batch {usable} or less"
    elif num_classes >= 2 and singletons == "exclude":
        advice = "Add images to those classes, or set --singletons repeat"
    else:
        advice = "There must be images of at least two classes to tell apart"
    return DataError(
        f"a batch needs {needed} different classes and {usable} can take part "
        f"(of {num_classes}; {num_classes - usable} have a single image). {advice}"
    )
