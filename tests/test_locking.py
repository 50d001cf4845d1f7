"""One process at a time writes to a folder, and what killed ones left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from helpers.limits import posix_only

from lookalike.errors import OutputError
from lookalike.files import write_folder_whole, write_text
from lookalike.locking import LOCK_FILE, sole_writer, sole_writer_of_whole

_HOLD = """
import sys, time
from pathlib import Path
from lookalike.locking import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Inside the block another process holds the lock of a folder."""
    command = [sys.executable, "-c", _HOLD, str(folder), "pass\x1b[31mword"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with (
        held_by_another(folder) as process,
        pytest.raises(OutputError, match=rf"{folder}.*process {process.pid} on ") as refused,
        sole_writer(folder),
    ):
        pass
    assert str(refused.value).isprintable()  # the other's command line as well
    assert str(refused.value).endswith("choose another folder with --out.")


def test_two_threads_of_one_process_are_two_writers(tmp_path: Path) -> None:
    refused = pytest.raises(OutputError, match=f"process {os.getpid()} ")
    with sole_writer(tmp_path), refused, sole_writer(tmp_path):
        pass


def test_nothing_is_left_of_a_lock_and_the_next_one_can_have_it(tmp_path: Path) -> None:
    for _ in range(2):
        with sole_writer(tmp_path):
            assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
        assert not list(tmp_path.iterdir())


@posix_only
def test_a_lock_does_not_outlive_its_process(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK_FILE).exists()
        with sole_writer(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_says_nothing_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(b"\xff{[")
    with sole_writer(tmp_path):
        pass


def test_a_folder_that_is_removed_takes_its_lock_along(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with sole_writer(folder):
        (folder / LOCK_FILE).unlink()
        folder.rmdir()
    with sole_writer(folder):
        pass


def test_a_lock_that_came_after_a_removal_is_left_to_its_process(tmp_path: Path) -> None:
    first = ExitStack()
    first.enter_context(sole_writer(tmp_path))
    (tmp_path / LOCK_FILE).unlink()  # as whoever removes a folder does
    with held_by_another(tmp_path):
        first.close()
        with pytest.raises(OutputError, match="another process"), sole_writer(tmp_path):
            pass


def test_a_folder_written_whole_is_locked_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    with sole_writer_of_whole(folder):
        assert not folder.exists()
        with pytest.raises(OutputError, match="another process"), sole_writer_of_whole(folder):
            pass
        with sole_writer_of_whole(tmp_path / "other"):
            pass
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.json.12345678.lookalike-tmp", "results/.b.1.lookalike-tmp", ".c.tmp",
                 "other/.d.1.lookalike-tmp", "results/.together.1.lookalike-tmp/results/e",
                 ".export.1.lookalike-tmp/model"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with sole_writer(tmp_path, "results", "weights"):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        LOCK_FILE,
        ".c.tmp",
        "other/.d.1.lookalike-tmp",
        ".export.1.lookalike-tmp/model",
    }


def test_a_folder_below_that_cannot_be_written_to_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    with pytest.raises(OutputError, match=r"weights.*--out"), sole_writer(tmp_path, "weights"):
        pass


@posix_only
def test_a_lock_that_is_a_link_leads_to_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("of somebody else's")
    (tmp_path / "run" / LOCK_FILE).symlink_to("../precious")
    with pytest.raises(OutputError, match="cannot write"), sole_writer(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "of somebody else's"


@posix_only
@pytest.mark.parametrize("what", ["hard link", "pipe", "device"])
def test_a_lock_that_is_another_file_under_its_name_is_left_alone(
    tmp_path: Path, what: str
) -> None:
    precious, lock = tmp_path / "precious", tmp_path / LOCK_FILE
    precious.write_text("of somebody else's")
    if what == "hard link":
        lock.hardlink_to(precious)
    elif what == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(os.devnull)
    with pytest.raises(OutputError, match=rf"{LOCK_FILE}.*--out"), sole_writer(tmp_path):
        pass
    assert precious.read_text() == "of somebody else's"
    assert os.path.lexists(lock)


def test_what_killed_processes_left_beside_a_folder_is_removed(tmp_path: Path) -> None:
    for name in (".x.12345678.lookalike-tmp", ".x.12345678.lookalike-old",
                 ".x.y.12345678.lookalike-tmp", "x"):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text(name)
    with sole_writer_of_whole(tmp_path / "x") as folder:
        write_folder_whole(folder, lambda new: write_text(new / "model", "new"))
    assert sorted(os.listdir(tmp_path)) == [".x.y.12345678.lookalike-tmp", "x"]
    assert (tmp_path / "x" / "model").read_text() == "new"
