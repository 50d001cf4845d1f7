"""Columns of a source, brought into an `ImageSet`; and tables of image files, which are columns."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lookalike.data.images import ImageRef, ImageSet
from lookalike.data.reading.content import read_parquet, reading
from lookalike.data.reading.decode import why_no_image
from lookalike.errors import DataError, nearest
from lookalike.files import shown
from lookalike.progress import Progress, counted

COLUMNS = ("label", "split", "is_query", "group")
"""What a source may say of an image."""
USED = ("path", *COLUMNS)
TABLE_ENDINGS = (".csv", ".tsv", ".parquet")

_NAMES_OF_PATH = ("image", "images", "file", "filename", "file_name", "image_path", "picture")
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False,
          "1.0": True, "0.0": False, "nan": False}  # fmt: skip # the last three: pandas, with gaps

T = TypeVar("T")


def image_set(
    root: Path,
    names: list[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    source: str | Path,
    places: Sequence[ImageRef] | None = None,
    unit: str = "row",
) -> ImageSet:
    """Returns images with those of `COLUMNS` that there are, as text and flags.

    `source` and `unit`, where images are from and the word for one's place there, are for messages.

    Raises:
        DataError: there are no images, a name stands twice, or a value is missing or wrong.
    """
    told = shown(source)
    if not names:
        raise DataError(f"{told} has no {unit}s")
    seen: set[str] = set()
    for row, name in enumerate(names, start=1):
        if name in seen:
            raise DataError(f"{told} names {shown(name)} twice, again in {unit} {row}; "
                            "list each image once")  # fmt: skip
        seen.add(name)

    def read(column: str, parse: Callable[[Any, str], T]) -> list[T] | None:
        if column not in columns:
            return None
        return [parse(value, f"{unit} {row} of {told}")
                for row, value in enumerate(columns[column], start=1)]  # fmt: skip

    return ImageSet(
        root,
        names,
        labels=read("label", partial(_cell, column="label")),
        groups=read("group", lambda group, _: "" if group is None else str(group).strip()),
        splits=read("split", partial(_cell, column="split")),
        is_query=read("is_query", _flag),
        places=places,
    )


def _cell(value: Any, where: str, column: str) -> str:
    """Returns a cell that must not be empty, as text."""
    text = "" if value is None else str(value)
    if not text.strip():
        raise DataError(f"{where} has nothing in column {column!r}; fill it, "
                        "or leave the row or the column out")  # fmt: skip
    return text if column == "path" else text.strip()  # a file's name may begin with a space


def _flag(value: Any, where: str) -> bool:
    word = "" if value is None else str(value).strip().lower()
    if word not in _FLAGS:
        raise DataError(f"{where} has is_query {value!r}; expected true or false")
    return _FLAGS[word]


def label_by_folder(images: ImageSet, paths: Sequence[str], progress: Progress) -> ImageSet:
    """Returns images labelled by the first folder on their path; as they are where none has one."""
    in_folders = [i for i, path in enumerate(paths) if "/" in path]
    if not in_folders:
        return images
    root = images.root
    if len(in_folders) < len(images):
        refs = images.refs
        loose = [i for i, path in enumerate(paths) if "/" not in path]
        # A note, a licence or a .DS_Store beside the class folders is common and harmless.
        found = [paths[i] for i in loose if why_no_image(refs[i]) is None]
        if found:
            raise DataError(
                f"{shown(root)} holds class folders and also {counted(len(found), 'image')} "
                f"beside them ({some(found)}); move these into a class folder, or out of it"
            )
        progress.warn(
            f"skipped files that cannot be read as images in {shown(root)}: "
            f"{some([paths[i] for i in loose])}"
        )
        images = images.subset(in_folders)
    labels = [paths[i].partition("/")[0] for i in in_folders]
    splits = sorted(set(labels))
    if _SPLITS.issuperset(splits) and all(paths[i].count("/") > 1 for i in in_folders):
        progress.warn(
            f"the classes of {shown(root)} are called {some(splits)}, as parts of a data set are, "
            f"and have folders of their own; for these as classes give {shown(root / splits[-1])}"
        )
    return replace(images, labels=labels)


def is_table(source: str) -> bool:
    """Returns whether a source's name is that of a table that is there."""
    is_named_so = source.lower().endswith(TABLE_ENDINGS)
    return is_named_so and os.path.exists(source) and not os.path.isdir(source)


def load_table(source: str, progress: Progress, *, labelled: bool = True) -> ImageSet:  # noqa: ARG001
    """Lists the images that a table names in its column `path`, with its other columns."""
    path = Path(source)
    if path.suffix.lower() == ".parquet":
        found = read_parquet(path)
        check_header(found.column_names, path)
        with reading(f"the table {shown(path)}"):
            columns = {name: found[name].to_pylist() if name in USED else []
                       for name in found.column_names}  # fmt: skip
    else:
        columns = dict(_read_csv(path))
    if not columns:
        raise DataError(f"{shown(path)} is empty; its first line must name its columns, "
                        f"such as path,label")  # fmt: skip
    if "path" not in columns:
        others = [name for name in columns if name not in COLUMNS]
        alike = (name for name in others if name.lower() in _NAMES_OF_PATH)
        near = nearest("path", others, cutoff=0.4) or next(alike, None)
        hint = f"; is {near!r} meant? Rename it" if near else ""
        raise DataError(f"{shown(path)} has no column 'path'; its columns are {', '.join(columns)}"
                        f"{hint}. Columns that are used: {', '.join(USED)}")  # fmt: skip
    names = [
        _file_name(_cell(value, f"row {row} of {shown(path)}", "path"))
        for row, value in enumerate(columns["path"], start=1)
    ]
    return image_set(path.parent, names, columns if labelled else {}, source=path)


def _file_name(cell: str) -> str:
    """Returns a path written in one way, so that `./1.png` and `1.png` are one image."""
    name = cell.replace(os.sep, "/")
    # What stands before ".." may be a link, whose parent is elsewhere.
    return name if ".." in name.split("/") else posixpath.normpath(name)


def check_header(header: Sequence[str], path: str | Path, used: Sequence[str] = USED) -> None:
    """Raises a `DataError` where two columns that are used have the same name."""
    for name in used:
        if header.count(name) > 1:
            raise DataError(f"{shown(path)} has {header.count(name)} columns {name!r}; "
                            "rename or remove all but one")  # fmt: skip


def read_names(path: Path) -> list[str]:
    """Returns column `path` of a CSV file; raises a `DataError` where it cannot be read."""
    columns = _read_csv(path)
    if "path" not in columns:
        raise DataError(f"{shown(path)} has no column 'path'; its columns are "
                        f"{', '.join(columns) or 'none'}")  # fmt: skip
    return columns["path"]


def _read_csv(path: Path) -> dict[str, list[str]]:
    with (
        reading(f"the table {shown(path)}"),
        open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        first = file.readline()
        if "\0" in first:
            raise DataError(f"the table {shown(path)} is not in UTF-8 but in UTF-16, as Excel and "
                            "PowerShell write it; save it as UTF-8")  # fmt: skip
        # Spreadsheets of many countries write semicolons into a CSV.
        delimiter = ";" if ";" in first and "," not in first else ","
        delimiter = "\t" if path.suffix.lower() == ".tsv" else delimiter
        file.seek(0)
        header, *rows = list(csv.reader(file, delimiter=delimiter, strict=True)) or [[]]
    check_header(header, path)
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(f"row {number} of {shown(path)} has a different number of cells from "
                            f"the header ({len(header)}); quote cells with commas")  # fmt: skip
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first few of some names, and how many more there are."""
    told = ", ".join(shown(name) for name in names[:most])
    return told + (f" and {len(names) - most:,} more" if len(names) > most else "")
