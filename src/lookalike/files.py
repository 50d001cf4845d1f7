"""Files that appear whole or not at all, alone or together, and names that can be shown."""

from __future__ import annotations

import codecs
import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lookalike.errors import OutputError, nearest

_TOGETHER = "together"
_FROM_HERE, _SWAP = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS is 2, too


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file so that `path` holds either its old content or all of the new.

    The content goes to a temporary file beside `path`, is flushed to the disk, and is renamed
    over it; if anything fails on the way the temporary file is removed and `path` is untouched.
    Missing folders are made.

    Raises:
        OutputError: the file cannot be written; says why and what is left standing.
    """
    temporary = _beside(path, secrets.token_hex(4), "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(explain(path, error)) from error
    finally:
        with suppress(OSError):  # gone already where the rename succeeded
            temporary.unlink()


def write_folder_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder so that it holds either what it held before or all of the new.

    `write` puts the files into a temporary folder beside `folder`; they are flushed to the disk,
    and it takes the place of `folder`, in one step where the system can: whoever is killed leaves
    the one or the other under that name. If anything fails on the way the temporary folder is
    removed and `folder` is untouched. Missing folders above it are made. No other process may write
    the same folder meanwhile (`locking.sole_writer_of_whole`): what is left half-written beside it
    is that of killed ones, and removed.

    Raises:
        OutputError: the files cannot be written; says why and what is left standing.
    """
    folder = folder.resolve()  # "." has no name to put another beside
    mark = secrets.token_hex(4)
    temporary, earlier = (_beside(folder, mark, end) for end in ("tmp", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _tidy_after_killed(folder)
        temporary.mkdir()
        write(temporary)
        for path in filter(Path.is_file, temporary.rglob("*")):
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        if not folder.exists():
            os.replace(temporary, folder)
        elif not _exchange(temporary, folder):
            os.replace(folder, earlier)
            os.replace(temporary, folder)
        _sync_folder(folder.parent)
    except OutputError as error:
        raise _named(error, temporary.name, folder.name) from error
    except OSError as error:
        raise OutputError(explain(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # or, by now, what `folder` held before
        if earlier.exists() and not folder.exists():
            os.replace(earlier, folder)
        shutil.rmtree(earlier, ignore_errors=True)


def write_json(path: Path, document: Any) -> None:
    """Writes one JSON document, readable (indented, not escaped to ASCII) and whole.

    A file name that is not valid UTF-8 reaches Python with lone surrogates in it; each is
    written as its JSON escape, so the file stays valid UTF-8 and reads back to the same name.
    """
    write_text(path, json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, whole; lone surrogates as their escapes."""
    encoded = text.encode("utf-8", "backslashreplace")
    write_whole(path, lambda file: file.write(encoded))


def writable_folder(folder: Path) -> Path:
    """Makes a folder; raises OutputError, before any work is done, if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(explain(folder, error, before="")) from error
    return folder


def names_in(folder: Path) -> set[str]:
    """Returns the names in a folder to write to, none where it is not there yet; raises OutputError
    where it cannot be looked into.
    """
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise OutputError(explain(folder, error, before="")) from error


@contextmanager
def written_together(folder: Path, below: str, *, outdated: Iterable[Path] = ()) -> Iterator[Path]:
    """Files that belong together: yields a folder to write `below/NAME` in, and at the end of the
    block puts them all in their places below `folder`. Old files of these names, and those that
    are `outdated` by them, are removed first, so that old and new ones never lie side by side, and
    stay if anything fails within the block.

    Raises:
        OutputError: the files cannot be put there.
    """
    temporary = _beside(folder / below / _TOGETHER, secrets.token_hex(4), "tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        new = [(path, folder / below / path.name) for path in (temporary / below).iterdir()]
        old = [*outdated, *(place for _, place in new)]
        try:
            _put_in_place(new, old)
        except KeyboardInterrupt:  # too late: some of the old ones are gone
            _put_in_place(new, old)
            raise
        _sync_folder(folder / below)
    except OutputError as error:
        raise _named(error, temporary, folder) from error
    except OSError as error:
        raise OutputError(explain(folder / below, error, before="")) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(new: list[tuple[Path, Path]], old: list[Path]) -> None:
    """Removes old files, and moves new ones to their places; goes on where it was stopped."""
    left = [(path, place) for path, place in new if path.exists()]
    if len(left) == len(new):
        for path in old:
            path.unlink(missing_ok=True)
    for path, place in left:
        os.replace(path, place)


def remove_half_written(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder, which may be gigabytes."""
    for path in folder.glob(".*.lookalike-tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)
        elif path.name.startswith(f".{_TOGETHER}."):  # not a folder that is written whole
            shutil.rmtree(path, ignore_errors=True)


def _named(
    error: OutputError, temporary: str | os.PathLike[str], final: str | os.PathLike[str]
) -> OutputError:
    """Returns an error as it is about the name that people know."""
    return OutputError(str(error).replace(shown(temporary), shown(final)))


def _beside(path: Path, mark: str, end: str) -> Path:
    """Returns the name beside `path` of what is not whole yet, or about to be removed."""
    return path.with_name(f".{path.name}.{mark}.lookalike-{end}")


def shown(name: str | os.PathLike[str]) -> str:
    """Returns a file name as one line of printable text, whatever bytes it is made of."""
    return printable(os.fspath(name).replace("\n", "\\n"))


def printable(text: str) -> str:
    """Returns text of which every character but the line feed can be shown; others as escapes.

    >>> printable("red" + chr(155)) == "red" + chr(92) + "x9b"
    True
    """
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def briefly(text: str, most: int = 60) -> str:
    """Returns text of any length, from anybody's file, as part of a line that can be shown."""
    return shown(text) if len(text) <= most else f"{shown(text[:most])}..."


def encoding_of(start: bytes) -> str:
    """Returns the encoding of a text by its first bytes: UTF-16 or UTF-32 where they show it.

    Excel and PowerShell write UTF-16 with a mark at its start; without one, every other byte of
    Latin letters is zero.
    """
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = [start[place::2].count(0) for place in (0, 1)]
    if 8 * max(zeros) >= 3 * len(start) > 0:
        return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    return "utf-8-sig"


def does_not_exist(path: Path) -> str:
    """Returns a sentence on a path that does not exist, and one beside it that may be meant."""
    if os.path.islink(path):  # and not Path.is_symlink, which names too long for a disk break
        return (f"{briefly(os.fspath(path), 300)} is a link to {briefly(os.readlink(path), 300)}, "
                "where nothing is")  # fmt: skip
    _, folders, files = next(os.walk(path.parent), ("", [], []))
    near = nearest(path.name, (folders + files)[:10_000])  # each takes a while
    hint = f"; did you mean {shown(path.with_name(near))}?" if near else "."
    return f"{briefly(os.fspath(path), 300)} does not exist{hint}"


def _exchange(one: Path, other: Path) -> bool:
    """Makes two folders change names in one step; False where system or disk cannot."""
    if os.name != "posix":
        return False
    libc, names = ctypes.CDLL(None), (os.fsencode(one), os.fsencode(other))
    if hasattr(libc, "renameat2"):  # Linux
        return bool(libc.renameat2(_FROM_HERE, names[0], _FROM_HERE, names[1], _SWAP) == 0)
    return hasattr(libc, "renamex_np") and bool(libc.renamex_np(*names, _SWAP) == 0)  # macOS


def _tidy_after_killed(folder: Path) -> None:
    """Gives a folder its name again that a process was killed over, between two renames, and
    removes what killed ones left beside it.
    """
    mark = "?" * 8  # of exactly so many: beside x may be what is another process's, of x.y
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.{mark}.lookalike-*"):
        if path.suffix == ".lookalike-old" and not folder.exists():
            os.replace(path, folder)
        elif path.suffix in (".lookalike-old", ".lookalike-tmp") and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; only POSIX systems can open a folder for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot; the file is there anyway
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def explain(
    path: Path, error: OSError, before: str = " Files written before are untouched."
) -> str:
    """Returns why a file cannot be written and what to do, for the failures people meet."""
    advice = "Choose another folder with --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "Free some room or choose another disk with --out"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "Choose a folder you may write to with --out"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        advice = "Choose a folder, not a file, with --out"
    why = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        why = "nothing can be created there"
    return f"cannot write {shown(path)}: {why}.{before} {advice}."
