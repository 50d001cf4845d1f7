"""How a command ends where its streams cannot be written to, and where it is told to stop."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from helpers.commands import MACHINE, assert_refused, files_below, lookalike
from helpers.limits import linux_only, posix_only

from lookalike.cli import main as command_line
from lookalike.cli.process import signals_as_ctrl_c, usable_streams
from lookalike.training.trainer import deferred_interrupt

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")


@contextlib.contextmanager
def full() -> Iterator[IO[str]]:
    """A stream whose disk is full; what waits to be written is dropped at the end."""
    with contextlib.suppress(OSError), open("/dev/full", "w", encoding="utf-8") as stream:
        yield stream


@pytest.fixture
def words(photos: Path, tiny_clip: Path, tmp_path: Path) -> list[str | Path]:
    return ["evaluate", "--test", photos / "test", "--model-name", tiny_clip, "--out",
            tmp_path / "o", "--no-report", *MACHINE]  # fmt: skip


RESULTS = ["results/metrics_epoch_00.json", "results/retrieval_results_epoch_00.json"]


@needs_dev_full
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_results_that_cannot_be_printed_are_one_line_and_files_are_whole(
    words: list[str | Path], tmp_path: Path, json: list[str]
) -> None:
    err = io.StringIO()
    with full() as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert command_line.main([*map(str, words), *json]) == 2
    assert err.getvalue().splitlines()[-1] == (
        "lookalike: cannot print the results: No space left on device. Files that were written "
        "are whole"
    )
    assert files_below(tmp_path / "o") == RESULTS


def test_a_disk_on_which_no_temporary_file_can_be_written_is_one_line(
    words: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/nowhere"])
    outcome = lookalike(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("lookalike: there is no folder for temporary files")
    assert len(outcome.err.splitlines()) == 1


@needs_dev_full
def test_help_that_cannot_be_printed_is_one_line() -> None:
    err = io.StringIO()
    with full() as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert command_line.main(["--help"]) == 2
    assert err.getvalue().startswith("lookalike: cannot print")


@needs_dev_full
def test_messages_that_cannot_be_written_stop_nothing(
    words: list[str | Path], tmp_path: Path
) -> None:
    out = io.StringIO()
    with full() as err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert command_line.main([str(word) for word in words]) == 0
    assert "recall@1" in out.getvalue()
    assert files_below(tmp_path / "o") == RESULTS


@posix_only
def test_streams_that_are_closed_take_no_place_of_a_file() -> None:
    # A file opened as descriptor 1 or 2 would be printed into.
    code = (
        "import os, sys\n"
        "from lookalike.cli.process import usable_streams\n"
        "for number in (0, 1, 2): os.close(number)\n"
        "sys.stdout = sys.stderr = None\n"
        "with usable_streams():\n"
        "    print('lost'); print('lost', file=sys.stderr)\n"
        "    os._exit(0 if os.open(sys.argv[1], os.O_RDONLY) > 2 else 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, __file__], check=False).returncode == 0


def test_streams_are_as_before_afterwards() -> None:
    before = sys.stdout, sys.stderr
    with usable_streams():
        pass
    assert (sys.stdout, sys.stderr) == before


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Signals as in a terminal: behind `nohup` and `&` some of them are ignored."""
    usual: dict[str, Any] = {"SIGINT": signal.default_int_handler}
    usual |= {"SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    before = {name: signal.signal(getattr(signal, name), how) for name, how in usual.items()}
    yield
    for name, how in before.items():
        signal.signal(getattr(signal, name), how)


@posix_only
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_that_asks_to_stop_ends_any_command_with_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def stopped(_: argparse.Namespace) -> int:
        signal.raise_signal(getattr(signal, name))
        return 0

    monkeypatch.setattr(command_line, "carry_out", stopped)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
    outcome = lookalike("recipes")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "lookalike: stopped\n")
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_folder_that_is_not_to_be_looked_into_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def closed(_: argparse.Namespace) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/shared/\x1b[2Jmodel/config.json")

    monkeypatch.setattr(command_line, "carry_out", closed)
    assert_refused(lookalike("recipes"), "\\x1b[2Jmodel/config.json: Permission denied")


@linux_only
@pytest.mark.slow
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="gives up powers")
def test_what_may_not_be_read_is_one_line(photos: Path, tiny_clip: Path, tmp_path: Path) -> None:
    # The superuser may, but for the powers that are given up here.
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv")
    folder = shutil.copytree(tiny_clip, tmp_path / "model")
    checkpoint = tmp_path / "encoder_epoch_01.pth"
    checkpoint.write_bytes(b"PK")
    for path, mode in ((folder, 0o600), (checkpoint, 0)):
        path.chmod(mode)
        done = subprocess.run(
            [setpriv, "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m",
             "lookalike", "evaluate", "--test", photos / "test", "--model-name", path,
             "--out", tmp_path / "o"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        path.chmod(0o700)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith("lookalike: ")
        assert "Permission denied" in done.stderr


@posix_only
def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_ctrl_c():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@posix_only
@pytest.mark.parametrize("tidying_up", [True, False])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_that_comes_when_all_is_done_changes_no_exit_code(
    name: str, tidying_up: bool
) -> None:
    code = (
        "import atexit, signal, sys\n"
        "from lookalike.cli import main\n"
        "def send(send=signal.raise_signal):\n"
        f"    send(signal.{name})\n"
        "class Late:\n"
        "    __del__ = lambda self, send=send: send()\n"
        "freed_at_last = Late()\n"
        "def carried_out(_):\n"
        "    print('done')\n"
        "    if sys.argv[2:]: atexit.register(send)\n"
        "    return 1\n"
        "main._parse, main.carry_out = list, carried_out\n"
        "sys.exit(main.main())\n"
    )
    words = [sys.executable, "-c", code, "recipes", *(["tidying up"] if tidying_up else [])]
    done = subprocess.run(words, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"done\n", b"")


@pytest.mark.parametrize("end", ["stopped", "no room"])
def test_an_evaluation_that_ends_while_it_writes_leaves_the_results_before(
    words: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    assert lookalike(*words).code == 0
    before = {name: (tmp_path / "o" / name).read_bytes() for name in RESULTS}

    def ends(*_: Any, **__: Any) -> None:
        if end == "stopped":
            raise KeyboardInterrupt
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lookalike.commands.evaluate.write_trec", ends)
    outcome = lookalike(*words, "--overwrite", "--trec", "--top-k", "2")
    assert outcome.code == (130 if end == "stopped" else 2), outcome.err
    assert "Traceback" not in outcome.err
    after = {name: (tmp_path / "o" / name).read_bytes() for name in files_below(tmp_path / "o")}
    assert after == before


def living(session: int) -> list[str]:
    """The command lines of the processes of a session that are alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def all_gone(session: int, within_s: float = 30) -> bool:
    ends = time.monotonic() + within_s
    while living(session):
        if time.monotonic() > ends:
            return False
        time.sleep(0.1)
    return True


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_a_command_told_to_stop_or_killed_at_any_moment_leaves_no_process_and_half_no_file(
    photos: Path, tiny_clip: Path, number: int
) -> None:
    draw = random.Random(number)
    out = photos / "out"
    model: list[str | Path] = ["--model-name", tiny_clip, "--out", out, "--num-workers", "2"]
    command: list[str | Path] = draw.choice(
        [
            ["evaluate", "--test", photos / "test", *model],
            ["train", photos / "train", "--test", photos / "test", "--num-epochs", "3", *model],
            ["embed", photos / "train", *model, "--images-per-part", "4"],
            ["check", photos / "train", *model],
        ]
    )
    kill = signal.SIGTERM if number % 2 else signal.SIGKILL
    process = subprocess.Popen(
        [sys.executable, "-m", "lookalike", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    time.sleep(draw.uniform(1, 15))
    process.send_signal(kill)
    printed, told = process.communicate(timeout=60)
    assert all_gone(process.pid), living(process.pid)
    if kill == signal.SIGTERM and printed:  # it was done before
        assert process.returncode == 0, told
    elif kill == signal.SIGTERM:
        assert process.returncode == 130, told
        assert "Traceback" not in told
        assert told.splitlines()[-1].startswith("lookalike: stopped")
        assert not list(out.rglob(".*lookalike*"))
    again = subprocess.run(
        [sys.executable, "-m", "lookalike", *map(str, command)]
        + ([] if command[0] in ("embed", "check") else ["--overwrite"]),
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert not list(out.rglob(".*lookalike*"))


@posix_only
@pytest.mark.slow
def test_ranks_end_when_torchrun_is_killed(photos: Path, tiny_clip: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
               "--rdzv-endpoint", "127.0.0.1:0", "-m", "lookalike", "train",
               str(photos / "train"), "--model-name", str(tiny_clip), "--num-epochs", "100000",
               "--out", str(photos / "out"), *MACHINE]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    ends = time.monotonic() + 100
    while not list((photos / "out").rglob("encoder_epoch_01.pth")):
        assert time.monotonic() < ends
        time.sleep(0.1)
    ranks = psutil.Process(process.pid).children(recursive=True)  # each has a session of its own
    assert len(ranks) >= 2
    process.kill()
    process.wait()
    assert not psutil.wait_procs(ranks, timeout=30)[1]


@posix_only
def test_a_signal_is_noted_where_stderr_takes_no_word() -> None:
    stderr = os.dup(2)
    reader, writer = os.pipe()
    os.close(reader)  # whoever writes there fails
    try:
        os.dup2(writer, 2)
        with deferred_interrupt() as interrupt:
            signal.raise_signal(signal.SIGTERM)
            assert interrupt.requested
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(writer)
