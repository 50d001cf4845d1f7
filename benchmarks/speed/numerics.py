"""What speed costs in exactness: retrieval and embeddings beside float32 and exact pixels.

    export LOOKALIKE_REAL_DATA=...
    python benchmarks/speed/numerics.py

Grocery's test images with DINOv2-small, leave-one-out; and photos of 12 megapixels made up for
this, at the quality and size of a phone's. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

from machine import write_photos
from torch import Tensor

import lookalike
from lookalike.config import EvaluateConfig
from lookalike.progress import SilentProgress

Arithmetic = Literal["fp32", "bf16", "int8"]
WAYS: list[tuple[Arithmetic, bool]] = [
    ("fp32", True), ("fp32", False), ("bf16", True), ("bf16", False), ("int8", False),
]  # fmt: skip


def main() -> None:
    """Evaluates in each arithmetic, prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="default: DINOv2-small of LOOKALIKE_REAL_DATA")
    given = parser.parse_args()
    root = os.environ.get("LOOKALIKE_REAL_DATA")
    if not root:
        print("Not measured: LOOKALIKE_REAL_DATA is not set.")
        return
    model = given.model or f"{root}/weights/dinov2-small"
    print(_table("Grocery's test images", model, f"{root}/data/grocery/test", with_metrics=True))
    with tempfile.TemporaryDirectory() as folder:
        for label in ("one", "another"):
            write_photos(Path(folder) / label, 8, (4000, 3000))
        print(f"\n{_table('Photos of 12 megapixels', model, folder, with_metrics=False)}")


def _table(title: str, model: str, test: str, *, with_metrics: bool) -> str:
    names = ("recall@1", "mAP", "mAP@R") if with_metrics else ()
    columns = [title, "pixels", "cosine: mean", "1st percentile", "least", *names]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    reference: Tensor | None = None
    for precision, exact in WAYS:
        embeddings, metrics = _evaluated(model, test, precision, exact)
        if reference is None:
            reference, cells = embeddings, ["", "", ""]
        else:
            cosines = (embeddings * reference).sum(dim=1)
            ordered = cosines.sort().values
            cells = [
                f"{value:.6f}"
                for value in (cosines.mean(), ordered[len(cosines) // 100], ordered[0])
            ]
        kind = "exact" if exact else "quick"
        cells = [precision, kind, *cells, *(f"{metrics[name]:.4f}" for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def _evaluated(
    model: str, test: str, precision: Arithmetic, exact: bool
) -> tuple[Tensor, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as out:
        config = EvaluateConfig(
            model_name=model,
            test=test,
            precision=precision,
            exact_pixels=exact,
            out=out,
            report=False,
        )
        result = lookalike.evaluate(config, progress=SilentProgress())
    assert result.retrieval is not None
    assert result.scores is not None
    return result.retrieval.gallery_embeddings[:].double(), dict(result.scores.micro())


if __name__ == "__main__":
    main()
