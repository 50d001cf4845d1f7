"""Datasets that Hugging Face `datasets` saved to disk, read where they lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.data.images import ImageSet, Span
from lookalike.data.reading.content import require_pyarrow
from lookalike.data.sources.arrow import image_column, row_names, told_columns
from lookalike.data.sources.columns import image_set
from lookalike.data.sources.parquet import Part, joined
from lookalike.errors import DataError, MissingExtraError
from lookalike.files import shown
from lookalike.progress import Progress


def is_saved_dataset(source: str) -> bool:
    """Says whether a source is a folder that `save_to_disk` wrote."""
    here = [os.path.isfile(os.path.join(source, name))
            for name in ("dataset_dict.json", "state.json", "dataset_info.json")]  # fmt: skip
    return here[0] or (here[1] and here[2])


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
    names: list[str] = []
    places: list[Span] = []
    parts: list[Part] = []
    try:
        found = datasets.load_from_disk(source)
        splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
        with progress.task("listing splits", len(splits), "splits") as task:
            for split, dataset in splits.items():
                spans, columns = _read([one["filename"] for one in dataset.cache_files])
                if len(spans) != len(dataset):
                    raise DataError(
                        f"{shown(source)} has {len(spans):,} rows in its files and {len(dataset):,}"
                        " in its index; save it again"
                    )
                names += [f"{split}/{span.name}" if split else span.name for span in spans]
                places += spans
                parts.append(Part(len(spans), columns, split or None))
                task.advance()
    except (OSError, pyarrow.ArrowException, KeyError) as error:
        raise DataError(f"cannot read the dataset {shown(source)}: {error}") from error
    return image_set(Path(source), names, joined(parts, source), source=source, places=places)


def _read(paths: list[str]) -> tuple[list[Span], dict[str, list[Any]]]:
    """The images in Arrow files of one split, and its other columns."""
    pyarrow, _ = require_pyarrow()
    tables: list[Any] = []
    ranges: list[tuple[str, int, int]] = []
    for path in paths:
        content = pyarrow.memory_map(path).read_buffer()
        table = pyarrow.ipc.open_stream(pyarrow.BufferReader(content)).read_all()
        column = image_column(table.schema)
        if column is None:
            raise DataError(f"{shown(path)} has no column 'image' of images but "
                            f"{', '.join(table.column_names)}; cast it to datasets.Image()"
                            )  # fmt: skip
        tables.append(table)
        for chunk in table[column].chunks:
            ranges += [(path, *one) for one in _ranges(chunk, content, path)]
    if not tables:
        return [], {}
    whole = pyarrow.concat_tables(tables)
    names = row_names(whole, str(column))
    return [Span(*one, name) for one, name in zip(ranges, names, strict=True)], told_columns(whole)


def _ranges(chunk: Any, content: Any, path: str) -> list[tuple[int, int]]:
    """Where in its file the bytes of each image begin, and how many there are."""
    pyarrow, _ = require_pyarrow()
    if pyarrow.types.is_struct(chunk.type):
        chunk = pyarrow.compute.struct_field(chunk, "bytes")
    _, offsets, data = chunk.buffers()
    if not len(chunk) or data is None:
        return [(0, 0)] * len(chunk)
    kind = np.int64 if pyarrow.types.is_large_binary(chunk.type) else np.int32
    ends = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
    start = data.address - content.address
    if not 0 <= start <= content.size - int(ends[-1]):
        raise DataError(f"the Arrow file {shown(path)} is compressed; save the dataset again")
    begins = (start + ends[:-1].astype(np.int64)).tolist()
    return list(zip(begins, np.diff(ends).tolist(), strict=True))
