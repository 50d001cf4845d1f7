"""`lookalike evaluate`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lookalike.cli import tables
from lookalike.cli.output import say
from lookalike.cli.verb import Verb
from lookalike.config import EvaluateConfig
from lookalike.files import shown

if TYPE_CHECKING:
    from lookalike.commands.evaluate import EvaluateResult


def print_evaluated(result: EvaluateResult) -> None:
    """Prints the metrics, a look at three queries, and what was written."""
    from lookalike.evaluation.metrics import headline, text_headline

    if result.scores:
        tables.print_means(result.scores, headline())
        tables.print_unanswered(result.scores)
    if result.text_scores:
        say("Images found by searching for their class names as text:")
        tables.print_means(result.text_scores, text_headline())
    if result.retrieval:
        tables.print_preview(result.retrieval)
    tables.print_files(result.files)


def _document(result: EvaluateResult) -> dict[str, Any]:
    # JSON has no infinity, such as a rank beyond what a run retrieved.
    metrics = {k: v if math.isfinite(v) else None for k, v in (result.metrics or {}).items()}
    return {
        "metrics": metrics or None,
        "text_metrics": result.text_metrics,
        "files": [shown(path) for path in result.files],
        "unreadable": [asdict(one) for one in result.unreadable],
    }


VERB = Verb(
    name="evaluate",
    show=print_evaluated,
    document=_document,
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
