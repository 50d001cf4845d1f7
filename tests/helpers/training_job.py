"""Runs `lookalike train` for test_sigkill.py and kills it at random moments.

    python training_job.py OUT KILLS LAST TRAIN_WORDS...

Each life is a fork of this process, so that only one interpreter has to start. One run is left
alone, in OUT-whole; the other, in OUT, is killed so often, goes on each time, and ends. After each
kill the checkpoints must be whole. LAST is the file with which a run ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lookalike.cli.main import main as command_line
from lookalike.training.checkpoints.folder import find_checkpoints


def start(words: list[str], told: Path) -> int:
    """A life, which tells what it does in a file; the number of its process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(told, "wb", buffering=0) as file:
                os.dup2(file.fileno(), sys.stderr.fileno())
            code = command_line(words)
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(words: list[str], told: Path) -> None:
    """A life that comes to a good end."""
    if exit_code(start(words, told)) != 0:
        sys.exit(f"a life did not end well: {told.read_text()}")


def kill_after(words: list[str], life_s: float, told: Path) -> bool:
    """Kills a run that has set out, after so long; False where it had ended by then."""
    child = start(words, told)
    while not has_set_out(told):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            sys.exit(f"the run did not set out: {told.read_text()}")
        time.sleep(0.001)
    time.sleep(life_s)
    os.kill(child, signal.SIGKILL)
    code = exit_code(child)
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"a life ended with {code}: {told.read_text()}")
    return code != 0


def has_set_out(told: Path) -> bool:
    return told.exists() and b"\ndevice " in b"\n" + told.read_bytes()


def main(out: Path, kills: int, last: str, words: list[str]) -> None:
    """Trains without kills, to know how long it takes, and then with them."""
    told, whole = out.with_name("told.txt"), out.with_name(f"{out.name}-whole")
    finish([*words, "--out", str(whole)], told)
    ends = [whole / "weights" / last, whole / "results" / "metrics_epoch_00.json"]
    took_s = ends[0].stat().st_mtime - ends[1].stat().st_mtime

    # Lives that come to six tenths of that on average: they end before the run does, unless the
    # machine has become faster since.
    draw, killed = np.random.default_rng(0), 0
    for _ in range(4 * kills):
        told.unlink()
        life_s = draw.uniform(0, 1.2 * took_s / kills)
        go_on = "--resume" if find_checkpoints(out) else "--overwrite"
        was_killed = kill_after([*words, "--out", str(out), go_on], life_s, told)
        for path in find_checkpoints(out):
            torch.load(path, weights_only=True)  # whole, whenever the kill came
        if not was_killed or (out / "weights" / last).exists():
            shutil.rmtree(out)  # begins anew, as there is nothing left to kill
            continue
        killed += 1
        if killed == kills:
            break
    else:
        sys.exit("it ended too often before it was killed")
    finish([*words, "--out", str(out), "--resume"], told)


if __name__ == "__main__":
    torch.set_num_threads(1)  # no threads, so that forking is safe
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
