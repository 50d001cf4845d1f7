"""Processes that read images, which a bad file, or whoever kills them, may end without harm.

They are asked and answer through pipes; pixels come in memory of the pipe's own two ends. Nothing
lies in /dev/shm, and nobody waits for a lock that a dead process holds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from lookalike.data.reading.reader import Batch, Reader, Request
from lookalike.data.reading.serving import AT, SLOTS_START, Failed, serve
from lookalike.data.reading.shared import SharedBlock
from lookalike.errors import DataError, first_line
from lookalike.files import shown

GIVE_UP_S = 30.0
"""After so long over one file a process is taken to hang; another one has as long for it."""

_FORK_S = 30.0  # until what processes are forked from, which imports torch first, answers
_START_S = 120.0  # importing torch, and the main script, from a slow disk
_LOOK_S = 0.5
_MOST_DEATHS = 16  # in a row, with no image read in between: it is hardly the files any more
_STALLED = f"no result after {GIVE_UP_S:g} s"


class WorkerPool:
    """Processes that read batches, started when they are first asked, and kept.

    A process that dies over a file, or reads it for `GIVE_UP_S`, is replaced, and the file tried
    once more; then it is given up, which a batch says of it, and the others go on.

    Args:
        reader: reads in each process.
        num_workers: processes.
        ahead: batches that each is asked for before the first of them is taken.
        batch_bytes: of the pixels of most batches; larger ones travel more slowly.
        pinned: the pixels are to lie in pinned memory.
        tell: told of a process that is replaced, in one line.
    """

    def __init__(
        self,
        reader: Reader,
        num_workers: int,
        *,
        ahead: int,
        batch_bytes: int,
        pinned: bool,
        tell: Callable[[str], None],
    ) -> None:
        self.ahead, self.num_workers = ahead, num_workers
        self._reader, self._batch_bytes = reader, batch_bytes
        self._pinned, self._tell = pinned, tell
        self._workers: list[_Worker] = []
        self._given_up: dict[int, str] = {}
        self._tried: set[int] = set()  # files that one process was lost over
        self._losses: list[str] = []  # in a row, with no image read in between
        self._next = 0  # number of the next batch

    def read(
        self, requests: Iterator[Request], stop: Callable[[], bool] | None = None
    ) -> Iterator[Batch]:
        """Yields the batches asked for, in order; ends early where it waits and `stop` says so.

        Raises:
            DataError: processes cannot be started, or die over one file after the other.
        """
        self._start()
        first = expected = self._next
        done: dict[int, Batch] = {}
        more = True
        while True:
            while more and self._next - expected < self.ahead * len(self._workers):
                worker = min(self._workers, key=lambda one: len(one.pending))
                if len(worker.pending) >= self.ahead:
                    break  # with batches that nobody waits for any more
                request = next(requests, None)
                if request is None:
                    more = False
                    break
                worker.ask(self._next, request, self._given_up)
                self._next += 1
            if not more and expected == self._next:
                return
            while expected not in done:
                if stop is not None and stop():
                    return
                for number, batch in self._answers(first):
                    if number >= first:
                        done[number] = batch
            yield done.pop(expected)
            expected += 1

    def _start(self) -> None:
        if self._workers:
            return
        context = _context()
        # Before multiprocessing's own, which asks kindly and then waits.
        util.Finalize(self, _stop_all, args=(self._workers,), exitpriority=100)
        for _ in range(self.num_workers):
            worker = _Worker(context, self._reader, self.ahead, self._batch_bytes, self._pinned)
            worker.start()
            self._workers.append(worker)

    def _answers(self, first: int) -> Iterator[tuple[int, Batch]]:
        """Yields what has been read; waits a moment if there is nothing."""
        busy = [worker for worker in self._workers if worker.pending]
        ready = wait([worker.connection for worker in busy], timeout=_LOOK_S)
        for worker in busy:
            if worker.connection not in ready:
                limit = GIVE_UP_S if worker.started else _START_S
                if worker.stands_still() > limit:
                    self._replace(worker, _STALLED, first)
                continue
            try:
                answer = worker.receive()
            except (EOFError, OSError):
                self._replace(worker, worker.how_it_ended(), first)
                continue
            if answer is not None:
                if answer[1].indices:
                    self._losses.clear()
                yield answer

    def _replace(self, worker: _Worker, how: str, first: int) -> None:
        """Starts another process, which reads what this one did not; perhaps without a file."""
        if not worker.started:
            raise DataError(
                f"a process that reads images cannot be started ({how}). A script of your own has "
                'to do its work below `if __name__ == "__main__":`, since these processes import '
                "it; else try --num-workers 0"
            )
        index, begun = worker.at()
        where, again = "between two files", ""
        if index is not None:
            where, again = f"over {shown(self._reader.path_of(index))}", "; it is tried once more"
            if index in self._tried:
                self._given_up[index], again = f"its second process, too, was lost: {how}", ""
            self._tried.add(index)
        self._tell(f"a process that reads images was lost {where}: {how}{again}")
        if begun > 1:  # it has read others
            self._losses.clear()
        self._losses.append(how)
        if self._losses.count(_STALLED) > 2 * self.num_workers or len(self._losses) > _MOST_DEATHS:
            raise DataError(
                "processes that read images are lost one after the other, the last one "
                f"{where}: {how}. Often memory ran out, or the disk does not answer: try "
                "--num-workers 1 or a lower --max-megapixels, or take the files named out"
            )
        worker.stop()
        pending = [one for one in worker.pending if one[0] >= first]
        worker.start()
        for number, request in pending:
            worker.ask(number, request, self._given_up)


class _Worker:
    """One process as the main one sees it, and the batches that it was asked for."""

    def __init__(
        self, context: Any, reader: Reader, num_slots: int, slot_bytes: int, pinned: bool
    ) -> None:
        self._context, self._reader, self._pinned = context, reader, pinned
        self._slot_bytes = slot_bytes
        self._block = SharedBlock(SLOTS_START + num_slots * slot_bytes, in_memory=True)
        self._num_slots = num_slots
        if self._block.content is None:  # then pixels come through the pipe
            self._block, self._num_slots = SharedBlock(SLOTS_START, in_memory=False), 0
        self.pending: deque[tuple[int, Request]] = deque()
        self.started = False
        self._process: Any = None

    def start(self) -> None:
        """Starts the process; raises DataError where the system refuses."""
        self.pending.clear()
        self.connection, theirs = multiprocessing.Pipe()
        _limit_waiting(self.connection)
        self.started, self._asked = False, 0
        self._note(-1)
        self._seen, self._still_s, self._looked = b"", 0.0, time.monotonic()
        slots = self._num_slots, self._slot_bytes
        process = self._context.Process(
            target=serve, args=(theirs, self._reader, self._block, slots), daemon=True
        )
        try:
            _start(process)
        finally:
            theirs.close()
        self._process = process

    def ask(self, number: int, request: Request, given_up: Mapping[int, str]) -> None:
        """Asks for a batch; raises nothing if the process is dead, as what comes back says so."""
        self.pending.append((number, request))
        try:
            self.connection.send((number, self._asked, request, dict(given_up)))
            self._asked += 1
        except OSError:
            pass

    def receive(self) -> tuple[int, Batch] | None:
        """Returns a batch and its number; None if it only says that it is there.

        Raises:
            EOFError, OSError: the process is dead.
            Exception: what reading raised.
        """
        said = self.connection.recv()
        self._still_s = 0.0
        if said is None:
            self.started = True
            return None
        number, batch, shape, slot = said
        if isinstance(batch, Failed):
            self.pending.popleft()
            raise batch.error from RuntimeError(batch.text)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        if slot is None:
            content: Any = bytearray(self.connection.recv_bytes())
            offset = 0
        else:
            content, offset = self._block.content, SLOTS_START + slot * self._slot_bytes
        if pixels.numel():
            flat = torch.frombuffer(content, dtype=torch.uint8, count=pixels.numel(), offset=offset)
            pixels.copy_(flat.view(shape))
        self.pending.popleft()
        return number, batch._replace(pixels=pixels)

    def at(self) -> tuple[int | None, int]:
        """Returns the position of the image that it reads, None if it reads none or nobody knows,
        and how many it has begun.
        """
        if self._block.content is None:
            return None, 0
        index, begun = AT.unpack_from(self._block.content)
        return (None if index < 0 else index), begun

    def stands_still(self) -> float:
        """Returns for how many seconds of looking it has been at the same image.

        The time in which nobody looked does not count: this process may have been asleep itself.
        """
        now, seen = time.monotonic(), bytes((self._block.content or b"")[: AT.size])
        step, self._looked = min(now - self._looked, 2 * _LOOK_S), now
        self._still_s = self._still_s + step if seen == self._seen else 0.0
        self._seen = seen
        return self._still_s

    def how_it_ended(self) -> str:
        """Returns how a dead process ended: by a signal, or by itself."""
        self._process.join(timeout=5)
        code = self._process.exitcode
        if code is None:
            return _STALLED
        if code >= 0:
            return f"it ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"it was ended by {name}" + (", as where memory runs out" if code == -9 else "")

    def stop(self) -> None:
        """Ends the process, whatever it is at: a signal that even a stopped one hears.

        One whose start was interrupted ends when it finds its connection closed.
        """
        if self._process is None:
            return
        if self._process.pid is not None:
            self._process.kill()
            self._process.join(timeout=5)
        self.connection.close()

    def _note(self, index: int) -> None:
        if self._block.content is not None:
            AT.pack_into(self._block.content, 0, index, 0)


def _start(process: Any) -> None:
    """Starts a process; raises DataError where it cannot be, twice.

    What it is forked from may stand still or be dead, which multiprocessing waits for, or tells
    too late: then it is ended, and the second start makes another one.
    """
    for limit in (_FORK_S, _START_S):
        timer = threading.Timer(limit, _end_fork_server)
        timer.start()
        try:
            process.start()
            return
        except (OSError, EOFError) as error:
            failure = error
            time.sleep(_LOOK_S)  # for the system to know that it is gone
        finally:
            timer.cancel()
    raise DataError(f"a process that reads images cannot be started ({first_line(failure)}); try "
                    "fewer --num-workers") from failure  # fmt: skip


def _end_fork_server() -> None:
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if (pid := getattr(server, "_forkserver_pid", None)) is not None:
        os.kill(pid, signal.SIGKILL)


def _stop_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _limit_waiting(connection: Connection) -> None:
    """Has sending and receiving fail where the other end stands still in the middle of it."""
    if os.name == "posix":
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            limit = struct.pack("@ll", int(GIVE_UP_S), 0)  # a timeval
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _context() -> multiprocessing.context.BaseContext:
    """Returns how workers start: never by fork, which breaks threads and CUDA in its copy."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not in each worker
    return context
