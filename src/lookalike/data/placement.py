"""Where a command may write: never among the images, where results would pass for images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lookalike.errors import ConfigError
from lookalike.files import shown

# The cache's own files and folders, and what systems put anywhere.
_OF_A_CACHE = re.compile(r"CACHEDIR\.TAG|used|[0-9a-f]{2}|\..*|lost\+found|Thumbs\.db|desktop\.ini")
_WRITTEN = ("results", "weights", "tracking")  # below `out`


def keep_out_of_images(out: str | Path, sources: Iterable[str | None]) -> None:
    """Refuses to write results into a folder of images, by whatever path both are named.

    Raises:
        ConfigError: `out`, or a folder that is written in it, is or lies in one of the sources.
    """
    for source in filter(None, sources):
        for name in ("", *_WRITTEN):
            if _lies_in(Path(out, name), source):
                of_out = f" with its {name}/" if name else ""
                raise ConfigError(
                    f"out is {shown(out)},{of_out} inside the images in {shown(source)}, where "
                    "what is written would pass for images; choose another folder with --out"
                )


def keep_cache_apart(
    cache: str | Path | None, out: str | Path, sources: Sequence[str | None]
) -> None:
    """Refuses a folder for decoded images that holds, or lies in, anything else; None is none.

    Programs that make backups skip all that lies beside its CACHEDIR.TAG.

    Raises:
        ConfigError: it is, holds or lies in the images or `out`, or it holds what is not a cache's.
    """
    if cache is None:
        return
    advice = "name a new or empty folder with --decode-cache"
    for source in filter(None, sources):
        if _lies_in(cache, source):
            raise ConfigError(
                f"decode_cache is {shown(cache)}, inside the images in {shown(source)}, where "
                f"what it keeps would pass for images; {advice}"
            )
    for what, other in (("the images in", [*filter(None, sources)]), ("out,", [out])):
        for one in other:
            if _lies_in(one, cache):
                raise ConfigError(
                    f"decode_cache is {shown(cache)}, which holds {what} {shown(one)}: backups "
                    f"would skip them with it; {advice}"
                )
    try:
        names = sorted(os.listdir(cache))
    except OSError:  # not there yet, or not to be read: whoever writes there says why
        return
    strange = [name for name in names if not _OF_A_CACHE.fullmatch(name)]
    if strange:
        raise ConfigError(
            f"decode_cache is {shown(cache)}, which holds other things ({shown(strange[0])}), and "
            f"backups would skip them with it; {advice}"
        )


def _lies_in(place: str | Path, folder: str | Path) -> bool:
    """Returns whether a path, which need not exist, is a folder that does, or lies in it.

    Folders are compared as the file system knows them: links, capitals and mounts aside.
    """
    if not os.path.isdir(folder):
        return False
    real = Path(os.path.realpath(place))
    wanted = os.stat(folder)
    for above in (real, *real.parents):
        try:
            if os.path.samestat(os.stat(above), wanted):
                return True
        except OSError:  # it is not there yet
            continue
    return False
