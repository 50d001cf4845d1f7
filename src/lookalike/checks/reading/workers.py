"""Files described by worker processes, which a bad file may crash or hang without harm."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait

from lookalike.checks.reading.image import ImageFacts, describe_file
from lookalike.data.images import ImageRef
from lookalike.errors import DataError
from lookalike.runtime.children import uninterrupted

HANG_S = 120.0
"""After so long over one file a worker is taken to hang in its decoder."""

_AHEAD = 4  # files a worker holds, so that it never waits for the next
_LOOK_S = 1.0

Describe = Callable[[ImageRef, float], ImageFacts]


def describe_files(
    refs: Iterable[ImageRef],
    *,
    max_megapixels: float,
    num_workers: int,
    describe: Describe = describe_file,
    hang_s: float = HANG_S,
) -> Generator[tuple[int, ImageFacts], None, None]:
    """Yields positions and facts of files, in the order in which they are done.

    With worker processes a file that kills its reader (a decoder's bug, no memory left) or
    keeps it for `hang_s` seconds has that for its reason, and the others go on. With
    `num_workers` 0 all is done in this process, without that protection.

    Raises:
        DataError: the workers cannot be started.
    """
    if not num_workers:
        for position, ref in enumerate(refs):
            yield position, describe(ref, max_megapixels)
        return
    waiting = enumerate(refs)
    workers = [_Worker(describe, max_megapixels) for _ in range(num_workers)]
    try:
        while True:
            for worker in workers:
                worker.take(waiting)
            busy = [worker for worker in workers if worker.pending]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], timeout=_LOOK_S)
            for worker in busy:
                if worker.connection in ready:
                    yield from worker.result()
                elif worker.started and time.monotonic() - worker.since > hang_s:
                    yield worker.lose(f"the decoder hangs: no result after {hang_s:g} s")
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process, and the files it was handed and has not answered for."""

    def __init__(self, describe: Describe, max_megapixels: float) -> None:
        self._describe, self._max_megapixels = describe, max_megapixels
        self.pending: deque[tuple[int, ImageRef]] = deque()
        self._start()

    def _start(self) -> None:
        # Never by fork, which copies threads in a broken state; spawn rather than the fork
        # server, which the loader's workers share and which holds torch.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self._describe, self._max_megapixels)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with uninterrupted():
            self._process.start()
        theirs.close()
        self.since = time.monotonic()
        self.started = False
        for _, ref in self.pending:
            self.connection.send(ref)

    def take(self, waiting: Iterator[tuple[int, ImageRef]]) -> None:
        """Hands it more files, as long as it has room."""
        while len(self.pending) < _AHEAD and (item := next(waiting, None)) is not None:
            if not self.pending:
                self.since = time.monotonic()
            self.pending.append(item)
            try:
                self.connection.send(item[1])
            except OSError:  # it died; what comes back next says so
                return

    def result(self) -> Iterator[tuple[int, ImageFacts]]:
        """Yields the facts of its message, where that is about a file."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            if not self.started:
                raise DataError(
                    "a process that reads images cannot be started; in a script, call check "
                    "below if __name__ == '__main__':, or try --num-workers 0"
                ) from None
            code = self._process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            yield self.lose(f"reading it ended its process ({how})")
            return
        self.since = time.monotonic()
        if said is None:
            self.started = True
        else:
            yield self.pending.popleft()[0], said

    def lose(self, reason: str) -> tuple[int, ImageFacts]:
        """Gives the file it is at up, and goes on with a new process."""
        position, _ = self.pending.popleft()
        self.stop()
        self._start()
        return position, ImageFacts(reason=reason)

    def stop(self) -> None:
        """Ends the process, whatever it is at."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, describe: Describe, max_megapixels: float) -> None:
    """The life of a worker: a path in, facts out, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process to honour
    try:
        connection.send(None)
        while True:
            connection.send(describe(connection.recv(), max_megapixels))
    except (EOFError, OSError):
        return
