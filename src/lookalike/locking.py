"""A folder that one process alone writes to: what two write at a time is neither's."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lookalike.errors import OutputError
from lookalike.files import explain, remove_half_written, shown, writable_folder

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_FILE = ".lookalike.lock"
_MAX_COMMAND = 200  # characters of a command line that are shown


@contextmanager
def sole_writer(folder: Path, *below: str) -> Iterator[Path]:
    """Makes a folder, which no other process writes to in this way inside the block.

    What killed processes left half-written in it, and in its folders `below`, is removed. The lock
    is a file that names its process; it is gone when the process is, however that ends.

    Raises:
        OutputError: another process is writing to it; or it, or one `below`, cannot be written to.
    """
    writable_folder(folder)
    with _locked(folder / LOCK_FILE, folder):
        for place in (folder, *(folder / name for name in below)):
            if os.path.lexists(place):
                remove_half_written(writable_folder(place))
        yield folder


@contextmanager
def sole_writer_of_whole(folder: Path) -> Iterator[Path]:
    """As `sole_writer`, for a folder that is written whole: the lock lies beside it."""
    folder = folder.resolve()
    writable_folder(folder.parent)
    with _locked(folder.with_name(f".{folder.name}{LOCK_FILE}"), folder):
        yield folder


@contextmanager
def _locked(path: Path, what: Path) -> Iterator[None]:
    """Inside the block a file is there and locked: by the system, which lets go of it at the end
    of the process.
    """
    try:
        file = _open_locked(path, what)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(explain(path, error, before="")) from error
    try:
        yield
    finally:
        is_ours = _lies_at(file, path)  # else somebody removed it, and another process may have one
        if os.name != "posix":  # an open file cannot be removed there, so others may come between
            file.close()
        if is_ours:
            with suppress(OSError):
                path.unlink()
        file.close()


def _open_locked(path: Path, what: Path) -> IO[str]:
    while True:
        # Whoever locks it closes it.
        file = open(path, "a+", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115
        try:
            if not _try_lock(file.fileno()):
                raise OutputError(
                    f"another process is writing to {shown(what)}{_holder_in(file)}. Wait until "
                    "it ends, stop it, or choose another folder with --out."
                )
            # The process that had it may have removed it since it was opened here.
            if _lies_at(file, path):
                _name_holder(file)
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _open_no_link(path: str, flags: int) -> int:
    """Opens a file of no other name: through a link in a folder of somebody else's another file
    would be lost.
    """
    # What is no file, such as a pipe, is not waited for.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OutputError(
            f"{shown(path)} is not a lock of Lookalike's, but a link to another file, or no file "
            "at all; remove it, or choose another folder with --out."
        )
    return descriptor


def _lies_at(file: IO[str], path: Path) -> bool:
    """Returns whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:  # nothing is there
        return False


def _try_lock(descriptor: int) -> bool:
    """Locks an open file unless another process has; True as well where the disk has no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**30, os.SEEK_SET)  # what is written stays readable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # some network file systems have none
        return True
    return True


def _name_holder(file: IO[str]) -> None:
    """Writes who holds the lock."""
    command = shown(" ".join(sys.argv))
    if len(command) > _MAX_COMMAND:
        command = command[: _MAX_COMMAND - 1] + "…"
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    file.truncate(0)
    file.write(json.dumps(holder) + "\n")
    file.flush()


def _holder_in(file: IO[str]) -> str:
    """Returns who holds the lock, as far as the file says it."""
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read(4096))
        found = [shown(str(holder[key])) for key in ("pid", "host", "since", "command")]
    except (ValueError, KeyError, TypeError):  # it is about to be written
        return ""
    return " (process {} on {}, since {}: {})".format(*found)
