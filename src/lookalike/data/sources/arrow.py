"""Images in a column of an Arrow schema, as Parquet files and saved datasets have them."""

from __future__ import annotations

import json
from typing import Any

from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.columns import COLUMNS


def image_column(schema: Any) -> str | None:
    """Returns the column that holds images' bytes; None where there is none.

    That is `image`, if it is binary or Hugging Face's struct of `bytes` and `path`; or the only
    column of such structs, whatever its name.
    """
    pyarrow, _ = require_pyarrow()
    types = pyarrow.types

    def is_binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    structs = [
        field.name
        for field in schema
        if types.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and is_binary(field.type.field("bytes").type)
    ]
    at = schema.get_field_index("image")
    if "image" in structs or (at >= 0 and is_binary(schema.field(at).type)):
        return "image"
    return structs[0] if len(structs) == 1 else None


def told_columns(table: Any) -> dict[str, list[Any]]:
    """Returns those of `COLUMNS` that a table has; numbers of classes by the names that its
    metadata has for them.
    """
    columns = {name: table[name].to_pylist() for name in COLUMNS if name in table.column_names}
    names = class_names(table.schema)
    if "label" in columns and names:
        columns["label"] = [
            names[one] if isinstance(one, int) and 0 <= one < len(names) else None
            for one in columns["label"]
        ]
    return columns


def class_names(schema: Any) -> list[str]:
    """Returns the names of the classes that numbers in column `label` stand for, if they do."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    label = metadata.get("info", {}).get("features", {}).get("label", {})
    names: list[str] = label.get("names", []) if label.get("_type") == "ClassLabel" else []
    return names


def row_names(table: Any, column: str) -> list[str]:
    """Returns the paths that images were stored with, where each has one of its own; else the
    numbers of their rows.
    """
    names: list[str | None] = []
    if "path" in table.column_names:
        names = table["path"].to_pylist()
    elif column in table.column_names:  # a struct
        kind = table[column].type
        if kind.get_field_index("path") >= 0:
            pyarrow, _ = require_pyarrow()
            names = pyarrow.compute.struct_field(table[column], "path").to_pylist()
    if names and all(names) and len(set(names)) == len(names):
        return [str(name) for name in names]
    return [f"{row:06d}" for row in range(len(table))]
