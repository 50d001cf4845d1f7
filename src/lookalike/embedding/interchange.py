"""Embeddings as files that other tools read and write: `.npy` beside a `.csv`, or Parquet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from lookalike.data.images import ImageSet
from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.table import read_names
from lookalike.errors import DataError
from lookalike.files import shown, write_whole
from lookalike.progress import counted

_ROWS_AT_A_TIME = 2**16


def embedding_files(path: Path) -> list[Path]:
    """What `save_embeddings` writes: the file itself, and of a `.npy` the names beside it."""
    return [path] if path.suffix == ".parquet" else [path, path.with_suffix(".csv")]


def save_embeddings(path: Path, embeddings: Float32[Tensor, "n dim"], images: ImageSet) -> None:
    """Writes embeddings with the names (and labels, if there are any) of their images.

    `x.npy` holds a float32 matrix of shape (n, dim) and `x.csv` beside it one row an image, in
    the same order, with columns path and label. `x.parquet` holds columns path, label and
    embedding, a list of dim float32.

    Raises:
        MissingExtraError: Parquet without `pyarrow` installed.
    """
    columns = {"path": images.names}
    if images.labels is not None:
        columns["label"] = images.labels
    if path.suffix == ".parquet":
        pyarrow, parquet = require_pyarrow()
        flat = pyarrow.array(embeddings.numpy().ravel())
        lists = pyarrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
        texts = {name: [_text(value) for value in column] for name, column in columns.items()}
        table = pyarrow.table({**texts, "embedding": lists})
        write_whole(path, lambda file: parquet.write_table(table, file))
        return

    def write_names(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        csv.writer(text).writerows([tuple(columns), *zip(*columns.values(), strict=True)])
        text.flush()
        text.detach()

    write_whole(path, lambda file: np.save(file, embeddings.numpy()))
    write_whole(path.with_suffix(".csv"), write_names)


def load_embeddings(path: Path, images: ImageSet) -> Float32[Tensor, "n dim"]:
    """The embeddings of these images, in their order, L2-normalised.

    Rows are found by the image's name below its folder, or by where it lies. Rows of other
    images are passed over.

    Raises:
        DataError: the file is no matrix of embeddings, an image is missing or named twice, or
            an embedding is zero or not finite.
    """
    names, matrix = _read(path)
    row_of: dict[str, int] = {}
    for row, name in enumerate(map(_plain, names)):
        if row_of.setdefault(name, row) != row:
            raise DataError(f"{shown(path)} names {shown(name)} twice; one embedding an image")
    rows = [
        next((row_of[one] for one in (_plain(name), _plain(full), _plain(os.path.abspath(full)))
              if one in row_of), -1)
        for name, full in zip(images.names, images.paths, strict=True)
    ]  # fmt: skip
    missing = [name for name, row in zip(images.names, rows, strict=True) if row < 0]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(images):,} images have no embedding in {shown(path)}, "
            f"such as {_some(missing)}; it names images such as {_some(names)}"
        )
    result = torch.empty(len(rows), matrix.shape[1])
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        part = rows[start : start + _ROWS_AT_A_TIME]
        result[start : start + len(part)] = _unit(matrix[part])
    bad = (~result.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        named = _some([images.names[i] for i in bad])
        raise DataError(
            f"embeddings of {counted(len(bad), 'image')} in {shown(path)} are zero or not "
            f"finite: {named}"
        )
    return result


def _unit(rows: np.ndarray) -> Float32[Tensor, "n dim"]:
    """Rows brought to length 1, whatever their scale; not finite where that cannot be done."""
    wide = torch.from_numpy(rows.astype(np.float64))
    wide /= wide.abs().amax(dim=1, keepdim=True)
    unit: Tensor = wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return unit.float()


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and matrix, whichever the format."""
    if path.suffix.lower() == ".parquet":
        names, matrix = _read_parquet(path)
    elif path.suffix.lower() == ".npy":
        try:
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise DataError(f"cannot read {shown(path)}: {error.strerror or error}") from error
        except (ValueError, EOFError) as error:
            raise DataError(f"{shown(path)} is no .npy file of numbers, or not whole") from error
        if not isinstance(matrix, np.ndarray):
            matrix.close()
            raise DataError(f"{shown(path)} is an archive of arrays; expected a single array")
        names = read_names(path.with_suffix(".csv"))
    else:
        raise DataError(f"{shown(path)} is neither .npy nor .parquet")
    if matrix.ndim != 2 or len(matrix) != len(names) or not matrix.shape[1]:
        raise DataError(
            f"{shown(path)} holds an array of shape {tuple(matrix.shape)} for {len(names):,} "
            f"names; expected ({len(names)}, dim)"
        )
    if not np.issubdtype(matrix.dtype, np.floating):
        raise DataError(f"{shown(path)} holds {matrix.dtype}; expected floating-point numbers")
    return names, matrix


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    pyarrow, parquet = require_pyarrow()
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"cannot read {shown(path)}: {error}") from error
    if not {"path", "embedding"} <= set(table.column_names):
        raise DataError(f"{shown(path)} has columns {', '.join(table.column_names)}; expected path "
                        "and embedding")  # fmt: skip
    lists = table["embedding"].combine_chunks()
    try:
        widths = set(pyarrow.compute.list_value_length(lists).to_pylist())
        numbers = lists.flatten().to_numpy(zero_copy_only=False)
    except (TypeError, AttributeError, pyarrow.ArrowException) as error:
        raise DataError(f"column embedding of {shown(path)} holds no lists of numbers") from error
    if not widths:
        raise DataError(f"{shown(path)} has no rows")
    if len(widths) != 1 or None in widths:
        raise DataError(f"the embeddings in {shown(path)} are missing or not all of one length")
    return [str(name) for name in table["path"].to_pylist()], numbers.reshape(len(table), -1)


def _plain(name: str) -> str:
    """A path as it is compared: `./a//b.png` is `a/b.png`."""
    return _text(os.path.normpath(name))


def _text(name: str) -> str:
    """A name that is no Unicode with its bytes escaped: Parquet holds nothing else."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _some(names: Sequence[str]) -> str:
    return ", ".join(shown(os.fspath(name)) for name in names[:3])
