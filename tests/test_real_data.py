"""Measured anchors on real pictures, where LOOKALIKE_REAL_DATA names the folder that holds them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import lookalike
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
    result = lookalike.evaluate(
        lookalike.EvaluateConfig(
            test=str(GROCERY / "test"), model_name=str(DINOV2), out=str(tmp_path)
        ),
        progress=SilentProgress(),
    )
    metrics = result.metrics
    assert metrics is not None
    assert metrics["recall@1"] == pytest.approx(0.8153, abs=0.005)
    assert metrics["mAP"] == pytest.approx(0.270, abs=0.005)
    assert metrics["mAP@R"] == pytest.approx(0.200, abs=0.005)
