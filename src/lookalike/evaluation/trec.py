"""Rankings and right answers written in the formats of TREC, which other tools read.

A run has lines `query Q0 image rank score tag`, a qrels file lines `query 0 image relevance`.
Fields are separated by blanks, so a name with a blank (or a percent sign) in it is written
percent-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np

from lookalike.evaluation.retrieval import Retrieval, label_numbers
from lookalike.files import write_whole
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


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    encoded = (line.encode("utf-8", "surrogateescape") for line in lines)
    write_whole(path, lambda file: file.writelines(encoded))
