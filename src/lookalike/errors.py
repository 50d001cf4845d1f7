"""Every error Lookalike raises on purpose: all of them a `LookalikeError`.

`Interrupted` stands apart: it is Ctrl-C after everything was saved, no error of anybody's. The
command line turns these into one line and exit code 2; anything else keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LookalikeError(Exception):
    """Base of all errors below: catch this one to catch them all."""


class ConfigError(LookalikeError, ValueError):
    """An option has a value it cannot have, or a key is unknown."""


class DataError(LookalikeError, ValueError):
    """The images cannot be used as asked: missing, too few, unlabelled."""


class ImageError(DataError):
    """One file cannot be read as an image.

    `reason` is short and names no path, so that it can stand beside the file's name in a list.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ModelError(LookalikeError):
    """The model cannot be loaded, or does not give one embedding an image."""


class CheckpointError(LookalikeError):
    """A checkpoint is not ours, not whole, or does not fit what is asked of it."""


class TrainingError(LookalikeError):
    """Training cannot go on."""


class NoPositivesError(TrainingError, ValueError):
    """No image of the batch has another one of its class to be pulled towards."""


class NonFiniteError(TrainingError):
    """The loss or its gradient is infinite or not a number."""


class LostProcessError(TrainingError):
    """Another process that worked on the same command ended, or cannot be reached."""


class TrackerError(LookalikeError):
    """A tracker cannot be reached, or asks for a login that is not there."""


class OutputError(LookalikeError, OSError):
    """A result cannot be written: no room, no permission, no such folder."""


class MissingExtraError(LookalikeError, ImportError):
    """An optional dependency is not installed; the message holds the line that installs it."""


class Interrupted(Exception):  # noqa: N818 - it is a request that was honoured, not an error
    """Ctrl-C (or SIGTERM) was honoured: the run is saved, and the message says how to go on."""


def missing_extra(what: str, package: str, extra: str) -> MissingExtraError:
    """Returns the error that names the package `what` needs, and the line that installs it."""
    line = f"pip install 'lookalike[{extra}]'"
    return MissingExtraError(f"{what} needs {package}, which is not installed: {line}")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error without its full stop; its kind where it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the known word that was perhaps meant: one that begins so, or is spelt alike."""
    words = list(known)
    begun = [one for one in words if len(word) > 2 and one.startswith(word)]
    return next(iter(begun or difflib.get_close_matches(word, words, n=1, cutoff=cutoff)), None)
