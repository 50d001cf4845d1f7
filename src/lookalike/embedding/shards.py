"""Embeddings as a folder of parts, each whole and durable, so that work that was killed goes on.

A source is cut into numbered parts, which are embedded apart, in any order. The rows of one depend
on its images alone: not on how many processes there are, or which of them embeds it.

manifest.json      format, list of images, embedder, settings
images.csv         path (and label) of every image, in order
part-00000.npy     float32, a row for each image of the part that could be read
part-00000.json    written after it: rows, unreadable images, SHA-256 of the .npy
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from lookalike.data.images import ImageSet, Unreadable
from lookalike.data.reading.reader import Request
from lookalike.data.sources.columns import some
from lookalike.embedding.embedder import Embedder, check_finite
from lookalike.embedding.interchange import (
    MANIFEST,
    columns_of,
    described,
    read_names_back,
    write_names,
)
from lookalike.errors import DataError, OutputError
from lookalike.files import shown, write_json, write_whole

FORMAT = "lookalike-embeddings-1"
IMAGES = "images.csv"
_FORMATS = "lookalike-embeddings-"
_REPAIR = "run the same lookalike embed command again to repair it"
_EXPECTED = "expected what lookalike embed writes; if it did, embed again with --overwrite"
_MANIFEST_HOLDS: dict[str, dict[str, type]] = {
    "images": {"root": str, "fingerprint": str, "num_images": int},
    "embedder": {"fingerprint": str, "model_name": str, "embedding": str, "dim": int},
    "settings": {"images_per_part": int},
}


@dataclass(frozen=True)
class Plan:
    """The cut of a source into parts, each of which is embedded in batches of its own."""

    num_images: int
    images_per_part: int
    batch_size: int

    @property
    def num_parts(self) -> int:
        """Returns how many parts there are."""
        return -(-self.num_images // self.images_per_part)

    def positions_of(self, number: int) -> range:
        """Returns the positions of a part's images in the source."""
        first = number * self.images_per_part
        return range(self.num_images)[first : first + self.images_per_part]

    def requests_of(self, number: int) -> list[Request]:
        """Returns a part's batches."""
        size, images = self.batch_size, self.positions_of(number)
        return [Request(images[start : start + size]) for start in range(0, len(images), size)]


def embed_parts(
    folder: Path, embedder: Embedder, images: ImageSet, plan: Plan, numbers: Sequence[int]
) -> None:
    """Embeds some parts of a source, and writes each when it is done, in the order of `numbers`.

    Images are read ahead across parts. Of several processes each is given numbers of its own.

    Raises:
        DataError: a reading process died.
        ModelError: an embedding is not finite, or the device has too little memory.
        OutputError: a part cannot be written.
    """
    if not numbers:
        return  # and no reading process is started
    requests = [request for number in numbers for request in plan.requests_of(number)]
    loader = embedder.loader(images.refs)
    batches = embedder.read(loader, requests, images.names, plan.batch_size)
    for number in numbers:
        rows: list[Tensor] = []
        unreadable: list[dict[str, Any]] = []
        for request in plan.requests_of(number):
            batch = next(batches)
            check_finite(batch.embeddings, batch.names)
            rows.append(batch.embeddings)
            missing = sorted({*request.indices} - {*batch.positions.tolist()})
            for position, one in zip(missing, batch.unreadable, strict=True):
                unreadable.append({"position": position, "path": one.path, "reason": one.reason})
        _write_part(_mark_of(folder, number), torch.cat(rows), unreadable)
    next(batches, None)  # its display ends


@dataclass(frozen=True)
class Mark:
    """The file that makes a part done: how many rows it has, and which images have none."""

    rows: int
    unreadable: dict[int, Unreadable]  # by position in the source
    sha256: str  # of the part's file


@dataclass(frozen=True)
class Shards:
    """A finished folder of embeddings, memory-mapped: only what is asked for is read.

    `names[i]`, below the folder `root`, is the image of row i of the shards, which stand below each
    other. `embedder` is what `Embedder.facts()` said of the model.
    """

    root: str
    embeddings: list[Float32[np.ndarray, "rows dim"]]
    names: list[str]
    unreadable: dict[str, str]  # reasons by name
    embedder: dict[str, Any]


def start_shards(
    folder: Path, images: ImageSet, embedder: Embedder, plan: Plan, *, overwrite: bool
) -> list[int]:
    """Prepares a folder, or goes on with one, and returns the numbers of the parts to do.

    A part whose file is not the one that was written is done again, and said so.

    Raises:
        OutputError: the folder holds embeddings of another model, other images or other settings,
            or cannot be written to.
    """
    manifest = {
        "format": FORMAT,
        "images": {"root": os.path.abspath(images.root), "fingerprint": images.fingerprint(),
                   "state": images.state(), "num_images": len(images)},
        "embedder": embedder.facts(),
        "settings": {"precision": embedder.runtime.precision,
                     "exact_pixels": embedder.preprocessing.exact,
                     "max_megapixels": embedder.max_megapixels,
                     "eval_batch_size": plan.batch_size, "images_per_part": plan.images_per_part},
        "dtype": "float32",
    }  # fmt: skip
    path = folder / MANIFEST
    if path.exists():
        try:
            there = _read_json(path)
        except DataError:
            if not (overwrite and _files_of_parts(folder)):
                raise
            there = {"format": FORMAT}  # one of ours that was cut short
        if not str(there.get("format")).startswith(_FORMATS):
            raise OutputError(f"{shown(path)} was not written by lookalike embed; choose another "
                              "folder with --out")  # fmt: skip
        if overwrite:  # the manifest last, as it tells what the rest is
            for one in (*_files_of_parts(folder), path):
                one.unlink()
        else:
            _refuse_other(folder, there, manifest)
    if not path.exists():
        strange = _files_of_parts(folder)
        if strange:
            raise OutputError(f"{shown(strange[0])} exists, but there is no {MANIFEST} that "
                              "describes it; choose another folder with --out")  # fmt: skip
        if (folder / IMAGES).exists() and not overwrite:
            raise OutputError(f"{shown(folder / IMAGES)} exists, and would be replaced; choose "
                              "another folder with --out, or --overwrite it")  # fmt: skip
        write_json(path, manifest)
    if not _names_are(folder / IMAGES, images):  # also where they were lost or changed
        write_names(folder / IMAGES, columns_of(images))
    done = [number for number in range(plan.num_parts) if _mark_of(folder, number).exists()]
    broken = [number for number in done if not _is_whole(folder, number, plan)]
    if broken:
        files = some([f"part-{number:05}.npy" for number in broken])
        told = f"damaged since they were written, so done again: {files} of {shown(folder)}"
        embedder.progress.warn(told)
    return sorted({*range(plan.num_parts)} - {*done} | {*broken})


def _write_part(mark: Path, rows: Tensor, unreadable: list[dict[str, Any]]) -> None:
    """Writes a part whole, and then its mark, from when on it is done."""
    buffer = io.BytesIO()
    np.save(buffer, rows.numpy())
    content = buffer.getbuffer()
    mark.unlink(missing_ok=True)  # of a part that is done again
    write_whole(mark.with_suffix(".npy"), lambda file: file.write(content))
    digest = hashlib.sha256(content).hexdigest()
    write_json(mark, {"rows": len(rows), "unreadable": unreadable, "sha256": digest})


def unreadable_in(folder: Path, plan: Plan) -> list[Unreadable]:
    """Lists what could not be read, in order, of a folder that is finished."""
    marks = [_read_mark(folder, number, plan) for number in range(plan.num_parts)]
    return [one for mark in marks for one in mark.unreadable.values()]


def open_shards(folder: Path) -> Shards:
    """Opens a finished folder of embeddings without reading them.

    Raises:
        DataError: it is none of ours, not finished, or damaged.
    """
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise DataError(f"{shown(folder)} is in format {manifest.get('format')!r}; this version "
                        f"reads {FORMAT!r}: install a newer one, or embed again")  # fmt: skip
    if not _is_complete(manifest):
        raise DataError(f"{shown(folder / MANIFEST)} is damaged; embed again with --overwrite")
    per_part = manifest["settings"]["images_per_part"]
    plan = Plan(manifest["images"]["num_images"], per_part, batch_size=1)
    num_done = sum(_mark_of(folder, number).exists() for number in range(plan.num_parts))
    if num_done < plan.num_parts:
        raise DataError(
            f"{shown(folder)} is not finished: {num_done:,} of {plan.num_parts:,} parts are done. "
            "Go on with the lookalike embed command that began it"
        )
    names = read_names_back(folder / IMAGES)
    if len(names) != plan.num_images:
        raise DataError(f"{shown(folder / IMAGES)} names {len(names):,} images where "
                        f"{plan.num_images:,} were embedded; {_REPAIR}")  # fmt: skip
    embeddings, unreadable = [], dict[int, str]()
    for number in range(plan.num_parts):
        mark = _read_mark(folder, number, plan)
        file_name = _mark_of(folder, number).with_suffix(".npy")
        unreadable |= {position: one.reason for position, one in mark.unreadable.items()}
        if not mark.rows:
            continue  # nothing that could be mapped
        try:
            rows = np.load(file_name, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, FileNotFoundError, SyntaxError, TokenError) as error:
            raise DataError(
                f"{shown(file_name)} cannot be read or is incomplete; {_REPAIR}"
            ) from error
        except OSError as error:  # such as too many open files
            raise DataError(f"cannot read {shown(file_name)}: {error.strerror or error}") from error
        expected = (mark.rows, manifest["embedder"]["dim"])
        if rows.shape != expected or rows.dtype != np.float32:
            raise DataError(f"{shown(file_name)} holds {rows.dtype} of shape {rows.shape}; "
                            f"expected float32 of {expected}")  # fmt: skip
        embeddings.append(rows)
    readable = [name for position, name in enumerate(names) if position not in unreadable]
    return Shards(
        manifest["images"]["root"],
        embeddings,
        readable,
        {names[position]: reason for position, reason in unreadable.items()},
        manifest["embedder"],
    )


def _refuse_other(folder: Path, there: dict[str, Any], now: Mapping[str, Any]) -> None:
    """Raises where a folder holds something else than what is to be written."""
    before = there["settings"] if _is_complete(there) else {}
    changed = [f"{name} {before.get(name)} there, {value} now"
               for name, value in now["settings"].items() if before.get(name) != value]  # fmt: skip
    if there.get("format") != FORMAT:
        differs = f"format {there.get('format')!r}, and this version writes {FORMAT!r}"
    elif not _is_complete(there):
        differs = f"a {MANIFEST} that is damaged"
    elif there["embedder"]["fingerprint"] != now["embedder"]["fingerprint"]:
        differs = (f"embeddings of {described(there['embedder'])}, and this model is "
                   f"{described(now['embedder'])}")  # fmt: skip
    elif there["images"]["fingerprint"] != now["images"]["fingerprint"]:
        differs = f"embeddings of {_list_of(there)}, and these are {_list_of(now)}"
    elif there["images"].get("state") != now["images"]["state"]:
        differs = (f"embeddings of {_list_of(there)}; these, in {shown(now['images']['root'])}, "
                   "have the same names, but other files: some have changed")  # fmt: skip
    elif changed:
        differs = f"embeddings made with other settings ({'; '.join(changed)})"
    else:
        return
    raise OutputError(f"{shown(folder)} holds {differs}. Replace it with --overwrite, or "
                      "choose another folder with --out")  # fmt: skip


def _list_of(manifest: Mapping[str, Any]) -> str:
    images = manifest["images"]
    return (f"{images['num_images']:,} images of {shown(images['root'])} (list "
            f"{images['fingerprint']})")  # fmt: skip


def _mark_of(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.json"


def _names_are(path: Path, images: ImageSet) -> bool:
    """Returns whether a list of images is there and is that of these."""
    try:
        return read_names_back(path) == images.names
    except DataError:
        return False


def _files_of_parts(folder: Path) -> list[Path]:
    """Returns the files in a folder that have the names of parts, the marks first."""
    found = [
        path for path in folder.iterdir() if re.fullmatch(r"part-\d{5,}\.(json|npy)", path.name)
    ]
    return sorted(found, key=lambda path: (path.suffix, path.name))


def _is_whole(folder: Path, number: int, plan: Plan) -> bool:
    """Returns whether a part's mark can be read, and its file is the one that the mark tells of."""
    try:
        mark = _read_mark(folder, number, plan)
        content = _mark_of(folder, number).with_suffix(".npy").read_bytes()
    except (DataError, OSError):  # damaged: the part is done again
        return False
    return bool(hashlib.sha256(content).hexdigest() == mark.sha256)


def _read_mark(folder: Path, number: int, plan: Plan) -> Mark:
    """Reads a part's mark; raises DataError where it is not one of a part of this plan."""
    path, positions = _mark_of(folder, number), plan.positions_of(number)
    document = _read_json(path)
    try:
        unreadable = {one["position"]: Unreadable(one["path"], one["reason"])
                      for one in document["unreadable"]}  # fmt: skip
        mark = Mark(document["rows"], unreadable, document["sha256"])
        if not {type(position) for position in unreadable} <= {int}:
            raise TypeError("a position is a whole number")
        fits = mark.rows + len(unreadable) == len(positions) and {*positions} >= unreadable.keys()
    except (KeyError, TypeError) as error:
        raise DataError(f"{shown(path)} is damaged; {_REPAIR}") from error
    if not fits:
        raise DataError(f"{shown(path)} does not fit the images of its part; {_REPAIR}")
    return mark


def _is_complete(manifest: Mapping[str, Any]) -> bool:
    """Returns whether a manifest of this format has all that is read of one."""
    for part, kinds in _MANIFEST_HOLDS.items():
        there = manifest.get(part)
        if not isinstance(there, dict):
            return False
        if not all(isinstance(there.get(key), kind) for key, kind in kinds.items()):
            return False
    sizes = manifest["images"]["num_images"], manifest["settings"]["images_per_part"]
    return bool(min(sizes) > 0)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{shown(path)} cannot be read as JSON ({error}); {_EXPECTED}") from error
    if not isinstance(document, dict):
        raise DataError(f"{shown(path)} holds no JSON object; {_EXPECTED}")
    return document
