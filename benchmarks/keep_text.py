"""What fine-tuning costs a CLIP's text search, and what keeps it: Grocery Store, a small CLIP.

    export LOOKALIKE_REAL_DATA=...
    python benchmarks/keep_text.py FOLDER                                      # all, 3 seeds
    python benchmarks/keep_text.py FOLDER --holds nothing keep-text --seeds 0

The CLIP is trained from scratch by `small_clip.py`, into FOLDER unless it is there: on a third of
the training images of all 81 classes, with class names as captions. `lookalike.train` then
trains its vision side on all training images of every second class, with what `_holds` says
beside the objective, as someone would who has images of some goods and searches for all of them
by words. A mixture of weights is chosen on the even test images; the last model and the mixture
are measured on the odd ones, leave-one-out.

Writes Markdown to stdout, and each run as a line of JSON to FOLDER/runs.jsonl; what stands there
already is not done again, so seeds may be run side by side.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_clip import Schedule, make_small_clip

import lookalike
from lookalike import EvaluateResult
from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.config.recipes import find_recipe
from lookalike.config.settings import config_from
from lookalike.evaluation.scoring.scores import QueryScores
from lookalike.progress import SilentProgress

COLUMNS = {
    "image": ("recall@1", "mAP@R"),
    "image among all": ("recall@1", "mAP@R"),
    "text": ("recall@1", "recall@5", "recall@10", "mAP"),
    "text of learned classes": ("mAP",),
    "text of other classes": ("mAP",),
}
HEADLINES = {"image": "mAP@R", "text": "mAP", "text of other classes": "mAP"}
NAIVE = "nothing"

# A model this small, trained from scratch, learns at a hundred times the rate of real ones.
COMMON: dict[str, Any] = {
          "objective": "supcon", "n_classes_per_batch": 16, "n_samples_per_class": 4,
          "learning_rate": 1e-3, "num_epochs": 10, "warmup_steps": 20,
          "schedule": "cosine", "interpolation": 10}  # fmt: skip


def _holds() -> dict[str, dict[str, Any]]:
    """What is there beside the objective: what the recipe keep-text has, and each of it alone."""
    recipe = find_recipe("keep-text")
    options = ("caption_weight", "distillation_weight")
    alone = {name.split("_weight")[0]: {name: recipe[name]} for name in options}
    return {NAIVE: {}, **alone, "keep-text": {name: recipe[name] for name in options}}


def main() -> None:
    """Makes the CLIP, fine-tunes it with each hold and seed, prints the table."""
    holds = _holds()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--holds", nargs="+", default=list(holds), choices=list(holds))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = Path(os.environ["LOOKALIKE_REAL_DATA"]) / "data" / "grocery"
    make_small_clip(data, given.folder, Schedule())
    _write_tables(given.folder)
    before = _measure(given.folder, given.folder / "clip")
    changes = dict(one.split("=", 1) for one in given.set)
    runs = []
    for seed in given.seeds:
        for hold in given.holds:
            what = {"hold": hold, "seed": seed, "settings": {**COMMON, **holds[hold], **changes}}
            runs.append(_known(given.folder, what) or _run(given.folder, what))
    print(_tables(before, runs))


def _known(folder: Path, what: dict[str, Any]) -> dict[str, Any] | None:
    """A run that was done before."""
    file = folder / "runs.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return next((run for run in done if run | what == run), None)


def _run(folder: Path, what: dict[str, Any]) -> dict[str, Any]:
    """One fine-tuning: its last model and the mixture that val chose, measured on test."""
    settings = {
        **what["settings"],
        "train": str(folder / "learned.csv"),
        "test": str(folder / "even.csv"),
        "model_name": str(folder / "clip"),
        "seed": what["seed"],
        "num_workers": 0,
        "precision": "fp32",
        "device": "cpu",
        "report": False,
    }
    with tempfile.TemporaryDirectory() as out:
        config = config_from(TrainConfig, settings, {"out": out})
        result = lookalike.train(config, progress=SilentProgress())
        assert result.trade_off is not None
        last = Path(out) / "weights" / f"encoder_epoch_{config.num_epochs:02}.pth"
        run = {
            **what,
            "end": _measure(folder, last),
            "alpha": result.trade_off.chosen.alpha,
            "mixture": _measure(folder, Path(out) / "weights" / "encoder_interpolated.pth"),
        }
    with (folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps(run) + "\n")
    return run


def _measure(folder: Path, model: Path) -> dict[str, dict[str, float]]:
    """What a model finds: by images of the learned classes, and by the names of all classes."""
    everything = _evaluated(model, folder / "odd.csv")
    among_learned = _evaluated(model, folder / "odd_learned.csv")
    assert everything.text_scores is not None
    names = everything.text_scores
    learned = set(_learned_classes(folder))
    others = set(names.labels) - learned
    parts = {
        "image": (among_learned.scores, learned),
        "image among all": (everything.scores, learned),
        "text": (names, learned | others),
        "text of learned classes": (names, learned),
        "text of other classes": (names, others),
    }
    return {
        part: {name: _mean(scores, classes, name) for name in COLUMNS[part]}
        for part, (scores, classes) in parts.items()
    }


def _evaluated(model: Path, test: Path) -> EvaluateResult:
    with tempfile.TemporaryDirectory() as out:
        config = EvaluateConfig(
            model_name=str(model), test=str(test), out=out, report=False,
            num_workers=0, precision="fp32", device="cpu",
        )  # fmt: skip
        return lookalike.evaluate(config, progress=SilentProgress())


def _mean(scores: QueryScores | None, classes: set[str], metric: str) -> float:
    """Over the queries of some classes."""
    assert scores is not None
    wanted = np.array([label in classes for label in scores.labels]) & scores.answerable
    return round(float(scores.columns[metric][wanted].mean()), 4)


def _learned_classes(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "images" / "train").iterdir())[::2]


def _write_tables(folder: Path) -> None:
    """Which images are learned from, which choose a mixture, which measure it.

    Mixtures are chosen as they are measured: images of learned classes search among all.
    """
    learned = set(_learned_classes(folder))
    tables: dict[str, list[tuple[str, str, bool]]] = {
        "learned": [], "even": [], "odd": [], "odd_learned": []
    }  # fmt: skip
    for split in ("train", "test"):
        for i, path in enumerate(sorted((folder / "images" / split).rglob("*.png"))):
            label, is_learned = path.parent.name, path.parent.name in learned
            row = (path.relative_to(folder).as_posix(), label)
            if split == "train" and is_learned:
                tables["learned"].append((*row, False))
            elif split == "test" and i % 2 == 0:
                tables["even"].append((*row, is_learned and i % 4 == 0))
            elif split == "test":
                tables["odd"].append((*row, False))
                if is_learned:
                    tables["odd_learned"].append((*row, False))
    for name, rows in tables.items():
        columns = 3 if name == "even" else 2
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows(row[:columns] for row in [("path", "label", "is_query"), *rows])


def _tables(before: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """Means over seeds; and beside it how much of what naive training changes is changed."""
    columns = [f"{part} {name}" for part, names in COLUMNS.items() for name in names]
    numbers = [*_header("held by", "seeds", "alpha", *columns)]
    numbers.append(f"| as it came | | 0 | {_cells([before])} |")
    shares = [*_header("held by", "alpha", *(f"{part} {HEADLINES[part]}" for part in HEADLINES))]
    naive = [run["end"] for run in runs if run["hold"] == NAIVE]
    for hold in dict.fromkeys(run["hold"] for run in runs):
        some = [run for run in runs if run["hold"] == hold]
        for which in ("end", "mixture"):
            models = [run[which] for run in some]
            alphas = ", ".join(f"{run['alpha']:g}" for run in some) if which == "mixture" else "1"
            numbers.append(f"| {hold} | {len(some)} | {alphas} | {_cells(models)} |")
            cells = " | ".join(_share(part, before, naive, models) for part in HEADLINES)
            shares.append(f"| {hold} | {alphas} | {cells} |")
    about = (
        f"{date.today()}, {os.cpu_count()} cores of {platform.processor() or platform.machine()}, "
        f"torch {version('torch')}, transformers {version('transformers')}; mean and standard "
        "deviation over seeds."
    )
    share = "What changed, as a share of what changed without any hold:"
    return "\n".join([about, "", *numbers, "", share, "", *shares])


def _header(*names: str) -> tuple[str, str]:
    return f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"


def _cells(models: list[dict[str, Any]]) -> str:
    cells = []
    for part, names in COLUMNS.items():
        for name in names:
            values = [model[part][name] for model in models]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
    return " | ".join(cells)


def _share(part: str, before: Any, naive: list[Any], models: list[Any]) -> str:
    """How much of what naive training changes is changed here as well; of means over seeds."""
    metric = HEADLINES[part]
    start = before[part][metric]
    changes = [statistics.mean(one[part][metric] for one in some) - start
               for some in (models, naive) if some]  # fmt: skip
    return f"{changes[0] / changes[1]:.0%}" if len(changes) == 2 and changes[1] else ""


if __name__ == "__main__":
    main()
