"""Sources in several files, the shards."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import NamedTuple

from lookalike.data.sources.columns import some
from lookalike.data.sources.leftovers import is_leftover
from lookalike.errors import DataError
from lookalike.files import briefly, shown

_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_MOST = 1_000_000  # files that a name with ranges may stand for
# What tools write beside shards; any other file makes a folder one of image files.
_BESIDE = (".tar", ".parquet", ".json", ".jsonl", ".txt", ".md", ".idx", ".yaml", ".yml")


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
        names = _names_in(source)
    except OSError:
        return False  # listing it as a folder says why
    return (
        any(name.lower().endswith(endings[0]) for name in names)
        and all(name.lower().endswith(_BESIDE) for name in names)
        and not any(os.path.isdir(os.path.join(source, name)) for name in names)
    )


def _names_in(folder: str) -> list[str]:
    """Returns the names in a folder, without those of hidden files and of what systems leave."""
    return [
        name for name in os.listdir(folder)
        if not name.startswith(".") and not is_leftover(name, is_folder=False)
        and not (is_leftover(name, is_folder=True) and os.path.isdir(os.path.join(folder, name)))
    ]  # fmt: skip


def find_shards(source: str, ending: str) -> tuple[Path, list[Shard]]:
    """Returns a source's root and its files, in order of their names; none may be missing."""
    if os.path.isdir(source):
        names = sorted(name for name in _names_in(source) if name.lower().endswith(ending))
        return Path(source), [Shard(os.path.join(source, name), f"{name}/") for name in names]
    if os.path.exists(source) or not _RANGE.search(source):
        return Path(source), [Shard(source, "")]
    num = math.prod(max(0, int(high) - int(low) + 1) for low, high in _RANGE.findall(source))
    if num > _MOST:
        raise DataError(f"{briefly(source, 200)} stands for {num:,} files; {_MOST:,} at most: give "
                        "a folder, or a smaller range")  # fmt: skip
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
