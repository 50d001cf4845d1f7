"""A run that is killed again and again ends like one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import assert_same_bits, load

JOB = Path(__file__).parent / "helpers" / "training_job.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
KILLS = 20
EPOCHS = 40
LAST = f"encoder_epoch_{EPOCHS:02}.pth"


def measured(out: Path) -> list[dict[str, float]]:
    """The metrics of all epochs."""
    files = [out / f"results/metrics_epoch_{epoch:02}.json" for epoch in range(EPOCHS + 1)]
    return [json.loads(path.read_text())["metrics"] for path in files]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX systems")
@pytest.mark.parametrize("words", [[], ["--lora-rank", "2"]], ids=["plain", "lora"])
def test_a_run_killed_at_twenty_random_moments_ends_bit_for_bit_like_an_uninterrupted_one(
    photos: Path, tiny_clip: Path, words: list[str]
) -> None:
    # The model has dropout, so the state of random numbers matters as well.
    out = photos / "out"
    command = [
        sys.executable, str(JOB), str(out), str(KILLS), LAST, "train", str(photos / "train"),
        "--test", str(photos / "test"), "--model-name", str(tiny_clip),
        "--num-epochs", str(EPOCHS), "--learning-rate", "1e-3", "--autosave-minutes", "1e-9",
        "--keep", "2", "--device", "cpu", "--precision", "fp32", "--num-workers", "0",
        "--no-report", *words,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=290, check=False
    )
    assert done.returncode == 0, done.stderr

    whole = photos / "out-whole"
    names = [sorted(path.name for path in (one / "weights").iterdir()) for one in (out, whole)]
    assert names[0] == names[1]  # as many are kept, and nothing half-written is left behind
    assert measured(out) == measured(whole)
    for name in names[0]:
        killed, expected = load(out / "weights" / name), load(whole / "weights" / name)
        for key in expected.keys() - {"config", "state"}:  # which name the folder and the run
            assert_same_bits(killed[key], expected[key])
