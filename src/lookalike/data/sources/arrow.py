"""Images in a column: Parquet files that hold them, and datasets that Hugging Face saved."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lookalike.data.images import Cell, ImageSet, Span
from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.columns import COLUMNS, image_set, some
from lookalike.data.sources.folder import Shard, are_shards, find_shards
from lookalike.errors import DataError, MissingExtraError
from lookalike.files import shown
from lookalike.progress import Progress

_LARGE_BYTES = 2**30
_SPLIT_IN_NAME = re.compile(r"([a-z]+)-\d{5}-of-\d{5}\b")  # as the Hugging Face hub names them


class _Part(NamedTuple):
    """One file or split of a source: its columns, and the split that its name says it is."""

    table: Any
    places: Sequence[Cell | Span]
    prefix: str = ""  # of its images' names below the source's root
    split: str | None = None


def _image_column(schema: Any, path: str) -> str:
    """Returns the column `image` of bytes or structs; or the only one of structs with `bytes`."""
    types = require_pyarrow()[0].types
    structs: list[str] = [one.name for one in schema if types.is_struct(one.type)
                          and one.type.get_field_index("bytes") >= 0]  # fmt: skip
    plain = [one.name for one in schema
             if types.is_binary(one.type) or types.is_large_binary(one.type)]  # fmt: skip
    if "image" in structs + plain:
        return "image"
    if len(structs) == 1:
        return structs[0]
    raise DataError(
        f"{shown(path)} has no column 'image' of bytes, or of Hugging Face's struct of bytes and "
        f"path, but {', '.join(schema.names)}"
    )


def _row_names(table: Any, column: str) -> list[str]:
    """Returns the paths that images were stored with, if each has one of its own; else numbers."""
    paths: list[str | None] = []
    if "path" in table.column_names:
        paths = table["path"].to_pylist()
    elif column in table.column_names and "path" in [field.name for field in table[column].type]:
        paths = require_pyarrow()[0].compute.struct_field(table[column], "path").to_pylist()
    if paths and all(paths) and len(set(paths)) == len(paths):
        return [str(path) for path in paths]
    return [f"{row:06d}" for row in range(len(table))]


def _joined(parts: Sequence[_Part], root: Path, source: str) -> ImageSet:
    """Returns the images of all parts, labelled by the classes' names where these are known."""
    pyarrow, _ = require_pyarrow()
    there = {name for part in parts for name in part.table.column_names}
    told = [name for name in COLUMNS if name in there]
    try:
        table = pyarrow.concat_tables([part.table.select(told) for part in parts])
    except (KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"not all of {shown(source)} has the same columns: {error}") from error
    columns = {name: table[name].to_pylist() for name in told}
    metadata = json.loads((parts[0].table.schema.metadata or {}).get(b"huggingface", b"{}"))
    label = metadata.get("info", {}).get("features", {}).get("label", {})
    if label.get("_type") == "ClassLabel" and "label" in told:
        classes = label["names"]
        columns["label"] = [classes[i] if i in range(len(classes)) else None
                            for i in columns["label"]]  # fmt: skip
    splits = {part.split for part in parts}  # a single one may be called anything
    if len(splits) > 1 and None not in splits and "split" not in told:
        columns["split"] = [part.split for part in parts for _ in part.places]
    names = [part.prefix + place.name for part in parts for place in part.places]
    places = [place for part in parts for place in part.places]
    return image_set(root, names, columns, source=source, places=places)


def has_embedded_images(source: str) -> bool:
    """Returns whether a source is a folder or range of Parquet files, or one with images in it."""
    if not are_shards(source, (".parquet",)):
        return False
    if not os.path.isfile(source):
        return os.path.isdir(source) or "{" in source
    try:
        with require_pyarrow()[1].ParquetFile(source) as file:
            return bool(_image_column(file.schema_arrow, source))
    except (OSError, ValueError):
        return False  # loading it as a table says what is wrong with it


def load_parquet(source: str, progress: Progress) -> ImageSet:
    """Lists the images in Parquet files by all columns but that of the images."""
    root, shards = find_shards(source, ".parquet")
    parts: list[_Part] = []
    large: list[str] = []
    with progress.task("listing shards", len(shards), "shards") as task:
        for shard in shards:
            parts.append(_read_parquet(shard, large))
            task.advance()
    if large:
        progress.warn(
            f"row groups of {some(large)} take more than {_LARGE_BYTES / 1e9:.0f} GB, and each "
            "process that reads holds one at least; write them again with 100 images in each"
        )
    return _joined(parts, root, source)


def _read_parquet(shard: Shard, large: list[str]) -> _Part:
    pyarrow, parquet = require_pyarrow()
    path = shard.path
    try:
        with parquet.ParquetFile(path) as file:
            schema, groups = file.schema_arrow, file.metadata
            column = _image_column(schema, path)
            is_struct = pyarrow.types.is_struct(schema.field(column).type)
            wanted = [name for name in (*COLUMNS, "path") if name in schema.names]
            table = file.read(columns=[*wanted, f"{column}.path"] if is_struct else wanted)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {shown(path)}: {error}") from error
    leaf = f"{column}.bytes" if is_struct else column
    names = iter(_row_names(table, column))
    places: list[Cell] = []
    for number in range(groups.num_row_groups):
        group = groups.row_group(number)
        places += [Cell(path, leaf, number, row, next(names)) for row in range(group.num_rows)]
        if group.total_byte_size > _LARGE_BYTES and path not in large:
            large.append(path)
    split = _SPLIT_IN_NAME.match(os.path.basename(path))
    return _Part(table, places, shard.prefix, split[1] if split else None)


def is_saved_dataset(source: str) -> bool:
    """Returns whether a source is a folder that `save_to_disk` wrote."""
    here = [os.path.isfile(os.path.join(source, name))
            for name in ("dataset_dict.json", "state.json", "dataset_info.json")]  # fmt: skip
    return here[0] or all(here[1:])


def load_saved_dataset(source: str, progress: Progress) -> ImageSet:
    """Lists the images of a dataset, or of all splits of a `DatasetDict`.

    Each is a range of bytes of an Arrow file, which is not compressed: reading it takes no library.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "reading a dataset that was saved to disk needs Hugging Face datasets: "
            "pip install 'lookalike[datasets]'"
        ) from error
    pyarrow, _ = require_pyarrow()
    try:
        found = datasets.load_from_disk(source)
        splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
        with progress.task("listing splits", len(splits), "splits") as task:
            parts: list[_Part] = []
            for split, dataset in splits.items():
                part = _read_arrow([one["filename"] for one in dataset.cache_files])
                parts.append(part._replace(prefix=f"{split}/" if split else "", split=split))
                task.advance()
    except (OSError, pyarrow.ArrowException, KeyError) as error:
        raise DataError(f"cannot read the dataset {shown(source)}: {error}") from error
    return _joined(parts, Path(source), source)


def _read_arrow(paths: list[str]) -> _Part:
    """Returns the rows in Arrow files of one split."""
    pyarrow, _ = require_pyarrow()
    tables, ranges, column = list[Any](), list[tuple[str, int, int]](), ""
    for path in paths:
        content = pyarrow.memory_map(path).read_buffer()
        table = pyarrow.ipc.open_stream(pyarrow.BufferReader(content)).read_all()
        column = _image_column(table.schema, path)
        tables.append(table)
        for chunk in table[column].chunks:
            ranges += [(path, *one) for one in _ranges(chunk, content, path)]
    if not tables:
        return _Part(pyarrow.table({}), [])
    whole = pyarrow.concat_tables(tables)
    names = _row_names(whole, column)
    return _Part(whole, [Span(*one, name) for one, name in zip(ranges, names, strict=True)])


def _ranges(chunk: Any, content: Any, path: str) -> list[tuple[int, int]]:
    """Returns the place in its file and the number of bytes of each image."""
    pyarrow, _ = require_pyarrow()
    if pyarrow.types.is_struct(chunk.type):
        chunk = pyarrow.compute.struct_field(chunk, "bytes")
    _, offsets, data = chunk.buffers()
    kind = np.int64 if pyarrow.types.is_large_binary(chunk.type) else np.int32
    ends = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
    start = data.address - content.address if data else 0
    if not 0 <= start <= content.size - int(ends[-1]):
        raise DataError(f"the Arrow file {shown(path)} is compressed; save the dataset again")
    begins = (start + ends[:-1].astype(np.int64)).tolist()
    return list(zip(begins, np.diff(ends).tolist(), strict=True))
