"""Files of `torch.save`: read without running code, and only where their checksums are right."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from lookalike.errors import LookalikeError, first_line

_PART_BYTES = 1 << 20
_IS_FOLDER = 0x10  # among the attributes of a file under DOS
# The one call that torch lets a pickle make of which a few bytes fill any memory; torch.save writes
# none.
_FILLS_MEMORY = b"\nbytearray\n"
# They come where there was to be a file, when a download failed or never took place.
_NO_CONTENT = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file: git lfs pull fetches it",
    b"<!doctype html": "it is a web page, not the file: download it again",
    b"<html": "it is a web page, not the file: download it again",
}


class DamagedError(LookalikeError):
    """A file is not an archive of `torch.save`, not whole, or not as it was written."""


def read_archive(path: Path) -> Any:
    """Returns what `torch.save` wrote, on the CPU. No pickled code is ever run.

    Each record is compared with its CRC-32 first, 1 MiB at a time: torch itself does not look.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: it is not such a file, cannot be read, or is not as it was written; or it
            holds more than tensors, numbers, text, and lists and dicts of them.
    """
    if path.exists() and not path.is_file():
        raise DamagedError("it is not a file")
    try:
        with open(path, "rb") as file:  # torch cannot open every name that Python can
            _check_records(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, DamagedError):
        raise
    except PermissionError as error:
        raise DamagedError(f"it cannot be read: {error.strerror}") from error
    # Bytes that nobody wrote so fail in the unpickler in every way there is.
    except Exception as error:
        raise DamagedError("it holds more than tensors, or is damaged") from error


def check_archive(path: Path) -> None:
    """Raises DamagedError where a file's checksums, if it has any, are wrong: what releases of
    PyTorch before 1.6 wrote has none.
    """
    if file_start(path).startswith(b"PK"):
        with open(path, "rb") as file:
            _check_records(file)


def file_start(path: Path) -> bytes:
    """Returns the first bytes of a file, by which its kind is known; none of what is no file."""
    if not path.is_file():
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError:
        return b""


def no_content(path: Path) -> str | None:
    """Returns why there is something else where a file was to be, as far as its start tells."""
    start = file_start(path).lstrip().lower()
    return next((why for begins, why in _NO_CONTENT.items() if start.startswith(begins)), None)


def _check_records(file: IO[bytes]) -> None:
    """Raises DamagedError if a record is missing, cut off, or not what was written."""
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if record.external_attr & _IS_FOLDER:  # of which torch would read nothing
                    raise DamagedError(f"its record {record.filename!r} is marked as a folder")
                if record.compress_type != zipfile.ZIP_STORED:  # as torch never writes them
                    raise DamagedError(f"its record {record.filename!r} is compressed")
                with archive.open(record) as content:
                    while content.read(_PART_BYTES):
                        pass
                if record.filename.endswith("data.pkl") and _FILLS_MEMORY in archive.read(record):
                    raise DamagedError("it holds more than tensors")
    except DamagedError:
        raise
    # What is no archive, or half of one, fails in many ways.
    except Exception as error:
        raise DamagedError(_why(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return first_line(error)
    if "CRC" in str(error):
        return "its content does not have the checksum that it was written with"
    return "it is cut off, damaged, or another kind of file"
