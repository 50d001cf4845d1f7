"""CSV and its kin, row by row: of all columns only those that are used are kept."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import NamedTuple, TextIO

from lookalike.data.reading.content import reading
from lookalike.data.sources.cells import unguarded
from lookalike.data.sources.tables.header import USED, find_columns, without_path
from lookalike.errors import DataError
from lookalike.files import briefly, encoding_of, shown
from lookalike.progress import Progress, SilentProgress

_DELIMITERS = (",", ";", "\t", "|")  # spreadsheets of many countries write semicolons into a CSV
_LARGEST_CELL = 2**28  # characters, also where nobody reads it; csv's own limit is 2**17
_LONGEST_HEADER = 2**20  # characters
_ROWS_AT_A_TIME = 50_000
_MB = 10**6


class Table(NamedTuple):
    """A table's header, and the cells of those of its columns that are used."""

    header: list[str]
    columns: dict[str, list[str]]


class _Form(NamedTuple):
    """How a table is written, as its first line shows."""

    delimiter: str
    blanks_after: bool  # delimiters
    is_told: bool  # by a line before the header


def read_delimited(
    path: Path, progress: Progress | None = None, used: Sequence[str] = USED
) -> Table:
    """Returns the columns of a table in UTF-8, UTF-16 or UTF-32, as Python reads text.

    Bytes that are no UTF-8 become lone surrogates: files may be named so. Rows without anything
    in them are left out, before the header as well. Cells are `unguarded`, but for paths: a file
    may be named so.

    Raises:
        DataError: it cannot be read, a row is too short or too long, two columns are one.
    """
    progress = progress or SilentProgress()
    with reading(f"the table {shown(path)}"), open(path, "rb") as start:
        encoding = encoding_of(start.read(4096))
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with (
        reading(f"the table {shown(path)}"), _cells_of_any_size(),
        open(path, "rb") as content,
        io.TextIOWrapper(content, encoding, errors, newline="") as file,
        progress.task("reading table", os.path.getsize(path) // _MB, "MB") as task,
    ):  # fmt: skip
        form = _form_of(file, path, used)
        file.seek(0)
        if form.is_told:
            file.readline()
        rows = csv.reader(file, delimiter=form.delimiter, strict=True,
                          skipinitialspace=form.blanks_after)  # fmt: skip
        header = next((row for row in rows if any(map(str.strip, row))), [])
        places = find_columns(header, path, used)
        columns: dict[str, list[str]] = {name: [] for name in places}
        if "path" not in places:  # of no use, and perhaps no table
            return Table(header, columns)
        done = 0
        for number, row in enumerate(_filled(rows, path), start=1):
            if len(row) != len(header):
                raise DataError(f"row {number} of {shown(path)} has a different number of "
                                f"cells from the header ({len(header)}); quote cells with "
                                "commas")  # fmt: skip
            for name, place in places.items():
                cell = row[place]
                columns[name].append(cell if name == "path" else intern(unguarded(cell)))
            if number % _ROWS_AT_A_TIME == 0:
                now = content.tell() // _MB
                task.advance(now - done)
                done = now
        task.advance(content.tell() // _MB - done)
    return Table(header, columns)


def _filled(rows: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    """Yields the rows that have anything in them; names the one that cannot be read."""
    number = 0
    try:
        for row in rows:
            if not _is_blank(row):
                number += 1
                yield row
    except csv.Error as error:
        raise DataError(
            f"row {number + 1} of {shown(path)} cannot be read: {briefly(str(error))}. Within "
            "quotes a quote is written twice, and each that opens has one that closes"
        ) from error


def _is_blank(row: Sequence[str]) -> bool:
    """Returns whether nothing is in a row; in a list of names alone, a blank may be a name."""
    if len(row) < 2:
        return not any(row)
    return not row[0].strip() and not any(map(str.strip, row))


def _form_of(file: TextIO, path: Path, used: Sequence[str]) -> _Form:
    """Returns how a table is written, so that `path` is among its columns if it can be."""
    first = file.readline(_LONGEST_HEADER)
    told = re.fullmatch(r'"?sep=(.)"?\s*', first)  # as Excel takes it
    if told:
        first = file.readline(_LONGEST_HEADER)
    while first and not first.strip(" \t\r\n\ufeff,;|"):  # empty rows of a sheet
        first = file.readline(_LONGEST_HEADER)
    if len(first) == _LONGEST_HEADER:
        raise DataError(
            f"the first line of {shown(path)} has more than {_LONGEST_HEADER:,} characters; "
            "expected the names of columns, such as path,label"
        )

    def header(delimiter: str) -> list[str]:
        return next(csv.reader([first], delimiter=delimiter), [])

    is_tsv = path.suffix.lower() == ".tsv"
    likely = sorted(_DELIMITERS, key=lambda one: (one == "\t") != is_tsv) if is_tsv else _DELIMITERS
    usual = likely[0]
    if not is_tsv and "," not in first:
        usual = next((one for one in _DELIMITERS if one in first), ",")
    fitting = (one for one in likely if "path" in find_columns(header(one), path, used))
    delimiter = told[1] if told else next(fitting, usual)
    return _Form(
        delimiter, any(name.startswith(" ") for name in header(delimiter)[1:]), told is not None
    )


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    usual = csv.field_size_limit(_LARGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def read_names(path: Path) -> list[str]:
    """Returns column `path` of a CSV file; raises a `DataError` where it cannot be read."""
    table = read_delimited(path, used=("path",))
    if "path" not in table.columns:
        raise without_path(table.header, table.columns, path)
    return table.columns["path"]
