"""`lookalike.compare`: several results beside each other, and whether their difference is real."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import ConfigError, DataError
from lookalike.evaluation.documents import Document, read_metrics
from lookalike.evaluation.metrics import METRICS, headline
from lookalike.evaluation.results import find_results, hash_of
from lookalike.evaluation.scoring.intervals import classes_are_few
from lookalike.evaluation.scoring.statistics import PairedTest, paired_tests
from lookalike.files import does_not_exist, shown

_FOLLOWS = ("fingerprint", "searched_fingerprint", "num_queries_scored", "holdout",
            "num_queries_without_answer")  # fmt: skip
"""Facts that differ because others do."""
_LONGEST_FACT = 60
_ADVICE = "evaluate again"


@dataclass(frozen=True)
class Measured:
    """One metrics file: what is shown of it, and what it says.

    `metrics` are the headline metrics of which it has a number, and what each query scored.
    """

    name: str
    path: Path
    document: Document
    metrics: tuple[str, ...]

    @property
    def protocol(self) -> Document:
        """The facts of what the numbers were measured on."""
        found: Document = self.document["protocol"]
        return found

    @property
    def scored_labels(self) -> list[str]:
        """The classes of the queries that have an answer."""
        rows = self.document["per_query"]
        return [label for label, n in zip(rows["label"], rows["num_relevant"], strict=True) if n]

    @property
    def searched(self) -> Any:
        """The images searched and searched in, after all that could not be read."""
        rows = self.document["per_query"]
        return self.protocol.get("searched_fingerprint"), rows["name"], rows["num_relevant"]


@dataclass(frozen=True)
class Comparison:
    """Results beside each other. `tests[i]` compares result i + 1 with the first, per metric.

    `metrics` are the headline metrics that all results have; `missing` tells of each other one
    which results lack it, as those of an earlier version or without a registered metric do.
    With `by_class` whole classes count as independent; where it was not asked for and classes are
    few, `tests_by_class` are such tests beside the others. Without tests `why_untested` says why.
    `folds` holds mean and standard deviation of each metric over results that are the folds of
    one holdout, else None.
    """

    results: list[Measured]
    metrics: list[str]
    missing: dict[str, list[str]]
    tests: list[dict[str, PairedTest]]
    why_untested: str | None
    folds: dict[str, tuple[float, float]] | None
    by_class: bool = False
    tests_by_class: list[dict[str, PairedTest]] = field(default_factory=list)


def compare(
    sources: Sequence[str | Path],
    *,
    different_protocols: bool = False,
    by_class: bool = False,
) -> Comparison:
    """Reads metrics files and tests each against the first, query by query.

    Args:
        sources: `results/metrics_*.json` files, or the folders of runs: of a folder the last
            epoch counts; a folder that stands alone is compared with itself, first to last epoch.
        different_protocols: put results of different protocols beside each other all the same,
            untested.
        by_class: tests and intervals by whole classes (see `evaluation.scoring.intervals`).

    Raises:
        DataError: a file that Lookalike did not write, or without metrics; or no metric in common.
        ConfigError: the protocols differ, and `different_protocols` is off; names what differs.
    """
    results = _named([_read(path) for path in _find(sources)])
    metrics, missing = _in_common(results)
    folds = _over_folds(results, metrics)
    first, *others = results
    a = first.protocol
    odd = next((b for b in others if b.protocol["fingerprint"] != a["fingerprint"]), None)
    if odd is not None and not different_protocols and folds is None:
        raise ConfigError(
            f"{shown(first.name)} and {shown(odd.name)} were measured under different protocols "
            f"({_difference(a, odd.protocol)}), so their numbers are not "
            "comparable; --different-protocols shows them side by side anyway"
        )
    comparison = Comparison(results, metrics, missing, [], None, folds)
    if odd is not None:
        return replace(comparison, why_untested="they were measured under different protocols")
    if any(one.searched != first.searched for one in others):
        return replace(comparison, why_untested="they did not read the same images")
    tested = [name for name in metrics if METRICS[name].over_queries == "mean"]
    if not tested:
        return replace(comparison, by_class=by_class)
    if not first.scored_labels:
        return replace(comparison, why_untested="no query has an answer")
    tests = [_tests(first, one, tested, by_class=by_class) for one in others]
    also: list[dict[str, PairedTest]] = []
    if not by_class and classes_are_few(first.scored_labels):
        also = [_tests(first, one, tested, by_class=True) for one in others]
    return replace(comparison, tests=tests, by_class=by_class, tests_by_class=also)


def _find(sources: Sequence[str | Path]) -> list[Path]:
    paths: list[Path] = []
    for source in map(Path, sources):
        if not os.path.exists(source):  # False as well for names that no disk could have
            raise DataError(f"{does_not_exist(source)} Give the folder of a run, or a "
                            "results/metrics_*.json")  # fmt: skip
        if not source.is_dir():
            paths.append(source)
            continue
        found = [path for path in find_results(source) if path.name.startswith("metrics_")]
        found = found or sorted((source / "results").glob("metrics_*.json"))  # of TREC runs
        if not found:
            raise DataError(f"there are no metrics files in {shown(source / 'results')}; give "
                            "the folder that was --out, or a metrics_*.json")  # fmt: skip
        paths += found if len(sources) == 1 else found[-1:]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("a result was given twice; compare different ones")
    if len(paths) < 2:
        raise ConfigError("there is only one result; give two or more to compare")
    return paths


def _read(path: Path) -> Measured:
    document = read_metrics(path, _ADVICE)
    if document.get("metrics") is None:
        raise DataError(f"{shown(path)} holds no metrics: the images had no labels")
    metrics = _whole_metrics(document)
    if not metrics:
        raise DataError(f"{shown(path)} holds none of the metrics ({', '.join(headline())}) with "
                        f"each query's scores; {_ADVICE}")  # fmt: skip
    rows = document["per_query"]
    for name in metrics:
        scored = (one for one, n in zip(rows[name], rows["num_relevant"], strict=True) if n)
        if METRICS[name].over_queries == "mean" and None in scored:
            raise DataError(f"{shown(path)} is damaged (it has no {name} for a query that has an "
                            f"answer); {_ADVICE}")  # fmt: skip
    return Measured(os.fspath(path), path, document, metrics)


def _whole_metrics(document: Document) -> tuple[str, ...]:
    """The headline metrics that a file has of all queries, and of each."""
    metrics, rows = document["metrics"], document.get("per_query") or {}
    if not rows.keys() >= {"name", "label", "num_relevant"}:
        return ()
    return tuple(
        name for name in headline()
        if name in rows and name in metrics
        # a median may be infinite
        and (metrics[name] is not None or METRICS[name].over_queries == "median")
    )  # fmt: skip


def _in_common(results: list[Measured]) -> tuple[list[str], dict[str, list[str]]]:
    """The metrics that all results have; and of each that only some have, which lack it."""
    lacking = {
        metric: [one.name for one in results if metric not in one.metrics] for metric in headline()
    }
    common = [metric for metric, names in lacking.items() if not names]
    if not common:
        held = "; ".join(f"{shown(one.name)} has {', '.join(one.metrics)}" for one in results)
        raise DataError(f"the results have no metric in common ({held}); {_ADVICE}")
    return common, {m: names for m, names in lacking.items() if 0 < len(names) < len(results)}


def _named(results: list[Measured]) -> list[Measured]:
    """The same with short names: without the folders that all have in common."""
    resolved = [one.path.resolve() for one in results]
    common = Path(os.path.commonpath([path.parent for path in resolved]))
    names = []
    for path in resolved:
        folders = [part for part in path.relative_to(common).parts[:-1] if part != "results"]
        names.append("/".join([*folders, path.stem.removeprefix("metrics_")]))
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    return [replace(one, name=name) for one, name in zip(results, names, strict=True)]


def _difference(a: Document, b: Document) -> str:
    """The first few facts in which two protocols differ, the first one's first."""
    told = [
        f"other {shown(key)}" if key.endswith(("names", "labels", "groups"))
        else f"{shown(key)}: {_fact(a.get(key))} and {_fact(b.get(key))}"
        for key in {**a, **b}
        if a.get(key) != b.get(key) and key not in _FOLLOWS
    ]  # fmt: skip
    return "; ".join(told[:3]) or "other images"


def _fact(value: Any) -> str:
    """A fact as a file has it, on one line."""
    text = shown(str(value))
    return text if len(text) <= _LONGEST_FACT else f"{text[:_LONGEST_FACT]}…"


def _tests(
    a: Measured, b: Measured, metrics: list[str], *, by_class: bool
) -> dict[str, PairedTest]:
    """Each of these metrics, on the queries that have an answer."""
    before, after = a.document["per_query"], b.document["per_query"]
    scored = np.array(before["num_relevant"], dtype=np.int64) > 0
    columns = (
        {name: np.array(rows[name], dtype=np.float64)[scored] for name in metrics}
        for rows in (before, after)
    )
    return paired_tests(*columns, clusters=a.scored_labels if by_class else None)


def _over_folds(
    results: list[Measured], metrics: list[str]
) -> dict[str, tuple[float, float]] | None:
    """Mean and standard deviation over results that are all the folds of one set of classes."""
    holdouts = [one.protocol.get("holdout") or {"rule": ""} for one in results]
    if not all("/" in holdout["rule"] for holdout in holdouts):
        return None
    everything = hash_of(sorted(label for holdout in holdouts for label in holdout["classes"]))
    if any(holdout["of_classes"] != everything for holdout in holdouts):
        return None
    rows = [[one.document["metrics"][metric] for one in results] for metric in metrics]
    table = np.array(rows, dtype=np.float64)
    both = zip(table.mean(axis=1).tolist(), table.std(axis=1, ddof=1).tolist(), strict=True)
    return dict(zip(metrics, both, strict=True))
