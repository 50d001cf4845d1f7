"""What a command prints: for people on a terminal, and for programs."""

from __future__ import annotations

import io
import os
import sys

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
