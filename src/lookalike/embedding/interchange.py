"""Embeddings as files that other tools read and write: `.npy` beside a `.csv`, or Parquet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.data.sources import ImageSet, load_images
from lookalike.errors import DataError, MissingExtraError
from lookalike.files import shown, write_whole


def save_embeddings(
    path: Path, embeddings: Float32[Tensor, "n dim"], images: ImageSet
) -> list[Path]:
    """Writes embeddings with the names (and labels) of their pictures.

    `x.npy` holds a float32 matrix of shape (n, dim) and `x.csv` beside it one row a picture, in
    the same order, with columns path and label. `x.parquet` holds columns path, label and
    embedding, a list of dim float32.

    Returns:
        The files written.

    Raises:
        MissingExtraError: Parquet without `pyarrow` installed.
    """
    labels = images.labels or [""] * len(images)
    if path.suffix == ".parquet":
        pyarrow, parquet = _pyarrow()
        flat = pyarrow.array(embeddings.numpy().ravel())
        columns = {
            "path": [shown(name) for name in images.names],
            "label": [shown(label) for label in labels],
            "embedding": pyarrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
        }
        write_whole(path, lambda file: parquet.write_table(pyarrow.table(columns), file))
        return [path]
    names = path.with_suffix(".csv")

    def write_names(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        csv.writer(text).writerows([("path", "label"), *zip(images.names, labels, strict=True)])
        text.flush()
        text.detach()

    write_whole(path, lambda file: np.save(file, embeddings.numpy()))
    write_whole(names, write_names)
    return [path, names]


def load_embeddings(path: Path, images: ImageSet) -> Float32[Tensor, "n dim"]:
    """The embeddings of these pictures, in their order, L2-normalised.

    Rows are found by the picture's name below its folder, or by its path as it is written in
    the file. Rows of other pictures are passed over.

    Raises:
        DataError: the file is no matrix of embeddings, a picture is missing or named twice, or
            an embedding is zero or not finite.
    """
    names, matrix = _read(path)
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):
        if row_of.setdefault(name, row) != row:
            raise DataError(f"{shown(path)} names {shown(name)} twice; one embedding a picture")
    rows = [
        row_of.get(name, row_of.get(full, -1))
        for name, full in zip(images.names, images.paths, strict=True)
    ]
    missing = [name for name, row in zip(images.names, rows, strict=True) if row < 0]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(images):,} pictures have no embedding in {shown(path)}, "
            f"such as {_some(missing)}; it names pictures such as {_some(names)}"
        )
    chosen = torch.from_numpy(np.asarray(matrix[rows], dtype=np.float32))
    bad = ~chosen.isfinite().all(dim=1) | (chosen == 0).all(dim=1)
    if bad.any():
        named = [images.names[i] for i in bad.nonzero()[:, 0].tolist()]
        raise DataError(f"{len(named):,} embeddings in {shown(path)} are zero or not finite: those "
                        f"of {_some(named)}")  # fmt: skip
    return normalize(chosen, dim=1)


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and matrix, whichever the format."""
    if path.suffix == ".parquet":
        names, matrix = _read_parquet(path)
    elif path.suffix == ".npy":
        try:
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {shown(path)}: {error}") from error
        names = load_images(path.with_suffix(".csv")).names
    else:
        raise DataError(f"{shown(path)} is neither .npy nor .parquet")
    if matrix.ndim != 2 or len(matrix) != len(names):
        raise DataError(
            f"{shown(path)} holds an array of shape {tuple(matrix.shape)} for {len(names):,} "
            f"names; expected ({len(names)}, dim)"
        )
    if not np.issubdtype(matrix.dtype, np.floating):
        raise DataError(f"{shown(path)} holds {matrix.dtype}; expected floating-point numbers")
    return names, matrix


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    pyarrow, parquet = _pyarrow()
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
    if len(widths) != 1 or None in widths:
        raise DataError(f"the embeddings in {shown(path)} are not all of one length")
    return [str(name) for name in table["path"].to_pylist()], numbers.reshape(len(table), -1)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow.compute
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow: pip install 'lookalike[parquet]'"
        ) from error
    return pyarrow, parquet


def _some(names: Sequence[str]) -> str:
    return ", ".join(shown(os.fspath(name)) for name in names[:3])
