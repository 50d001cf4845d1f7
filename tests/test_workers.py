"""Processes that read: what they bring, and what happens where they die, hang or are stopped."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.readers import TroubledReader

from lookalike.data.reading import serving, workers
from lookalike.data.reading.reader import Batch, Request
from lookalike.data.reading.shared import SharedBlock
from lookalike.data.reading.workers import WorkerPool
from lookalike.errors import DataError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="these trials use signals")
MakePool = Callable[..., WorkerPool]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def make_pool(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> MakePool:
    """A pool whose reader meets trouble; it waits for a second."""
    monkeypatch.setattr(workers, "GIVE_UP_S", 1.0)
    monkeypatch.setattr(workers, "_LOOK_S", 0.2)

    def make(trouble: Mapping[int, str], num_workers: int = 1, **changes: Any) -> WorkerPool:
        side = changes.pop("side", 1)
        reader: Any = TroubledReader(trouble, tmp_path, side)
        how: dict[str, Any] = {"ahead": 2, "batch_bytes": 100, "pinned": False, "tell": told.append}
        return WorkerPool(reader, num_workers, **how | changes)

    return make


def requests(*groups: list[int]) -> Iterator[Request]:
    return (Request(group) for group in groups)


def seen(batches: Iterator[Batch]) -> list[list[int]]:
    """The positions that the pixels of each batch say."""
    read = list(batches)
    for batch in read:
        assert batch.pixels[:, 0, 0, 0].tolist() == batch.indices
    return [batch.indices for batch in read]


# What they bring


@pytest.mark.parametrize("memory", ["shared", "too small", "refused"])
def test_batches_come_in_order_whatever_memory_they_come_in(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    if memory == "refused":  # as some containers do
        monkeypatch.setattr(os, "memfd_create", fails, raising=False)
    pool = make_pool({}, 2, batch_bytes=10 if memory == "too small" else 3 * 64 * 64 * 9, side=64)
    groups = [[number, number + 1, number + 2][: number % 4] for number in range(40)]
    assert seen(pool.read(requests(*groups))) == groups
    assert seen(pool.read(requests([7]))) == [[7]]  # by the same processes


def fails(*_: object) -> int:
    raise OSError("not here")


def test_a_batch_stays_what_it_was_when_others_have_come(make_pool: MakePool) -> None:
    batches = list(make_pool({}, ahead=1).read(requests(*([n] for n in range(9)))))
    assert [int(batch.pixels[0, 0, 0, 0]) for batch in batches] == list(range(9))


def test_what_a_reading_that_was_broken_off_asked_for_is_not_taken_for_another(
    make_pool: MakePool,
) -> None:
    pool = make_pool({}, 2)
    for _ in range(3):
        batches = pool.read(requests(*([n] for n in range(30))))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    assert seen(pool.read(requests([50], [51]))) == [[50], [51]]


def test_a_bug_in_a_reading_process_comes_with_its_place_and_an_error_as_it_is(
    make_pool: MakePool,
) -> None:
    with pytest.raises(AttributeError, match="a bug of ours") as caught:
        seen(make_pool({3: "bug"}).read(requests([1], [2, 3])))
    assert "readers.py" in str(caught.value.__cause__)
    pool = make_pool({5: "error once"})
    with pytest.raises(DataError, match="pyarrow is not there"):
        seen(pool.read(requests([5], [6])))
    assert seen(pool.read(requests([5], [6]))) == [[5], [6]]


# What happens to them


@pytest.mark.parametrize("way", ["killed", "crashed", "left", "hung", "stopped"])
def test_a_file_that_costs_a_process_is_tried_again_and_then_given_up_by_name(
    make_pool: MakePool, told: list[str], way: str
) -> None:
    batches = list(make_pool({5: way}).read(requests([1], [4, 5, 6], [7])))
    assert [batch.indices for batch in batches] == [[1], [4, 6], [7]]
    (bad,) = batches[1].unreadable
    assert bad.path == "photos/5.jpg"
    says = {"killed": "SIGKILL, as where memory runs out", "crashed": "SIGSEGV",
            "left": "exit code 3", "hung": "no result", "stopped": "no result"}  # fmt: skip
    assert says[way] in bad.reason
    assert len(told) == 2
    assert all("photos/5.jpg" in line and says[way] in line for line in told)
    assert "tried once more" in told[0]


@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_a_process_that_somebody_else_ends_costs_no_file(
    make_pool: MakePool, told: list[str], way: str
) -> None:
    groups = [[number] for number in range(20)]
    assert (
        seen(make_pool({5: f"{way} once", 9: f"{way} once"}, 2).read(requests(*groups))) == groups
    )
    assert len(told) == 2


@pytest.mark.slow  # torch is imported again
@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
@pytest.mark.parametrize("end", ["SIGSTOP", "SIGKILL"])
def test_what_processes_are_forked_from_may_be_lost_as_they_are(
    make_pool: MakePool, told: list[str], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(workers, "_FORK_S", 1.0)
    batches = make_pool({2: "killed once"}).read(requests([1], [2], [3]))
    first = next(batches)
    server: Any = sys.modules["multiprocessing.forkserver"]
    os.kill(server._forkserver._forkserver_pid, signal.Signals[end])
    assert first.indices == [1]
    assert seen(batches) == [[2], [3]]
    assert len(told) == 1


@pytest.mark.parametrize("num_started", [0, 1])
def test_where_no_process_can_be_started_this_is_said_and_nothing_else(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, num_started: int
) -> None:
    context, left = multiprocessing.get_context("spawn"), [*range(num_started)]
    before = {*multiprocessing.active_children()}
    whole = multiprocessing.process.BaseProcess.start

    def start(process: Any) -> None:
        if not left:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        left.pop()
        whole(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    monkeypatch.setattr(workers, "_context", lambda: context)
    pool = make_pool({}, 2)
    with pytest.raises(DataError, match=r"temporarily unavailable\); try fewer --num-workers"):
        seen(pool.read(requests([1])))
    workers._stop_all(pool._workers)  # as the end of this process does
    assert {*multiprocessing.active_children()} <= before


def test_where_every_process_dies_the_run_ends_and_names_a_file(make_pool: MakePool) -> None:
    pool = make_pool(dict.fromkeys(range(100), "killed"), 2)
    with pytest.raises(DataError, match=r"photos/\d+\.jpg: .*SIGKILL.* --num-workers 1") as caught:
        seen(pool.read(requests(*([n] for n in range(100)))))
    assert len(str(caught.value).splitlines()) == 1


def test_where_nothing_can_be_read_in_time_the_run_ends_soon(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GIVE_UP_S", 0.6)
    pool = make_pool(dict.fromkeys(range(100), "stopped"))
    with pytest.raises(DataError, match=r"photos/\d+\.jpg: no result .*the disk does not answer"):
        seen(pool.read(requests(*([n] for n in range(100)))))


def test_time_in_which_nobody_looked_is_not_held_against_a_process(
    make_pool: MakePool, told: list[str]
) -> None:
    batches = make_pool({}).read(requests([1], [2], [3], [4]))
    next(batches)
    time.sleep(1.5)  # as over a step of training
    assert seen(batches) == [[2], [3], [4]]
    assert told == []


def test_whoever_waits_can_stop(make_pool: MakePool) -> None:
    pool = make_pool({2: "hung"})
    begun = time.monotonic()
    assert seen(pool.read(requests([1], [2]), lambda: time.monotonic() > begun + 0.2)) == [[1]]


def test_processes_end_with_their_pool_even_stopped_ones(make_pool: MakePool) -> None:
    pool = make_pool({1: "stopped"}, 2)
    batches = pool.read(requests([0], [1], [2]))
    next(batches)
    mine = [one._process for one in pool._workers]
    del batches, pool
    assert not any(process.is_alive() for process in mine)


def test_a_pool_stopped_while_its_processes_start_ends_without_a_word(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: multiprocessing.process.BaseProcess) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", stopped)
    pool = make_pool({}, 2)  # the second one is not even begun
    with pytest.raises(KeyboardInterrupt):
        next(pool.read(requests([1])))
    workers._stop_all(pool._workers)
    assert capsys.readouterr().err == ""


def test_a_process_that_reads_ends_without_a_word_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    monkeypatch.setattr(serving, "_take", lambda *_: None)  # it may come second
    block = SharedBlock(serving.SLOTS_START, in_memory=False)
    before = signal.getsignal(signal.SIGINT)
    try:
        reader: Any = TroubledReader({}, Path())
        serving.serve(theirs, reader, block, (0, 0))
    finally:
        signal.signal(signal.SIGINT, before)


MAIN = """
import json, multiprocessing, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.readers import TroubledReader
from lookalike.data.reading.reader import Request
from lookalike.data.reading.workers import WorkerPool

if __name__ == "__main__":
    reader = TroubledReader({5: "hung"}, Path(sys.argv[2]))
    pool = WorkerPool(reader, 2, ahead=2, batch_bytes=9, pinned=False, tell=print)
    batches = pool.read(Request([n]) for n in range(9))
    next(batches)
    time.sleep(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run behind "&"
    import psutil
    print(json.dumps([one.pid for one in psutil.Process().children(recursive=True)]), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "end",
    [signal.SIGKILL, *(pytest.param(end, marks=pytest.mark.slow)
                       for end in (signal.SIGTERM, signal.SIGINT))],
)  # fmt: skip
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, end: signal.Signals) -> None:
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as main:
        assert main.stdout is not None
        children = [psutil.Process(pid) for pid in json.loads(main.stdout.readline())]
        assert len(children) >= 3  # the fork server and two that read, one of which hangs
        main.send_signal(end)
        main.wait(timeout=20)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a small /dev/shm")
def test_a_full_dev_shm_changes_nothing(photos: Path, tiny_clip: Path) -> None:
    here = next(
        (words for words in (["unshare", "-m"], ["unshare", "-rm"])
         if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0),
        None,
    )  # fmt: skip
    if here is None:
        pytest.skip("no mount namespace here")
    command = (
        "mount -t tmpfs -o size=4k tmpfs /dev/shm; head -c 4096 /dev/zero > /dev/shm/full; "
        f"exec {sys.executable} -m lookalike evaluate --test {photos / 'test'} --model-name "
        f"{tiny_clip} --out {photos / 'o'} --device cpu --num-workers 2 --no-report"
    )
    done = subprocess.run([*here, "bash", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
