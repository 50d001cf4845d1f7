"""A source in several files: a folder of them, or a range such as `shards-{0000..0063}.tar`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from lookalike.data.sources.columns import some
from lookalike.errors import DataError
from lookalike.files import shown

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# What tools write beside shards; any other file makes a folder one of image files.
_BESIDE = (".tar", ".parquet", ".json", ".jsonl", ".txt", ".md", ".idx", ".yaml", ".yml")


class Shard(NamedTuple):
    """One file of a source; the names of its images below the source's root begin with `prefix`."""

    path: str
    prefix: str


def are_shards(source: str, endings: tuple[str, ...]) -> bool:
    """Says whether a source is a folder of files of the first ending, or is named by any of them.

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
    """Returns a source's root and its files, in order of their names.

    Raises:
        DataError: files of a range are missing.
    """
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
    """The names that a name with ranges stands for, as a shell has them."""
    found = _RANGE.search(source)
    if found is None:
        return [source]
    low, high = found.groups()
    width = max(len(low), len(high)) if low.startswith("0") or high.startswith("0") else 0
    rest = _expanded(source[found.end() :])
    return [f"{source[: found.start()]}{number:0{width}}{end}"
            for number in range(int(low), int(high) + 1) for end in rest]  # fmt: skip
