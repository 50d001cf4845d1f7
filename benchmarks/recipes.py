"""What a recipe gains over the plain one in the same time: Grocery Store, DINOv2-small.

    export LOOKALIKE_REAL_DATA=...
    python benchmarks/recipes.py                       # plain and strong, 2 protocols, 3 seeds
    python benchmarks/recipes.py --recipes strong --seeds 0 --set layer_decay=1

Same-class: learn from train, search test leave-one-out. Class-disjoint: learn half of the classes,
search the test pictures of the other half; the halves are drawn anew for each seed. Each run is a
process of its own, one at a time, for so many epochs that all train about equally long (EPOCHS);
the time it really took, evaluation left out, stands in the table. Needs a quiet machine. Writes
Markdown to stdout, and each run as a line of JSON to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

METRICS = ("recall@1", "mAP", "mAP@R")
PLAIN = {"learning_rate": 2e-5, "n_classes_per_batch": 16, "n_samples_per_class": 4}
PROTOCOLS = {"same-class": {}, "class-disjoint": {"holdout_classes": "0.5"}}
EPOCHS = {"same-class": {"plain": 1, "strong": 5}, "class-disjoint": {"plain": 2, "strong": 10}}


def main() -> None:
    """Runs each recipe, protocol and seed in turn, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["plain", "strong"])
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of those of EPOCHS")
    parser.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_run(given)))
        return
    runs = []
    for seed in given.seeds:
        for protocol in given.protocols:
            for recipe in given.recipes:
                runs.append(_in_own_process(recipe, protocol, seed, given))
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    print(_table(runs, given))


def _in_own_process(
    recipe: str, protocol: str, seed: int, given: argparse.Namespace
) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--one", "--recipes", recipe, "--protocols", protocol,
        "--seeds", str(seed), "--epochs", str(given.epochs or EPOCHS[protocol][recipe]),
        "--set", *given.set,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as the command line sets it
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _run(given: argparse.Namespace) -> dict[str, Any]:
    """One run, from here to the end of this process."""
    import lookalike
    from lookalike.config import TrainConfig
    from lookalike.recipes import config_from, find_recipe

    (recipe,), (protocol,), (seed,) = given.recipes, given.protocols, given.seeds
    data = Path(os.environ["LOOKALIKE_REAL_DATA"])
    settings = {
        **(PLAIN if recipe == "plain" else find_recipe(recipe)),
        **dict(one.split("=", 1) for one in given.set),
        **PROTOCOLS[protocol],
        "train": str(data / "data" / "grocery" / "train"),
        "test": str(data / "data" / "grocery" / "test"),
        "model_name": str(data / "weights" / "dinov2-small"),
        "seed": seed,
        "holdout_seed": seed,
        "num_epochs": given.epochs,
        "report": False,
    }
    watch = _stopwatch()
    with tempfile.TemporaryDirectory() as out:
        config = config_from(TrainConfig, settings, {"out": out})
        result = lookalike.train(config, progress=watch)
        before, after = result.history[0].metrics, result.history[-1].metrics
    assert before is not None
    assert after is not None
    return {
        "recipe": recipe,
        "protocol": protocol,
        "seed": seed,
        "epochs": given.epochs,
        "training_seconds": round(watch.seconds, 1),
        "before": {name: round(before[name], 4) for name in METRICS},
        "after": {name: round(after[name], 4) for name in METRICS},
    }


def _stopwatch() -> Any:
    """Silent progress that times the epochs."""
    from lookalike.progress import SilentProgress, Task

    class Stopwatch(SilentProgress):
        seconds = 0.0

        @contextmanager
        def task(
            self, title: str, total: int, unit: str = "images", done: int = 0
        ) -> Iterator[Task]:
            start = time.perf_counter()
            with super().task(title, total, unit, done) as task:
                yield task
            if title.startswith("epoch "):
                self.seconds += time.perf_counter() - start

    return Stopwatch()


def _table(runs: list[dict[str, Any]], given: argparse.Namespace) -> str:
    lines = [
        f"{date.today()}, {os.cpu_count()} cores of {platform.processor() or platform.machine()}, "
        f"torch {version('torch')}, transformers {version('transformers')}; seeds "
        f"{', '.join(map(str, given.seeds))}; mean and standard deviation.",
        "",
        "| protocol | recipe | epochs | training | recall@1 | mAP | mAP@R |",
        "|---|---|---|---|---|---|---|",
    ]
    for protocol in given.protocols:
        here = [run for run in runs if run["protocol"] == protocol]
        lines.append(
            f"| {protocol} | as it came | | | {_cells(here[:: len(given.recipes)], 'before')} |"
        )
        for recipe in given.recipes:
            some = [run for run in here if run["recipe"] == recipe]
            epochs = sorted({run["epochs"] for run in some})
            seconds = statistics.mean(run["training_seconds"] for run in some)
            lines.append(
                f"| {protocol} | {recipe} | {', '.join(map(str, epochs))} | {seconds:.0f} s "
                f"| {_cells(some, 'after')} |"
            )
    return "\n".join(lines)


def _cells(runs: list[dict[str, Any]], when: str) -> str:
    cells = []
    for name in METRICS:
        values = [run[when][name] for run in runs]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.4f}{spread}")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
