"""Images of a source: their names, labels, references, and held-out classes. Opens no file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unicodedata import normalize

from lookalike.config import holdout_bounds
from lookalike.errors import DataError
from lookalike.files import shown


@dataclass(frozen=True, slots=True)
class Span:
    """An image that is a range of bytes of a file, such as a member of a tar."""

    path: str
    offset: int
    size: int
    name: str  # within the file


@dataclass(frozen=True, slots=True)
class Cell:
    """An image that is a cell of a Parquet file, in a column of binary (such as `image.bytes`)."""

    path: str
    column: str
    row_group: int
    row: int  # within the row group
    name: str  # within the file


@dataclass(frozen=True, slots=True)
class InMemory:
    """An image whose file's bytes are at hand."""

    name: str
    content: bytes


ImageRef: TypeAlias = str | Span | Cell | InMemory
"""Where the bytes of one image are; a plain path is a file. Cheap to keep and to pickle."""


def shown_path(ref: ImageRef) -> str:
    """Returns where an image lies, for people: `photos/1.jpg`, `shards-0000.tar/000123.jpg`."""
    if isinstance(ref, str):
        return ref
    return ref.name if isinstance(ref, InMemory) else f"{ref.path}/{ref.name}"


class FileKey(NamedTuple):
    """All that must be the same for an image to be the one that was read before.

    `path` is the real path of the file it is or lies in ("" for bytes in memory), `place` where in
    there ("" for a whole file); the others are the file's, -1 where there is none. Size and time
    stay where files change places, or are copied with their times: inode and ctime do not.
    """

    path: str
    place: str
    num_bytes: int
    mtime_ns: int
    ctime_ns: int = -1
    inode: int = -1

    @property
    def identity(self) -> str:
        """Returns one string for each image, however its content changes."""
        return f"{self.path}\0{self.place}" if self.place else self.path


def file_key(ref: ImageRef) -> FileKey:
    """Returns the key by which anything that is kept of an image is found again.

    Every cache, scan and index asks here, so that one rule says when a file has changed.
    """
    path, place = _place(ref)
    if isinstance(ref, InMemory):
        return FileKey(path, place, len(ref.content), 0)
    try:
        status = os.stat(path)
        changed = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        return FileKey(os.path.realpath(path), place, *changed)
    except (OSError, ValueError):  # ValueError: a path that cannot be one
        return FileKey(os.path.abspath(path), place, -1, -1)


def identity(ref: ImageRef) -> str:
    """Returns the same string for two references of the same image, whatever path leads to it.

    A link leads to the file that it is of, a symbolic one as well as a hard one.
    """
    path, place = _place(ref)
    try:
        status = os.stat(path) if path else None
        real = os.path.realpath(path) if path else path
    except (OSError, ValueError):  # ValueError: a path that cannot be one
        status, real = None, os.path.abspath(path)
    if status and status.st_nlink > 1 and status.st_ino:  # else its path alone is more certain
        real = f"{status.st_dev}:{status.st_ino}"
    return FileKey(real, place, 0, 0).identity


def _place(ref: ImageRef) -> tuple[str, str]:
    """Returns the file, and the place of the image in it."""
    if isinstance(ref, str):
        return ref, ""
    if isinstance(ref, Span):
        return ref.path, f"{ref.offset}+{ref.size}"
    if isinstance(ref, Cell):
        return ref.path, f"{ref.column}[{ref.row_group}, {ref.row}]"
    return "", hashlib.sha256(ref.content).hexdigest()


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, by the path that people are shown, and why."""

    path: str
    reason: str


def list_unreadable(bad: Sequence[Unreadable], most: int = 3) -> str:
    """Returns the first few bad files with their reasons, and how many more there are."""
    told = "; ".join(f"{shown(one.path)}: {one.reason}" for one in bad[:most])
    return told + (f"; and {len(bad) - most:,} more" if len(bad) > most else "")


@dataclass(frozen=True)
class ImageSet:
    """Images of one source in a fixed order; the columns have one entry an image.

    `names` are unique, relative to `root`, with forward slashes. `labels`, `groups`, `splits` and
    `is_query` are None where the source does not say. In evaluation, images of the same
    non-empty group (one photo shoot, one camera) are not searched in each other. `places` says
    where each image's bytes are; None: each is a file, `root/name`.
    """

    root: Path
    names: list[str]
    labels: list[str] | None = None
    groups: list[str] | None = None
    splits: list[str] | None = None
    is_query: list[bool] | None = None
    places: Sequence[ImageRef] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def refs(self) -> Sequence[ImageRef]:
        """Returns where each image's bytes are."""
        return self.paths if self.places is None else self.places

    @property
    def paths(self) -> list[str]:
        """Returns `root/name` of each image, for people and other files; not to be opened."""
        return [os.path.join(self.root, name) for name in self.names]

    def subset(self, keep: Iterable[int]) -> ImageSet:
        """Returns the images at these positions, in this order."""
        positions = list(keep)
        told = {name: values for name, values in vars(self).items() if isinstance(values, Sequence)}
        columns: dict[str, Any] = {name: [told[name][i] for i in positions] for name in told}
        return replace(self, **columns)

    def of_split(self, *wanted: str) -> ImageSet:
        """Returns the images of these splits; all of them where the source knows no splits.

        Raises:
            DataError: there are none; names the splits there are.
        """
        if self.splits is None:
            return self
        positions = [i for i, split in enumerate(self.splits) if split in wanted]
        if not positions:
            several = sorted(set(self.splits))
            there = ", ".join(repr(shown(split)) for split in several[:10])
            there += f" and {len(several) - 10:,} more" if len(several) > 10 else ""
            raise DataError(f"no row in {shown(self.root)} has split "
                            f"{' or '.join(map(repr, wanted))}; there are {there}")  # fmt: skip
        return self.subset(positions)

    def of_classes(self, classes: set[str]) -> ImageSet:
        """Returns the images whose label is one of these."""
        return self.subset(i for i, label in enumerate(self.labels or ()) if label in classes)

    def grouped_by(self, pattern: str) -> ImageSet:
        """Returns the same with groups read off the names: what a regular expression finds there.

        Its first parenthesis counts, or all of the match; names without a match have no group.
        """
        found = [re.search(pattern, name) for name in self.names]
        if not any(found):
            return replace(self, groups=None)
        return replace(self, groups=[m[(m.lastindex and 1) or 0] or "" if m else "" for m in found])

    def fingerprint(self) -> str:
        """Returns a hash of names, labels and groups: the same for a list, wherever it lies."""
        return _hash_of(list(self.fingerprints().values()))

    def state(self) -> str:
        """Returns a hash of what tells whether files have changed, but not of where they lie."""
        keys = map(file_key, self.refs)
        return _hash_of(f"{key.place}|{key.num_bytes}|{key.mtime_ns}" for key in keys)

    def fingerprints(self) -> dict[str, str | None]:
        """Returns a hash of each column, None where there is none.

        However a disk stores the letters of names, it is the same (of Unicode's forms NFC).
        """
        names = (name if name.isascii() else normalize("NFC", name) for name in self.names)
        columns = {"names": names, "labels": self.labels, "groups": self.groups}
        return {name: None if column is None else _hash_of(column)
                for name, column in columns.items()}  # fmt: skip


def _hash_of(column: Iterable[str | None]) -> str:
    digest = hashlib.sha256()
    for value in column:
        digest.update(json.dumps(value).encode())  # quoted, so that no two lists read alike
    return digest.hexdigest()[:16]


def held_out_classes(labels: Iterable[str], holdout: str, seed: int) -> set[str]:
    """Returns the classes of `labels` that a holdout keeps from training.

    Classes are put into an order that depends on seed and names alone. A share takes the first of
    them; of n folds each takes a part, and every class is in exactly one.

    >>> sorted(held_out_classes("abcdef", "0.5", seed=0))
    ['a', 'd', 'f']
    >>> [sorted(held_out_classes("abcdef", f"{fold}/3", seed=0)) for fold in (1, 2, 3)]
    [['d', 'f'], ['a', 'c'], ['b', 'e']]

    Args:
        labels: of all images, of training and test.
        holdout: a share between 0 and 1, such as "0.5", or a fold, such as "2/5".
        seed: another seed, another order.

    Raises:
        ConfigError: `holdout` is neither.
        DataError: fewer than two classes would be left on either side.
    """

    def digest(label: str) -> str:
        return hashlib.sha256(f"{seed}:{label}".encode("utf-8", "surrogateescape")).hexdigest()

    order = sorted(set(labels), key=lambda label: (digest(label), label))
    low, high = holdout_bounds(holdout)
    first, last = (math.floor(edge * len(order) + 0.5) for edge in (low, high))
    chosen = order[first:last]
    if len(chosen) < 2 or len(order) - len(chosen) < 2:
        raise DataError(
            f"holdout_classes {holdout} of {len(order)} classes keeps {len(chosen)} for the test "
            f"and leaves {len(order) - len(chosen)} to learn from; both need two at least"
        )
    return set(chosen)
