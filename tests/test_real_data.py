"""Measured anchors on real images, where LOOKALIKE_REAL_DATA names the folder that holds them."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

import lookalike
from lookalike.config import ExportConfig
from lookalike.config.settings import config_from
from lookalike.progress import SilentProgress

REAL_DATA = Path(os.environ.get("LOOKALIKE_REAL_DATA", "no-such-folder"))
GROCERY = REAL_DATA / "data" / "grocery"
DINOV2 = REAL_DATA / "weights" / "dinov2-small"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not GROCERY.is_dir(), reason="LOOKALIKE_REAL_DATA names no such data"),
]


def test_dinov2_on_grocery_scores_what_plain_pytorch_measured(tmp_path: Path) -> None:
    # Every third test image: Transformers in fp32, its processor on Pillow, ranked by a float64
    # loop over the queries (R@1 0.6309, mAP 0.2780, mAP@R 0.2043 of 829 queries).
    table = tmp_path / "third.csv"
    with open(table, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for path in sorted((GROCERY / "test").rglob("*.jpg"))[::3]:
            rows.writerow([path, path.parent.name])
    result = lookalike.evaluate(
        lookalike.EvaluateConfig(
            test=str(table), model_name=str(DINOV2), out=str(tmp_path / "out")
        ),
        progress=SilentProgress(),
    )
    metrics = result.metrics
    assert metrics is not None
    assert metrics["recall@1"] == pytest.approx(0.6309, abs=0.01)
    assert metrics["mAP"] == pytest.approx(0.2780, abs=0.005)
    assert metrics["mAP@R"] == pytest.approx(0.2043, abs=0.005)


@pytest.mark.parametrize(
    ("to", "tolerance"), [("transformers", 0), ("sentence-transformers", 1e-6), ("onnx", 1e-6)]
)
def test_dinov2_gives_its_embeddings_in_every_form(
    to: str, tolerance: float, tmp_path: Path
) -> None:
    config = config_from(
        ExportConfig, {"model_name": str(DINOV2), "to": to, "out": str(tmp_path / "out")}
    )
    result = lookalike.export(config, progress=SilentProgress())
    assert (result.kind, result.dim) == ("pooled", 384)
    assert result.agreement.largest_difference <= tolerance
