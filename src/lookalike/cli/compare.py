"""`lookalike compare`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from lookalike.cli.output import say
from lookalike.cli.tables import print_metrics, print_table
from lookalike.cli.verb import Verb
from lookalike.files import shown

if TYPE_CHECKING:
    from lookalike.commands.compare import Comparison
    from lookalike.evaluation.scoring.statistics import PairedTest


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="RESULT",
                        help="a run's folder, or a results/metrics_*.json")  # fmt: skip
    parser.add_argument("--by-class", action="store_true",
                        help="treat queries of one class as belonging together: wider, more "
                        "honest intervals where a class has many queries")  # fmt: skip
    parser.add_argument("--different-protocols", action="store_true",
                        help="also show results of different protocols, untested")  # fmt: skip


def _call(given: argparse.Namespace) -> Comparison:
    from lookalike.commands.compare import compare

    return compare(
        given.results, different_protocols=given.different_protocols, by_class=given.by_class
    )


def _document(comparison: Comparison) -> dict[str, Any]:
    tests, by_class = (
        [{name: asdict(test) for name, test in one.items()} for one in tests]
        for tests in (comparison.tests, comparison.tests_by_class)
    )
    return {
        "results": [
            {"name": one.name, "file": shown(one.path), "metrics": one.document["metrics"],
             "intervals": one.document.get("intervals")}
            for one in comparison.results
        ],
        "tests_against_first": tests,
        "tests_against_first_by_class": tests if comparison.by_class else by_class or None,
        "why_untested": comparison.why_untested,
        "folds": comparison.folds,
        "missing_metrics": comparison.missing,
    }  # fmt: skip


def print_comparison(comparison: Comparison) -> None:
    """Prints one row a result, then one block a test against the first."""
    table = [(shown(one.name), one.document["metrics"]) for one in comparison.results]
    for word, which in (("mean", 0), ("std. dev.", 1)) if comparison.folds else ():
        values = {name: fold[which] for name, fold in (comparison.folds or {}).items()}
        table.append((f"{word} over folds", values))
    print_metrics(comparison.metrics, table)
    if comparison.missing:
        lacking = (f"{name} (not in {', '.join(map(shown, files))})"
                   for name, files in comparison.missing.items())  # fmt: skip
        say(f"Left out, because not all results have them: {'; '.join(lacking)}.\n")
    first = shown(comparison.results[0].name)
    tested = zip_longest(comparison.tests, comparison.tests_by_class)
    for one, (tests, by_class) in zip(comparison.results[1:], tested, strict=False):
        say(f"{shown(one.name)} against {first}, on the same queries:")
        _print_tests(tests)
        if by_class is not None:
            number = len(set(comparison.results[0].scored_labels))
            say(f"The same by class, of which there {'is' if number == 1 else 'are'} only "
                  f"{number}:")  # fmt: skip
            _print_tests(by_class)
    if comparison.tests_by_class:
        say("Queries of one class are seldom independent: what holds for other classes as well\n"
              "is what stands by class.\n")  # fmt: skip
    elif comparison.tests and not comparison.by_class:
        say("Queries are assumed to be independent. Those of one class seldom are: --by-class\n"
              "allows for that, and takes more to call a difference real.\n")  # fmt: skip
    if comparison.why_untested:
        say(f"The differences are not tested: {comparison.why_untested}.\n")


def _print_tests(tests: Mapping[str, PairedTest]) -> None:
    """Prints one row a metric."""
    rows = [
        [metric, f"{test.difference:+.4f}", f"{test.low:+.4f} .. {test.high:+.4f}",
         f"{test.p_value:.4f}"]
        for metric, test in tests.items()
    ]  # fmt: skip
    print_table(["", "difference", "95% interval", "p"], rows)


VERB = Verb(
    name="compare",
    show=print_comparison,
    document=_document,
    call=_call,
    help="put results side by side, and test whether they differ",
    usage="compare RESULT RESULT ... [options]",
    description="""
        Puts metrics files side by side and tests each against the first, query by query:
        the mean difference, its 95% interval, and the p-value of a paired permutation test; by
        class as well where classes are few. Results that were measured under different
        protocols (other images, by their names, or other labels, groups or held-out classes)
        cannot be compared, and are refused.
    """,
    examples="""
        examples:
          lookalike compare runs/first runs/second        the last epoch of each
          lookalike compare runs/first                    all its epochs
          lookalike compare runs/a/results/metrics_epoch_00.json other/metrics_bm25.json
          lookalike compare runs/fold1 runs/fold2 runs/fold3   of --holdout-classes 1/3 ...
    """,
    add=_add,
)
