"""Finding images: a class-per-folder tree, a flat folder, or a table, as one `ImageSet`."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lookalike.config import DEFAULT_MAX_MEGAPIXELS
from lookalike.data.reading.decode import probe_image
from lookalike.errors import DataError, ImageError, MissingExtraError
from lookalike.files import shown
from lookalike.progress import Progress, SilentProgress, counted

TABLE_ENDINGS = (".csv", ".tsv", ".parquet")
_PROBED_AT_A_TIME = 4096
_NAMES_OF_PATH = ("image", "images", "file", "filename", "file_name", "image_path", "picture")
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_COLUMNS = ("path", "label", "split", "is_query", "group")


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read as an image, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """Images of one source in a fixed order; the columns have one entry an image.

    `names` are relative to `root`, with forward slashes. `labels`, `groups`, `splits` and
    `is_query` are None where the source does not say. In evaluation, images of the same
    non-empty group (one photo shoot, one camera) are not searched in each other.
    """

    root: Path
    names: list[str]
    labels: list[str] | None = None
    groups: list[str] | None = None
    splits: list[str] | None = None
    is_query: list[bool] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[str]:
        """Where each file lies."""
        return [os.path.join(self.root, name) for name in self.names]

    def subset(self, keep: Iterable[int]) -> ImageSet:
        """The images at these positions, in this order."""
        positions = list(keep)

        def column(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[i] for i in positions]

        return ImageSet(
            self.root,
            [self.names[i] for i in positions],
            column(self.labels),
            column(self.groups),
            column(self.splits),
            column(self.is_query),
        )

    def of_split(self, *wanted: str) -> ImageSet:
        """The images of these splits; all of them where the source knows no splits.

        Raises:
            DataError: there are none; names the splits there are.
        """
        if self.splits is None:
            return self
        positions = [i for i, split in enumerate(self.splits) if split in wanted]
        if not positions:
            raise DataError(
                f"no row in {shown(self.root)} has split {' or '.join(map(repr, wanted))}; there "
                f"are {', '.join(map(repr, sorted(set(self.splits))))}"
            )
        return self.subset(positions)

    def of_classes(self, classes: set[str]) -> ImageSet:
        """The images whose label is one of these."""
        return self.subset(i for i, label in enumerate(self.labels or ()) if label in classes)

    def grouped_by(self, pattern: str) -> ImageSet:
        """The same with groups read off the names: what a regular expression finds in them.

        Its first parenthesis counts, or all of the match; names without a match have no group.
        Where no name has one, there are no groups.
        """
        found = [re.search(pattern, name) for name in self.names]
        if not any(found):
            return replace(self, groups=None)
        return replace(self, groups=[m[(m.lastindex and 1) or 0] or "" if m else "" for m in found])

    def fingerprint(self) -> str:
        """A hash of names, labels and groups: the same for the same list, wherever it lies."""
        return _hash_of(list(self.fingerprints().values()))

    def fingerprints(self) -> dict[str, str | None]:
        """A hash of each column, None where there is none."""
        columns = {"names": self.names, "labels": self.labels, "groups": self.groups}
        return {name: None if column is None else _hash_of(column)
                for name, column in columns.items()}  # fmt: skip


def _hash_of(column: Sequence[str | None]) -> str:
    digest = hashlib.sha256()
    for value in column:
        digest.update(json.dumps(value).encode())  # quoted, so that no two lists read alike
    return digest.hexdigest()[:16]


def load_images(source: str | Path, progress: Progress | None = None) -> ImageSet:
    """Lists the images of a source without opening them.

    - A folder with sub-folders is a class-per-folder tree: an image's label is the first
      folder on its path, however deep it lies below that.
    - A folder without sub-folders is flat: its images have no labels.
    - A `.csv`, `.tsv` or `.parquet` file is a table with a column `path` (relative to the
      table's folder, or absolute) and any of `label`, `split`, `is_query` and `group`.

    Extensions of image files mean nothing: every file counts until it is read. Hidden
    folders are passed over, and said so; hidden files in class folders are no images.

    Raises:
        DataError: the source is missing, empty, or half tree and half flat; a table lacks
            `path`, or names a file twice.
        MissingExtraError: a Parquet table without `pyarrow` installed.
    """
    path, progress = Path(source), progress or SilentProgress()
    if path.is_dir():
        return _load_folder(path, progress)
    if not path.exists():
        raise DataError(f"{shown(path)} does not exist{_nearest_sibling(path)}")
    if path.suffix.lower() in TABLE_ENDINGS:
        return _load_table(path)
    raise DataError(
        f"{shown(path)} is neither a folder nor a table; give a folder of images, "
        f"or a table whose name ends in {', '.join(TABLE_ENDINGS)}"
    )


def load_unlabelled(source: str | Path, progress: Progress | None = None) -> ImageSet:
    """Lists the images of a source whose labels do not matter: in a folder, however deep, or in
    a table.

    Raises:
        DataError: the source is missing, empty, or a table that `load_images` would not take.
        MissingExtraError: a Parquet table without `pyarrow` installed.
    """
    path = Path(source)
    if not path.is_dir():
        return replace(load_images(path, progress), labels=None)
    names, _, _ = _walk(path)
    if not names:
        raise DataError(f"there are no files in {shown(path)}; expected images in it")
    return ImageSet(path, names)


def keep_readable(
    images: ImageSet,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    progress: Progress | None = None,
) -> tuple[ImageSet, list[Unreadable]]:
    """Reads every file's header: the images, and the files that are none.

    Raises:
        DataError: not one of the files is an image.
    """
    progress = progress or SilentProgress()

    def reason(path: str) -> str | None:
        try:
            probe_image(path, max_megapixels)
        except ImageError as error:
            return error.reason
        return None

    paths = images.paths
    reasons: list[str | None] = []
    with (
        ThreadPoolExecutor(max_workers=8) as pool,
        progress.task("looking at files", len(paths), "files") as task,
    ):
        for start in range(0, len(paths), _PROBED_AT_A_TIME):  # map would queue all at once
            for one in pool.map(reason, paths[start : start + _PROBED_AT_A_TIME]):
                reasons.append(one)
                task.advance()
    bad = [Unreadable(path, why) for path, why in zip(paths, reasons, strict=True) if why]
    if len(bad) == len(images):
        raise DataError(f"none of the {len(images):,} files in {shown(images.root)} is an image "
                        f"that can be read: {list_unreadable(bad)}")  # fmt: skip
    if bad:
        images = images.subset(i for i, why in enumerate(reasons) if why is None)
    return images, bad


def list_unreadable(bad: Sequence[Unreadable], most: int = 3) -> str:
    """The first few bad files with their reasons, and how many more there are."""
    told = "; ".join(f"{shown(os.path.basename(one.path))}: {one.reason}" for one in bad[:most])
    return told + (f"; and {len(bad) - most:,} more" if len(bad) > most else "")


def _load_folder(root: Path, progress: Progress) -> ImageSet:
    names, hidden, empty = _walk(root)
    if hidden:
        progress.warn(f"passed over hidden folders in {shown(root)}: {_some(hidden)}")
    if empty:
        progress.warn(f"no files in these folders of {shown(root)}: {_some(empty)}")
    if not names:
        raise DataError(f"there are no files in {shown(root)}; expected images in it, "
                        "or one folder of images per class")  # fmt: skip
    in_folders = [name for name in names if "/" in name]
    if not in_folders:
        return ImageSet(root, names)
    loose = [name for name in names if "/" not in name]
    if loose:
        # A note, a licence or a .DS_Store beside the class folders is common and harmless.
        images = [name for name in loose if _is_image(root / name)]
        if images:
            raise DataError(
                f"{shown(root)} holds class folders and also {counted(len(images), 'image')} "
                f"beside them ({_some(images)}); move these into a class folder, or out of it"
            )
        progress.warn(
            f"passed over files that cannot be read as images in {shown(root)}: {_some(loose)}"
        )
    labels = [name.partition("/")[0] for name in in_folders]
    splits = sorted(set(labels))
    if _SPLITS.issuperset(splits) and all(name.count("/") > 1 for name in in_folders):
        progress.warn(
            f"the classes of {shown(root)} are called {_some(splits)}, as parts of a data set are, "
            f"and have folders of their own; for these as classes give "
            f"{shown(root / splits[-1])}"
        )
    return ImageSet(root, in_folders, labels=labels)


def _walk(root: Path) -> tuple[list[str], list[str], list[str]]:
    """Names of all files below `root` in a fixed order; hidden folders; empty class folders."""
    names: list[str] = []
    hidden: list[str] = []
    empty: list[str] = []
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        here = os.path.join(root, folder)
        real = os.path.realpath(here)
        if real in above:  # a link back up to a folder we are inside of
            continue
        try:
            entries = list(os.scandir(here))
        except OSError as error:
            raise DataError(f"cannot list the folder {shown(here)}: {error.strerror}") from error
        before = len(names)
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if _is_folder(entry):
                if entry.name.startswith("."):
                    hidden.append(name)
                else:
                    pending.append((name, above | {real}))
            elif entry.name.startswith(".") and folder:
                continue  # what a system leaves in every folder, such as .DS_Store
            elif entry.is_symlink() or entry.is_file():  # a broken link is told of when read
                names.append(name)
        if folder and len(names) == before and not any(map(_is_folder, entries)):
            empty.append(folder)
    return sorted(names), sorted(hidden), sorted(empty)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _load_table(path: Path) -> ImageSet:
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not columns:
        raise DataError(f"{shown(path)} is empty; its first line must name its columns, "
                        f"such as {','.join(_COLUMNS[:2])}")  # fmt: skip
    if "path" not in columns:
        others = [name for name in columns if name not in _COLUMNS]
        near = difflib.get_close_matches("path", others, n=1, cutoff=0.4)
        near = near or [name for name in others if name.lower() in _NAMES_OF_PATH]
        hint = f"; is {near[0]!r} meant? Rename it" if near else ""
        raise DataError(f"{shown(path)} has no column 'path' but {', '.join(columns)}{hint}. "
                        f"Columns that are used: {', '.join(_COLUMNS)}")  # fmt: skip
    cells = [_cell(value, path, "path", row) for row, value in enumerate(columns["path"], start=1)]
    names = [cell.replace(os.sep, "/") for cell in cells]
    if not names:
        raise DataError(f"{shown(path)} has no rows")
    seen: set[str] = set()
    for row, name in enumerate(names, start=1):
        if name in seen:
            raise DataError(f"{shown(path)} names {shown(name)} twice, again in row {row}; "
                            "list each image once")  # fmt: skip
        seen.add(name)

    def texts(column: str) -> list[str] | None:
        if column not in columns:
            return None
        return [_cell(value, path, column, row) for row, value in enumerate(columns[column], 1)]

    groups = columns.get("group")
    return ImageSet(
        path.parent,
        names,
        labels=texts("label"),
        groups=None if groups is None else ["" if g is None else str(g).strip() for g in groups],
        splits=texts("split"),
        is_query=_read_flags(columns.get("is_query"), path),
    )


def read_names(path: Path) -> list[str]:
    """Column `path` of a CSV file, whatever its other columns hold.

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
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingExtraError(
            "reading a Parquet table needs pyarrow: pip install 'lookalike[parquet]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowInvalid) as error:
        raise DataError(f"cannot read the table {shown(path)}: {error}") from error
    return {name: table[name].to_pylist() for name in table.column_names}


def _cell(value: Any, path: Path, column: str, row: int) -> str:
    """A cell that must not be empty, as text."""
    text = "" if value is None else str(value)
    if not text.strip():
        raise DataError(f"row {row} of {shown(path)} has nothing in column {column!r}; fill it, "
                        "or leave the row or the column out")  # fmt: skip
    return text if column == "path" else text.strip()  # a file's name may begin with a space


def _read_flags(values: list[Any] | None, path: Path) -> list[bool] | None:
    if values is None:
        return None
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    words |= {"1.0": True, "0.0": False, "nan": False}  # what pandas makes of a column with gaps
    flags: list[bool] = []
    for row, value in enumerate(values, start=1):
        word = "false" if value is None else str(value).strip().lower() or "false"
        if word not in words:
            raise DataError(f"row {row} of {shown(path)} has is_query {value!r}; "
                            "expected true or false")  # fmt: skip
        flags.append(words[word])
    return flags


def _is_image(path: Path) -> bool:
    try:
        probe_image(os.fspath(path))
    except ImageError:
        return False
    return True


def _nearest_sibling(path: Path) -> str:
    """A hint at a misspelt last part, where the folder above exists."""
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f"; did you mean {shown(path.with_name(near[0]))}?" if near else ""


def _some(names: Sequence[str], most: int = 3) -> str:
    told = ", ".join(shown(name) for name in names[:most])
    return told + (f" and {len(names) - most:,} more" if len(names) > most else "")
