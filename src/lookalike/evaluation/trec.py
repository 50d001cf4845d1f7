"""Rankings and right answers in the formats of TREC, which other tools read and write.

A run has lines `query Q0 image rank score tag`, a qrels file lines `query 0 image relevance`.
Fields are separated by blanks, so a name with a blank (or a percent sign) in it is written
percent-encoded.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np
import torch

from lookalike.errors import DataError
from lookalike.evaluation.metrics import ranks_of
from lookalike.evaluation.retrieval import Retrieval, label_numbers
from lookalike.evaluation.scoring.scores import QueryScores, score_ranks
from lookalike.files import shown, write_whole
from lookalike.search.exclusions import any_equal, equal_pairs

Value = TypeVar("Value")


def write_trec(run: Path, qrels: Path, retrieval: Retrieval, *, tag: str = "lookalike") -> None:
    """Writes what was retrieved and, with labels, what would have been right.

    The qrels leave out what the protocol excludes (the query itself, its group), so that other
    tools count the same R. Scores fall strictly along each ranking: trec_eval sorts by them and
    breaks ties by name, so those that are equal here are made to differ in their last digit.
    """
    query, gallery = _ids(retrieval.query.names), _ids(retrieval.gallery.names)
    rows = zip(query, retrieval.positions.tolist(), retrieval.similarities.tolist(), strict=True)

    def lines() -> Iterator[str]:
        for name, positions, similarities in rows:
            last = np.float32(np.inf)
            for rank, (position, similarity) in enumerate(
                zip(positions, similarities, strict=True), start=1
            ):
                if position < 0:
                    break
                below = np.nextafter(last, np.float32(-np.inf))  # trec_eval reads float32
                last = min(np.float32(similarity), below)
                yield f"{name} Q0 {gallery[position]} {rank} {last:.9g} {tag}\n"

    _write_lines(run, lines())
    if retrieval.scores is None:
        return
    query_labels, gallery_labels = label_numbers(retrieval.query, retrieval.gallery)

    def answers() -> Iterator[str]:
        for start in range(0, len(query), 256):
            part = slice(start, start + 256)
            asked, found = equal_pairs(query_labels[part], gallery_labels)
            kept = ~any_equal(
                [(ids[part], others) for ids, others in retrieval.exclude], asked, found
            )
            for q, g in zip(asked[kept].tolist(), found[kept].tolist(), strict=True):
                yield f"{query[start + q]} 0 {gallery[g]} 1\n"

    _write_lines(qrels, answers())


@dataclass(frozen=True)
class TrecScores:
    """The scores of a run, and how its queries and those of the qrels meet.

    `fingerprint` is a hash of the qrels: scores compare only where it is the same.
    """

    names: list[str]
    scores: QueryScores
    not_in_run: list[str]
    not_in_qrels: list[str]
    num_retrieved: int
    fingerprint: str


def score_trec(run: Path, qrels: Path) -> TrecScores:
    """Scores a run by its qrels. Relevance above 0 is right, below 0 is junk: not ranked at all.

    Rankings go by score, highest first, then by the run's own rank, then by its lines. A query
    of the qrels that the run does not answer has retrieved nothing, and scores so. A query of
    the run that the qrels do not know is left out. One whose qrels name no right image has no
    score, and is counted apart.

    Raises:
        DataError: a line that is none, an image twice for one query, or no query in common.
    """
    judged = _read_qrels(qrels)
    ranked = _read_run(run)
    known = [name for name in judged if name in ranked]
    if not known:
        raise DataError(
            f"{shown(run)} and {shown(qrels)} have no query in common (such as "
            f"{shown(next(iter(ranked)))!r} and {shown(next(iter(judged)))!r}); "
            "give the qrels that belong to the run"
        )
    names = list(judged)
    rankings = [
        [answers.get(one, 0) > 0 for one in ranked.get(name, []) if answers.get(one, 0) >= 0]
        for name, answers in judged.items()
    ]
    longest = max(map(len, rankings))
    relevant = torch.zeros(len(names), longest, dtype=torch.bool)
    for row, ranking in zip(relevant, rankings, strict=True):
        row[: len(ranking)] = torch.tensor(ranking, dtype=torch.bool)
    counts = [sum(value > 0 for value in answers.values()) for answers in judged.values()]
    if not any(counts):
        raise DataError(f"{shown(qrels)} names no right image for any query")
    scores = score_ranks(names, ranks_of(relevant), torch.tensor(counts))
    return TrecScores(
        names,
        scores,
        not_in_run=[name for name in judged if name not in ranked],
        not_in_qrels=[name for name in ranked if name not in judged],
        num_retrieved=sum(map(len, ranked.values())),
        fingerprint=hashlib.sha256(json.dumps(judged, sort_keys=True).encode()).hexdigest()[:16],
    )


def _read_run(path: Path) -> dict[str, list[str]]:
    """The ranking of each query."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for number, fields in _lines(path, 6, "query Q0 image rank score tag"):
        query, _, image, rank, score, _ = fields
        order = (-_number(score, path, number, "score"), _number(rank, path, number, "rank"))
        _add(found.setdefault(query, {}), image, order, path, number)
    return {
        query: sorted(images, key=lambda image: images[image]) for query, images in found.items()
    }


def _read_qrels(path: Path) -> dict[str, dict[str, float]]:
    """The relevance of each judged image, for each query."""
    found: dict[str, dict[str, float]] = {}
    for number, (query, _, image, relevance) in _lines(path, 4, "query 0 image relevance"):
        value = _number(relevance, path, number, "relevance")
        _add(found.setdefault(query, {}), image, value, path, number)
    return found


def _lines(path: Path, width: int, form: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            empty = True
            for number, line in enumerate(file, start=1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != width:
                    raise DataError(
                        f"line {number} of {shown(path)} has {len(fields)} fields; expected "
                        f"{width}: {form}"
                    )
                empty = False
                yield number, fields
    except OSError as error:
        raise DataError(f"cannot read {shown(path)}: {error.strerror}") from error
    if empty:
        raise DataError(f"{shown(path)} is empty; expected lines of the form: {form}")


def _number(text: str, path: Path, line: int, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise DataError(f"line {line} of {shown(path)} has {what} {text!r}; expected a number")
    return value


def _add(known: dict[str, Value], image: str, value: Value, path: Path, line: int) -> None:
    if image in known:
        raise DataError(
            f"line {line} of {shown(path)} names {shown(image)} a second time for its query"
        )
    known[image] = value


def _ids(names: list[str]) -> list[str]:
    return [re.sub(r"[\s%]", lambda blank: quote(blank[0]), name) for name in names]


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    encoded = (line.encode("utf-8", "surrogateescape") for line in lines)
    write_whole(path, lambda file: file.writelines(encoded))
