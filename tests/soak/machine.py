"""Faults of command lines, of where is written, and of processes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from random import Random

from soak.ground import (
    NEWEST,
    TERMINAL,
    Command,
    check,
    embed,
    evaluate,
    export,
    fault,
    train,
)


@fault
def a_number_is_absurd(folder: Path, draw: Random) -> Command:
    assert folder
    flag = draw.choice(
        [
            "num-epochs",
            "n-classes-per-batch",
            "n-samples-per-class",
            "lora-rank",
            "top-k",
            "seed",
            "cross-batch-memory",
            "num-workers",
            "eval-batch-size",
            "decode-cache-gb",
            "temperature",
            "learning-rate",
            "warmup-steps",
            "frozen-layers",
            "train-size",
            "patience",
            "keep",
            "batch-memory",
        ]
    )
    value = draw.choice(
        [
            "1000000",
            "100000000",
            "9" * 40,
            "9" * 5000,
            "1e300",
            "-1",
            "+-5",
            "nan",
            "inf",
            "0",
            "1e-300",
            "",
            " ",
            "1_0",
            "٣",
        ]
    )
    more = ["--decode-cache", "cache"] if flag == "decode-cache-gb" else []
    return train(f"--{flag}={value}", *more)


@fault
def a_path_is_wrong(folder: Path, draw: Random) -> Command:
    assert folder
    wrong = draw.choice(
        [
            "tset",
            "/dev/null",
            "/dev/zero",
            "",
            "a\nb",
            TERMINAL,
            "x" * 5000,
            "clip",
            "~",
            "photos.csv/x",
            "../..",
            "run/weights/encoder_epoch_02.pth",
        ]
    )
    if wrong in ("../..", "~"):  # all of somebody's disk is no error, and takes its time
        wrong = "nowhere/../tset"
    return draw.choice(
        [
            evaluate(wrong),
            evaluate(model=wrong),
            train(images=wrong),
            embed(wrong),
            Command(["compare", wrong]),
            Command(["train", f"--resume={wrong}"]),
        ]
    )


@fault
def out_is_taken(folder: Path, draw: Random) -> Command:
    command = draw.choice([evaluate(), train(), check(), embed(), export("clip")])
    place = folder / draw.choice(["out", "out/weights", "out/results", "out/part-00000.npy"])
    place.parent.mkdir(exist_ok=True)
    place.write_text("somebody's")
    return command


@fault
def out_lies_in_the_images(folder: Path, draw: Random) -> Command:
    assert folder
    command = draw.choice([evaluate(), train(), check(), embed(images="test")])
    into = draw.choice(["test/new", "test", "train/../test/a", "train/cache"])
    if command.words[0] in ("train", "evaluate") and draw.random() < 0.5:
        command.words += ["--decode-cache", into]
    else:
        command.words[command.words.index("out")] = into
    return command


@fault
def a_stream_is_full(folder: Path, draw: Random) -> Command:
    assert folder
    command = draw.choice([evaluate(), train(), check(), embed(), export("clip")])
    setattr(command, draw.choice(["stdout", "stderr"]), "/dev/full")
    return command


@fault
def the_disk_is_full(folder: Path, draw: Random) -> Command:
    assert folder
    command = draw.choice([evaluate(), train(), check(), embed(), export("clip")])
    # Not 0: what is told goes into a file, too.
    command.before = f"trap '' XFSZ; ulimit -f {draw.choice([2, 1, 8, 64])}"
    return command


@fault
def temporary_files_have_no_room(folder: Path, draw: Random) -> Command:
    assert folder
    command = draw.choice([evaluate(), train(), embed(), export("clip"), evaluate(model=NEWEST)])
    command.env = {"TMPDIR": draw.choice(["/dev/full", "/nowhere", "/proc"])}
    return command


@fault
def it_is_told_to_stop(folder: Path, draw: Random) -> Command:
    assert folder
    command = draw.choice(
        [evaluate(), train("--num-epochs", "4"), check(), embed(), export("clip")]
    )
    if "--num-workers" in command.words and draw.random() < 0.5:
        command.words[command.words.index("--num-workers") + 1] = "2"
    command.signal_after_s = draw.uniform(0.5, 9)
    command.signal = draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
    command.may_be_killed = command.signal == signal.SIGKILL
    return command


@fault
def two_write_to_one_folder(folder: Path, draw: Random) -> Command:
    assert folder
    command = draw.choice([evaluate(), train("--num-epochs", "2"), embed(), export("clip")])
    other = " ".join(f"'{word}'" for word in command.words)
    command.before = (
        f"{sys.executable} -m lookalike {other} > /dev/null 2>&1 & sleep {draw.uniform(0, 3):.2f}"
    )
    return command
