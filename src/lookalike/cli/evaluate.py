"""`lookalike evaluate`."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict

from lookalike.cli import tables
from lookalike.cli.verb import Verb, configured, print_json
from lookalike.config import EvaluateConfig
from lookalike.files import shown
from lookalike.progress import default_progress


def _run(given: argparse.Namespace) -> None:
    config = configured(given, EvaluateConfig)
    if config is None:
        return
    from lookalike.commands.evaluate import evaluate

    progress = default_progress()
    result = evaluate(config, progress=progress)
    if given.json:
        # JSON has no infinity, such as a rank beyond what a run retrieved.
        metrics = {k: v if math.isfinite(v) else None for k, v in (result.metrics or {}).items()}
        print_json(
            {
                "metrics": metrics or None,
                "text_metrics": result.text_metrics,
                "files": [shown(path) for path in result.files],
                "unreadable": [asdict(one) for one in result.unreadable],
            }
        )
    else:
        if result.scores:
            tables.print_scores(result.scores)
        if result.text_scores:
            tables.print_text_scores(result.text_scores)
        if result.retrieval:
            tables.print_preview(result.retrieval)
        tables.print_files(result.files)
    tables.tell_unreadable(result.unreadable, progress)


VERB = Verb(
    name="evaluate",
    run=_run,
    shares_work=True,
    help="measure a model, or just retrieve with it",
    usage="evaluate [--test IMAGES | --query ... --gallery ...] [options]",
    description="""
        Embeds test images with a model or a checkpoint and retrieves the top k of each query.
        With labels on both sides it also measures recall@1/5/10, mAP, mAP@R and more.
    """,
    examples="""
        examples:
          lookalike evaluate --test photos/test --model-name weights/encoder_epoch_01.pth
          lookalike evaluate --query new/ --gallery shop/ --out runs/shop --top-k 20
          lookalike evaluate --test photos/test --test-embeddings other.parquet --out runs/other
          lookalike evaluate --run other.trec --qrels qrels.trec --out runs/other
    """,
    config=EvaluateConfig,
    first=(
        "test", "query", "gallery", "holdout_classes", "group_pattern", "top_k", "model_name",
        "embedding", "test_embeddings", "query_embeddings", "gallery_embeddings", "run", "qrels",
        "eval_batch_size", "device", "precision", "num_workers", "out", "overwrite", "report",
        "trec", "save_embeddings",
    ),
)  # fmt: skip
