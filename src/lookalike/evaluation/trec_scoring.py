"""Rankings of other systems, in the formats of TREC, scored by the right answers beside them.

The formats are those of `trec`. Memory is taken for a few numbers a line of the run, and for
what the qrels hold; never for a table of all queries by the deepest ranking.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lookalike.errors import DataError
from lookalike.evaluation.metrics import Grades
from lookalike.evaluation.scoring.scores import QueryScores, joined, score_ranks
from lookalike.files import briefly, shown

_RUN, _QRELS = "query Q0 image rank score tag", "query 0 image relevance"
_LONGEST_LINE = 2**16  # characters
_LARGEST_GRADE = 1e6
_AT_A_TIME = 2**20  # ranks in one table


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
    score, and is counted apart. Relevances that differ are grades, which nDCG counts.

    Raises:
        DataError: a line that is none, an image twice for one query, or no query in common.
    """
    judged = _read_qrels(qrels)
    ranked = _read_run(run, judged)
    if not judged.keys() & ranked.keys():
        raise DataError(
            f"{shown(run)} and {shown(qrels)} have no query in common (such as "
            f"{briefly(next(iter(ranked)))!r} and {briefly(next(iter(judged)))!r}); "
            "give the qrels that belong to the run"
        )
    if not any(grade > 0 for answers in judged.values() for grade in answers.values()):
        raise DataError(f"{shown(qrels)} names no right image for any query")
    nothing = _Ranking()
    answers = [_Answer.of(ranked.get(name, nothing), judged[name]) for name in judged]
    return TrecScores(
        list(judged),
        _score(list(judged), answers),
        not_in_run=[name for name in judged if name not in ranked],
        not_in_qrels=[name for name in ranked if name not in judged],
        num_retrieved=sum(len(ranking.scores) for ranking in ranked.values()),
        fingerprint=_fingerprint(judged),
    )


@dataclass(frozen=True)
class _Ranking:
    """What a run says of one query, a number a line; `judged` are lines with their grades."""

    scores: array[float] = field(default_factory=lambda: array("d"))
    ranks: array[float] = field(default_factory=lambda: array("d"))
    hashes: array[int] = field(default_factory=lambda: array("q"))
    judged: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Answer:
    """What one query found: ranks of right images, rising, their grades, and all there are."""

    ranks: Tensor
    found: Tensor
    ideal: Tensor

    @classmethod
    def of(cls, ranking: _Ranking, grades: dict[str, float]) -> _Answer:
        """Sorts a ranking, leaves junk out of it, and finds what is right."""
        ideal = np.array(sorted((one for one in grades.values() if one > 0), reverse=True))
        order = np.lexsort((np.array(ranking.ranks), -np.array(ranking.scores)))
        grade = np.zeros(len(order))
        grade[list(ranking.judged)] = list(ranking.judged.values())
        grade = grade[order]
        grade = grade[grade >= 0]
        places = np.flatnonzero(grade)
        return cls(torch.from_numpy(places + 1), *map(torch.from_numpy, (grade[places], ideal)))


def _score(names: list[str], answers: list[_Answer]) -> QueryScores:
    """Scores all queries, some at a time: those of one table are as wide as the widest of them."""
    are_graded = any((one.ideal != 1).any() for one in answers)

    def parts() -> Iterator[slice]:
        start, widest = 0, 1
        for end, one in enumerate(answers):
            widest = max(widest, len(one.ideal), len(one.ranks))
            if end > start and (end - start + 1) * widest > _AT_A_TIME:
                yield slice(start, end)
                start, widest = end, max(1, len(one.ideal), len(one.ranks))
        yield slice(start, len(answers))

    scored = []
    for part in parts():
        some = answers[part]
        grades = None
        if are_graded:
            found = pad_sequence([one.found for one in some], batch_first=True)
            grades = Grades(found, pad_sequence([one.ideal for one in some], batch_first=True))
        ranks = pad_sequence([one.ranks for one in some], batch_first=True)
        counts = torch.tensor([len(one.ideal) for one in some])
        scored.append(score_ranks(names[part], ranks, counts, grades))
    return joined(scored)


def _read_qrels(path: Path) -> dict[str, dict[str, float]]:
    judged: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}  # an image is judged for many queries, and kept once
    for where, (query, _, image, text) in _lines(path, _QRELS):
        grade = _number(text, f"{where} has relevance")
        if abs(grade) > _LARGEST_GRADE:
            raise DataError(f"{where} has relevance {briefly(text)!r}; expected one of "
                            f"{-_LARGEST_GRADE:g} to {_LARGEST_GRADE:g}")  # fmt: skip
        answers = judged.setdefault(query, {})
        if image in answers:
            _refuse_twice(where, image)
        answers[names.setdefault(image, image)] = grade
    return judged


def _read_run(path: Path, judged: dict[str, dict[str, float]]) -> dict[str, _Ranking]:
    """The rankings of all queries; which images they rank is kept of judged ones alone."""
    ranked: dict[str, _Ranking] = {}
    for where, (query, _, image, rank, score, _) in _lines(path, _RUN):
        one = ranked.setdefault(query, _Ranking())
        grade = judged.get(query, {}).get(image, 0.0)
        if grade:
            one.judged[len(one.scores)] = grade
        one.scores.append(_number(score, f"{where} has score"))
        one.ranks.append(_number(rank, f"{where} has rank"))
        one.hashes.append(hash(image))
    twice = {query for query, one in ranked.items() if len(set(one.hashes)) < len(one.hashes)}
    if twice:  # or two names have one hash
        _refuse_repeated(path, twice)
    return ranked


def _refuse_repeated(path: Path, queries: set[str]) -> None:
    """Raises DataError for an image that one of these queries has twice, if one has."""
    seen: dict[str, set[str]] = {query: set() for query in queries}
    for where, (query, _, image, *_) in _lines(path, _RUN):
        if query in queries:
            if image in seen[query]:
                _refuse_twice(where, image)
            seen[query].add(image)


def _refuse_twice(where: str, image: str) -> NoReturn:
    raise DataError(f"{where} names {briefly(image)} a second time for its query")


def _lines(path: Path, form: str) -> Iterator[tuple[str, list[str]]]:
    """Yields where each line stands and its fields; there is one line at least.

    Raises:
        DataError: the file cannot be read, is empty, or a line has another form.
    """
    columns, any_line = form.split(), False
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{shown(path)} is not a regular file; expected lines: {form}")
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            read = partial(file.readline, _LONGEST_LINE + 1)
            for number, line in enumerate(iter(read, ""), start=1):
                where = f"line {number} of {shown(path)}"
                if len(line) > _LONGEST_LINE:
                    raise DataError(f"{where} has more than {_LONGEST_LINE:,} characters; expected "
                                    f"{form}")  # fmt: skip
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != len(columns):
                    raise DataError(f"{where} has {len(fields)} fields; expected {len(columns)}: "
                                    f"{form}")  # fmt: skip
                any_line = True
                yield where, fields
    except OSError as error:
        raise DataError(f"cannot read {shown(path)}: {error.strerror}") from error
    if not any_line:
        raise DataError(f"{shown(path)} is empty; expected lines of the form: {form}")


def _number(text: str, what: str) -> float:
    with suppress(ValueError):
        if not math.isnan(value := float(text)):
            return value
    raise DataError(f"{what} {briefly(text)!r}; expected a number")


def _fingerprint(judged: dict[str, dict[str, float]]) -> str:
    """What `hash_of` makes of the qrels, without their whole text in memory."""
    digest, joint = hashlib.sha256(b"{"), ""
    for query in sorted(judged):
        text = f"{joint}{json.dumps(query)}: {json.dumps(judged[query], sort_keys=True)}"
        digest.update(text.encode())
        joint = ", "
    digest.update(b"}")
    return digest.hexdigest()[:16]
