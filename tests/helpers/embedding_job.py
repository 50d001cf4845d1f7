"""Runs `lookalike embed` for test_shards.py as a process of its own, or kills it at random moments.

    python embedding_job.py CONFIG.json             embeds once; under torchrun as one of several
    python embedding_job.py CONFIG.json KILLS SEED  is killed so often, goes on, and ends

Each life is a fork of this process, so that only one interpreter has to start. Prints as JSON what
was done after each life.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lookalike.commands.embed import embed
from lookalike.config import EmbedConfig
from lookalike.progress import SilentProgress


def live(config: dict[str, Any], life_s: float | None) -> tuple[bool, float]:
    """One life: ended by itself or killed, and how long it took."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            embed(EmbedConfig(**config), progress=SilentProgress())
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if life_s is not None:
        while time.monotonic() - start < life_s and os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ) is None:  # fmt: skip
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"a life ended with {os.WEXITSTATUS(status)}")
    return os.WIFEXITED(status), time.monotonic() - start


def done_in(folder: str) -> dict[str, int]:
    """The parts that are done, each with the time its file was written."""
    return {
        mark.stem: mark.with_suffix(".npy").stat().st_mtime_ns
        for mark in sorted(Path(folder).glob("part-*.json"))
    }


def main(config: dict[str, Any], kills: int, seed: int) -> None:
    """Embeds once without kills, to know how long it takes, and then with them."""
    whole = config | {"out": f"{config['out']}-whole"}
    _, took_s = live(whole, None)
    marks = sorted(path.stat().st_mtime for path in Path(whole["out"]).glob("part-*.json"))
    working_s = marks[-1] - marks[0]
    start_s = took_s - working_s
    rng = random.Random(seed)
    lives = list[dict[str, Any]]()
    while len([one for one in lives if not one["ended"]]) < kills:
        if len(lives) > 4 * kills:
            sys.exit("it ended too often before it was killed")
        life_s = start_s * rng.uniform(0.6, 1.1) + rng.uniform(0, 2 * working_s / kills)
        ended, _ = live(config, life_s)
        lives.append({"ended": ended, "done": done_in(config["out"])})
        if ended:  # begins anew, as there is nothing left to kill
            for path in Path(config["out"]).iterdir():
                path.unlink()
    ended, _ = live(config, None)
    lives.append({"ended": ended, "done": done_in(config["out"])})
    print(json.dumps(lives))


if __name__ == "__main__":
    torch.set_num_threads(1)  # no threads, so that forking is safe
    settings = json.loads(Path(sys.argv[1]).read_text())
    if len(sys.argv) > 2:
        main(settings, int(sys.argv[2]), int(sys.argv[3]))
    else:
        embed(EmbedConfig(**settings), progress=SilentProgress())
