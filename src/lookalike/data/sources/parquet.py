"""Parquet files that hold the images themselves."""

from __future__ import annotations

import os
import re

from lookalike.data.images import Cell, ImageSet
from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.arrow import Part, image_column, joined, row_names
from lookalike.data.sources.columns import COLUMNS, some
from lookalike.data.sources.shards import Shard, are_shards, find_shards
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
            return bool(image_column(file.schema_arrow, source))
    except (OSError, ValueError):
        return False  # loading it as a table says what is wrong with it


def load_parquet(source: str, progress: Progress) -> ImageSet:
    """Lists the images in Parquet files by all columns but that of the images.

    Raises:
        DataError: a file is missing, damaged, or has no images.
        MissingExtraError: `pyarrow` is not installed.
    """
    root, shards = find_shards(source, ".parquet")
    parts: list[Part] = []
    large: list[str] = []
    with progress.task("listing shards", len(shards), "shards") as task:
        for shard in shards:
            parts.append(_read(shard, large))
            task.advance()
    if large:
        progress.warn(
            f"row groups of {some(large)} take more than {_LARGE_BYTES / 1e9:.0f} GB, and each "
            "process that reads holds one at least; write them again with 100 images in each"
        )
    return joined(parts, root, source)


def _read(shard: Shard, large: list[str]) -> Part:
    pyarrow, parquet = require_pyarrow()
    path = shard.path
    try:
        with parquet.ParquetFile(path) as file:
            schema, groups = file.schema_arrow, file.metadata
            column = image_column(schema, path)
            is_struct = pyarrow.types.is_struct(schema.field(column).type)
            wanted = [name for name in (*COLUMNS, "path") if name in schema.names]
            table = file.read(columns=[*wanted, f"{column}.path"] if is_struct else wanted)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {shown(path)}: {error}") from error
    leaf = f"{column}.bytes" if is_struct else column
    names = iter(row_names(table, column))
    places: list[Cell] = []
    for number in range(groups.num_row_groups):
        group = groups.row_group(number)
        places += [Cell(path, leaf, number, row, next(names)) for row in range(group.num_rows)]
        if group.total_byte_size > _LARGE_BYTES and path not in large:
            large.append(path)
    split = _SPLIT_IN_NAME.match(os.path.basename(path))
    return Part(table, places, shard.prefix, split[1] if split else None)
