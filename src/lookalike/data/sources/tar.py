"""Tar shards: webdataset samples, or a class-per-folder tree."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from sys import intern
from typing import IO, Any

from lookalike.data.images import ImageSet, Span, shown_path
from lookalike.data.reading.content import reading
from lookalike.data.sources.columns import COLUMNS, image_set, some
from lookalike.data.sources.leftovers import lies_in_leftovers
from lookalike.data.sources.shards import are_shards, find_shards
from lookalike.data.sources.tree import label_by_folder
from lookalike.errors import DataError, first_line
from lookalike.files import shown
from lookalike.progress import Progress

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_IMAGES = {"avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm",
           "png", "ppm", "tif", "tiff", "webp"}  # fmt: skip
_NOTES = {"cls", "json", "txt"}
_LARGEST_NOTE = 2**20  # bytes of a `.cls` or `.json` that is a sample's
_LABELS = ("label", "class", "cls")


def is_tar(source: str) -> bool:
    """Returns whether a source is a tar by its name, or a folder of them."""
    return are_shards(source, (".tar", *_COMPRESSED))


def load_tar(source: str, progress: Progress, *, labelled: bool = True) -> ImageSet:
    """Lists the images in tar files that are not compressed, by their headers.

    Members whose names agree up to the first dot of the base name are a sample. Its label comes
    from its `.cls`, or from its `.json` (`label`, `class` or `cls`; `split`, `group` and `is_query`
    as well). Where no sample has one, the first folder on a member's name is its label.
    """
    root, shards = find_shards(source, ".tar")
    names: list[str] = []
    places: list[Span] = []
    columns: dict[str, list[Any]] = {column: [] for column in COLUMNS}
    passed: list[str] = []
    with progress.task("listing shards", len(shards), "shards") as task:
        for shard in shards:
            for place, note in _images(shard.path, passed, labelled=labelled):
                names.append(shard.prefix + place.name if shard.prefix else place.name)
                places.append(place)
                for column, values in columns.items():
                    value = note.get(column)
                    values.append(intern(value) if type(value) is str else value)
            task.advance()
    if passed:
        progress.warn(
            f"skipped {len(passed):,} members of {shown(source)} (links, what lies in hidden "
            "folders or systems leave there, and of labelled samples all but the image): "
            f"{some(passed)}"
        )
    told = {name: values for name, values in columns.items()
            if labelled and any(value is not None for value in values)}  # fmt: skip
    images = image_set(root, names, told, source=source, places=places, unit="image")
    if "label" in told or not labelled:
        return images
    return label_by_folder(images, [place.name for place in places], progress)


def _images(path: str, passed: list[str], *, labelled: bool) -> list[tuple[Span, dict[str, Any]]]:
    """Returns the images of one tar in its order, each with what its sample says of it."""
    samples: defaultdict[str, list[tuple[str, Span]]] = defaultdict(list)
    notes: dict[str, dict[str, Any]] = {}
    for place, content in _members(path, passed):
        folder, base = posixpath.split(place.name)
        stem, _, ending = base.partition(".")
        key, ending = posixpath.join(folder, stem), ending.lower()
        samples[key].append((ending, place))
        if content is not None and ending in ("cls", "json"):
            note = _note(content, ending, place) if labelled else {}
            known = notes.get(key, {})
            notes[key] = {**note, **known} if ending == "json" else {**known, **note}
    found: list[tuple[Span, dict[str, Any]]] = []
    for key, members in samples.items():
        images = [one for one in members if one[0] not in _NOTES] or members
        if key in notes and any(ending in _IMAGES for ending, _ in images):
            # The main image, not the mask `000123.seg.png` or the array `000123.npy` beside it.
            passed += [place.name for ending, place in images if ending not in _IMAGES]
            images = [one for one in images if one[0] in _IMAGES]
        found += [(place, notes.get(key, {})) for _, place in images]
    return sorted(found, key=lambda one: one[0].offset)


def _members(path: str, passed: list[str]) -> Iterator[tuple[Span, bytes | None]]:
    """Yields the files in a tar that are not hidden; of notes on samples also the content."""
    with reading(f"the tar {shown(path)}"), open(path, "rb") as file, _opened(file, path) as tar:
        while (member := tar.next()) is not None:
            if tar.offset <= member.offset:  # else the same member would come for ever
                raise tarfile.ReadError(f"a member has {member.size:,} bytes")
            tar.members.clear()  # type: ignore[attr-defined] # else all stay in memory
            name = posixpath.normpath(member.name).lstrip("/")
            folder, base = posixpath.split(name)
            if member.isdir() or base.startswith("."):
                continue
            is_plain = member.isreg() and not member.issparse()
            if not is_plain or "/." in f"/{folder}" or lies_in_leftovers(name):
                passed.append(name)
                continue
            content = None
            if base.lower().endswith((".cls", ".json")) and member.size <= _LARGEST_NOTE:
                file.seek(member.offset_data)
                content = file.read(member.size)
            yield Span(path, member.offset_data, member.size, name), content
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile goes without
            raise tarfile.ReadError(f"neither a header nor the end at byte {tar.offset:,}")


def _opened(file: IO[bytes], path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        file.seek(0)
        if file.read(6).startswith(_MAGIC):
            raise DataError(
                f"{shown(path)} is compressed, so its images cannot be reached one by one; "
                "uncompress it, or write it as plain .tar (images are compressed already)"
            ) from error
        raise


def _note(content: bytes, ending: str, place: Span) -> dict[str, Any]:
    """Returns what a `.cls` or `.json` says of its sample."""
    try:
        if ending == "cls":
            return {"label": content.decode().strip()}
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(shown_path(place))} is not valid {ending}: {first_line(error)}; "
                        "correct it, or leave it out of the tar") from error  # fmt: skip
    if not isinstance(found, dict):
        return {}
    labels = [found[one] for one in _LABELS if found.get(one) is not None]
    return {**{one: found[one] for one in COLUMNS if one in found},
            **({"label": labels[0]} if labels else {})}  # fmt: skip
