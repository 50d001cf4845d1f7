"""The command line: what each verb can be told, and how a command ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lookalike import __version__
from lookalike.cli.flags import Parser, add_options, nearest, paragraphs
from lookalike.cli.verbs import (
    run_bench,
    run_check,
    run_compare,
    run_demo,
    run_evaluate,
    run_export,
    run_recipes,
    run_train,
)
from lookalike.config import (
    BenchConfig,
    CheckConfig,
    EvaluateConfig,
    ExportConfig,
    TrainConfig,
)
from lookalike.errors import Interrupted, LookalikeError

USAGE_ERROR, INTERRUPTED = 2, 130


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
    words = sys.argv[1:] if arguments is None else arguments
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:  # of torchrun
        from lookalike.cli.together import run_together

        return run_together(lambda: _parse(words), _run)
    return _run(_parse(words), print_error)


def print_error(message: str) -> None:
    """What is wrong, where people look for it."""
    print(message, file=sys.stderr)


def _run(given: argparse.Namespace, tell: Callable[[str], None]) -> int:
    """Carries out a command, and turns how it ends into a message and an exit code."""
    verb: Callable[[argparse.Namespace], int | None] = given.verb
    try:
        return verb(given) or 0
    except Interrupted as stopped:
        tell(f"lookalike: {stopped}")
        return INTERRUPTED
    except LookalikeError as error:
        tell(f"lookalike: {error}")
        return USAGE_ERROR
    except KeyboardInterrupt:
        tell("lookalike: stopped")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the results, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
            Image retrieval that works on your own images: fine-tune a CLIP vision encoder so
            that images of the same thing land together, and measure how much better it got.
        """),
        epilog=paragraphs("""
            See it work, with nothing but this package (about two minutes):
              lookalike demo

            On your own images, one folder per class:
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
        usage="lookalike train IMAGES [--test IMAGES | --query ... --gallery ...] [flags]",
        help="fine-tune an encoder and show how much better it retrieves",
        description=paragraphs("""
            Fine-tunes an encoder with the supervised contrastive loss on images with labels,
            and evaluates retrieval before the first step (epoch 0) and after each epoch.

            Images are given as a folder with one sub-folder per class, or as a table (.csv,
            .tsv, .parquet) with columns path and label, and if need be split (train, test),
            is_query and group. Test images are either a query and a gallery, or one labelled
            --test folder in which each image searches in all the others.
        """),
        epilog=paragraphs("""
            examples:
              lookalike train photos/train --query photos/test/query --gallery photos/test/gallery
              lookalike train photos/train --test photos/test --num-epochs 3 --learning-rate 1e-5
              lookalike train photos/train --test photos/test --recipe strong
              lookalike train catalogue.csv --recipe mine.yaml --out runs/second
              lookalike train --resume --out runs/second
              lookalike train --print-config > mine.yaml

            writes, below --out:
              results/retrieval_results_epoch_XX.json   query file -> its top_k gallery files
              results/metrics_epoch_XX.json             metrics, protocol, similarities
              results/report.html                       the page to look at
              weights/encoder_epoch_XX.pth              model, optimiser, all a resume needs
        """),
    )
    parser.add_argument("train", nargs="?", default=argparse.SUPPRESS, metavar="IMAGES",
                        help="what to learn from: a class-per-folder tree or a table")  # fmt: skip
    _add_recipe_flags(parser, "NAME|FILE", "settings of a recipe that ships with Lookalike (see "
                      "lookalike recipes) or of a YAML file; flags win")  # fmt: skip
    parser.add_argument(
        "--resume", nargs="?", const="", default=None, metavar="FILE",
        help="go on with an unfinished run: from this checkpoint, or the newest of this folder "
        "(default: of --out); its settings hold unless a flag says otherwise",
    )  # fmt: skip
    add_options(parser, TrainConfig, leave_out=("train",))
    parser.set_defaults(verb=run_train, parser=parser)


def _add_evaluate(verbs: Any) -> None:
    parser = verbs.add_parser(
        "evaluate",
        usage="lookalike evaluate [--test IMAGES | --query ... --gallery ...] [flags]",
        help="measure a model, or just retrieve with it",
        description=paragraphs("""
            Embeds test images with a model or a checkpoint and retrieves the top k of each
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
    add_options(parser, EvaluateConfig)
    parser.set_defaults(verb=run_evaluate, parser=parser)


def _add_compare(verbs: Any) -> None:
    parser = verbs.add_parser(
        "compare",
        usage="lookalike compare RESULT RESULT ... [flags]",
        help="put results beside each other, and test whether they differ",
        description=paragraphs("""
            Puts metrics files beside each other and tests each against the first, query by query:
            the mean difference, its 95% bootstrap interval, and the p-value of a paired
            permutation test. Results that were measured under different protocols (other
            images, labels, groups or held-out classes) do not compare, and are refused.
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
    parser.set_defaults(verb=run_compare, parser=parser)


def _add_check(verbs: Any) -> None:
    parser = verbs.add_parser(
        "check",
        usage="lookalike check IMAGES [--test IMAGES] [--model-name NAME] [flags]",
        help="find what is wrong with your images, before time is spent on them",
        description=paragraphs("""
            Decodes every file and names what is wrong: files that cannot be read, exact and near
            copies (within a class, under different labels, across splits), class sizes against
            K, class names that differ in spelling only, blank, tiny and extremely long images.
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
              check.html    the findings with their images, in one file
              check.json    every finding in full
              scan.sqlite   what was read, so that the next check is quick
        """),
    )
    parser.add_argument("data", nargs="?", default=argparse.SUPPRESS, metavar="IMAGES",
                        help="what to check: a class-per-folder tree, a flat folder, or a table, "
                        "each of whose splits counts as one")  # fmt: skip
    _add_recipe_flags(parser)
    add_options(parser, CheckConfig, leave_out=("data",))
    parser.set_defaults(verb=run_check, parser=parser)


def _add_bench(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        usage="lookalike bench IMAGES [--model-name NAME] [flags]",
        help="find what limits speed on your images and machine, and what to change",
        description=paragraphs("""
            Measures each stage between files and embeddings alone (reading, decoding,
            preprocessing, transfer to the device, model) and then all of it together, as
            evaluate goes about it. Says what limits, and which flags or files to change.

            Files that the system read lately come from its memory, not from the disk. Nothing is
            written.
        """),
        epilog=paragraphs("""
            examples:
              lookalike bench photos/test
              lookalike bench photos/test --model-name openai/clip-vit-base-patch32
              lookalike bench photos/test --num-workers 8 --seconds 30 --json
        """),
    )
    parser.add_argument("data", nargs="?", default=argparse.SUPPRESS, metavar="IMAGES",
                        help="what to measure with: a folder, however deep, or a table; labels "
                        "do not matter")  # fmt: skip
    _add_recipe_flags(parser)
    add_options(parser, BenchConfig, leave_out=("data",))
    parser.set_defaults(verb=run_bench, parser=parser)


def _add_export(verbs: Any) -> None:
    parser = verbs.add_parser(
        "export",
        usage="lookalike export MODEL [--to FORM] [--out FOLDER] [flags]",
        help="write a fine-tuned encoder in a form that other software loads",
        description=paragraphs("""
            Writes a checkpoint, or any model, as a Transformers folder, as a
            sentence-transformers model, or as an ONNX graph. What was written is loaded and must
            give the embeddings of the original before the folder appears. With it comes a model
            card (README.md) that carries the numbers the checkpoint's run measured.
        """),
        epilog=paragraphs("""
            examples:
              lookalike export weights/encoder_epoch_03.pth --out shop-clip
              lookalike export weights/encoder_epoch_03.pth --to onnx --out shop-onnx
              lookalike export facebook/dinov2-small --to sentence-transformers --out dino-st
              lookalike export weights/encoder_epoch_03.pth --push-to-hub jane/shop-clip

            writes, in --out:
              README.md        the model card
              lookalike.json   embedding, preparation of images, origin: for programs
              model.onnx       or what from_pretrained or SentenceTransformer loads
        """),
    )
    parser.add_argument("model_name", nargs="?", default=argparse.SUPPRESS, metavar="MODEL",
                        help="a checkpoint of ours (.pth), a local Transformers folder, or a hub "
                        "id")  # fmt: skip
    _add_recipe_flags(parser)
    add_options(parser, ExportConfig, leave_out=("model_name",))
    parser.set_defaults(verb=run_export, parser=parser)


def _add_recipes(verbs: Any) -> None:
    parser = verbs.add_parser(
        "recipes",
        usage="lookalike recipes [NAME] [--json]",
        help="list the recipes that ship with Lookalike, or print one",
        description=paragraphs("""
            A recipe is a named set of settings for train. Without a name the recipes that ship
            are listed, each in a line; with one its file is printed: what it is for, hardware,
            time, what to expect, and the settings with their reasons.

            lookalike train --recipe NAME takes the shipped recipe of that name wherever it runs;
            a file of your own is named by its path, such as mine.yaml or ./strong.
        """),
        epilog=paragraphs("""
            examples:
              lookalike recipes
              lookalike recipes strong
              lookalike recipes strong > mine.yaml
        """),
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to print")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(verb=run_recipes, parser=parser)


def _add_demo(verbs: Any) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see it work on invented images: no network, weights or data needed",
        description=paragraphs("""
            Draws a catalogue of objects that do not exist, trains a toy encoder on it from
            random weights, and lets it find objects of classes it has never seen. Takes about
            two minutes on two cores. The images and the encoder are made up; the pipeline is
            the one that trains on yours.
        """),
    )
    parser.add_argument("--out", default="lookalike-demo", metavar="FOLDER",
                        help="where everything is written (default: lookalike-demo)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another "
                        "catalogue (default: 0)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(verb=run_demo, parser=parser)


_VERBS = {
    "train": _add_train,
    "evaluate": _add_evaluate,
    "compare": _add_compare,
    "check": _add_check,
    "bench": _add_bench,
    "export": _add_export,
    "recipes": _add_recipes,
    "demo": _add_demo,
}


def _add_recipe_flags(
    parser: argparse.ArgumentParser,
    metavar: str = "FILE",
    help: str = "settings from a YAML file; flags win",
) -> None:
    parser.add_argument("--recipe", metavar=metavar, help=help)
    parser.add_argument("--print-config", action="store_true",
                        help="print the settings as a recipe, and do nothing")  # fmt: skip
    parser.add_argument("--json", action="store_true",
                        help="print one JSON document instead of tables")  # fmt: skip
