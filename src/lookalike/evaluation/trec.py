"""Rankings and right answers in the formats of TREC, which other tools read and write.

A run has lines `query Q0 image rank score tag`, a qrels file lines `query 0 image relevance`.
Fields are separated by blanks, so a name with a blank (or a percent sign) in it is written
percent-encoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from lookalike.errors import DataError
from lookalike.evaluation.metrics import ranks_of
from lookalike.evaluation.results import hash_of
from lookalike.evaluation.retrieval import Retrieval, label_numbers
from lookalike.evaluation.scoring.scores import QueryScores, score_ranks
from lookalike.files import shown, write_whole
from lookalike.search.exclusions import any_equal, equal_pairs


def write_trec(run: Path, qrels: Path, retrieval: Retrieval) -> None:
    """Writes what was retrieved and, with labels, what would have been right.

    The qrels leave out what the protocol excludes (the query itself, its group), so that other
    tools count the same R. Scores fall strictly along each ranking: trec_eval sorts by them and
    breaks ties by name, so those that are equal here are made to differ in their last digit.
    """
    query, gallery = (
        [re.sub(r"[\s%]", lambda blank: quote(blank[0]), name) for name in side.names]
        for side in (retrieval.query, retrieval.gallery)
    )

    def ranked() -> Iterator[str]:
        for q, name in enumerate(query):
            last = np.float32(np.inf)
            found = zip(retrieval.positions[q].tolist(), retrieval.similarities[q].tolist(),
                        strict=True)  # fmt: skip
            for rank, (position, similarity) in enumerate(found, start=1):
                if position < 0:
                    break
                below = np.nextafter(last, np.float32(-np.inf))  # trec_eval reads float32
                last = min(np.float32(similarity), below)
                yield f"{name} Q0 {gallery[position]} {rank} {last:.9g} lookalike\n"

    def right_ones() -> Iterator[str]:
        query_labels, gallery_labels = label_numbers(retrieval.query, retrieval.gallery)
        for start in range(0, len(query), 256):
            part = slice(start, start + 256)
            asked, found = equal_pairs(query_labels[part], gallery_labels)
            exclude = [(ids[part], others) for ids, others in retrieval.exclude]
            kept = ~any_equal(exclude, asked, found)
            for q, g in zip(asked[kept].tolist(), found[kept].tolist(), strict=True):
                yield f"{query[start + q]} 0 {gallery[g]} 1\n"

    _write_lines(run, ranked())
    if retrieval.scores is not None:
        _write_lines(qrels, right_ones())


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
    judged = {
        query: {image: relevance for image, (relevance,) in answers.items()}
        for query, answers in _read(qrels, "query 0 image relevance", "relevance").items()
    }
    ranked = {
        query: sorted(images, key=lambda image: (-images[image][0], images[image][1]))
        for query, images in _read(run, "query Q0 image rank score tag", "score", "rank").items()
    }
    if not judged.keys() & ranked.keys():
        raise DataError(
            f"{shown(run)} and {shown(qrels)} have no query in common (such as "
            f"{shown(next(iter(ranked)))!r} and {shown(next(iter(judged)))!r}); "
            "give the qrels that belong to the run"
        )
    rows, counts = [], []
    for query, answers in judged.items():
        found = [answers.get(image, 0) for image in ranked.get(query, [])]
        rows.append(torch.tensor([one > 0 for one in found if one >= 0], dtype=torch.bool))
        counts.append(sum(one > 0 for one in answers.values()))
    if not any(counts):
        raise DataError(f"{shown(qrels)} names no right image for any query")
    relevant = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return TrecScores(
        list(judged),
        score_ranks(list(judged), ranks_of(relevant), torch.tensor(counts)),
        not_in_run=[name for name in judged if name not in ranked],
        not_in_qrels=[name for name in ranked if name not in judged],
        num_retrieved=sum(map(len, ranked.values())),
        fingerprint=hash_of(judged),
    )


def _read(path: Path, form: str, *numbers: str) -> dict[str, dict[str, list[float]]]:
    """The fields of these names of each line, by the query and the image in it."""
    columns, found = form.split(), dict[str, dict[str, list[float]]]()
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                fields, where = line.split(), f"line {number} of {shown(path)}"
                if not fields:
                    continue
                if len(fields) != len(columns):
                    raise DataError(f"{where} has {len(fields)} fields; expected {len(columns)}: "
                                    f"{form}")  # fmt: skip
                row = dict(zip(columns, fields, strict=True))
                values = [_number(row[name], f"{where} has {name}") for name in numbers]
                images, image = found.setdefault(row["query"], {}), row["image"]
                if image in images:
                    raise DataError(f"{where} names {shown(image)} a second time for its query")
                images[image] = values
    except OSError as error:
        raise DataError(f"cannot read {shown(path)}: {error.strerror}") from error
    if not found:
        raise DataError(f"{shown(path)} is empty; expected lines of the form: {form}")
    return found


def _number(text: str, what: str) -> float:
    with suppress(ValueError):
        if not math.isnan(value := float(text)):
            return value
    raise DataError(f"{what} {text!r}; expected a number")


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    encoded = (line.encode("utf-8", "surrogateescape") for line in lines)
    write_whole(path, lambda file: file.writelines(encoded))
