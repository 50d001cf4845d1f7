"""Every file read once; what was found out is kept, so that a second scan reads what changed."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path

from lookalike.checks.reading.image import ImageFacts, describe_file
from lookalike.checks.reading.workers import Describe, describe_files
from lookalike.data.images import ImageRef, file_key
from lookalike.errors import Interrupted, OutputError
from lookalike.files import shown
from lookalike.progress import Progress

SCAN_FILE = "scan.sqlite"
_VERSION = 2  # to be raised when ImageFacts mean something else
_COMMIT_S = 2.0  # what a killed scan loses at most
_COLUMNS = [field.name for field in fields(ImageFacts)]
_KEY = ("path", "bytes", "mtime_ns", "ctime_ns", "inode", "max_megapixels")
_Key = tuple[bytes, int, int, int, str, float]


def scan(
    refs: Sequence[ImageRef],
    file: Path,
    *,
    max_megapixels: float,
    num_workers: int,
    progress: Progress,
    describe: Describe = describe_file,
) -> list[ImageFacts]:
    """Decodes every file, or recalls what an earlier scan found out about it.

    A file is read again if it is another by its `FileKey`, or the limit in megapixels is another,
    or if it could not be read for reasons of the moment.

    Args:
        refs: the files; any bytes may stand in their names.
        file: the SQLite file that remembers, made where there is none.
        max_megapixels: a larger image counts as unreadable.
        num_workers: processes that read; 0 reads in this one.
        progress: shows how far it is.
        describe: makes facts of a file, `describe_file` unless a test needs another.

    Raises:
        OutputError: the SQLite file cannot be used.
        Interrupted: Ctrl-C; what was scanned is kept.
    """
    keys = [_key(ref, max_megapixels) for ref in refs]
    with _database(file) as database:
        known = _recall(database, keys)
        todo = [position for position, facts in enumerate(known) if facts is None]
        found = describe_files(
            [refs[position] for position in todo],
            max_megapixels=max_megapixels,
            num_workers=min(num_workers, len(todo)),
            describe=describe,
        )
        done = len(refs) - len(todo)
        try:
            with (
                progress.task("reading files", len(refs), "files", done) as task,
                closing(found),
            ):
                committed = time.monotonic()
                for nth, facts in found:
                    known[todo[nth]] = facts
                    _remember(database, keys[todo[nth]], facts)
                    if time.monotonic() - committed > _COMMIT_S:
                        database.commit()
                        committed = time.monotonic()
                    task.advance()
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; what was read is kept in {shown(file)}. The same command continues"
            ) from None
        finally:
            database.commit()
    return [facts for facts in known if facts is not None]


def _key(ref: ImageRef, max_megapixels: float) -> _Key:
    """Returns the key that must be the same for facts to be those of this file."""
    key = file_key(ref)
    facts = key.num_bytes, key.mtime_ns, key.ctime_ns, str(key.inode)  # which may not fit SQLite
    return os.fsencode(key.identity), *facts, max_megapixels


@contextmanager
def _database(file: Path) -> Iterator[sqlite3.Connection]:
    columns = ", ".join([*_KEY, *_COLUMNS])
    try:
        with closing(sqlite3.connect(file)) as database:
            if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                database.execute("DROP TABLE IF EXISTS files")
                database.execute(f"CREATE TABLE files ({columns}, PRIMARY KEY (path))")
                database.execute(f"PRAGMA user_version = {_VERSION}")
            yield database
    except sqlite3.Error as error:
        raise OutputError(
            f"cannot keep what was read in {shown(file)}: {error}. Wait for any other check that "
            "runs there, remove the file, or choose another folder with --out"
        ) from error


def _recall(database: sqlite3.Connection, keys: Sequence[_Key]) -> list[ImageFacts | None]:
    """Returns the known facts of each file; None where it must be read."""
    position_of = {key: position for position, key in enumerate(keys)}
    known: list[ImageFacts | None] = [None] * len(keys)
    query = f"SELECT {', '.join([*_KEY, *_COLUMNS])} FROM files"  # noqa: S608 - names of ours
    for row in database.execute(query):
        position = position_of.get(row[: len(_KEY)])
        if position is not None:
            known[position] = ImageFacts(*row[len(_KEY) :])
    for position, key in enumerate(keys):  # a file that stands in two splits
        known[position] = known[position_of[key]]
    return known


def _remember(database: sqlite3.Connection, key: _Key, facts: ImageFacts) -> None:
    if facts.sha256:  # what failed for reasons of the moment is tried again
        row = (*key, *astuple(facts))
        marks = ", ".join("?" * len(row))
        database.execute(f"INSERT OR REPLACE INTO files VALUES ({marks})", row)  # noqa: S608
