"""Columns of a source, brought into an `ImageSet`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.data.images import ImageRef, ImageSet
from lookalike.data.sources.cells import PARSERS, parse_column
from lookalike.errors import DataError
from lookalike.files import briefly, shown

COLUMNS = tuple(PARSERS)
"""What a source may say of an image."""


def image_set(
    root: Path,
    names: list[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    source: str | Path,
    places: Sequence[ImageRef] | None = None,
    unit: str = "row",
    files: Sequence[str] | None = None,
) -> ImageSet:
    """Returns images with those of `COLUMNS` that there are, as text and flags.

    `source` and `unit`, where images are from and the word for one's place there, are for messages.
    `files` are equal where two names are of one file; without them, where the names are.

    Raises:
        DataError: there are no images, one stands twice, or a value is missing or wrong.
    """
    told = shown(source)
    if not names:
        raise DataError(f"{told} has no {unit}s")
    _refuse_twice(names, files or names, told, unit)
    parsed: dict[str, Any] = {
        name: parse_column(columns[name], parse, lambda row: f"{unit} {row} of {told}")
        for name, parse in PARSERS.items()
        if name in columns
    }
    return ImageSet(
        root, names, labels=parsed.get("label"), groups=parsed.get("group"),
        splits=parsed.get("split"), is_query=parsed.get("is_query"), places=places,
    )  # fmt: skip


def _refuse_twice(names: Sequence[str], files: Sequence[str], told: str, unit: str) -> None:
    """Raises a `DataError` that names the first file that stands twice."""
    # A set of ten million texts takes a gigabyte; sorted hashes find the few that may be equal.
    hashes = np.fromiter(map(hash, files), np.int64, len(files))
    ordered = np.sort(hashes)
    alike = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    first: dict[str, int] = {}
    for row, file in enumerate(files) if alike else ():
        if hash(file) in alike and first.setdefault(file, row) != row:
            once, again = names[first[file]], names[row]
            same = "" if once == again else f" as {briefly(once, 200)}"
            raise DataError(
                f"{told} names {briefly(again, 200)} twice, again in {unit} {row + 1}: "
                f"it stands in {unit} {first[file] + 1}{same}; list each image once"
            )


def some(names: Iterable[str], most: int = 3) -> str:
    """Returns the first few of some names, and how many more there are."""
    names = list(names)
    told = ", ".join(briefly(name, 200) for name in names[:most])
    return told + (f" and {len(names) - most:,} more" if len(names) > most else "")
