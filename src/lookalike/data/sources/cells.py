"""Cells of a source, whatever type they came as: labels, groups and splits as text, flags."""

from __future__ import annotations

import ast
import datetime
import json
import math
import re
import reprlib
import unicodedata
import uuid
import warnings
from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, TypeVar

from lookalike.errors import DataError
from lookalike.files import briefly

LONGEST_LABEL = 1_000  # characters
LONGEST_PATH = 32_767  # characters; Windows takes no longer one, and others less

NO_UTF8 = "is not UTF-8; a table in Windows-1252, as Excel's plain CSV, is to be saved as CSV UTF-8"

_WHOLE = re.compile(r"-?(0|[1-9]\d*)\.0*")
# Spreadsheets of East Asian languages take the wide forms of these signs for the signs.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_EXACT = 2**53  # below it a float holds each whole number exactly
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False,
          "nan": False}  # fmt: skip # the last two: pandas, with gaps
_MISSING = {"nan", "<na>", "nat", "#n/a"}  # as pandas, NumPy and spreadsheets write it
_AS_TEXT = (str, datetime.date, datetime.time, datetime.timedelta, Decimal, uuid.UUID)
_URL = re.compile(r"[A-Za-z][A-Za-z\d+.-]+://")
_KEPT = 100_000  # texts of which each is parsed once; columns of more have each cell parsed

T = TypeVar("T")


class _CellError(Exception):
    """What is wrong with a cell, after "row 3 of list.csv "."""


def parse_column(
    values: Sequence[Any], parse: Callable[[Any], T], where: Callable[[int], str]
) -> list[T]:
    """Returns each cell parsed; texts that are equal become one object.

    Raises:
        DataError: a cell is not what it should be; `where` tells its place, from 1.
    """
    known: dict[str, T] = {}
    parsed: list[T] = []
    for row, value in enumerate(values, start=1):
        is_text = type(value) is str
        if is_text and value in known:
            parsed.append(known[value])
            continue
        try:
            parsed.append(parse(value))
        except _CellError as wrong:
            raise DataError(f"{where(row)} {wrong}") from None
        if is_text and len(known) < _KEPT:
            known[value] = parsed[-1]
    return parsed


def name_of_class(name: str) -> str:
    r"""Returns the label that a text stands for, the same for all that are written alike.

    Blanks around it do not count, nor the way in which its letters are stored (Unicode's NFC is
    taken), nor the noughts behind the point of a whole number: a column of numbers with gaps
    turns 1 into 1.0. Noughts in front stay: 007 is not 7.

    >>> [name_of_class(name) for name in (" cup ", "1.0", "-3.", "007", "1.50", "e\u0301")]
    ['cup', '1', '-3', '007', '1.50', '\xe9']
    """
    name = name.strip()
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
    elif "." in name and _WHOLE.fullmatch(name):
        name = name.partition(".")[0]
        return "0" if name == "-0" else name
    return name


def guarded(cell: str) -> str:
    """Returns a cell with an apostrophe before it where a spreadsheet would run it as a formula.

    What begins so already gets one more, so that `unguarded` gives back any cell.
    """
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """Returns the cell that `guarded` was given.

    >>> [unguarded(cell) for cell in ("'-1", "''=a", "'quoted'", "-1")]
    ['-1', "'=a", "'quoted'", '-1']
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell, 1) else cell


def parse_label(value: Any) -> str:
    """Returns a cell of the column `label`."""
    text = _filled(value, "label")
    if text.lower() in _MISSING:
        raise _CellError(f"has label {text!r}, which stands for none; {_FILL}")
    if text[0] in "[{(" and text[-1] in "]})" and _is_collection(text):
        raise _CellError(_no_text(text, "label", "written as text"))
    return text


def parse_split(value: Any) -> str:
    """Returns a cell of the column `split`, in small letters."""
    return _filled(value, "split").lower()


def parse_group(value: Any) -> str:
    """Returns a cell of the column `group`, "" for none."""
    text = _text_of(value, "group")
    return "" if text.lower() in _MISSING else text


def parse_path(value: Any) -> str:
    """Returns a cell of the column `path` to the letter: a file's name may begin with a space."""
    text = value if type(value) is str else _text_of(value, "path")
    if not text or text.isspace():
        raise _CellError(f"has nothing in column 'path'; {_FILL}")
    if "\0" in text:
        raise _CellError(f"has '{briefly(text)}' in column 'path'; no file's name holds a NUL, so "
                         "the table is damaged or no table")  # fmt: skip
    if "://" in text and _URL.match(text):
        raise _CellError(f"has the address '{briefly(text)}' in column 'path'; nothing is "
                         "downloaded: give the path of a file")  # fmt: skip
    if len(text) > LONGEST_PATH:
        raise _CellError(_too_long(text, "path", LONGEST_PATH))
    return text


def parse_flag(value: Any) -> bool:
    """Returns a cell of the column `is_query`."""
    text = _text_of(value, "is_query")
    if text.lower() not in _FLAGS:
        raise _CellError(f"has is_query '{briefly(text)}'; expected true or false")
    return _FLAGS[text.lower()]


PARSERS: dict[str, Callable[[Any], Any]] = {
    "label": parse_label, "split": parse_split, "is_query": parse_flag, "group": parse_group,
}  # fmt: skip
"""What a source may say of an image, and how that is read."""

_FILL = "fill it, or leave the row or the column out"


def _filled(value: Any, column: str) -> str:
    text = _text_of(value, column)
    if not text:
        what = "nothing" if value is None or isinstance(value, str) else f"no value ({value})"
        raise _CellError(f"has {what} in column {column!r}; {_FILL}")
    return text


def _text_of(value: Any, column: str) -> str:
    """Returns a cell as text, in the one way that it is compared by; "" for a missing value."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise _CellError(_no_text(value, column, "bytes that are no text")) from None
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        if math.isnan(number):
            return ""
        if math.isinf(number):
            raise _CellError(f"has {number} in column {column!r}, which is no number; {_FILL}")
        value = int(number) if number.is_integer() and abs(number) < _EXACT else number
    elif not isinstance(value, (*_AS_TEXT, Integral)):
        raise _CellError(_no_text(value, column, f"a {type(value).__name__}"))
    text = str(value)
    if len(text) > LONGEST_LABEL:
        raise _CellError(_too_long(text, column, LONGEST_LABEL))
    text = name_of_class(text)
    if is_no_unicode(text):
        raise _CellError(f"has {briefly(text)} in column {column!r}, which {NO_UTF8}")
    return text


def is_no_unicode(text: str) -> bool:
    """Returns whether a text holds bytes that could not be read as UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_collection(text: str) -> bool:
    """Returns whether a text is a list or the like, as Python or JSON write it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in what may be no Python
        for read in (ast.literal_eval, json.loads):
            try:
                return isinstance(read(text), (list, tuple, dict, set))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
    return False


def _no_text(value: Any, column: str, what: str) -> str:
    told = value if isinstance(value, str) else reprlib.repr(value)
    return f"has {briefly(told)} in column {column!r}, {what}; expected one text or number"


def _too_long(text: str, column: str, most: int) -> str:
    return (f"has {len(text):,} characters in column {column!r}; {most:,} at most, for names are "
            f"shown and kept with every result. It begins '{briefly(text, 20)}'")  # fmt: skip
