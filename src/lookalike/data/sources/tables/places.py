"""The files that a table's cells name, however they are written."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

from lookalike.data.sources.cells import unguarded

_LOOKED_FOR = 1_000  # paths, before a table is said to lie elsewhere than its images


def find_root(cells: Sequence[str], folder: str) -> str:
    """Returns the folder that paths are relative to: a table's own, or else the working folder.

    The latter where none of them is in the former, and one in it.
    """
    try:
        working = os.getcwd()
    except OSError:  # it was removed
        working = folder
    relative = [cell for cell in _spread(cells) if not os.path.isabs(cell) and cell[0] != "~"]
    for root in dict.fromkeys((folder, working)):
        names = Names(root)
        if not relative or any(names.is_there(names.find(cell)) for cell in relative):
            return root
    return folder


def _spread(cells: Sequence[str]) -> Sequence[str]:
    return cells[:: max(1, len(cells) // _LOOKED_FOR)]


class Names:
    """Names of files below a root, one for each way in which a cell may write it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._real = cache(os.path.realpath)  # each folder is looked at once
        self._listed = cache(_by_composed_name)
        self._is_itself = cache(self._leads_to_itself)

    def find(self, cell: str) -> str:
        """Returns the name, with forward slashes, that the file of a cell has.

        What has a name of its own is taken by it. Where nothing has: backslashes may stand for
        slashes, `~` for the user's folder, blanks around a name and an apostrophe before a formula
        for nothing, and letters may be stored in another of the ways that Unicode knows.
        """
        name = _normal(cell.replace(os.sep, "/"))
        if self._is_plain(cell) or self.is_there(name):
            return name
        return next(filter(self.is_there, map(self._as_stored, _spellings(cell))), name)

    def file(self, name: str) -> str:
        """Returns text that is equal for two names of one file, but for links to it."""
        if not name.startswith("/") and self._is_itself(name.rpartition("/")[0]):
            return name
        folder, base = os.path.split(os.path.join(self.root, name))
        file = os.path.normcase(os.path.join(self._real(folder), base))
        start = os.path.normcase(os.path.join(self._base(), ""))
        return file.removeprefix(start)

    def is_there(self, name: str) -> bool:
        """Returns whether there is a file, or a link to none, of a name."""
        try:
            return os.path.lexists(os.path.join(self.root, name))
        except ValueError:  # such as bytes that the system's encoding has not
            return False

    def _leads_to_itself(self, folder: str) -> bool:
        """Returns whether a folder is below the root and no link is on the way to it."""
        if os.path.isabs(folder) or ".." in folder.split("/") or os.path.normcase("A") == "a":
            return False
        expected = os.path.join(self._base(), folder) if folder else self._base()
        return bool(self._real(os.path.join(self.root, folder)) == expected)

    def _base(self) -> str:
        return str(self._real(self.root))

    @staticmethod
    def _is_plain(cell: str) -> bool:
        return cell.isascii() and "\\" not in cell and cell[0] not in "~'" and cell == cell.strip()

    def _as_stored(self, name: str) -> str:
        """Returns a name with each part as the disk has it, if it differs in form alone."""
        if name.isascii():
            return name
        found = ""
        for part in name.split("/"):
            there = posixpath.join(found, part) if found else part or "/"
            if not part.isascii() and not self.is_there(there):
                listed = self._listed(os.path.join(self.root, found))
                part = listed.get(unicodedata.normalize("NFC", part), part)
            found = posixpath.join(found, part) if found else part or "/"
        return found


def _normal(name: str) -> str:
    """Returns a path written in one way, so that `./1.png` and `1.png` are one image."""
    # What stands before ".." may be a link, whose parent is elsewhere.
    plain = name if ".." in name.split("/") else posixpath.normpath(name)
    return name if plain == name else plain  # one object where it is one text


def _spellings(cell: str) -> Iterator[str]:
    """Yields the names that a cell may stand for, the likelier first."""
    for text in dict.fromkeys((cell, cell.strip(), unguarded(cell))):
        for name in dict.fromkeys((text, text.replace("\\", "/"))):
            yield _normal(os.path.expanduser(name).replace(os.sep, "/"))


def _by_composed_name(folder: str) -> dict[str, str]:
    """Returns the names in a folder that are no ASCII, by their composed form."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return {}
    return {unicodedata.normalize("NFC", name): name for name in names if not name.isascii()}
