"""Datasets that Hugging Face `datasets` saved to disk, read where they lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.data.images import ImageSet, Span
from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.arrow import Part, image_column, joined, row_names
from lookalike.errors import DataError, MissingExtraError
from lookalike.files import shown
from lookalike.progress import Progress


def is_saved_dataset(source: str) -> bool:
    """Says whether a source is a folder that `save_to_disk` wrote."""
    here = [os.path.isfile(os.path.join(source, name))
            for name in ("dataset_dict.json", "state.json", "dataset_info.json")]  # fmt: skip
    return here[0] or all(here[1:])


def load_saved_dataset(source: str, progress: Progress) -> ImageSet:
    """Lists the images of a dataset, or of all splits of a `DatasetDict`.

    Each is a range of bytes of an Arrow file, which is not compressed: reading it takes no library.

    Raises:
        DataError: the folder is damaged, or has no images.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "reading a dataset that was saved to disk needs Hugging Face datasets: "
            "pip install 'lookalike[datasets]'"
        ) from error
    pyarrow, _ = require_pyarrow()
    try:
        found = datasets.load_from_disk(source)
        splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
        with progress.task("listing splits", len(splits), "splits") as task:
            parts: list[Part] = []
            for split, dataset in splits.items():
                part = _read([one["filename"] for one in dataset.cache_files])
                parts.append(part._replace(prefix=f"{split}/" if split else "", split=split))
                task.advance()
    except (OSError, pyarrow.ArrowException, KeyError) as error:
        raise DataError(f"cannot read the dataset {shown(source)}: {error}") from error
    return joined(parts, Path(source), source)


def _read(paths: list[str]) -> Part:
    """The rows in Arrow files of one split."""
    pyarrow, _ = require_pyarrow()
    tables: list[Any] = []
    ranges: list[tuple[str, int, int]] = []
    column = ""
    for path in paths:
        content = pyarrow.memory_map(path).read_buffer()
        table = pyarrow.ipc.open_stream(pyarrow.BufferReader(content)).read_all()
        column = image_column(table.schema, path)
        tables.append(table)
        for chunk in table[column].chunks:
            ranges += [(path, *one) for one in _ranges(chunk, content, path)]
    if not tables:
        return Part(pyarrow.table({}), [])
    whole = pyarrow.concat_tables(tables)
    names = row_names(whole, column)
    return Part(whole, [Span(*one, name) for one, name in zip(ranges, names, strict=True)])


def _ranges(chunk: Any, content: Any, path: str) -> list[tuple[int, int]]:
    """The place in its file and the number of bytes of each image."""
    pyarrow, _ = require_pyarrow()
    if pyarrow.types.is_struct(chunk.type):
        chunk = pyarrow.compute.struct_field(chunk, "bytes")
    _, offsets, data = chunk.buffers()
    kind = np.int64 if pyarrow.types.is_large_binary(chunk.type) else np.int32
    ends = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
    start = data.address - content.address if data else 0
    if not 0 <= start <= content.size - int(ends[-1]):
        raise DataError(f"the Arrow file {shown(path)} is compressed; save the dataset again")
    begins = (start + ends[:-1].astype(np.int64)).tolist()
    return list(zip(begins, np.diff(ends).tolist(), strict=True))
