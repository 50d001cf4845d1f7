"""The bytes behind an image reference."""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lookalike.data.images import Cell, ImageRef, InMemory, file_key, shown_path
from lookalike.errors import DataError, ImageError, LookalikeError, first_line, missing_extra
from lookalike.files import briefly, shown

KEPT_BYTES = 2**28
"""Most that decoded row groups of Parquet files take in each process; one is kept at any rate."""


def read_content(ref: ImageRef, most: int | None = None) -> bytes:
    """Returns the bytes of an image's file, or of a range of bytes the first `most`.

    Raises:
        ImageError: they are not there, or fewer than there should be.
    """
    if isinstance(ref, InMemory):
        return ref.content
    try:
        if isinstance(ref, Cell):
            return _cell(ref)
        with open(ref if isinstance(ref, str) else ref.path, "rb") as file:
            if isinstance(ref, str):
                return file.read()
            wanted = ref.size if most is None else min(ref.size, most)
            file.seek(ref.offset)
            content = file.read(wanted)
    except (OSError, ValueError, IndexError) as error:  # the last two: it has changed
        told = (isinstance(error, OSError) and error.strerror) or first_line(error)
        reason = briefly(told, 300)  # a library may tell what stands in the file
        raise ImageError(shown_path(ref), reason) from error
    if len(content) < wanted:
        reason = f"cut short: {len(content):,} of {wanted:,} bytes are in its file"
        raise ImageError(shown_path(ref), reason)
    return content


def held(ref: ImageRef) -> ImageRef:
    """Returns a reference whose bytes are read at most once more: a file itself, else bytes."""
    return ref if isinstance(ref, str) else InMemory(shown_path(ref), read_content(ref))


class _RowGroups:
    """The columns of bytes that were decoded last, within a bound of bytes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._lock = threading.Lock()  # else threads would decode the same row group at once

    def column(self, ref: Cell) -> Any:
        """Returns a row group's column."""
        key = (*file_key(ref)._replace(place=ref.column), ref.row_group)
        with self._lock:
            if key not in self._kept:
                pyarrow, parquet = require_pyarrow()
                with parquet.ParquetFile(ref.path) as file:
                    table = file.read_row_group(ref.row_group, columns=[ref.column])
                column = table.column(0)
                if pyarrow.types.is_struct(column.type):  # which holds the field alone
                    column = pyarrow.compute.struct_field(column, column.type.field(0).name)
                self._kept[key] = column
                kept = self._kept
                while len(kept) > 1 and sum(one.nbytes for one in kept.values()) > KEPT_BYTES:
                    kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


_row_groups = _RowGroups()


def _cell(ref: Cell) -> bytes:
    column = _row_groups.column(ref)
    if ref.row >= len(column):
        raise ValueError(f"row group {ref.row_group} now has {len(column):,} rows")
    content: bytes | None = column[ref.row].as_py()
    if content is None:
        raise ValueError("no bytes in this row")
    return content


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever a library raises over a damaged file into a `DataError`."""
    try:
        yield
    except (LookalikeError, AttributeError, NameError, AssertionError):  # the last are our own
        raise
    except Exception as error:
        # What the system refuses is no damage, but a place that no file can have is.
        is_damage = getattr(error, "errno", None) in (None, errno.EINVAL)
        advice = "; it is damaged or cut short: write or copy it again" if is_damage else ""
        if isinstance(error, MemoryError):  # a size that is wrong, or one that is right
            advice = "; there is too little memory for it, or it is damaged or cut short"
        reason = briefly(first_line(error), 300)  # may hold what stands in the file
        raise DataError(f"cannot read {what}: {reason}{advice}") from error


def require_pyarrow() -> tuple[Any, Any]:
    """Returns the modules that read and write Arrow and Parquet, or says what to install."""
    try:
        import pyarrow.compute
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra("reading Parquet", "pyarrow", "parquet") from error
    return pyarrow, parquet


def read_parquet(path: Path) -> Any:
    """Returns a Parquet file as an Arrow table; raises a `DataError` where it cannot be read."""
    _, parquet = require_pyarrow()
    with reading(f"the table {shown(path)}"), parquet.ParquetFile(path) as file:
        return file.read()
