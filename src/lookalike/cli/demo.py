"""`lookalike demo`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.cli import tables
from lookalike.cli.output import say
from lookalike.cli.verb import Verb
from lookalike.config import TrainConfig
from lookalike.config.options import checked
from lookalike.files import shown
from lookalike.progress import default_progress

if TYPE_CHECKING:
    from lookalike.training.history import TrainResult

_YOUR_TURN = """
    These images are invented and the encoder is a toy; the pipeline is the real one. On your
    own images, with one folder per class:

      lookalike train photos/train --test photos/test --learning-rate 1e-5
      lookalike train photos/train --query photos/test/query --gallery photos/test/gallery
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="lookalike-demo", metavar="FOLDER",
                        help="where to write everything (default: lookalike-demo)")  # fmt: skip
    parser.add_argument("--seed", default=0, metavar="N", help="random seed; another "
                        "draws another catalogue (default: 0)")  # fmt: skip


def _call(given: argparse.Namespace) -> tuple[Path, TrainResult]:
    from lookalike.commands.demo import demo

    out, seed = Path(given.out), checked(TrainConfig, "seed", given.seed)
    return out, demo(out, seed=seed, progress=default_progress())


def _document(finished: tuple[Path, TrainResult]) -> dict[str, Any]:
    return {"history": [asdict(one) for one in finished[1].history]}


def print_demo(finished: tuple[Path, TrainResult]) -> None:
    """Prints the epochs, a look at three queries, what there is to see, and what to do next."""
    from lookalike.commands.demo import SHEET
    from lookalike.evaluation.results import report_file

    out, result = finished
    tables.print_history(result.history, result.best)
    if result.retrieval is not None:
        tables.print_preview(result.retrieval)
        say(f"Six queries and their results, as an image: {shown(out / SHEET)}")
        say(f"The whole report, to open in a browser: {shown(report_file(out))}\n")
    say(cleandoc(_YOUR_TURN))


VERB = Verb(
    name="demo",
    show=print_demo,
    document=_document,
    call=_call,
    help="see it work on invented images: no network, weights or data needed",
    usage="demo [--out FOLDER] [--seed N] [--json]",
    description="""
        Draws a catalogue of objects that do not exist, trains a toy encoder on it from random
        weights, and lets it find objects of classes it has never seen. Takes about two minutes on
        two cores. The images and the encoder are made up; the pipeline is the real one.
    """,
    examples="",
    add=_add,
)
