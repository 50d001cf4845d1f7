"""What should cost next to nothing: starting the command, and planning epochs of many images.

    python benchmarks/speed/overheads.py

Memory is the peak above what was there before, in a process of its own. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial

from machine import in_turns


def main() -> None:
    """Measures both, prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--one", choices=("integers", "text"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_sampler(given.images, given.one)))
        return
    print("| start | median |\n|---|---|")
    for what, seconds in _starts().items():
        print(f"| {what} | {seconds:.3f} s |")
    print("\n| images, ten a class | sampler made | memory above labels | first batch | memory |")
    print("|---|---|---|---|---|")
    for kind in ("integers", "text"):
        command = [sys.executable, __file__, "--one", kind, "--images", str(given.images)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        cells = " | ".join(json.loads(done.stdout))
        print(f"| {given.images:,}, labels as {kind} | {cells} |")


def _starts() -> dict[str, float]:
    """Seconds from the start of Python to the end of the command."""
    commands = {
        "lookalike --help": ["-m", "lookalike", "--help"],
        "import lookalike": ["-c", "import lookalike"],
        "Python alone": ["-c", ""],
    }
    return in_turns(
        {
            name: partial(
                subprocess.run,
                [sys.executable, *command],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            for name, command in commands.items()
        },
        rounds=9,
    )


def _sampler(count: int, kind: str) -> list[str]:
    """Seconds and memory of a sampler until it is made, and until its first batch."""
    import numpy as np

    from lookalike.data.sampler import BalancedBatchSampler

    labels = np.random.default_rng(0).integers(0, count // 10, count)
    given = [f"class {label}" for label in labels.tolist()] if kind == "text" else labels
    before, start = _peak_mb(), time.perf_counter()
    sampler = BalancedBatchSampler(given, 256, 4)
    made, made_mb = time.perf_counter() - start, _peak_mb() - before
    start = time.perf_counter()
    next(iter(sampler))
    first, first_mb = time.perf_counter() - start, _peak_mb() - before
    return [f"{made:.2f} s", f"{made_mb:.0f} MB", f"{first:.2f} s", f"{first_mb:.0f} MB"]


def _peak_mb() -> float:
    """The most this process has held in memory; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
