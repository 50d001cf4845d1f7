"""Images in a column of an Arrow schema, as Parquet files and saved datasets have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lookalike.data.images import Cell, ImageSet, Span
from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.columns import COLUMNS, image_set
from lookalike.errors import DataError
from lookalike.files import shown


class Part(NamedTuple):
    """One file or split of a source: its columns, and the split that its name says it is."""

    table: Any
    places: Sequence[Cell | Span]
    prefix: str = ""  # of its images' names below the source's root
    split: str | None = None


def image_column(schema: Any, path: str) -> str:
    """Returns the column that holds images' bytes: `image`, if it is binary or Hugging Face's
    struct of `bytes` and `path`; or the only column of such structs, whatever its name.

    Raises:
        DataError: there is none.
    """
    types = require_pyarrow()[0].types
    structs: list[str] = [
        one.name
        for one in schema
        if types.is_struct(one.type) and one.type.get_field_index("bytes") >= 0
    ]
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


def row_names(table: Any, column: str) -> list[str]:
    """Returns the paths that images were stored with, if each has one of its own; else numbers."""
    paths: list[str | None] = []
    if "path" in table.column_names:
        paths = table["path"].to_pylist()
    elif column in table.column_names and "path" in [field.name for field in table[column].type]:
        paths = require_pyarrow()[0].compute.struct_field(table[column], "path").to_pylist()
    if paths and all(paths) and len(set(paths)) == len(paths):
        return [str(path) for path in paths]
    return [f"{row:06d}" for row in range(len(table))]


def joined(parts: Sequence[Part], root: Path, source: str) -> ImageSet:
    """Returns the images of all parts, labelled by the classes' names where these are known.

    Names of parts are splits where they differ: whoever names one split alone means it, whatever
    it is called.

    Raises:
        DataError: the parts do not have the same columns, or a value is missing or wrong.
    """
    pyarrow, _ = require_pyarrow()
    names = {name for part in parts for name in part.table.column_names}
    told = [name for name in COLUMNS if name in names]
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
    splits = {part.split for part in parts}
    if len(splits) > 1 and None not in splits and "split" not in told:
        columns["split"] = [part.split for part in parts for _ in part.places]
    return image_set(
        root,
        [part.prefix + place.name for part in parts for place in part.places],
        columns,
        source=source,
        places=[place for part in parts for place in part.places],
    )
