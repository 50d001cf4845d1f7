"""What systems, cameras and cloud drives leave in folders: no images of anybody's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from lookalike.files import shown

# By their names in small letters; what begins with a dot is hidden already.
_FOLDERS = {
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp",  # NAS
    "__macosx", "network trash folder", "temporary items",  # macOS, also in its archives
    "$recycle.bin", "system volume information", "lost.dir",  # Windows, Android
    "lost+found", "__pycache__",
}  # fmt: skip
_FILES = {
    "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
    "picasa.ini", "zbthumbnail.info", "pspbrwse.jbf", "icon\r", "wpsettings.dat",
    "indexervolumeguid",
}  # fmt: skip
_FOUND = re.compile(r"found\.\d{3}")  # of a repaired disk
_OF_A_NAS = re.compile(r".*@syno(resource|eastream)")


def is_leftover(name: str, *, is_folder: bool) -> bool:
    """Returns whether the name of a file or folder is one that a system gives to its own."""
    name = name.casefold()
    if is_folder:
        return name in _FOLDERS or _FOUND.fullmatch(name) is not None
    return name in _FILES or _OF_A_NAS.fullmatch(name) is not None


def lies_in_leftovers(path: str) -> bool:
    """Returns whether a path, with forward slashes, leads to or through such a file or folder."""
    *folders, name = path.split("/")
    return is_leftover(name, is_folder=False) or any(
        is_leftover(folder, is_folder=True) for folder in folders
    )


def counted_leftovers(names: Iterable[str]) -> str:
    """Returns how often each was met: `@eaDir (24), Thumbs.db (3)`."""
    return ", ".join(f"{shown(name)} ({count:,})" for name, count in sorted(Counter(names).items()))
