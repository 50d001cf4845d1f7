"""Two processes do what one does: on CPUs, with gloo, as `torchrun` starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import two_processes
from helpers.commands import lookalike
from helpers.models import copy_without_dropout
from helpers.photos import write_tree
from helpers.runs import assert_same_bits, load
from helpers.two_processes import CASES
from torch import Tensor

from lookalike.errors import ConfigError
from lookalike.runtime.device import make_runtime
from lookalike.runtime.world import ALONE, World
from lookalike.training.checkpoints.folder import find_checkpoints
from lookalike.training.data import check_divisible

TWO_PROCESSES = Path(__file__).parent / "helpers" / "two_processes.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def python(words: Sequence[str | Path], *, expect: int | None = 0) -> tuple[str, str]:
    """Runs Python with these words; what it printed on stdout and on stderr."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert expect is None or done.returncode == expect, done.stderr
    return done.stdout, done.stderr


@dataclass(frozen=True)
class Launch:
    """What one process alone found out, what each of two did, and what these printed."""

    found: list[dict[str, Any]]
    printed: str
    told: str


@pytest.fixture(scope="module")
def launch(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """One launch for all tests of it; it ends with a command that is refused."""
    folder = tmp_path_factory.mktemp("found")
    model = copy_without_dropout(tiny_clip, tmp_path_factory.mktemp("model"))
    images = write_tree(folder / "images", {"a": 5, "b": 8})
    for bad in (0, 6, 7):  # two of these are in the same four images
        path = sorted(images.rglob("*.png"))[bad]
        path.write_bytes(path.read_bytes()[:200])
    with torch.random.fork_rng():
        two_processes.main(str(model), str(images), folder)
    refused: list[str | Path] = [
        "train", images, "--test", images, "--model-name", model, "--out", folder / "out",
        "--device", "cpu", "--n-classes-per-batch", "3", "--n-samples-per-class", "3",
    ]  # fmt: skip
    words = [*TORCHRUN, TWO_PROCESSES, model, images, folder, *refused]
    printed, told = python(words, expect=1)
    found = [torch.load(folder / f"rank{name}.pt") for name in ("-alone", "0", "1")]
    return Launch(found, printed, told)


@pytest.fixture
def found(launch: Launch) -> list[dict[str, Any]]:
    return launch.found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("case", [*CASES, "arcface", "held", "patches"])
def test_two_processes_step_as_one_does(found: list[dict[str, Any]], case: str) -> None:
    alone, *both = (one[case] for one in found)
    for one in both:
        assert one["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert one["norms"] == pytest.approx(alone["norms"], rel=1e-4)
        assert len(alone["gradients"][0]) > 30
        assert_close(one["gradients"][0], alone["gradients"][0])
    assert_same_bits(both[0], both[1])  # for good: weights that part never meet again


def test_a_sharded_encoder_steps_as_a_whole_one(found: list[dict[str, Any]]) -> None:
    alone, first, second = (one["sharded"] for one in found)
    for one in (first, second):
        assert one["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert one["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert_close(first["gradients"][0], alone["gradients"][0])
    assert first["weights"].keys() == alone["weights"].keys()
    assert first["optimizer"]["state"].keys() == alone["optimizer"]["state"].keys()
    for number, state in alone["optimizer"]["state"].items():
        assert first["optimizer"]["state"][number]["exp_avg"].shape == state["exp_avg"].shape
    assert_same_bits(first["texts"], second["texts"])


def test_parts_and_wholes_are_clipped_by_one_norm(found: list[dict[str, Any]]) -> None:
    """The encoder's weights lie in parts, those of the objective whole in each process."""
    alone, first, second = (one["sharded arcface"] for one in found)
    for one in (first, second):
        assert one["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert_close(first["gradients"][0], alone["gradients"][0])
    lengths = [gradient.norm() for gradient in first["gradients"][0].values()]
    assert torch.stack(lengths).norm() == pytest.approx(0.5, rel=1e-3)  # the limit


def test_two_processes_embed_to_the_bits_of_one(found: list[dict[str, Any]]) -> None:
    alone, first, second = (one["embedded"] for one in found)
    assert alone["positions"] == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    assert len(alone["unreadable"]) == 3
    assert_same_bits(first, alone)
    assert_same_bits(second, alone)


def test_what_processes_tell_each_other(found: list[dict[str, Any]]) -> None:
    first, second = (one["gathered"] for one in found[1:])
    rows = [[10, 11], [12, 13], [14, 15]]
    assert first["rows"].tolist() == second["rows"].tolist() == rows
    assert (first["own"], second["own"]) == ([0, 0], [0, 3])
    assert first["objects"] == second["objects"] == [{"rank": 0}, {"rank": 1}]
    assert first["any"] == second["any"] == [False, True]
    assert first["on_main"] == second["on_main"] == "of 0"
    assert first["raised"] == second["raised"] == "no good"
    assert sorted([first["said"], second["said"]]) == [False, True]


def test_what_is_wrong_is_said_once(launch: Launch) -> None:
    assert launch.printed == ""
    assert (
        launch.told.count("lookalike: a batch of 3 classes x 3 images = 9 cannot be divided") == 1
    )


def test_alone_there_is_nobody_to_ask() -> None:
    rows = torch.ones(3, 2)
    assert ALONE.all_gather_rows(rows) == (rows, slice(0, 3))
    assert ALONE.all_gather_objects("a") == ["a"]
    assert ALONE.on_main(lambda: 5) == 5
    assert ALONE.is_first_to_say("again")
    assert [ALONE.any_of(False), ALONE.any_of(True)] == [False, True]


def test_a_batch_that_cannot_be_divided_says_which_can() -> None:
    check_divisible(World(1, 4), 4, 2)
    message = r"4 classes x 2 images = 8 .* 3 processes; set --n-classes-per-batch 6"
    with pytest.raises(ConfigError, match=message):
        check_divisible(World(0, 3), 4, 2)


def test_processes_on_cpus_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 12)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it
        make_runtime("cpu", "fp32", 0, World(0, 4, 0, 4))
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(2)
        make_runtime("cpu", "fp32", 0, World(0, 4, 0, 4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def words_of(photos: Path, model: Path, out: str, *more: str) -> list[str | Path]:
    """`lookalike train`, small."""
    return [
        "-m", "lookalike", "train", photos / "train", "--test", photos / "test", "--model-name",
        model, "--out", photos / out, "--learning-rate", "1e-3", "--device", "cpu",
        "--precision", "fp32", "--num-workers", "1", "--no-report", *more,
    ]  # fmt: skip


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.mark.slow
def test_a_run_of_two_processes_reads_as_that_of_one(photos: Path, without_dropout: Path) -> None:
    """Files, numbers, words; sharded, because that is the most."""
    bad = photos / "train" / "classb" / "classb_001.png"
    bad.write_bytes(bad.read_bytes()[:300])
    common = ["--batch-memory", "3"]
    one_process = lookalike(*words_of(photos, without_dropout, "alone", *common)[2:])
    assert one_process.code == 0, one_process.err
    alone, told_alone = one_process.out, one_process.err
    both, told = python(
        [*TORCHRUN, *words_of(photos, without_dropout, "both", *common, "--sharding", "full")]
    )
    assert files_of(photos / "both") == files_of(photos / "alone")
    assert both.replace("/both/", "/alone/").count("\n") == alone.count("\n")
    assert told.count("device   2 processes · cpu") == 1
    truncated = "classb_001.png: image file is truncated"
    assert told.count(truncated) == told_alone.count(truncated) == 2  # when met, and in the end
    untrained = [
        json.loads((photos / out / "results/metrics_epoch_00.json").read_text())["metrics"]
        for out in ("alone", "both")
    ]
    assert untrained[0] == untrained[1]
    one, other = (load(photos / out / "weights/encoder_epoch_01.pth") for out in ("alone", "both"))
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    for name in ("model_state_dict", "training_state_dict"):
        assert other[name].keys() == one[name].keys()
        for key, tensor in one[name].items():
            if tensor.is_floating_point():
                assert torch.allclose(other[name][key], tensor, atol=1e-3), key
    assert len(other["random_states"]) == 2


def start(words: Sequence[str | Path]) -> subprocess.Popen[str]:
    """Two processes, and the one that starts them."""
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, *map(str, words)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def send(started: subprocess.Popen[str], rank: int, number: signal.Signals) -> None:
    """Sends a signal to one of the two alone."""
    (process,) = (
        child
        for child in psutil.Process(started.pid).children()
        if child.environ().get("RANK") == str(rank)
    )
    process.send_signal(number)


def wait_for(is_there: Callable[[], bool]) -> None:
    ends = time.monotonic() + 100
    while not is_there():
        assert time.monotonic() < ends, "nothing came"
        time.sleep(0.05)


def steps_in(checkpoint: Path) -> tuple[int, int]:
    state = load(checkpoint)["state"]
    return state["epoch"], state["step"]


@pytest.mark.slow
def test_a_process_that_dies_and_one_that_is_told_to_stop_lose_no_step(
    photos: Path, tiny_clip: Path
) -> None:
    # Long epochs without a test, so that nearly all of the time goes into steps: elsewhere a signal
    # ends a process at once.
    write_tree(photos / "train" / "more", dict.fromkeys("ghijkl", 50))
    saved = photos / "out/weights/interrupted.pth"
    words = words_of(photos, tiny_clip, "out", "--num-epochs", "5000", "--autosave-minutes", "1e-9",
                     "--keep", "1", "--num-workers", "0")  # fmt: skip
    with start(words) as killed:
        wait_for(saved.exists)
        send(killed, 1, signal.SIGKILL)
        began = time.monotonic()
        told = killed.communicate(timeout=60)[1]
    assert time.monotonic() - began < 60
    assert told.count("lookalike: another process of this command ended") == 1
    assert "continues from where it was saved with --resume" in told
    newest = find_checkpoints(photos / "out")[-1]
    before = steps_in(newest)

    resumed: list[str | Path] = ["-m", "lookalike", "train", "--resume", "--out", photos / "out",
                                 "--test", "none"]  # fmt: skip
    with start(resumed) as stopped:
        wait_for(lambda: saved.exists() and steps_in(saved) > before)
        send(stopped, 1, signal.SIGTERM)
        told = stopped.communicate(timeout=60)[1]
    assert told.count("lookalike: stopped at ") == 1
    assert "Continue with: torchrun --nproc-per-node 2 -m lookalike train --resume" in told
    assert "by another number" not in told
    epoch, _ = steps_in(find_checkpoints(photos / "out")[-1])

    finished = lookalike(*resumed[2:], "--num-epochs", str(epoch + 1))
    assert finished.code == 0, finished.err
    assert "saved by a different number of processes (2)" in finished.err
    assert load(photos / f"out/weights/encoder_epoch_{epoch + 1:02}.pth")["epoch"] == epoch + 1
