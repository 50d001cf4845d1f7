"""The columns that are used of a table, found by their names however these are written."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from lookalike.data.sources.columns import COLUMNS, some
from lookalike.errors import DataError, nearest
from lookalike.files import briefly, shown

USED = ("path", *COLUMNS)

# What else such columns are called, as it is compared.
_ALIKE = {
    "path": ("image", "images", "file", "filename", "imagepath", "picture", "photo"),
    "label": ("class", "classname", "classid", "category", "target"),
    "split": ("subset", "set", "partition"),
}
_NEAR = 0.75  # as difflib counts; `lable` is, `table` is not


def find_columns(
    header: Sequence[str], path: str | Path, used: Sequence[str] = USED
) -> dict[str, int]:
    """Returns the place of each column that is used; blanks and capitals in names do not count.

    Raises:
        DataError: two columns are one by their names.
    """
    known = {_compared(name): name for name in used}
    found: dict[str, int] = {}
    for place, name in enumerate(header):
        column = known.get(_compared(name))
        if column is None:
            continue
        if column in found:
            all_so = [one for one in header if known.get(_compared(one)) == column]
            spelt = some([f"'{briefly(one)}'" for one in sorted(set(all_so))])
            written = f", written {spelt}" if len(set(all_so)) > 1 else ""
            raise DataError(f"{shown(path)} has {len(all_so)} columns {column!r}{written}; "
                            "rename or remove all but one")  # fmt: skip
        found[column] = place
    return found


def near_misses(header: Sequence[str], found: Collection[str], path: str | Path) -> list[str]:
    """Returns a warning for each column that is not used and may be one that is missing."""
    others = _others(header, found)
    told = []
    for column in (name for name in COLUMNS if name not in found):
        alike = (name for name in _ALIKE.get(column, ()) if name in others)
        meant = nearest(_compared(column), others, cutoff=_NEAR) or next(alike, None)
        if meant is not None:
            told.append(f"column '{briefly(others[meant])}' of {shown(path)} is not used; if it is "
                        f"the {column}, call it {column!r}")  # fmt: skip
    return told


def without_path(header: Sequence[str], found: Collection[str], path: str | Path) -> DataError:
    """Returns the error of a table that has no column `path`; names one that may be meant."""
    others = _others(header, found)
    near = nearest("path", others, cutoff=0.4)
    near = near or next((name for name in _ALIKE["path"] if name in others), None)
    hint = f"; is '{briefly(others[near])}' meant? Rename it" if near else ""
    return DataError(f"{shown(path)} has no column 'path'; its columns are "
                     f"{some(map(briefly, header), 20) or 'none'}{hint}. Columns that are used: "
                     f"{', '.join(USED)}")  # fmt: skip


def _others(header: Sequence[str], found: Collection[str]) -> dict[str, str]:
    """Returns the first columns that are not used, by their names as they are compared."""
    used = set(map(_compared, found))
    return {key: name for name in header[:1_000] if (key := _compared(name)) not in used}


def _compared(name: str) -> str:
    """Returns a column's name as it is compared: `Is Query` and `is_query` are one."""
    return re.sub(r"[\s_\-\ufeff\u200b]+", "", str(name)[:200]).casefold()
