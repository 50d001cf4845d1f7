"""The two result files of an epoch: who was retrieved, and how good that is."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lookalike import __version__
from lookalike.evaluation.protocol import Protocol, Retrieval
from lookalike.files import write_json


def write_results(
    out: Path,
    epoch: int,
    retrieval: Retrieval,
    protocol: Protocol,
    *,
    about: Mapping[str, Any],
) -> tuple[Path, Path]:
    """Writes `retrieval_results_epoch_XX.json` and `metrics_epoch_XX.json` under `out/results`.

    The first maps each query's file name to the names of its top k, best first. The second
    holds metrics, the protocol they were measured under, the similarity of each retrieval,
    unreadable files, library versions, and whatever `about` says of the run.

    Returns:
        The two paths.
    """
    query_names, gallery_names = _written_names(retrieval, protocol)
    rows = [[i for i in row if i >= 0] for row in retrieval.positions.tolist()]
    retrieved = {
        query: [gallery_names[i] for i in row] for query, row in zip(query_names, rows, strict=True)
    }
    scores = {
        query: [round(score, 6) for score in row[: len(found)]]
        for query, row, found in zip(
            query_names, retrieval.similarities.tolist(), rows, strict=True
        )
    }
    paths = result_files(out, epoch)
    write_json(paths[0], retrieved)
    document = {
        "epoch": epoch,
        "metrics": retrieval.metrics,
        "protocol": protocol.facts()
        | {
            "num_queries_scored": len(retrieval.query) - retrieval.num_without_answer
            if retrieval.metrics is not None
            else None,
            "num_queries_without_answer": retrieval.num_without_answer,
        },
        **about,
        "versions": library_versions(),
        "unreadable": [asdict(one) for one in retrieval.unreadable],
        "scores": scores,
    }
    write_json(paths[1], document)
    return paths


def result_files(out: Path, epoch: int) -> tuple[Path, Path]:
    """Where an epoch's retrievals and metrics lie."""
    folder = out / "results"
    return (
        folder / f"retrieval_results_epoch_{epoch:02}.json",
        folder / f"metrics_epoch_{epoch:02}.json",
    )


def find_results(out: Path) -> list[Path]:
    """The result files of earlier epochs below a folder, and nobody else's files."""
    names = re.compile(r"(retrieval_results|metrics)_epoch_\d+\.json")
    return sorted(p for p in (out / "results").glob("*.json") if names.fullmatch(p.name))


def library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    own = {"python": platform.python_version(), "lookalike": __version__}
    return own | {name: version(name) for name in ("torch", "transformers", "pillow", "numpy")}


def _written_names(retrieval: Retrieval, protocol: Protocol) -> tuple[list[str], list[str]]:
    """File names of queries and gallery; paths below their folders where names repeat."""
    query, gallery = retrieval.query.names, retrieval.gallery.names
    if protocol.repeated_names():
        return query, gallery
    return [os.path.basename(name) for name in query], [os.path.basename(name) for name in gallery]
