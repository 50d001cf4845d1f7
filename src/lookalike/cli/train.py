"""`lookalike train`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.cli import tables
from lookalike.cli.inputs import look_at_checkpoint, look_at_inputs
from lookalike.cli.output import print_utf8
from lookalike.cli.verb import Verb, options_of
from lookalike.config import TrainConfig
from lookalike.config.recipes import find_recipe
from lookalike.config.settings import config_from, format_recipe, merge_options
from lookalike.files import shown

if TYPE_CHECKING:
    from lookalike.training.history import TrainResult


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume", nargs="?", const="", default=None, metavar="FILE",
        help="continue an unfinished run: from this checkpoint, or from the newest in this folder "
        "(default: --out); its settings apply unless a flag overrides them",
    )  # fmt: skip


def _call(given: argparse.Namespace) -> TrainResult | None:
    recipe = find_recipe(given.recipe) if given.recipe else {}
    options = merge_options(TrainConfig, recipe, options_of(given))
    resume = options.get("out", ".") if given.resume == "" else given.resume
    if given.print_config and resume is None:
        print_utf8(format_recipe(config_from(TrainConfig, options)))
        return None
    if resume is None:  # else what is not given is as the run had it
        look_at_inputs(config_from(TrainConfig, options))
    else:
        look_at_checkpoint(Path(resume))
    from lookalike.commands.train import train, training_config

    if given.print_config:
        print_utf8(format_recipe(training_config(options, resume)))
        return None
    from lookalike.progress import default_progress

    return train(options, resume=resume, progress=default_progress())


def print_trained(result: TrainResult) -> None:
    """Prints the epochs, mixtures of weights, a look at three queries, and what was written."""
    tables.print_history(result.history, result.best)
    if result.trade_off is not None:
        tables.print_trade_off(result.trade_off)
    if result.retrieval is not None:
        if result.retrieval.scores:
            tables.print_unanswered(result.retrieval.scores)
        tables.print_preview(result.retrieval)
    tables.print_files(result.files)


def _document(result: TrainResult) -> dict[str, Any]:
    best, trade_off = result.best, result.trade_off
    checkpoint = shown(best.checkpoint) if best and best.checkpoint else None
    chosen = {"chosen": trade_off.chosen.alpha} if trade_off else {}
    return {
        "history": [asdict(one) for one in result.history],
        "best": asdict(best) | {"checkpoint": checkpoint} if best else None,
        "interpolation": asdict(trade_off) | chosen if trade_off else None,
        "files": [shown(path) for path in result.files],
        "unreadable": [asdict(one) for one in result.unreadable],
    }


VERB = Verb(
    name="train",
    show=print_trained,
    document=_document,
    call=_call,
    shares_work=True,
    help="fine-tune an encoder and show how much better it retrieves",
    usage="train IMAGES [--test IMAGES | --query ... --gallery ...] [options]",
    description="""
        Fine-tunes an encoder with the supervised contrastive loss on labelled images, and
        evaluates retrieval before the first step (epoch 0, the baseline) and after each epoch.

        Images are a folder with one sub-folder per class, or a table (.csv, .tsv, .parquet) with
        columns path and label and, if you need them, split (train, test), is_query and group.
        Tar shards, Parquet with images and Hugging Face datasets work too (docs/data.md).
        Test images are either a query and a gallery, or one labelled --test source in which each
        image is searched for in all the others.
    """,
    examples="""
        examples:
          lookalike train photos/train --test photos/test --learning-rate 1e-5
          lookalike train photos/train --query photos/test/query --gallery photos/test/gallery
          lookalike train photos/train --test photos/test --recipe strong
          lookalike train catalogue.csv --recipe mine.yaml --out runs/second
          lookalike train --resume --out runs/second
          lookalike train --print-config > mine.yaml

        writes, in --out:
          results/retrieval_results_epoch_XX.json   query file -> its top_k gallery files
          results/metrics_epoch_XX.json             metrics, protocol, similarities
          results/report.html                       the report, to open in a browser
          weights/encoder_epoch_XX.pth              model, optimizer, everything a resume needs
    """,
    config=TrainConfig,
    positional=("train", "IMAGES"),
    first=(
        "test", "query", "gallery", "holdout_classes", "model_name", "num_epochs",
        "learning_rate", "schedule", "warmup_steps", "n_classes_per_batch",
        "n_samples_per_class", "batch_memory", "objective", "temperature", "top_k", "best_metric",
        "patience", "keep", "device", "precision", "num_workers", "out", "overwrite", "track",
    ),
    recipe_help=(
        "NAME|FILE",
        "settings of a recipe that ships with Lookalike (see lookalike recipes) or of a YAML "
        "file; flags override it",
    ),
    add=_add,
)  # fmt: skip
