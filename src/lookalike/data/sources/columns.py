"""Columns of a source, whatever it is: checked and brought into an `ImageSet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lookalike.data.images import ImageRef, ImageSet
from lookalike.data.reading.decode import probe_image
from lookalike.errors import DataError, ImageError
from lookalike.files import shown
from lookalike.progress import Progress, counted

COLUMNS = ("label", "split", "is_query", "group")
"""What a source may say of an image."""

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def image_set(
    root: Path,
    names: list[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    source: str | Path,
    places: Sequence[ImageRef] | None = None,
    unit: str = "row",
) -> ImageSet:
    """Returns images with those of `COLUMNS` that there are, as text and flags.

    Args:
        root, names, places: of the `ImageSet`.
        columns: one value an image in each; others are passed over.
        source: for messages.
        unit: the word for an image's place in the source, for messages.

    Raises:
        DataError: there are no images, a name stands twice, or a value is missing or wrong.
    """
    if not names:
        raise DataError(f"{shown(source)} has no {unit}s")
    seen: set[str] = set()
    for row, name in enumerate(names, start=1):
        if name in seen:
            raise DataError(f"{shown(source)} names {shown(name)} twice, again in {unit} {row}; "
                            "list each image once")  # fmt: skip
        seen.add(name)

    def texts(column: str) -> list[str] | None:
        if column not in columns:
            return None
        return [
            cell(value, f"{unit} {row} of {shown(source)}", column)
            for row, value in enumerate(columns[column], 1)
        ]

    groups = columns.get("group")
    return ImageSet(
        root,
        names,
        labels=texts("label"),
        groups=None if groups is None else ["" if g is None else str(g).strip() for g in groups],
        splits=texts("split"),
        is_query=_read_flags(columns.get("is_query"), source, unit),
        places=places,
    )


def label_by_folder(images: ImageSet, paths: Sequence[str], progress: Progress) -> ImageSet:
    """Returns images labelled by the first folder on their path; as they are where none has one.

    Raises:
        DataError: some lie in folders and some beside them.
    """
    in_folders = [i for i, path in enumerate(paths) if "/" in path]
    if not in_folders:
        return images
    root = images.root
    if len(in_folders) < len(images):
        refs = images.refs
        loose = [i for i, path in enumerate(paths) if "/" not in path]
        # A note, a licence or a .DS_Store beside the class folders is common and harmless.
        found = [paths[i] for i in loose if _is_image(refs[i])]
        if found:
            raise DataError(
                f"{shown(root)} holds class folders and also {counted(len(found), 'image')} "
                f"beside them ({some(found)}); move these into a class folder, or out of it"
            )
        progress.warn(
            f"passed over files that cannot be read as images in {shown(root)}: "
            f"{some([paths[i] for i in loose])}"
        )
        images = images.subset(in_folders)
    labels = [paths[i].partition("/")[0] for i in in_folders]
    splits = sorted(set(labels))
    if _SPLITS.issuperset(splits) and all(paths[i].count("/") > 1 for i in in_folders):
        progress.warn(
            f"the classes of {shown(root)} are called {some(splits)}, as parts of a data set are, "
            f"and have folders of their own; for these as classes give "
            f"{shown(root / splits[-1])}"
        )
    return replace(images, labels=labels)


def cell(value: Any, where: str, column: str) -> str:
    """A cell that must not be empty, as text."""
    text = "" if value is None else str(value)
    if not text.strip():
        raise DataError(f"{where} has nothing in column {column!r}; fill it, "
                        "or leave the row or the column out")  # fmt: skip
    return text if column == "path" else text.strip()  # a file's name may begin with a space


def _read_flags(values: Sequence[Any] | None, source: str | Path, unit: str) -> list[bool] | None:
    if values is None:
        return None
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    words |= {"1.0": True, "0.0": False, "nan": False}  # what pandas makes of a column with gaps
    flags: list[bool] = []
    for row, value in enumerate(values, start=1):
        word = "false" if value is None else str(value).strip().lower() or "false"
        if word not in words:
            raise DataError(f"{unit} {row} of {shown(source)} has is_query {value!r}; "
                            "expected true or false")  # fmt: skip
        flags.append(words[word])
    return flags


def _is_image(ref: ImageRef) -> bool:
    try:
        probe_image(ref)
    except ImageError:
        return False
    return True


def some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first few of some names, and how many more there are."""
    told = ", ".join(shown(name) for name in names[:most])
    return told + (f" and {len(names) - most:,} more" if len(names) > most else "")
