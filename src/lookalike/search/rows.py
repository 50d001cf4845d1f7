"""Embeddings wherever they lie: a tensor, an array, or memory-mapped shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lookalike.errors import DataError

Matrix: TypeAlias = "Tensor | np.ndarray"
Embeddings: TypeAlias = "Matrix | Sequence[Matrix] | Rows"


class Rows:
    """Rows of one matrix, or of several that stand below each other, read a part at a time.

    Shards may be memory-mapped (`numpy.load(path, mmap_mode="r")`): only what is asked for is
    read. Whatever their type, rows come out as float32. `rows[3]`, `rows[2:5]`, `rows[mask]` and
    `rows[positions]` give what they give of a tensor. `order` chooses rows of `source`; None: all.

    Raises:
        DataError: a shard is no matrix of numbers, or they differ in width.
    """

    def __init__(self, source: Embeddings, order: Int64[np.ndarray, " n"] | None = None) -> None:
        given = source._shards if isinstance(source, Rows) else source
        shards = [given] if isinstance(given, (Tensor, np.ndarray)) else list(given)
        for number, shard in enumerate(shards):
            what = f"shard {number} of the embeddings" if len(shards) > 1 else "the embeddings"
            if len(shard.shape) != 2:
                raise DataError(f"{what} has {len(shard.shape)} dimensions; expected 2, (n, dim)")
            if not shard.shape[1]:
                raise DataError(f"{what} has no columns; expected (n, dim) with dim 1 or more")
            if shard.shape[1] != shards[0].shape[1]:
                raise DataError(f"{what} is {shard.shape[1]}-d, the first {shards[0].shape[1]}-d; "
                                "expected embeddings of one model")  # fmt: skip
        self._shards: list[Matrix] = shards
        self._starts = np.cumsum([0] + [len(shard) for shard in shards])
        self._order: np.ndarray | None = source._order if isinstance(source, Rows) else None
        if order is not None:
            self._order = self._original(order)
        self.dim = int(shards[0].shape[1]) if shards else 0

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._order is None else len(self._order)

    @property
    def shape(self) -> tuple[int, int]:
        """Returns the number of rows, and their length."""
        return len(self), self.dim

    def __getitem__(self, which: int | slice | Tensor) -> Float32[Tensor, "*rows dim"]:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            return self.part(start, stop)[::step]
        if isinstance(which, Tensor):
            return self.take(which)
        position = range(len(self))[which]  # which counts from the end, and raises an IndexError
        return self.part(position, position + 1)[0]

    def part(self, start: int, stop: int) -> Float32[Tensor, "rows dim"]:
        """Returns rows `start` to `stop`, which may lie in several shards."""
        stop = min(stop, len(self))
        if self._order is not None:
            return self.take(torch.arange(start, max(start, stop)))
        pieces = []
        for shard, begin in zip(self._shards, self._starts[:-1], strict=True):
            low, high = max(start - begin, 0), min(stop - begin, len(shard))
            if low < high:
                pieces.append(_as_float(shard[low:high]))
        return pieces[0] if len(pieces) == 1 else torch.cat([torch.empty(0, self.dim), *pieces])

    def take(self, positions: Tensor) -> Float32[Tensor, "*n dim"]:
        """Returns the rows at these positions, or where a mask is true."""
        if len(self._shards) == 1 and self._order is None:
            return _taken(self._shards[0], positions)
        wanted = self._original(positions.cpu().numpy())
        flat = wanted.reshape(-1)
        of_shard = np.searchsorted(self._starts, flat, side="right") - 1
        rows = torch.empty(len(flat), self.dim)
        for number in np.unique(of_shard):
            here = np.flatnonzero(of_shard == number)
            inside = torch.from_numpy(flat[here] - self._starts[number])
            rows[torch.from_numpy(here)] = _taken(self._shards[number], inside).cpu()
        return rows.reshape(*wanted.shape, self.dim)

    def _original(self, positions: np.ndarray) -> np.ndarray:
        """Returns where the rows at these positions, or of a mask, are in the shards."""
        if self._order is not None or positions.dtype == bool:
            every = np.arange(len(self)) if self._order is None else self._order
            return np.asarray(every[positions])
        if ((positions < -len(self)) | (positions >= len(self))).any():
            raise IndexError(f"a position is outside of {len(self):,} rows")
        return np.asarray(positions % len(self))

    def parts(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yields the bounds of parts of so many rows that cover everything.

        They come in an order that jumps about: galleries are often sorted by class, and a
        search that meets a bit of everything early on can skip the rest quickly.
        """
        count = -(-len(self) // rows)
        strides = range(max(1, int(count * 0.618)), count + 2)
        stride = next(s for s in strides if np.gcd(s, count) == 1)
        for number in range(count):
            start = (number * stride % count) * rows
            yield start, min(start + rows, len(self))


def check_widths(query: Rows, gallery: Rows) -> None:
    """Raises a `DataError` where embeddings of two models, of other widths, are to be compared."""
    if len(query) and len(gallery) and query.dim != gallery.dim:
        raise DataError(f"queries are {query.dim}-d and the gallery is {gallery.dim}-d; "
                        "expected embeddings of one model")  # fmt: skip


def _taken(shard: Matrix, positions: Int64[Tensor, " n"]) -> Float32[Tensor, "n dim"]:
    if isinstance(shard, Tensor):
        return shard[positions.to(shard.device)].float()
    return _as_float(shard[positions.cpu().numpy()])


def _as_float(rows: Matrix) -> Float32[Tensor, "n dim"]:
    if isinstance(rows, Tensor):
        return rows.float()
    # A copy where the array is read-only (memory-mapped), which torch will not share.
    copy = None if rows.flags.writeable else True
    return torch.from_numpy(np.array(rows, dtype=np.float32, copy=copy))
