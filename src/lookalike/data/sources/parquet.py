"""Parquet files that hold the images themselves."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from lookalike.data.images import Cell, ImageSet
from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.arrow import image_column, row_names, told_columns
from lookalike.data.sources.columns import COLUMNS, image_set, some
from lookalike.data.sources.shards import are_shards, find_shards
from lookalike.errors import DataError
from lookalike.files import shown
from lookalike.progress import Progress

_LARGE_BYTES = 2**30
_SPLIT_IN_NAME = re.compile(r"([a-z]+)-\d{5}-of-\d{5}\b")  # as the Hugging Face hub names them


def has_embedded_images(source: str) -> bool:
    """Says whether a source is a folder or range of Parquet files, or one with images in it."""
    if not are_shards(source, (".parquet",)):
        return False
    if not os.path.isfile(source):
        return os.path.isdir(source) or "{" in source
    try:
        with require_pyarrow()[1].ParquetFile(source) as file:
            return image_column(file.schema_arrow) is not None
    except (OSError, ValueError):
        return False  # loading it as a table says what is wrong with it


def load_parquet(source: str, progress: Progress) -> ImageSet:
    """Lists the images in Parquet files by all columns but that of the images.

    Raises:
        DataError: a file is missing, damaged, or has no images.
        MissingExtraError: `pyarrow` is not installed.
    """
    root, shards = find_shards(source, ".parquet")
    names: list[str] = []
    places: list[Cell] = []
    parts: list[Part] = []
    large: list[str] = []
    with progress.task("listing shards", len(shards), "shards") as task:
        for path, prefix in shards:
            cells, columns = _read(path, large)
            split = _SPLIT_IN_NAME.match(os.path.basename(path))
            names += [prefix + cell.name if prefix else cell.name for cell in cells]
            places += cells
            parts.append(Part(len(cells), columns, split[1] if split else None))
            task.advance()
    if large:
        progress.warn(
            f"a row group of {some(large)} takes more than {_LARGE_BYTES / 1e9:.0f} GB, and each "
            "process that reads holds one at least; write it again with row groups of 100 images"
        )
    return image_set(root, names, joined(parts, source), source=source, places=places)


class Part(NamedTuple):
    """The columns of one file or split of a source, and the split that its name says it is."""

    num_images: int
    columns: dict[str, list[Any]]
    split: str | None


def joined(parts: Sequence[Part], source: str) -> dict[str, list[Any]]:
    """Returns the columns of several parts as one; by their names they are splits where these
    differ, since whoever names the files of one split means them, whatever it is called.

    Raises:
        DataError: a column is in some of the parts only.
    """
    splits = {part.split for part in parts}
    if len(splits) > 1 and None not in splits:
        parts = [Part(num, {"split": [split] * num, **columns}, split)
                 for num, columns, split in parts]  # fmt: skip
    count = Counter(name for part in parts for name in part.columns)
    partly = sorted(name for name, times in count.items() if times < len(parts))
    if partly:
        raise DataError(
            f"column {partly[0]!r} is in {count[partly[0]]} of the {len(parts)} files of "
            f"{shown(source)} only; name those that go together"
        )
    return {name: [value for part in parts for value in part.columns[name]] for name in count}


def _read(path: str, large: list[str]) -> tuple[list[Cell], dict[str, list[Any]]]:
    """The images of one file, and its other columns."""
    pyarrow, parquet = require_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            schema, groups = file.schema_arrow, file.metadata
            column = image_column(schema)
            if column is None:
                raise DataError(
                    f"{shown(path)} has no column 'image' of bytes, or of Hugging Face's struct of "
                    f"bytes and path, but {', '.join(schema.names)}; a table of paths to files has "
                    "a column 'path', and is one file"
                )
            is_struct = pyarrow.types.is_struct(schema.field(column).type)
            wanted = [name for name in (*COLUMNS, "path") if name in schema.names]
            table = file.read(columns=[*wanted, f"{column}.path"] if is_struct else wanted)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {shown(path)}: {error}") from error
    leaf = f"{column}.bytes" if is_struct else column
    names = row_names(table, column) if table.num_columns else []
    cells: list[Cell] = []
    for group in range(groups.num_row_groups):
        facts = groups.row_group(group)
        if facts.total_byte_size > _LARGE_BYTES and path not in large:
            large.append(path)
        for row in range(facts.num_rows):
            name = names[len(cells)] if names else f"{len(cells):06d}"
            cells.append(Cell(path, leaf, group, row, name))
    return cells, told_columns(table)
