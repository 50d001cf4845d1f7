"""Folders of image files: flat, or a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

from lookalike.data.images import ImageSet
from lookalike.data.sources.columns import label_by_folder, some
from lookalike.errors import DataError
from lookalike.files import shown
from lookalike.progress import Progress


def is_folder(source: str) -> bool:
    """Says whether a source is a folder that is there."""
    return os.path.isdir(source)


def load_folder(source: str, progress: Progress) -> ImageSet:
    """Lists the files of a folder; where it has sub-folders, the first on the path is the label.

    Raises:
        DataError: there are no files, or images beside the class folders.
    """
    root = Path(source)
    names, hidden, empty = _walk(root)
    if hidden:
        progress.warn(f"passed over hidden folders in {shown(root)}: {some(hidden)}")
    if empty:
        progress.warn(f"no files in these folders of {shown(root)}: {some(empty)}")
    if not names:
        raise DataError(f"there are no files in {shown(root)}; expected images in it, "
                        "or one folder of images per class")  # fmt: skip
    return label_by_folder(ImageSet(root, names), names, progress)


def load_flat(source: str) -> ImageSet:
    """Lists the files of a folder, however deep, without labels.

    Raises:
        DataError: there are none.
    """
    names, _, _ = _walk(Path(source))
    if not names:
        raise DataError(f"there are no files in {shown(source)}; expected images in it")
    return ImageSet(Path(source), names)


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
