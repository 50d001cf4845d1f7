"""Sources of images: folders, tables, tar shards, Parquet, datasets on disk, as one `ImageSet`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lookalike.data.images import ImageSet
from lookalike.data.sources.arrow import (
    has_embedded_images,
    is_saved_dataset,
    load_parquet,
    load_saved_dataset,
)
from lookalike.data.sources.folder import class_folders, load_folder
from lookalike.data.sources.tables.table import TABLE_ENDINGS, is_table, load_table
from lookalike.data.sources.tar import is_tar, load_tar
from lookalike.errors import DataError
from lookalike.files import does_not_exist, shown
from lookalike.progress import Progress, SilentProgress


class Source(NamedTuple):
    """A kind of source: which sources are of it, and how their images are listed."""

    matches: Callable[[str], bool]
    load: Callable[[str, Progress], ImageSet]
    load_unlabelled: Callable[[str, Progress], ImageSet] | None = None  # None: as `load` does


def _source(matches: Callable[[str], bool], load: Callable[..., ImageSet]) -> Source:
    return Source(matches, load, partial(load, labelled=False))


SOURCES: dict[str, Source] = {
    "folder": _source(os.path.isdir, load_folder),
    "table": _source(is_table, load_table),
    "tar": _source(is_tar, load_tar),
    "parquet": _source(has_embedded_images, load_parquet),
    "hugging face": _source(is_saved_dataset, load_saved_dataset),
}
"""All kinds by name. A kind that is added is asked before those that stand here already."""


def kind_of(source: str | Path) -> str:
    """Returns the name in `SOURCES` of the kind that a source is of.

    Raises:
        DataError: it does not exist, or is of no kind.
    """
    path = os.fspath(source)
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise DataError(f"{shown(path)} is neither a file nor a folder, but a pipe, a socket or a "
                        "device")  # fmt: skip
    for name, kind in reversed(SOURCES.items()):
        if kind.matches(path):
            return name
    if not os.path.exists(path):
        raise DataError(does_not_exist(Path(path)))
    raise DataError(
        f"{shown(path)} is neither a folder nor a table; give a folder of images, a table whose "
        f"name ends in {', '.join(TABLE_ENDINGS)}, or one of the other kinds in docs/data.md"
    )


def if_one_class(source: str) -> str:
    """Returns advice on a folder of images without folders in it but others beside it, or ""."""
    above = Path(source).parent
    if kind_of(source) != "folder" or class_folders(source) or len(class_folders(above)) < 2:
        return ""
    return f"; if it is one class of {shown(above)}, give that"


def load_images(source: str | Path, progress: Progress | None = None) -> ImageSet:
    """Lists the images of a source without decoding them.

    - A folder with sub-folders is a class-per-folder tree: an image's label is the first
      folder on its path, however deep it lies below that.
    - A folder without sub-folders is flat: its images have no labels.
    - A `.csv`, `.tsv` or `.parquet` file is a table with a column `path` (relative to the
      table's folder, or absolute) and any of `label`, `split`, `is_query` and `group`.
    - A `.tar`, `shards-{0000..0063}.tar` or a folder of them holds webdataset samples, or a
      class-per-folder tree.
    - Parquet files with a column of images hold these themselves.
    - A folder that Hugging Face datasets saved is read where it lies.

    Extensions of image files mean nothing: every file counts until it is read. Hidden folders and
    what systems leave in folders (`@eaDir`, `Thumbs.db`) are skipped, and said so; hidden files are
    no images.

    Raises:
        DataError: the source is missing, empty, damaged, half tree and half flat, or a folder of
            splits (`train` and `test`, `query` and `gallery`) in place of classes; a table lacks
            `path`, names a file twice, or has a cell that cannot be what its column says.
        MissingExtraError: Parquet or a saved dataset without `pyarrow` installed.
    """
    return SOURCES[kind_of(source)].load(os.fspath(source), progress or SilentProgress())


def load_unlabelled(source: str | Path, progress: Progress | None = None) -> ImageSet:
    """Lists the images of a source without labels: as `load_images` does, but all that are in it,
    wherever they lie in there and whether they have a label or not.
    """
    kind = SOURCES[kind_of(source)]
    load = kind.load_unlabelled or kind.load
    return replace(load(os.fspath(source), progress or SilentProgress()), labels=None)
