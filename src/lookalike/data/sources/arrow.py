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
from lookalike.data.reading.content import reading, require_pyarrow
from lookalike.data.sources.columns import COLUMNS, image_set, some
from lookalike.data.sources.shards import Shard, are_shards, find_shards
from lookalike.data.sources.tables.header import find_columns, near_misses
from lookalike.errors import DataError
from lookalike.files import briefly, shown
from lookalike.progress import Progress

_LARGE_BYTES = 2**30
_ADVICE = ("write the bytes of each image's file there (paths beside them are not followed), or "
           "list the files in a table with a column 'path'")  # fmt: skip
_SPLIT_IN_NAME = re.compile(r"([a-z]+)-\d{5}-of-\d{5}\b")  # as the Hugging Face hub names them


class _Part(NamedTuple):
    """One file or split of a source: its columns, and the split that its name says it is."""

    table: Any
    places: Sequence[Cell | Span]
    prefix: str = ""  # of its images' names below the source's root
    split: str | None = None
    others: Sequence[str] = ()  # columns that are not used


def _is_bytes(kind: Any) -> bool:
    """Returns whether the values of an Arrow type are bytes, in whichever way they are stored."""
    name = str(kind).removeprefix("dictionary<values=")
    return name.startswith(("binary", "large_binary", "fixed_size_binary"))


def _has_field(kind: Any, field: str) -> bool:
    return bool(require_pyarrow()[0].types.is_struct(kind)) and kind.get_field_index(field) >= 0


def _image_column(schema: Any, path: str) -> str:
    """Returns the column `image` of bytes or structs; or the only one of structs with `bytes`."""
    structs: list[str] = [one.name for one in schema if _has_field(one.type, "bytes")
                          and _is_bytes(one.type.field("bytes").type)]  # fmt: skip
    able = structs + [one.name for one in schema if _is_bytes(one.type)]
    named: list[str] = [name for name in able if name.strip().lower() == "image"]
    if named or len(structs) == 1:
        return (named or structs)[0]
    there = some([f"{briefly(one.name)} ({briefly(str(one.type))})" for one in schema], 20)
    raise DataError(
        f"{shown(path)} has no column 'image' of bytes, or of Hugging Face's struct of bytes and "
        f"path; its columns are {there}. To use its images, {_ADVICE}"
    )


def _renamed(table: Any, path: str) -> Any:
    """Returns the columns of a table that are used, by the names that we know them by."""
    places = find_columns(table.column_names, path)
    used = table.select(list(places.values())).rename_columns(list(places))
    return used.replace_schema_metadata(table.schema.metadata)  # the names of classes are there


def _check_bytes(num_missing: int, num_rows: int, column: str, path: str) -> None:
    """Raises a `DataError` where no row has an image."""
    if num_missing == num_rows > 0:
        raise DataError(f"column '{briefly(column)}' of {shown(path)} holds no bytes in any row; "
                        f"{_ADVICE}")  # fmt: skip


def _row_names(used: Any, images: Any) -> list[str]:
    """Returns the paths that images were stored with, if each has one of its own; else numbers.

    `used` are the columns that are used, `images` is a table of the column of images.
    """
    paths: list[str | None] = []
    if "path" in used.column_names:
        paths = used["path"].to_pylist()
    elif images.num_columns and _has_field(images.column(0).type, "path"):
        paths = require_pyarrow()[0].compute.struct_field(images.column(0), "path").to_pylist()
    if paths and all(paths) and len(set(paths)) == len(paths):
        return [str(path) for path in paths]
    return [f"{row:06d}" for row in range(max(len(used), len(images)))]


def _class_names(schema: Any) -> list[str]:
    """Returns the names of classes that Hugging Face's metadata has; none where it is of others."""
    try:
        label = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]
        return list(label["names"]) if label["_type"] == "ClassLabel" else []
    except (LookupError, TypeError, ValueError, RecursionError):
        return []


def _labels(table: Any) -> list[Any]:
    """Returns the labels of a file or split, numbers of classes by the names it has for them."""
    labels: list[Any] = table["label"].to_pylist()
    classes = _class_names(table.schema)
    if not classes or not require_pyarrow()[0].types.is_integer(table["label"].type):
        return labels
    return [classes[i] if i in range(len(classes)) else None for i in labels]


def _joined(
    parts: Sequence[_Part], root: Path, source: str, progress: Progress, *, labelled: bool
) -> ImageSet:
    """Returns the images of all parts, labelled by the classes' names where these are known."""
    pyarrow, _ = require_pyarrow()
    parts = [part for part in parts if part.places] or parts[:1]
    there = {name for part in parts for name in part.table.column_names}
    told = [name for name in COLUMNS if name in there and labelled]
    for warning in near_misses(parts[0].others, there, source) if labelled and parts else ():
        progress.warn(warning)
    try:
        table = pyarrow.concat_tables([part.table.select(told) for part in parts])
    except (KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"not all of {shown(source)} has the same columns: "
                        f"{briefly(' '.join(str(error).split()), 300)}") from error  # fmt: skip
    with reading(shown(source)):
        columns = {name: table[name].to_pylist() for name in told if name != "label"}
        if "label" in told:
            columns["label"] = [label for part in parts for label in _labels(part.table)]
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
            names = file.schema_arrow.names
            is_meant_so = "image" in names and "path" not in names
            return is_meant_so or bool(_image_column(file.schema_arrow, source))
    except (OSError, ValueError):
        return False  # loading it as a table says what is wrong with it


def load_parquet(source: str, progress: Progress, *, labelled: bool = True) -> ImageSet:
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
    return _joined(parts, root, source, progress, labelled=labelled)


def _read_parquet(shard: Shard, large: list[str]) -> _Part:
    pyarrow, parquet = require_pyarrow()
    path = shard.path
    with reading(shown(path)), parquet.ParquetFile(path) as file:
        schema, groups = file.schema_arrow, file.metadata
        column = _image_column(schema, path)
        find_columns(schema.names, path, (column,))
        is_struct = pyarrow.types.is_struct(schema.field(column).type)
        wanted = [schema.names[place] for place in find_columns(schema.names, path).values()]
        used = file.read(columns=[name for name in wanted if name != column])
        table = _renamed(used, path)
        images = file.read(columns=[f"{column}.path"] if is_struct else [])
        names = iter(_row_names(table, images))
        leaf = f"{column}.bytes" if is_struct else column
        places: list[Cell] = []
        num_missing = 0
        for number in range(groups.num_row_groups):
            group = groups.row_group(number)
            places += [Cell(path, leaf, number, row, next(names)) for row in range(group.num_rows)]
            for chunk in map(group.column, range(group.num_columns)):
                if chunk.path_in_schema == leaf and chunk.statistics:
                    num_missing += chunk.statistics.null_count or 0
            if group.total_byte_size > _LARGE_BYTES and path not in large:
                large.append(path)
    _check_bytes(num_missing, len(places), column, path)
    split = _SPLIT_IN_NAME.match(os.path.basename(path))
    others = [name for name in schema.names if name not in (*wanted, column)]
    return _Part(table, places, shard.prefix, split[1] if split else None, others)


def is_saved_dataset(source: str) -> bool:
    """Returns whether a source is a folder that `save_to_disk` wrote."""
    here = [os.path.isfile(os.path.join(source, name))
            for name in ("dataset_dict.json", "state.json", "dataset_info.json")]  # fmt: skip
    return here[0] or all(here[1:])


def load_saved_dataset(source: str, progress: Progress, *, labelled: bool = True) -> ImageSet:
    """Lists the images of a dataset, or of all splits of a `DatasetDict`.

    Each is a range of bytes of an Arrow file, which is not compressed: reading it takes no library.
    """
    require_pyarrow()
    root = Path(source)
    whole = root / "dataset_dict.json"
    parts: list[_Part] = []
    with reading(f"the dataset {shown(source)}"):
        splits = json.loads(whole.read_bytes())["splits"] if whole.is_file() else [""]
        if not splits:
            raise DataError(f"the dataset {shown(source)} has no splits")
        with progress.task("listing splits", len(splits), "splits") as task:
            for split in splits:
                folder = root / _plain(split, source) if split else root
                state = json.loads((folder / "state.json").read_bytes())
                files = [_plain(one["filename"], source) for one in state["_data_files"]]
                part = _read_arrow([str(folder / file) for file in files])
                parts.append(part._replace(prefix=f"{split}/" if split else "", split=split))
                task.advance()
    return _joined(parts, root, source, progress, labelled=labelled)


def _plain(name: str, source: str) -> str:
    """Returns the name of a file or folder in a dataset; raises where it is a path elsewhere."""
    if re.split(r"[/\\:]", name) != [name] or name in ("", ".", ".."):
        raise DataError(f"the dataset {shown(source)} names '{briefly(name)}', which does not lie "
                        "in its folder; save it again")  # fmt: skip
    return name


def _read_arrow(paths: list[str]) -> _Part:
    """Returns the rows in Arrow files of one split."""
    pyarrow, _ = require_pyarrow()
    tables, ranges, column = list[Any](), list[tuple[str, int, int]](), ""
    for path in paths:
        content = pyarrow.memory_map(path).read_buffer()
        table = pyarrow.ipc.open_stream(pyarrow.BufferReader(content)).read_all()
        table.validate(full=True)  # else places that are wrong are read wherever they lead
        column = _image_column(table.schema, path)
        tables.append(table)
        cells = table[column]
        if pyarrow.types.is_struct(cells.type):
            cells = pyarrow.compute.struct_field(cells, "bytes")
        _check_bytes(cells.null_count, len(cells), column, path)
        for chunk in filter(len, cells.chunks):
            ranges += [(path, *one) for one in _ranges(chunk, content, path)]
    if not tables:
        return _Part(pyarrow.table({}), [])
    whole = pyarrow.concat_tables(tables)
    table = _renamed(whole.drop_columns([column]), path)
    names = _row_names(table, whole.select([column]))
    places = [Span(*one, name) for one, name in zip(ranges, names, strict=True)]
    return _Part(table, places, others=[name for name in whole.column_names if name != column])


def _ranges(chunk: Any, content: Any, path: str) -> list[tuple[int, int]]:
    """Returns the place in its file and the number of bytes of each image."""
    types = require_pyarrow()[0].types
    if not (types.is_binary(chunk.type) or types.is_large_binary(chunk.type)):
        raise DataError(f"the images in {shown(path)} are of type {chunk.type}; expected binary. "
                        "Save the dataset again with datasets.Image() as their type")  # fmt: skip
    _, offsets, data = chunk.buffers()
    kind = np.int64 if types.is_large_binary(chunk.type) else np.int32
    ends = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
    start = data.address - content.address if data else 0
    if not 0 <= start <= content.size - int(ends[-1]):
        raise DataError(f"the Arrow file {shown(path)} is compressed; save the dataset again")
    begins = (start + ends[:-1].astype(np.int64)).tolist()
    return list(zip(begins, np.diff(ends).tolist(), strict=True))
