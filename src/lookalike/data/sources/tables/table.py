"""Tables of image files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookalike.data.images import ImageSet
from lookalike.data.reading.content import reading, require_pyarrow
from lookalike.data.sources.cells import NO_UTF8, is_no_unicode, parse_column, parse_path
from lookalike.data.sources.columns import image_set
from lookalike.data.sources.tables.delimited import read_delimited
from lookalike.data.sources.tables.header import find_columns, near_misses, without_path
from lookalike.data.sources.tables.places import Names, find_root
from lookalike.errors import DataError
from lookalike.files import briefly, shown
from lookalike.progress import Progress

_ROWS_AT_A_TIME = 50_000  # between two advances of what is shown

TABLE_ENDINGS = (".csv", ".tsv", ".parquet")


def is_table(source: str) -> bool:
    """Returns whether a source's name is that of a table that is there."""
    is_named_so = source.lower().endswith(TABLE_ENDINGS)
    return is_named_so and os.path.exists(source) and not os.path.isdir(source)


def load_table(source: str, progress: Progress, *, labelled: bool = True) -> ImageSet:
    """Lists the images that a table names in its column `path`, with its other columns."""
    path = Path(source)
    is_parquet = path.suffix.lower() == ".parquet"
    header, columns = (_read_parquet if is_parquet else read_delimited)(path, progress)
    if not header:
        raise DataError(f"{shown(path)} is empty; its first line must name its columns, "
                        f"such as path,label")  # fmt: skip
    if "path" not in columns:
        raise without_path(header, columns, path)
    if labelled:
        for warning in near_misses(header, columns, path):
            progress.warn(warning)
    told = shown(path)
    cells = parse_column(columns.pop("path"), parse_path, lambda row: f"row {row} of {told}")
    folder = os.path.abspath(path.parent)
    root = find_root(cells, folder)
    if root != folder:
        progress.warn(f"no path in {told} is one below its own folder, {shown(folder)}; they are "
                      f"taken from the working folder, {shown(root)}")  # fmt: skip
    found, files = _found(cells, Names(root), told, progress)
    del cells
    return image_set(Path(root), found, columns if labelled else {}, source=path, files=files)


def _found(
    cells: Sequence[str], names: Names, told: str, progress: Progress
) -> tuple[list[str], list[str]]:
    """Returns the name of each cell's file, and what is equal where two are of one file."""
    found, files = list[str](), list[str]()
    with progress.task("looking up paths", len(cells), "rows") as task:
        for row, cell in enumerate(cells, start=1):
            name = names.find(cell)
            if is_no_unicode(name) and not names.is_there(name):
                raise DataError(f"row {row} of {told} has {briefly(name)} in column 'path', which "
                                f"{NO_UTF8}")  # fmt: skip
            found.append(name)
            files.append(names.file(name))
            if row % _ROWS_AT_A_TIME == 0:
                task.advance(_ROWS_AT_A_TIME)
        task.advance(len(cells) % _ROWS_AT_A_TIME)
    return found, files


def _read_parquet(path: Path, progress: Progress) -> tuple[list[str], dict[str, list[Any]]]:
    """Returns the header, and the columns that are used; no other is read."""
    _, parquet = require_pyarrow()
    with reading(f"the table {shown(path)}"), parquet.ParquetFile(path) as file:
        header = file.schema_arrow.names
        places = find_columns(header, path)
        columns: dict[str, list[Any]] = {name: [] for name in places}
        names = [header[place] for place in places.values()]
        with progress.task("reading table", file.metadata.num_rows, "rows") as task:
            for batch in file.iter_batches(columns=names):
                for values, name in zip(columns.values(), names, strict=True):
                    values += batch.column(name).to_pylist()
                task.advance(len(batch))
    return header, columns
