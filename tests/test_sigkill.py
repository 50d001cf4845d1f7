"""A run that is killed again and again ends like one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import assert_same_bits, load

from lookalike.training.checkpoints.folder import find_checkpoints

KILLS = 20
EPOCHS = 40
LAST = f"encoder_epoch_{EPOCHS:02}.pth"


def start(photos: Path, model: Path, out: Path, words: list[str]) -> subprocess.Popen[str]:
    """`lookalike train` as a process of its own, which saves after each step."""
    command = [
        sys.executable, "-m", "lookalike", "train", str(photos / "train"),
        "--test", str(photos / "test"), "--model-name", str(model), "--out", str(out),
        "--num-epochs", str(EPOCHS), "--learning-rate", "1e-3", "--autosave-minutes", "1e-9",
        "--keep", "2", "--device", "cpu", "--precision", "fp32", "--num-workers", "0",
        "--no-report", *words,
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command,
        env=os.environ | threads,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(process: subprocess.Popen[str], life_s: float) -> None:
    """Kills a run that has set out, after so long."""
    assert process.stderr is not None
    told = []
    with process:
        for line in process.stderr:
            told.append(line)
            if line.startswith("device "):
                break
        else:
            pytest.fail(f"the run did not set out: {''.join(told)}")
        time.sleep(life_s)
        process.kill()
        process.stderr.read()


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for the end of a run, which must be a good one."""
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told


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
    whole, out = photos / "whole", photos / "out"
    finish(start(photos, tiny_clip, whole, words))
    ends = [whole / "weights" / LAST, whole / "results" / "metrics_epoch_00.json"]
    took_s = ends[0].stat().st_mtime - ends[1].stat().st_mtime

    # Lives that come to six tenths of that on average: all of them end before the run does.
    lives = np.random.default_rng(0).uniform(0, 1.2 * took_s / KILLS, KILLS)
    for life_s in lives.tolist():
        go_on = ["--resume"] if find_checkpoints(out) else ["--overwrite"]
        kill_after(start(photos, tiny_clip, out, [*words, *go_on]), life_s)
        for path in find_checkpoints(out):
            load(path)  # whole, whenever the kill came
        assert not (out / "weights" / LAST).exists(), "it was killed after its end"
    finish(start(photos, tiny_clip, out, [*words, "--resume"]))

    names = [sorted(path.name for path in (one / "weights").iterdir()) for one in (out, whole)]
    assert names[0] == names[1]  # as many are kept, and nothing half-written is left behind
    assert measured(out) == measured(whole)
    for name in names[0]:
        killed, expected = load(out / "weights" / name), load(whole / "weights" / name)
        for key in expected.keys() - {"config", "state"}:  # which name the folder and the run
            assert_same_bits(killed[key], expected[key])
