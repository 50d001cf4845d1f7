"""What a fault is done to: images, a table, a model, a run, and a command that uses them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from helpers.commands import MACHINE
from helpers.models import clip_with_tokenizer
from helpers.photos import write_tree

CLASSES = "abcdef"
TERMINAL = "\x1b[31m\x07\u202e"  # codes that a terminal obeys
NEWEST = "run/weights/encoder_epoch_02.pth"


@dataclass
class Command:
    """A command line, and how it is run."""

    words: list[str]
    stdin: bytes = b""
    stdout: str = ""  # a device to print to
    stderr: str = ""
    signal_after_s: float | None = None
    signal: int = 0
    before: str = ""  # of the shell, in the same session
    env: dict[str, str] = field(default_factory=dict)
    may_be_killed: bool = False


Fault = Callable[[Path, Random], Command]
FAULTS: list[Fault] = []


def fault(function: Fault) -> Fault:
    """Adds a fault: it spoils something at random, and returns a command that meets it."""
    FAULTS.append(function)
    return function


def make_ground(folder: Path) -> None:
    """Makes what every fault begins with, once."""
    write_tree(folder / "train", dict.fromkeys(CLASSES, 4))
    write_tree(folder / "test", dict.fromkeys(CLASSES, 3), first=4)
    with open(folder / "photos.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for path in sorted((folder / "test").rglob("*.png")):
            table.writerow([path.relative_to(folder).as_posix(), path.parent.name])
    (folder / "clip").mkdir()
    clip_with_tokenizer(folder / "clip")
    words = [
        "train",
        "train",
        "--test",
        "test",
        "--model-name",
        "clip",
        "--out",
        "run",
        "--no-report",
        "--learning-rate",
        "1e-3",
        "--num-epochs",
        "2",
        *MACHINE,
    ]
    subprocess.run(
        [sys.executable, "-m", "lookalike", *words], cwd=folder, check=True, capture_output=True
    )
    (folder / "recipe.yaml").write_text("learning_rate: 1e-4\nnum_epochs: 1\n")
    names = sorted(f"q{number}" for number in range(6))
    (folder / "run.trec").write_text(
        "".join(f"{q} Q0 d{i} {i + 1} {1 / (i + 1)} x\n" for q in names for i in range(4))
    )
    (folder / "qrels.trec").write_text(
        "".join(f"{q} 0 d{i} {i % 2}\n" for q in names for i in range(4))
    )
    metrics = json.loads((folder / "run/results/metrics_epoch_00.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics))


def copy_ground(ground: Path, folder: Path) -> None:
    """Gives a fault a ground of its own."""
    shutil.copytree(ground, folder, symlinks=True)


def evaluate(test: str = "test", model: str = "clip") -> Command:
    words = ["evaluate", "--test", test, "--model-name", model, "--out", "out", "--no-report"]
    return Command([*words, *MACHINE])


def train(*more: str, images: str = "train", test: str = "test", model: str = "clip") -> Command:
    words = ["train", images, "--test", test, "--model-name", model, "--out", "out", "--no-report"]
    return Command([*words, *MACHINE, *more])


def check(images: str = "train") -> Command:
    return Command(["check", images, "--out", "out", *MACHINE])


def embed(images: str = "train", model: str = "clip") -> Command:
    return Command(["embed", images, "--model-name", model, "--out", "out", *MACHINE])


def any_reader(draw: Random, images: str) -> Command:
    """A command that reads images, labelled ones."""
    return draw.choice([evaluate(images), check(images), embed(images), train(images=images)])


def export(model: str) -> Command:
    return Command(["export", model, "--out", "out"])


def resume() -> Command:
    return Command(["train", "--resume", "run", "--num-epochs", "3", "--num-workers", "0"])


def of_checkpoint(draw: Random) -> Command:
    return draw.choice([evaluate(model=NEWEST), resume(), export(NEWEST), embed(model=NEWEST)])
