"""Embeddings as files that other tools read and write: `.npy` beside a `.csv`, or Parquet.

Beside ours stands the embedder they are of, so that those of two models are never compared.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from unicodedata import normalize

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from lookalike.data.images import ImageSet
from lookalike.data.reading.content import read_parquet, require_pyarrow
from lookalike.data.sources.cells import guarded, unguarded
from lookalike.data.sources.columns import some
from lookalike.data.sources.tables.delimited import read_names
from lookalike.data.sources.tables.header import find_columns
from lookalike.errors import DataError
from lookalike.files import shown, write_json, write_whole
from lookalike.progress import Progress, SilentProgress, counted

MANIFEST = "manifest.json"
"""The file of a folder of shards that tells what it holds."""

_METADATA = b"lookalike"  # key in the metadata of a Parquet file's schema
_TOLD = {"fingerprint", "model_name", "embedding", "dim"}  # of an embedder, by all files of ours
_ROWS_AT_A_TIME = 2**16


def embedding_files(path: Path) -> list[Path]:
    """Lists what `save_embeddings` writes."""
    if path.suffix == ".parquet":
        return [path]
    return [path, path.with_suffix(".csv"), path.with_suffix(".json")]


def save_embeddings(
    path: Path,
    embeddings: Float32[Tensor, "n dim"],
    images: ImageSet,
    embedder: Mapping[str, Any] | None = None,
) -> None:
    """Writes embeddings with the names (and labels, if there are any) of their images.

    `x.npy` holds a float32 matrix of shape (n, dim), `x.csv` beside it one row an image, in the
    same order, with columns path and label, and `x.json` the embedder. `x.parquet` holds columns
    path, label and embedding, a list of dim float32, and the embedder in its schema's metadata,
    as JSON under the key `lookalike`. Of the embedder it takes `Embedder.facts()`, if it is known.

    Raises:
        MissingExtraError: Parquet without `pyarrow` installed.
    """
    document = {"embedder": None if embedder is None else dict(embedder)}
    columns = columns_of(images)
    if path.suffix == ".parquet":
        pyarrow, parquet = require_pyarrow()
        flat = pyarrow.array(embeddings.numpy().ravel())
        lists = pyarrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
        texts = {name: [_text(value) for value in column] for name, column in columns.items()}
        table = pyarrow.table({**texts, "embedding": lists})
        table = table.replace_schema_metadata({_METADATA: json.dumps(document)})
        write_whole(path, lambda file: parquet.write_table(table, file))
        return
    write_whole(path, lambda file: np.save(file, embeddings.numpy()))
    write_names(path.with_suffix(".csv"), columns)
    write_json(path.with_suffix(".json"), document)


def columns_of(images: ImageSet) -> dict[str, list[str]]:
    """Returns path and, where there are labels, label of images, as columns of a table."""
    columns = {"path": images.names}
    return columns if images.labels is None else columns | {"label": images.labels}


def write_names(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Writes a CSV file of names, whatever bytes they are made of.

    One that a spreadsheet would take for a formula, and run, gets an apostrophe before it (OWASP,
    "CSV Injection"), and so does one that already begins so, that `read_names_back` can tell.
    """

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        table = csv.writer(text)
        table.writerow(columns)
        safe = ([guarded(cell) for cell in cells] for cells in columns.values())
        table.writerows(zip(*safe, strict=True))
        text.flush()
        text.detach()

    write_whole(path, write)


def read_names_back(path: Path) -> list[str]:
    """Returns column `path` of such a file, or of another system's; DataError if there is none."""
    return list(map(unguarded, read_names(path)))


def embedder_of_both(first: Path, second: Path) -> dict[str, Any] | None:
    """Returns the embedder that two files or folders are of; None where one does not tell.

    Raises:
        DataError: they are of two models; names both.
    """
    told = [(path, known) for path in (first, second) if (known := _embedder_of(path)) is not None]
    if len({known["fingerprint"] for _, known in told}) > 1:
        both = " and ".join(f"{shown(path)} of {described(known)}" for path, known in told)
        raise DataError(
            f"these embeddings are of two models, and cannot be compared: {both}. Embed one of "
            "them again with the other's model: lookalike embed IMAGES --model-name NAME"
        )
    return told[0][1] if len(told) == 2 else None


def described(embedder: Mapping[str, Any]) -> str:
    """Returns an embedder's facts in a few words."""
    return (f"{embedder['model_name']} ({embedder['embedding']} {embedder['dim']}-d, fingerprint "
            f"{embedder['fingerprint']})")  # fmt: skip


def _embedder_of(path: Path) -> dict[str, Any] | None:
    """Returns the embedder that rows were made by; None where nothing tells."""
    if path.suffix.lower() == ".parquet":
        _, parquet = require_pyarrow()
        text = (parquet.read_schema(path).metadata or {}).get(_METADATA, b"null")
    else:
        file = path / MANIFEST if path.is_dir() else path.with_suffix(".json")
        text = file.read_bytes() if file.is_file() else b"null"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):  # a file of somebody else's, by chance of that name
        return None
    known = document.get("embedder") if isinstance(document, dict) else None
    return known if isinstance(known, dict) and known.keys() >= _TOLD else None


def rows_of_images(
    path: Path,
    names: Sequence[str],
    images: ImageSet,
    progress: Progress,
    *,
    without: Collection[str] = (),
    root: str | None = None,
) -> list[int]:
    """Finds the row of each image in `names` by where it lies, or else by its name.

    By name alone, as far up its path as agrees, those are found whose folder nobody knows, and
    those that are no longer where they were; the latter with a warning, as they may be others.

    Args:
        path: of the embeddings, for messages.
        names: of the rows, below `root`.
        images: those that rows are wanted of.
        progress: where the warning goes.
        without: names of images that are known to have no row; -1 stands for these.
        root: the folder that the names are of, where it is known.

    Raises:
        DataError: an image is missing or named twice.
    """
    numbered = [*((name, -1) for name in without), *zip(names, range(len(names)), strict=True)]
    folder = cache(os.path.realpath)  # each is looked at once
    by_place = dict[str, int]()
    if root is not None:
        by_place = {_place(os.path.join(root, name), folder): row for name, row in numbered}
    row_of = dict[str, int]()
    for name, row in numbered:
        if row_of.setdefault(_plain(name), row) != row and root is None:
            raise DataError(f"{shown(path)} names {shown(name)} twice; one embedding an image")
    rows, missing, moved = list[int](), list[str](), 0
    for name, full in zip(images.names, images.paths, strict=True):
        known = by_place.get(_place(full, folder)) if by_place else None
        if known is None and (found := _longest_known(name, full, row_of)) is not None:
            is_elsewhere = root is not None and _is_there(os.path.join(root, found))
            known = None if is_elsewhere else row_of[found]
            moved += root is not None and not is_elsewhere
        missing += [name] if known is None else []
        rows += [] if known is None else [known]
    if missing:
        below = "" if root is None else f" in {shown(root)}"
        raise DataError(
            f"{len(missing):,} of {len(images):,} images have no embedding in {shown(path)}, "
            f"such as {some(missing)}; it is of images{below} such as {some(names)}. Embed the "
            "others as well: lookalike embed IMAGES --model-name NAME"
        )
    if moved:
        progress.warn(
            f"{counted(moved, 'image')} found in {shown(path)} by name alone, as those that were "
            f"embedded are no longer in {shown(root or '')}: make sure that they are the same"
        )
    return rows


def _place(path: str, real: Callable[[str], str]) -> str:
    """Returns where a file really lies; `real` does so for folders."""
    above, name = os.path.split(path)
    whole = os.path.join(real(above or "."), name)
    return _text(os.path.realpath(whole) if os.path.islink(whole) else whole)


def _longest_known(name: str, full: str, known: Collection[str]) -> str | None:
    """Returns the longest end of a path, its name at least, that is in `known`."""
    whole, least = _plain(os.path.abspath(full)), _plain(name)
    parts = whole.split(os.sep)
    ends = [whole, *(os.sep.join(parts[start:]) for start in range(1, len(parts))), least]
    return next((end for end in ends if end in known and len(end) >= len(least)), None)


def _is_there(path: str) -> bool:
    """Returns whether a file is there, or the file it is a part of, such as a tar."""
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
        if os.path.isfile(path):
            return True
    return not os.path.isdir(path)


def load_embeddings(path: Path, images: ImageSet) -> Float32[Tensor, "n dim"]:
    """Reads the embeddings of these images, in their order, and brings them to length 1.
    Rows of other images are left out.

    Raises:
        DataError: the file is no matrix of embeddings, an image is missing or named twice, or
            an embedding is zero or not finite.
    """
    names, matrix = _read(path)
    rows = rows_of_images(path, names, images, SilentProgress())
    result = torch.empty(len(rows), matrix.shape[1])
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        part = rows[start : start + _ROWS_AT_A_TIME]
        result[start : start + len(part)] = _unit(matrix[part])
    bad = (~result.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(f"embeddings of {counted(len(bad), 'image')} in {shown(path)} are zero or "
                        f"not finite: {some([images.names[i] for i in bad])}")  # fmt: skip
    return result


def _unit(rows: np.ndarray) -> Float32[Tensor, "n dim"]:
    """Returns rows brought to length 1, whatever their scale; not finite where there is none."""
    wide = torch.from_numpy(rows.astype(np.float64))
    wide /= wide.abs().amax(dim=1, keepdim=True)
    unit: Tensor = wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return unit.float()


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Returns names and matrix, whichever the format."""
    if path.suffix.lower() == ".parquet":
        names, matrix = _read_parquet(path)
    elif path.suffix.lower() == ".npy":
        try:
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise DataError(f"cannot read {shown(path)}: {error.strerror or error}") from error
        except (ValueError, EOFError, SyntaxError, TokenError) as error:  # of its header, in Python
            raise DataError(f"{shown(path)} is no .npy file of numbers, or not whole") from error
        if not isinstance(matrix, np.ndarray):
            matrix.close()
            raise DataError(f"{shown(path)} is an archive of arrays; expected a single array")
        names = read_names_back(path.with_suffix(".csv"))
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
    pyarrow, table = require_pyarrow()[0], read_parquet(path)
    places = find_columns(table.column_names, path, ("path", "embedding"))
    if len(places) < 2:
        raise DataError(f"{shown(path)} has columns {some(table.column_names, 20)}; expected path "
                        "and embedding")  # fmt: skip
    table = table.select(list(places.values())).rename_columns(list(places))
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
    """Returns a path as it is compared: `./a//b.png` is `a/b.png`, in either form of Unicode."""
    return _text(normalize("NFC", os.path.normpath(name)))


def _text(name: str) -> str:
    """Returns a name with bytes that are no Unicode escaped: Parquet holds nothing else."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
