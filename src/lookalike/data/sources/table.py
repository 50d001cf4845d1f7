"""Tables of image files: CSV, TSV or Parquet with a column `path`."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lookalike.data.images import ImageSet
from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.columns import COLUMNS, cell, image_set
from lookalike.errors import DataError, nearest
from lookalike.files import shown
from lookalike.progress import Progress

TABLE_ENDINGS = (".csv", ".tsv", ".parquet")
_NAMES_OF_PATH = ("image", "images", "file", "filename", "file_name", "image_path", "picture")


def is_table(source: str) -> bool:
    """Says whether a source's name is that of a table that is there."""
    return (
        source.lower().endswith(TABLE_ENDINGS)
        and os.path.exists(source)
        and not os.path.isdir(source)
    )


def load_table(source: str, progress: Progress) -> ImageSet:  # noqa: ARG001 - as all sources
    """Lists the images that a table names in its column `path`, with its other columns.

    Raises:
        DataError: it cannot be read, lacks `path`, or has a wrong value.
        MissingExtraError: a Parquet table without `pyarrow` installed.
    """
    path = Path(source)
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not columns:
        raise DataError(f"{shown(path)} is empty; its first line must name its columns, "
                        f"such as path,label")  # fmt: skip
    if "path" not in columns:
        others = [name for name in columns if name not in COLUMNS]
        alike = (name for name in others if name.lower() in _NAMES_OF_PATH)
        near = nearest("path", others, cutoff=0.4) or next(alike, None)
        hint = f"; is {near!r} meant? Rename it" if near else ""
        raise DataError(f"{shown(path)} has no column 'path' but {', '.join(columns)}{hint}. "
                        f"Columns that are used: path, {', '.join(COLUMNS)}")  # fmt: skip
    names = [
        cell(value, f"row {row} of {shown(path)}", "path").replace(os.sep, "/")
        for row, value in enumerate(columns["path"], start=1)
    ]
    return image_set(path.parent, names, columns, source=path)


def read_names(path: Path) -> list[str]:
    """Returns column `path` of a CSV file, whatever its other columns hold.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    columns = _read_csv(path)
    if "path" not in columns:
        raise DataError(f"{shown(path)} has no column 'path' but {', '.join(columns) or 'nothing'}")
    return [str(name) for name in columns["path"]]


def _read_csv(path: Path) -> dict[str, list[Any]]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            delimiter = _delimiter(file.readline(), path)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            rows = list(reader)
            header = list(reader.fieldnames or [])
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read the table {shown(path)}: {error}") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"row {number} of {shown(path)} has another number of cells than its "
                            f"header ({len(header)}); quote cells that hold a comma")  # fmt: skip
    return {name: [row[name] for row in rows] for name in header}


def _delimiter(header: str, path: Path) -> str:
    """What separates the cells; spreadsheets of many countries write semicolons into a CSV."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    pyarrow, parquet = require_pyarrow()
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"cannot read the table {shown(path)}: {error}") from error
    return {name: table[name].to_pylist() for name in table.column_names}
