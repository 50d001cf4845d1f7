"""What a recipe gains over the plain one in the same time: Grocery Store, DINOv2-small.

    export LOOKALIKE_REAL_DATA=...
    python benchmarks/recipes.py                       # plain and strong, 2 protocols, 3 seeds
    python benchmarks/recipes.py --recipes strong --seeds 0 --set layer_decay=1

Same-class: learn from train, search test leave-one-out. Class-disjoint: learn half of the classes,
search the test images of the other half; the halves are drawn anew for each seed. Each run is a
process of its own, one at a time, for so many epochs that all train about equally long (EPOCHS),
and is measured once, at its end. Writes Markdown to stdout, and each run as a line of JSON to
stderr. The time needs a quiet machine; the rest is the same on a busy one.
"""

from __future__ import annotations

import argparse
import csv
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
BEFORE = "as it came"
PLAIN = {"learning_rate": 2e-5, "n_classes_per_batch": 16, "n_samples_per_class": 4}
PROTOCOLS = ("same-class", "class-disjoint")
EPOCHS = {
    ("same-class", "plain"): 1,
    ("same-class", "strong"): 3,
    ("class-disjoint", "plain"): 2,
    ("class-disjoint", "strong"): 6,
}


def main() -> None:
    """Runs each recipe, protocol and seed in turn, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=[BEFORE, "plain", "strong"])
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
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
        "--seeds", str(seed), "--epochs", str(given.epochs or EPOCHS.get((protocol, recipe), 0)),
        "--set", *given.set,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as the command line sets it
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _run(given: argparse.Namespace) -> dict[str, Any]:
    """One run, from here to the end of this process; measured once, at its end."""
    import lookalike
    from lookalike.config import EvaluateConfig, TrainConfig
    from lookalike.config.recipes import find_recipe
    from lookalike.config.settings import config_from

    (recipe,), (protocol,), (seed,) = given.recipes, given.protocols, given.seeds
    watch = _stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        train, test = _write_tables(Path(folder), protocol, seed)
        model = str(Path(os.environ["LOOKALIKE_REAL_DATA"]) / "weights" / "dinov2-small")
        if recipe != BEFORE:
            settings = {
                **(PLAIN if recipe == "plain" else find_recipe(recipe)),
                **dict(one.split("=", 1) for one in given.set),
                "train": str(train),
                "model_name": model,
                "seed": seed,
                "num_epochs": given.epochs,
                "out": folder,
            }
            model = str(
                lookalike.train(config_from(TrainConfig, settings), progress=watch).checkpoint
            )
        asked = {"model_name": model, "test": str(test), "out": f"{folder}/test", "report": False}
        scores = lookalike.evaluate(config_from(EvaluateConfig, asked), progress=watch).scores
    assert scores is not None
    metrics = scores.micro()
    return {
        "recipe": recipe,
        "protocol": protocol,
        "seed": seed,
        "epochs": given.epochs,
        "wall": round(watch.wall),
        "cpu": round(watch.cpu),
        "metrics": {name: round(metrics[name], 4) for name in METRICS},
    }


def _write_tables(folder: Path, protocol: str, seed: int) -> list[Path]:
    """The images to learn from and those to test on, as tables."""
    from lookalike.data.images import held_out_classes
    from lookalike.data.sources import load_images

    written = []
    for split in ("train", "test"):
        images = load_images(Path(os.environ["LOOKALIKE_REAL_DATA"]) / "data" / "grocery" / split)
        labels = images.labels or []
        held_out = held_out_classes(set(labels), "0.5", seed)
        rows = [
            (path, label)
            for path, label in zip(images.paths, labels, strict=True)
            if protocol == "same-class" or (label in held_out) == (split == "test")
        ]
        written.append(folder / f"{split}.csv")
        with open(written[-1], "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
    return written


def _stopwatch() -> Any:
    """Silent progress that times the epochs."""
    from lookalike.progress import SilentProgress, Task

    class Stopwatch(SilentProgress):
        wall = cpu = 0.0

        @contextmanager
        def task(
            self, title: str, total: int, unit: str = "images", done: int = 0
        ) -> Iterator[Task]:
            wall, cpu = time.perf_counter(), time.process_time()
            with super().task(title, total, unit, done) as task:
                yield task
            if title.startswith("epoch "):
                self.wall += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu

    return Stopwatch()


def _table(runs: list[dict[str, Any]], given: argparse.Namespace) -> str:
    lines = [
        f"{date.today()}, {os.cpu_count()} cores of {platform.processor() or platform.machine()}, "
        f"torch {version('torch')}, transformers {version('transformers')}; seeds "
        f"{', '.join(map(str, given.seeds))}; mean and standard deviation. CPU: seconds of both "
        "cores together in the training process, which other work on the machine hardly changes.",
        "",
        "| protocol | recipe | epochs | wall | CPU | recall@1 | mAP | mAP@R |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for protocol in given.protocols:
        for recipe in given.recipes:
            some = [r for r in runs if (r["protocol"], r["recipe"]) == (protocol, recipe)]
            epochs = sorted({run["epochs"] for run in some})
            wall, cpu = (statistics.mean(run[name] for run in some) for name in ("wall", "cpu"))
            lines.append(
                f"| {protocol} | {recipe} | {', '.join(map(str, epochs))} | {wall:.0f} s "
                f"| {cpu:.0f} s | {_cells(some)} |"
            )
    return "\n".join(lines)


def _cells(runs: list[dict[str, Any]]) -> str:
    cells = []
    for name in METRICS:
        values = [run["metrics"][name] for run in runs]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.4f}{spread}")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
