"""`lookalike.compare`: several results beside each other, and whether their difference is real."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.errors import ConfigError, DataError
from lookalike.evaluation.results import find_results
from lookalike.evaluation.scores import HEADLINE
from lookalike.evaluation.statistics import PairedTest, paired_tests
from lookalike.files import shown


@dataclass(frozen=True)
class Measured:
    """One metrics file: what is shown of it, and what it says."""

    name: str
    path: Path
    document: dict[str, Any]

    @property
    def protocol(self) -> dict[str, Any]:
        """What the numbers were measured on."""
        found: dict[str, Any] = self.document["protocol"]
        return found


@dataclass(frozen=True)
class Comparison:
    """Results beside each other. `tests[i]` compares result i + 1 with the first, per metric.

    Without tests `why_untested` says why. `folds` holds mean and standard deviation of each
    metric over results that are the folds of one holdout, else None.
    """

    results: list[Measured]
    tests: list[dict[str, PairedTest]]
    why_untested: str | None
    folds: dict[str, tuple[float, float]] | None


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
        by_class: tests and intervals draw whole classes (see `evaluation.statistics`).

    Raises:
        DataError: a file that is none of ours, or has no metrics.
        ConfigError: the protocols differ, and nobody said that they may; names what differs.
    """
    results = _named(_find(sources))
    folds = _over_folds(results)
    first = results[0]
    odd = next((one for one in results[1:] if _protocol_of(one) != _protocol_of(first)), None)
    if odd is not None:
        if not different_protocols and folds is None:
            raise ConfigError(
                f"{odd.name} and {first.name} were measured under different protocols "
                f"({_difference(first.protocol, odd.protocol)}), so their numbers do not compare; "
                "--different-protocols shows them beside each other all the same"
            )
        return Comparison(results, [], "they were measured under different protocols", folds)
    if any(_queries_of(one) != _queries_of(first) for one in results):
        return Comparison(results, [], "they could not read the same pictures", folds)
    tests = [_tests(first, one, by_class=by_class) for one in results[1:]]
    return Comparison(results, tests, None, folds)


def _find(sources: Sequence[str | Path]) -> list[Measured]:
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = [path for path in find_results(source) if path.name.startswith("metrics_")]
            if not found:
                raise DataError(f"there are no metrics files in {shown(source / 'results')}; give "
                                "the folder that was --out, or a metrics_*.json")  # fmt: skip
            paths += found if len(sources) == 1 else found[-1:]
        else:
            paths.append(source)
    if len(paths) < 2:
        raise ConfigError("one result compares with nothing; give two or more")
    return [Measured(os.fspath(path), path, _read(path)) for path in paths]


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {shown(path)}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{shown(path)} is not JSON: {error}") from error
    if not isinstance(document, dict) or "protocol" not in document or "metrics" not in document:
        raise DataError(f"{shown(path)} is no metrics file; expected a results/metrics_*.json that "
                        "lookalike wrote")  # fmt: skip
    if document["metrics"] is None or "per_query" not in document:
        raise DataError(f"{shown(path)} holds no metrics: the pictures had no labels, or it is of "
                        "an earlier version; evaluate anew")  # fmt: skip
    return document


def _named(results: list[Measured]) -> list[Measured]:
    """The same with short names: without the folders that all have in common."""
    resolved = [one.path.resolve() for one in results]
    common = Path(os.path.commonpath(resolved))
    names = []
    for path in resolved:
        name = path.relative_to(common).with_suffix("").as_posix() or path.stem
        names.append(name.replace("results/", "").replace("metrics_", ""))
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    return [replace(one, name=name) for one, name in zip(results, names, strict=True)]


def _protocol_of(one: Measured) -> Any:
    return one.protocol.get("fingerprint")


def _queries_of(one: Measured) -> Any:
    return one.document["per_query"]["name"], one.document["per_query"]["num_relevant"]


def _difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The first few facts in which two protocols differ."""
    facts = [
        key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and key != "fingerprint"
    ]
    told = [f"{key}: {_brief(a.get(key))} and {_brief(b.get(key))}" for key in sorted(facts)]
    return "; ".join(told[:3]) or "the same counts, other pictures"


def _brief(value: Any) -> str:
    if isinstance(value, dict) and "rule" in value:
        return f"{value['rule']} (seed {value['seed']})"
    return str(value)


def _tests(a: Measured, b: Measured, *, by_class: bool) -> dict[str, PairedTest]:
    """Each headline metric, on the queries that have an answer."""
    before, after = a.document["per_query"], b.document["per_query"]
    scored = np.array(before["num_relevant"]) > 0

    def columns(of: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.array(of[name], dtype=np.float64)[scored] for name in HEADLINE}

    labels = np.array(before["label"])[scored].tolist()
    return paired_tests(columns(before), columns(after), clusters=labels if by_class else None)


def _over_folds(results: list[Measured]) -> dict[str, tuple[float, float]] | None:
    """Mean and standard deviation over results that are different folds of one holdout."""
    holdouts = [one.protocol.get("holdout") for one in results]
    rules = [holdout["rule"] for holdout in holdouts if holdout]
    if len(rules) < len(results) or len(set(rules)) < len(rules):
        return None
    if not all("/" in rule for rule in rules) or len({rule.split("/")[1] for rule in rules}) > 1:
        return None
    if len({holdout["seed"] for holdout in holdouts if holdout}) > 1:
        return None
    table = {metric: [one.document["metrics"][metric] for one in results] for metric in HEADLINE}
    return {m: (float(np.mean(v)), float(np.std(v, ddof=1))) for m, v in table.items()}
