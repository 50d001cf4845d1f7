"""The verbs: `train`, `evaluate`, `compare`, `check`, `demo`."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lookalike import __version__
from lookalike.cli.flags import Parser, add_knobs, nearest, paragraphs
from lookalike.config import CheckConfig, EvaluateConfig, TrainConfig
from lookalike.errors import Interrupted, LookalikeError
from lookalike.files import shown
from lookalike.recipes import config_from, format_recipe, read_recipe

MUST_MEND, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Returns:
        The exit code: 0; 1 where `check` found what must be mended; 2 for our own errors; 130
        for Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name the terminal cannot show must not end the run
            stream.reconfigure(errors="backslashreplace")
    # Read when torch is loaded. Threads that spin while they wait take the cores from the readers
    # and from whatever else runs: training small models went twice as fast without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    verb: Callable[[argparse.Namespace], int | None] = given.verb
    try:
        return verb(given) or 0
    except Interrupted as stopped:
        print(f"lookalike: {stopped}", file=sys.stderr)
        return INTERRUPTED
    except LookalikeError as error:
        print(f"lookalike: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("lookalike: stopped", file=sys.stderr)
        return INTERRUPTED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as argparse understands it, misspelt words answered with the nearest."""
    parser = _parser()
    first = arguments[0] if arguments else "--help"
    if first.startswith("-") and first not in ("-h", "--help", "--version"):
        parser.refuse_unknown([first])
    if not first.startswith("-") and first not in _VERBS:
        parser.error(f"unknown command {first}{nearest(first, list(_VERBS))}")
    given, unknown = parser.parse_known_args(arguments or ["--help"])
    if unknown:
        given.parser.refuse_unknown(unknown)
    return given


def _parser() -> Parser:
    parser = Parser(
        prog="lookalike",
        description=paragraphs("""
            Image retrieval that works on your own pictures: fine-tune a CLIP vision encoder so
            that pictures of the same thing land together, and measure how much better it got.
        """),
        epilog=paragraphs("""
            See it work, with nothing but this package (about two minutes):
              lookalike demo

            On your own pictures, one folder per class:
              lookalike check photos/train --test photos/test
              lookalike train photos/train --test photos/test
        """),
    )
    parser.add_argument("--version", action="version", version=f"lookalike {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _VERBS.values():
        add(verbs)
    return parser


def _add_train(verbs: Any) -> None:
    parser = verbs.add_parser(
        "train",
        usage="lookalike train PICTURES [--test PICTURES | --query ... --gallery ...] [flags]",
        help="fine-tune an encoder and show how much better it retrieves",
        description=paragraphs("""
            Fine-tunes an encoder with the supervised contrastive loss on pictures with labels,
            and evaluates retrieval before the first step (epoch 0) and after each epoch.

            Pictures are given as a folder with one sub-folder per class, or as a table (.csv,
            .tsv, .parquet) with columns path and label, and if need be split (train, test),
            is_query and group. Test pictures are either a query and a gallery, or one labelled
            --test folder in which each picture searches in all the others.
        """),
        epilog=paragraphs("""
            examples:
              lookalike train photos/train --query photos/test/query --gallery photos/test/gallery
              lookalike train photos/train --test photos/test --num-epochs 3 --learning-rate 1e-5
              lookalike train catalogue.csv --recipe mine.yaml --out runs/second
              lookalike train --resume --out runs/second
              lookalike train --print-config > mine.yaml

            writes, below --out:
              results/retrieval_results_epoch_XX.json   query file -> its top_k gallery files
              results/metrics_epoch_XX.json             metrics, protocol, similarities
              weights/encoder_epoch_XX.pth              model, optimiser, all a resume needs
        """),
    )
    parser.add_argument("train", nargs="?", default=argparse.SUPPRESS, metavar="PICTURES",
                        help="what to learn from: a class-per-folder tree or a table")  # fmt: skip
    _add_recipe_flags(parser)
    parser.add_argument(
        "--resume", nargs="?", const="", default=None, metavar="FILE",
        help="go on with an unfinished run: from this checkpoint, or the newest of this folder "
        "(default: of --out); its settings hold unless a flag says otherwise",
    )  # fmt: skip
    add_knobs(parser, TrainConfig, leave_out=("train",))
    parser.set_defaults(verb=_train, parser=parser)


def _add_evaluate(verbs: Any) -> None:
    parser = verbs.add_parser(
        "evaluate",
        usage="lookalike evaluate [--test PICTURES | --query ... --gallery ...] [flags]",
        help="measure a model, or just retrieve with it",
        description=paragraphs("""
            Embeds test pictures with a model or a checkpoint and retrieves the top k of each
            query. With labels on both sides it measures recall@1/5/10, mAP and mAP@R as well.
        """),
        epilog=paragraphs("""
            examples:
              lookalike evaluate --test photos/test --model-name weights/encoder_epoch_01.pth
              lookalike evaluate --query new/ --gallery shop/ --out runs/shop --top-k 20
              lookalike evaluate --test photos/test --test-embeddings other.parquet --out runs/other
              lookalike evaluate --run other.trec --qrels qrels.trec --out runs/other
        """),
    )
    _add_recipe_flags(parser)
    add_knobs(parser, EvaluateConfig)
    parser.set_defaults(verb=_evaluate, parser=parser)


def _add_compare(verbs: Any) -> None:
    parser = verbs.add_parser(
        "compare",
        usage="lookalike compare RESULT RESULT ... [flags]",
        help="put results beside each other, and test whether they differ",
        description=paragraphs("""
            Puts metrics files beside each other and tests each against the first, query by query:
            the mean difference, its 95% bootstrap interval, and the p-value of a paired
            permutation test. Results that were measured under different protocols (other
            pictures, labels, groups or held-out classes) do not compare, and are refused.
        """),
        epilog=paragraphs("""
            examples:
              lookalike compare runs/first runs/second        the last epoch of each
              lookalike compare runs/first                    all its epochs
              lookalike compare runs/a/results/metrics_epoch_00.json other/metrics_bm25.json
              lookalike compare runs/fold1 runs/fold2 runs/fold3   of --holdout-classes 1/3 ...
        """),
    )
    parser.add_argument("results", nargs="+", metavar="RESULT",
                        help="a run's folder, or a results/metrics_*.json")  # fmt: skip
    parser.add_argument("--by-class", action="store_true",
                        help="treat queries of one class as belonging together: wider, more "
                        "honest intervals where a class has many queries")  # fmt: skip
    parser.add_argument("--different-protocols", action="store_true",
                        help="show results of different protocols as well, untested")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(verb=_compare, parser=parser)


def _add_check(verbs: Any) -> None:
    parser = verbs.add_parser(
        "check",
        usage="lookalike check PICTURES [--test PICTURES] [--model-name NAME] [flags]",
        help="find what is wrong with your pictures, before time is spent on them",
        description=paragraphs("""
            Decodes every file and names what is wrong: files that cannot be read, exact and near
            copies (within a class, under different labels, across splits), class sizes against
            K, class names that differ in spelling only, blank, tiny and extremely long pictures.
            With --model-name also labels that are likely wrong. Nothing of yours is changed.

            Stopped, it goes on where it was; run again, it reads only files that have changed.
        """),
        epilog=paragraphs("""
            examples:
              lookalike check photos/train --test photos/test
              lookalike check photos/train --test photos/test --model-name facebook/dinov2-small
              lookalike check catalogue.csv --n-samples-per-class 4 --out checks/catalogue
              lookalike check photos/train --query new/ --gallery shop/ --json

            exit code:
              0  nothing must be mended
              1  something must be mended: unreadable files, copies across splits, exact copies
                 under different labels, too few classes for a batch
              2  the check could not be done

            writes, below --out:
              check.html    every finding with its pictures, in one file
              check.json    every finding in full
              scan.sqlite   what was read, so that the next check is quick
        """),
    )
    parser.add_argument("data", nargs="?", default=argparse.SUPPRESS, metavar="PICTURES",
                        help="what to check: a class-per-folder tree, a flat folder, or a table, "
                        "each of whose splits counts as one")  # fmt: skip
    _add_recipe_flags(parser)
    add_knobs(parser, CheckConfig, leave_out=("data",))
    parser.set_defaults(verb=_check, parser=parser)


def _add_demo(verbs: Any) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see it work on invented pictures: no network, weights or data needed",
        description=paragraphs("""
            Draws a catalogue of objects that do not exist, trains a toy encoder on it from
            random weights, and lets it find objects of classes it has never seen. Takes about
            two minutes on two cores. The pictures and the encoder are made up; the pipeline is
            the one that trains on yours.
        """),
    )
    parser.add_argument("--out", default="lookalike-demo", metavar="FOLDER",
                        help="where everything is written (default: lookalike-demo)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another "
                        "catalogue (default: 0)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(verb=_demo, parser=parser)


_VERBS = {
    "train": _add_train,
    "evaluate": _add_evaluate,
    "compare": _add_compare,
    "check": _add_check,
    "demo": _add_demo,
}


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", metavar="FILE", help="settings from a YAML file; flags win")
    parser.add_argument("--print-config", action="store_true",
                        help="print the settings as a recipe, and do nothing")  # fmt: skip
    parser.add_argument("--json", action="store_true",
                        help="print one JSON document instead of tables")  # fmt: skip


def _train(given: argparse.Namespace) -> None:
    knobs = _knobs_of(given)
    recipe = read_recipe(given.recipe) if given.recipe else {}
    saved: dict[str, Any] = {}
    resume: Path | None = None
    if given.resume is not None:
        from lookalike.model.pretrained import read_checkpoint
        from lookalike.training.checkpoint import newest_checkpoint

        out = Path(knobs.get("out", recipe.get("out", ".")))
        resume = Path(given.resume or out)
        if resume.is_dir():
            resume = newest_checkpoint(resume)
        saved = read_checkpoint(resume)["config"]
    config = config_from(TrainConfig, saved, recipe, knobs)
    if given.print_config:
        _print_utf8(format_recipe(config))
        return

    from lookalike.cli import tables
    from lookalike.progress import default_progress
    from lookalike.training.trainer import train

    progress = default_progress()
    result = train(config, resume=resume, progress=progress)
    if given.json:
        _print_json(
            {
                "history": [asdict(one) for one in result.history],
                "files": [shown(path) for path in result.files],
                "unreadable": [asdict(one) for one in result.unreadable],
            }
        )
    else:
        tables.print_history(result.history)
        if result.retrieval is not None:
            if result.retrieval.scores:
                tables.print_unanswered(result.retrieval.scores)
            tables.print_preview(result.retrieval)
        tables.print_files(result.files)
    tables.tell_unreadable(result.unreadable, progress)


def _evaluate(given: argparse.Namespace) -> None:
    recipe = read_recipe(given.recipe) if given.recipe else {}
    config = config_from(EvaluateConfig, recipe, _knobs_of(given))
    if given.print_config:
        _print_utf8(format_recipe(config))
        return

    from lookalike.cli import tables
    from lookalike.measure.evaluate import evaluate
    from lookalike.progress import default_progress

    progress = default_progress()
    result = evaluate(config, progress=progress)
    if given.json:
        _print_json(
            {
                "metrics": _finite(result.metrics),
                "files": [shown(path) for path in result.files],
                "unreadable": [asdict(one) for one in result.unreadable],
            }
        )
    else:
        if result.scores:
            tables.print_scores(result.scores)
        if result.retrieval:
            tables.print_preview(result.retrieval)
        tables.print_files(result.files)
    tables.tell_unreadable(result.unreadable, progress)


def _compare(given: argparse.Namespace) -> None:
    from lookalike.cli import tables
    from lookalike.measure.compare import compare

    comparison = compare(
        given.results,
        different_protocols=given.different_protocols,
        by_class=given.by_class,
    )
    if not given.json:
        tables.print_comparison(comparison)
        return
    tests = [{name: asdict(test) for name, test in one.items()} for one in comparison.tests]
    _print_json(
        {
            "results": [
                {"name": one.name, "file": shown(one.path), "metrics": one.document["metrics"],
                 "intervals": one.document.get("intervals")}
                for one in comparison.results
            ],
            "tests_against_first": tests,
            "why_untested": comparison.why_untested,
            "folds": comparison.folds,
        }
    )  # fmt: skip


def _check(given: argparse.Namespace) -> int | None:
    recipe = read_recipe(given.recipe) if given.recipe else {}
    config = config_from(CheckConfig, recipe, _knobs_of(given))
    if given.print_config:
        _print_utf8(format_recipe(config))
        return None

    from lookalike.checkup.run import check
    from lookalike.cli.findings import print_findings
    from lookalike.progress import default_progress

    result = check(config, progress=default_progress())
    if given.json:
        _print_json(result.document())
    else:
        print_findings(result)
    return MUST_MEND if result.must_mend else 0


def _demo(given: argparse.Namespace) -> None:
    from lookalike.cli import tables
    from lookalike.demo.run import SHEET, demo
    from lookalike.evaluation.results import report_file
    from lookalike.progress import default_progress

    result = demo(Path(given.out), seed=given.seed, progress=default_progress())
    if given.json:
        _print_json({"history": [asdict(one) for one in result.history]})
        return
    tables.print_history(result.history)
    if result.retrieval is not None:
        tables.print_preview(result.retrieval)
        print(f"Six queries and what was found, as a picture: {shown(Path(given.out) / SHEET)}")
        print(f"The whole report, to open in a browser: {shown(report_file(Path(given.out)))}\n")
    print(paragraphs(_YOUR_TURN))


_YOUR_TURN = """
    These pictures are invented and the encoder is a toy; the pipeline is the real one. On your
    own pictures, one folder per class:

      lookalike train photos/train --test photos/test
      lookalike train photos/train --query photos/test/query --gallery photos/test/gallery
"""


def _finite(metrics: dict[str, float] | None) -> dict[str, float | None] | None:
    """Metrics for JSON, which has no infinity: a median rank beyond what a run retrieved."""
    if metrics is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _knobs_of(given: argparse.Namespace) -> dict[str, Any]:
    """The flags that are knobs, out of all that were given."""
    others = {"verb", "parser", "recipe", "print_config", "json", "resume"}
    return {name: value for name, value in vars(given).items() if name not in others}


def _print_json(document: dict[str, Any]) -> None:
    _print_utf8(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def _print_utf8(text: str) -> None:
    """Prints what a program will read: in UTF-8, whatever the terminal or the pipe is set to."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"), end="")
