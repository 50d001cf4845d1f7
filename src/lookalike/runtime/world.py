"""Several processes that carry out one command together, as `torchrun` starts them.

One `World` is found at the top of a command and handed down in `Runtime`; alone, its methods
do what one process needs, which is nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from lookalike.errors import LookalikeError, LostProcessError

_T = TypeVar("_T")
_STARTED_TOGETHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun says it
# Rows and gradients come at the pace of the slowest reader; who takes longer than this is stuck.
_TIMEOUT = timedelta(minutes=30)
# Waiting for the first process to rank, draw or write has no end that could be named. One that
# died is noticed at once all the same: its connections close.
_PATIENCE = timedelta(days=365)
_LOST = re.compile(r"gloo[/\\]|NCCL|TCPStore")


@dataclass(frozen=True)
class World:
    """One process among those that carry out the same command.

    Every method below that gathers or waits must be called by all of them, in the same order.

    `local_rank` and `local_size` count those on the same machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _patient: Any = field(default=None, repr=False, compare=False)  # a dist.ProcessGroup
    _store: Any = field(default=None, repr=False, compare=False)  # a dist.Store

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and shows progress."""
        return self.rank == 0

    def share_of(self, total: int) -> slice:
        """Returns this process's share of `total` things in a row; shares differ by one at most.

        >>> [World(rank, 3).share_of(7) for rank in range(3)]
        [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
        """
        start, stop = (-(-total * rank // self.size) for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def all_gather_rows(
        self, rows: Shaped[Tensor, "own_rows ..."]
    ) -> tuple[Shaped[Tensor, "all_rows ..."], slice]:
        """The rows of all processes, in the order of these, and where one's own are among them.

        Each may have another number of rows, or none. No gradient flows through it.
        """
        if self.size == 1:
            return rows, slice(0, len(rows))
        counts = self.all_gather_objects(len(rows))
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        start = sum(counts[: self.rank])
        together = torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
        return together, slice(start, start + len(rows))

    def all_gather_objects(self, value: _T) -> list[_T]:
        """Returns the values of all processes, by rank; they are pickled on the way."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._patient)
        return values

    def any_of(self, flag: bool) -> bool:
        """Returns True if the flag is true in one of the processes."""
        return any(self.all_gather_objects(flag))

    def on_main(self, work: Callable[[], _T]) -> _T:
        """Does the work in rank 0 alone, on the cores of all, and returns its result everywhere.

        The others wait for it, however long that takes. What it returns is pickled on the way.

        Raises:
            LookalikeError: `work` did, and now all processes do.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            threads = torch.get_num_threads()
            torch.set_num_threads(threads * self.local_size)
            try:
                outcome[0] = work()
            except LookalikeError as error:
                outcome[1] = error
            finally:
                torch.set_num_threads(threads)
        dist.broadcast_object_list(outcome, src=0, group=self._patient)
        if outcome[1] is not None:
            raise outcome[1]
        result: _T = outcome[0]
        return result

    def kept_on_main(self, work: Callable[[], _T]) -> _T | None:
        """Does the work in rank 0 alone, and returns its result there; None in the others.

        Raises:
            LookalikeError: `work` did, and now all processes do.
        """
        kept: list[_T] = []
        self.on_main(lambda: kept.append(work()))
        return kept[0] if kept else None

    def is_first_to_say(self, message: str) -> bool:
        """Returns True if no other process has said the same; need not be called by all."""
        if self.size == 1:
            return True
        try:
            return bool(self._store.add(f"lookalike said: {message}", 1) == 1)
        except RuntimeError:  # whoever kept the store is gone: better said twice than not at all
            return True


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Inside the block the processes that were started together work together.

    `torchrun` tells each of them of the others in environment variables; without these, or with
    a count of one, it is `ALONE`. Where a process group is there already, it is used and left
    as it is.

    Raises:
        LostProcessError: another process ended inside the block, or cannot be reached.
    """
    found = dist.is_available() and dist.is_initialized()
    if not found and not _started_together():
        yield ALONE
        return
    with _naming_the_lost():
        if not found:
            dist.init_process_group(_backend(), timeout=_TIMEOUT)
        try:
            yield _world()
        finally:
            if not found:
                dist.destroy_process_group()


def _started_together() -> bool:
    told = all(name in os.environ for name in _STARTED_TOGETHER)
    return told and int(os.environ["WORLD_SIZE"]) > 1


def _backend() -> str:
    """Each kind of device has its own; CUDA's connects only when it is first used."""
    if torch.cuda.is_available() and dist.is_nccl_available():
        return "cpu:gloo,cuda:nccl"
    return "gloo"


def _world() -> World:
    rank, count = dist.get_rank(), dist.get_world_size()
    if count == 1:
        return ALONE
    return World(
        rank,
        count,
        int(os.environ.get("LOCAL_RANK", rank)),
        int(os.environ.get("LOCAL_WORLD_SIZE", count)),
        dist.new_group(backend="gloo", timeout=_PATIENCE),
        dist.distributed_c10d._get_default_store(),
    )


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    """Turns what the backends say about a connection that broke into what happened."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        first_line = str(error).partition("\n")[0].partition(". ")[0]
        raise LostProcessError(
            "another process of this command ended, or cannot be reached (as "
            f"{_LOST_PLACE.sub('', first_line)} shows). What was saved before is whole: start the "
            "same command again; a run goes on where it was saved with --resume"
        ) from error


# Where in its source the backend noticed, and which port: nobody can do anything with these.
_LOST_PLACE = re.compile(r"^\[[^\]]*\] | ?\[[\d.:a-f]+\]:\d+")
