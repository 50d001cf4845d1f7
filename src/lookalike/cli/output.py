"""What a command prints: for people on a terminal, and for programs."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

from lookalike.errors import OutputError
from lookalike.files import printable


def say(*parts: str, sep: str = " ", end: str = "\n") -> None:
    """Prints results for people. A name in them may hold anything, codes for terminals as well:
    these are shown, not sent.
    """
    emit(printable(sep.join(parts)) + end)


def print_utf8(text: str) -> None:
    """Prints text for a program to read: in UTF-8, whatever the terminal or pipe is set to."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    emit(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def print_json(document: Any) -> None:
    """Prints one JSON document: readable, with the escapes of JSON for what cannot be shown, which
    a terminal might obey, and for what is no Unicode.
    """
    text = json.dumps(document, ensure_ascii=False, indent=2)
    if not text.replace("\n", "").isprintable():
        text = "".join(map(_in_json, text))
    print_utf8(text + "\n")


def _in_json(character: str) -> str:
    """Returns a character of a JSON document as it is, or within a string as its escape."""
    if character.isprintable() or character == "\n":
        return character
    return json.dumps(character)[1:-1]


def emit(text: str) -> None:
    """Writes text to stdout, at once and as it is.

    Raises:
        OutputError: stdout cannot be written to.
        BrokenPipeError: nobody reads it any more.
    """
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_unprinted()
        raise OutputError(
            f"cannot print the results: {error.strerror}. Files that were written are whole"
        ) from error


def forget_unprinted() -> None:
    """Sends nowhere what waits to be printed, which would be tried once more at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
