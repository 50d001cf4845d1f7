"""Drift: how far embeddings have moved from those of the baseline, the model before training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lookalike.evaluation.retrieval import Retrieval
from lookalike.files import write_whole

MOST_IMAGES = 10_000
_ROWS, _CHECKSUM = "embeddings", "sha256"
_OF_LENGTH_1 = 1e-3  # by which embeddings may differ from it; rounding is 1e-7


@dataclass(frozen=True)
class Drift:
    """The cosine between an image's embedding now and then, over images: mean, 1st percentile.

    1 is where nothing moved.
    """

    mean_cosine: float
    low_cosine: float
    num_images: int


@dataclass(frozen=True)
class Originals:
    """Embeddings of test images by the baseline; row i is of image `names[i]`."""

    run: str
    test: str
    names: list[str]
    embeddings: Float32[Tensor, "images dim"]


def originals_of(retrieval: Retrieval, run: str, test: str) -> Originals:
    """Returns the images that drift is measured on: all, or 10,000 of them, evenly spaced.

    `retrieval` is the baseline's, `run` the run's own name, `test` the protocol's fingerprint.
    """
    names, embeddings = _images(retrieval)
    most = min(len(names), MOST_IMAGES)
    keep = [i * len(names) // most for i in range(most)]
    return Originals(run, test, [names[i] for i in keep], embeddings[keep])


def measure_drift(originals: Originals, retrieval: Retrieval) -> Drift | None:
    """Returns the drift over the images that could be read both times; None if there are none."""
    names, embeddings = _images(retrieval)
    row_of = {name: row for row, name in enumerate(names)}
    both = [(i, row_of[name]) for i, name in enumerate(originals.names) if name in row_of]
    if not both:
        return None
    then, now = (torch.tensor(rows) for rows in zip(*both, strict=True))
    cosines = (originals.embeddings[then].double() * embeddings[now].double()).sum(dim=1).numpy()
    return Drift(float(cosines.mean()), float(np.percentile(cosines, 1)), len(both))


def write_originals(path: Path, originals: Originals) -> None:
    """Writes them, so that a resumed run measures against the same.

    Raises:
        OutputError: the file cannot be written.
    """
    about = {"run": originals.run, "test": originals.test, "names": json.dumps(originals.names)}
    rows = originals.embeddings.contiguous()
    content = safetensors.torch.save({_ROWS: rows}, about | {_CHECKSUM: _checksum(about, rows)})
    write_whole(path, lambda file: file.write(content))


def read_originals(path: Path, run: str, test: str) -> Originals | None:
    """Loads the baseline embeddings of a run on a test; None where there are none, or not those
    that were written: what they are compared with would be wrong.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about, rows = file.metadata() or {}, file.get_tensor(_ROWS)
        names = json.loads(about["names"])
    # KeyError, ValueError, RecursionError: a file that somebody else wrote, or that is damaged.
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        return None
    if (about.get("run"), about.get("test")) != (run, test):
        return None
    written = about.pop(_CHECKSUM, None)  # which earlier versions did not write
    if written is not None and written != _checksum(about, rows):
        return None
    is_sound = (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and rows.dtype == torch.float32
        and rows.ndim == 2
        and len(rows) == len(names)
        and bool(((rows.norm(dim=1) - 1).abs() < _OF_LENGTH_1).all())
    )
    return Originals(run, test, names, rows) if is_sound else None


def _checksum(about: dict[str, str], rows: Float32[Tensor, "images dim"]) -> str:
    """Returns a hash of all that the file holds."""
    digest = hashlib.sha256(json.dumps([about, list(rows.shape)], sort_keys=True).encode())
    digest.update(rows.contiguous().numpy().data)
    return digest.hexdigest()


def _images(retrieval: Retrieval) -> tuple[list[str], Float32[Tensor, "images dim"]]:
    """All test images, named apart by their side where there are two."""
    names = [f"gallery/{name}" for name in retrieval.gallery.names]
    query, gallery = retrieval.query_embeddings, retrieval.gallery_embeddings
    if query is gallery:
        return names, gallery[:]
    names += [f"query/{name}" for name in retrieval.query.names]
    return names, torch.cat([gallery[:], query[:]])
