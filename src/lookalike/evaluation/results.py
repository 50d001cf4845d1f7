"""The two result files of an epoch: who was retrieved, and how good that is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike import __version__
from lookalike.evaluation.metrics import MEDIAN_RANK
from lookalike.files import write_json

if TYPE_CHECKING:
    from lookalike.evaluation.protocol import Protocol
    from lookalike.evaluation.retrieval import Retrieval
    from lookalike.evaluation.scoring.scores import QueryScores

_OF_MIXTURE = "interpolated"
_OF = rf"(?P<of>epoch_(?P<epoch>\d+)|{_OF_MIXTURE})"
_RESULTS = re.compile(rf"(?:retrieval_results|metrics)_{_OF}\.json")
_OF_ALL = re.compile(r"report\.html|original_embeddings\.safetensors|interpolation\.json")
_ON_REQUEST = (
    re.compile(rf"(?:run|qrels)_{_OF}\.trec"),
    re.compile(rf"embeddings_{_OF}_(?:test|query|gallery)\.(?:npy|csv|json|parquet)"),
)


def write_results(
    out: Path,
    epoch: int,
    retrieval: Retrieval,
    protocol: Protocol,
    *,
    about: Mapping[str, Any],
    of_mixture: bool = False,
) -> tuple[Path, Path]:
    """Writes `retrieval_results_epoch_XX.json` and `metrics_epoch_XX.json` under `out/results`;
    of a mixture of this epoch's weights with the baseline's, with `interpolated` for `epoch_XX`.

    The first maps each query's file name to the names of its top k, best first. The second
    holds metrics, the protocol they were measured under, the health of the embeddings, the
    similarity of each retrieval, unreadable files, library versions, and whatever `about` says
    of the run.

    Returns:
        The two paths.
    """
    # Not needed by those who look for the files: they load torch.
    from lookalike.evaluation.retrieval import label_numbers
    from lookalike.evaluation.scoring.health import measure_health

    query, gallery = retrieval.query, retrieval.gallery
    query_names, gallery_names = query.names, gallery.names
    if not protocol.repeated_names():  # else paths below their folders tell them apart
        query_names, gallery_names = (
            list(map(os.path.basename, names)) for names in (query_names, gallery_names)
        )
    rows = [[i for i in row if i >= 0] for row in retrieval.positions.tolist()]
    found = list(zip(query_names, rows, retrieval.similarities.tolist(), strict=True))
    paths = mixture_files(out) if of_mixture else result_files(out, epoch)
    write_json(paths[0], {name: [gallery_names[i] for i in row] for name, row, _ in found})
    num_without = retrieval.num_without_answer
    facts = protocol.facts() | {
        "searched_fingerprint": retrieval.fingerprint(),
        "num_queries_scored": len(query) - num_without if retrieval.scores else None,
        "num_queries_without_answer": num_without,
    }
    document = {
        "epoch": epoch,
        **metrics_document(retrieval.scores, query.names, facts, about=about),
        "health": measure_health(
            retrieval.query_embeddings,
            retrieval.gallery_embeddings,
            label_numbers(query, gallery) if protocol.labelled else None,
            exclude=retrieval.exclude,
        ),
        "unreadable": [asdict(one) for one in retrieval.unreadable],
        "scores": {
            name: [round(similarity, 6) for similarity in similarities[: len(row)]]
            for name, row, similarities in found
        },
    }
    write_json(paths[1], document)
    return paths


def metrics_document(
    scores: QueryScores | None,
    names: list[str],
    protocol: Mapping[str, Any],
    *,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what a metrics file holds: numbers, how sure they are, what they were measured on."""
    measured: dict[str, Any] = {"metrics": None}
    if scores is not None:
        measured = {
            # a median rank can be infinite, where a run retrieves too little
            "metrics": {k: v if math.isfinite(v) else None for k, v in scores.micro().items()},
            "macro_metrics": scores.macro(),
            "intervals": scores.intervals,
            "intervals_by_class": scores.intervals_by_class,
            "per_class": scores.per_class(),
        }
    return {
        **measured,
        "protocol": dict(protocol),
        **about,
        "versions": library_versions(),
        "per_query": None if scores is None else _per_query(scores, names),
    }


def _per_query(scores: QueryScores, names: list[str]) -> dict[str, list[Any]]:
    """Each query's own scores, as columns; null where it has no answer, or retrieved none."""
    columns = {"first rank": scores.first_rank, **scores.columns}
    del columns[MEDIAN_RANK]  # of one query it is no median
    counts = scores.num_relevant.tolist()
    return {"name": names, "label": scores.labels, "num_relevant": counts} | {
        name: [round(value, 6) if math.isfinite(value) else None for value in column.tolist()]
        for name, column in columns.items()
    }


def name_of_results(epoch: int, *, of_mixture: bool = False) -> str:
    """Returns what the names of all files of one evaluation have in common."""
    return _OF_MIXTURE if of_mixture else f"epoch_{epoch:02}"


def result_files(out: Path, epoch: int) -> tuple[Path, Path]:
    """Returns the files of an epoch's retrievals and of its metrics."""
    return _both(out, name_of_results(epoch))


def report_file(out: Path) -> Path:
    """Returns the file of a run's report; each epoch replaces the one before."""
    return out / "results" / "report.html"


def originals_file(out: Path) -> Path:
    """Returns the file of a run's baseline embeddings, which drift is measured from."""
    return out / "results" / "original_embeddings.safetensors"


def mixture_files(out: Path) -> tuple[Path, Path]:
    """Returns the files of retrievals and metrics of the mixture that a run chose."""
    return _both(out, _OF_MIXTURE)


def _both(out: Path, of: str) -> tuple[Path, Path]:
    folder = out / "results"
    return folder / f"retrieval_results_{of}.json", folder / f"metrics_{of}.json"


def remove_mixture_results(out: Path) -> None:
    """Removes what was measured of mixtures of weights."""
    on_request = find_on_request(out, _OF_MIXTURE)
    for path in (interpolation_file(out), *mixture_files(out), *on_request):
        path.unlink(missing_ok=True)


def interpolation_file(out: Path) -> Path:
    """Returns the file of what mixtures of a run's weights with the baseline's come to."""
    return out / "results" / "interpolation.json"


def find_results(out: Path) -> list[Path]:
    """Returns the result files of earlier epochs below a folder, by epoch; nobody else's files."""
    found = []
    for path in (out / "results").glob("*.*"):
        if match := _first_match(path, _RESULTS, *_ON_REQUEST):
            epoch = sys.maxsize if match["of"] == _OF_MIXTURE else int(match["epoch"])
            found.append((epoch, path.name, path))
        elif _OF_ALL.fullmatch(path.name):
            found.append((-1, path.name, path))
    return [path for _, _, path in sorted(found)]


def find_on_request(out: Path, name: str) -> list[Path]:
    """Returns what earlier evaluations wrote on request beside the results of a name (see
    `name_of_results`): TREC files and embeddings.
    """
    paths = sorted((out / "results").glob("*.*"))
    matches = [(path, _first_match(path, *_ON_REQUEST)) for path in paths]
    return [path for path, match in matches if match and match["of"] == name]


def _first_match(path: Path, *patterns: re.Pattern[str]) -> re.Match[str] | None:
    return next(filter(None, (pattern.fullmatch(path.name) for pattern in patterns)), None)


def library_versions() -> dict[str, str]:
    """Returns the versions of what the numbers depend on."""
    own = {"python": platform.python_version(), "lookalike": __version__}
    return own | {name: version(name) for name in ("torch", "transformers", "pillow", "numpy")}


def hash_of(facts: Any) -> str:
    """Returns a short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
