"""Folders of image files, flat or one for each class."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.data.images import ImageSet
from lookalike.data.sources.columns import some
from lookalike.data.sources.leftovers import counted_leftovers, is_leftover
from lookalike.data.sources.tree import label_by_folder
from lookalike.errors import DataError
from lookalike.files import shown
from lookalike.progress import Progress

_MOST_VISITS = 1_000  # of one folder, through links: a few that lead to each other make billions


def load_folder(source: str, progress: Progress, *, labelled: bool = True) -> ImageSet:
    """Lists the files of a folder; where it has sub-folders, the first on the path is the label."""
    root = Path(source)
    found = _walk(root)
    if found.hidden:
        progress.warn(f"skipped hidden folders in {shown(root)}: {some(found.hidden)}")
    if found.leftovers:
        progress.warn(f"skipped what systems leave in folders, in {shown(root)}: "
                      f"{counted_leftovers(found.leftovers)}")  # fmt: skip
    if found.empty and labelled:
        progress.warn(f"no files in these folders of {shown(root)}: {some(found.empty)}")
    if not found.names:
        raise DataError(f"there are no files in {shown(root)}; expected images in it, "
                        "or one folder of images per class")  # fmt: skip
    images = ImageSet(root, found.names)
    return label_by_folder(images, found.names, progress) if labelled else images


@dataclass
class _Found:
    """All files below a folder, and what was left out; each in a fixed order."""

    names: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)  # their own names, once for each


def _walk(root: Path) -> _Found:
    found, visits = _Found(), Counter[str]()
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        here = os.path.join(root, folder)
        real = os.path.realpath(here)
        if real in above:  # a link back up to a folder we are inside of
            continue
        visits[real] += 1
        if visits[real] > _MOST_VISITS:
            raise DataError(f"the links in {shown(root)} lead to {shown(real)} in more than "
                            f"{_MOST_VISITS:,} ways; remove some of them")  # fmt: skip
        try:
            entries = list(os.scandir(here))
        except OSError as error:
            raise DataError(f"cannot list the folder {shown(here)}: {error.strerror}") from error
        before, num_folders = len(found.names), 0
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            is_folder = _is_folder(entry)
            if entry.name.startswith("."):
                if is_folder:
                    found.hidden.append(name)
                continue  # files are what a system leaves in every folder, such as .DS_Store
            if is_leftover(entry.name, is_folder=is_folder):
                found.leftovers.append(entry.name)
            elif is_folder:
                num_folders += 1
                pending.append((name, above | {real}))
            else:  # a broken link or a pipe is told of when read
                found.names.append(name)
        if folder and len(found.names) == before and not num_folders:
            found.empty.append(folder)
    for names in vars(found).values():
        names.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def class_folders(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the folders in a folder, without hidden ones and those of systems."""
    _, names, _ = next(os.walk(folder), ("", [], []))
    own = (name for name in names if not is_leftover(name, is_folder=True))
    return sorted(name for name in own if not name.startswith("."))
