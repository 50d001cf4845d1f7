"""Folders of image files, flat or one for each class; and sources in several files, the shards."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from lookalike.data.images import ImageSet
from lookalike.data.sources.columns import label_by_folder, some
from lookalike.errors import DataError
from lookalike.files import shown
from lookalike.progress import Progress

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# What tools write beside shards; any other file makes a folder one of image files.
_BESIDE = (".tar", ".parquet", ".json", ".jsonl", ".txt", ".md", ".idx", ".yaml", ".yml")


def load_folder(source: str, progress: Progress, *, labelled: bool = True) -> ImageSet:
    """Lists the files of a folder; where it has sub-folders, the first on the path is the label."""
    root = Path(source)
    names, hidden, empty = _walk(root)
    if hidden:
        progress.warn(f"skipped hidden folders in {shown(root)}: {some(hidden)}")
    if empty and labelled:
        progress.warn(f"no files in these folders of {shown(root)}: {some(empty)}")
    if not names:
        raise DataError(f"there are no files in {shown(root)}; expected images in it, "
                        "or one folder of images per class")  # fmt: skip
    images = ImageSet(root, names)
    return label_by_folder(images, names, progress) if labelled else images


def _walk(root: Path) -> tuple[list[str], list[str], list[str]]:
    """Returns all files below `root` in a fixed order; hidden folders; empty class folders."""
    names, hidden, empty = list[str](), list[str](), list[str]()
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
            elif entry.name.startswith("."):
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


class Shard(NamedTuple):
    """One file of a source; the names of its images below the source's root begin with `prefix`."""

    path: str
    prefix: str


def are_shards(source: str, endings: tuple[str, ...]) -> bool:
    """Returns whether a source is a folder of files of the first ending, or named by any of them.

    Such a folder has no folders in it, and beside shards nothing but what tools write there.
    """
    if not os.path.isdir(source):
        return source.lower().endswith(endings)
    try:
        names = [name for name in os.listdir(source) if not name.startswith(".")]
    except OSError:
        return False  # listing it as a folder says why
    return (
        any(name.lower().endswith(endings[0]) for name in names)
        and all(name.lower().endswith(_BESIDE) for name in names)
        and not any(os.path.isdir(os.path.join(source, name)) for name in names)
    )


def find_shards(source: str, ending: str) -> tuple[Path, list[Shard]]:
    """Returns a source's root and its files, in order of their names; none may be missing."""
    if os.path.isdir(source):
        names = sorted(name for name in os.listdir(source)
                       if name.lower().endswith(ending) and not name.startswith("."))  # fmt: skip
        return Path(source), [Shard(os.path.join(source, name), f"{name}/") for name in names]
    if os.path.exists(source) or not _RANGE.search(source):
        return Path(source), [Shard(source, "")]
    paths = _expanded(source)
    missing = [path for path in paths if not os.path.exists(path)]
    if missing or not paths:
        raise DataError(
            f"{len(missing):,} of the {len(paths):,} files {shown(source)} do not exist"
            + (f": {some(missing)}" if missing else "; the first number is above the last")
        )
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Path(root), [Shard(path, f"{Path(os.path.relpath(path, root or '.')).as_posix()}/")
                        for path in paths]  # fmt: skip


def _expanded(source: str) -> list[str]:
    """Returns the names that a name with ranges stands for, as a shell has them."""
    found = _RANGE.search(source)
    if found is None:
        return [source]
    low, high = found.groups()
    width = max(len(low), len(high)) if low.startswith("0") or high.startswith("0") else 0
    rest = _expanded(source[found.end() :])
    return [f"{source[: found.start()]}{number:0{width}}{end}"
            for number in range(int(low), int(high) + 1) for end in rest]  # fmt: skip
