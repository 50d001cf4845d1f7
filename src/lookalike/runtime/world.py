"""The processes of one command, as `torchrun` starts them: rank, world size, all_gather.

One `World` is found at the top of a command and handed down in `Runtime`; with a world size of 1
its methods have nothing to wait for or to gather.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from lookalike.errors import LookalikeError, LostProcessError, first_line
from lookalike.runtime.launch import started_together

_T = TypeVar("_T")
# Rows and gradients come at the pace of the slowest reader; a rank that takes longer is stuck.
_TIMEOUT = timedelta(minutes=30)
# Nobody can say how long rank 0 ranks, draws or writes while the others wait. If it dies, they
# notice at once all the same: its connections close.
_PATIENCE = timedelta(days=365)
_LOOK_S, _TO_SAVE_S = 1.0, 30.0  # at the parent; from its end to that of a rank that is stuck
_LOST = re.compile(r"gloo[/\\]|NCCL|TCPStore")
# Where in its source the backend noticed, and which port: nobody can do anything with these.
_LOST_PLACE = re.compile(r"^\[[^\]]*\] | ?\[[\d.:a-f]+\]:\d+")


@dataclass(frozen=True)
class World:
    """The rank of this process, and the world size; `local_` counts ranks on the same machine.

    Every method that gathers or waits must be called by all ranks, in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _patient: Any = field(default=None, repr=False, compare=False)  # a dist.ProcessGroup
    _store: Any = field(default=None, repr=False, compare=False)  # a dist.Store

    @property
    def is_main(self) -> bool:
        """True for rank 0, which writes files and shows progress."""
        return self.rank == 0

    def share_of(self, total: int) -> slice:
        """Returns this rank's share of `total` things in a row; shares differ by one at most.

        >>> [World(rank, 3).share_of(7) for rank in range(3)]
        [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
        """
        start, stop = (-(-total * rank // self.size) for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def all_gather_rows(
        self, rows: Shaped[Tensor, "own_rows ..."]
    ) -> tuple[Shaped[Tensor, "all_rows ..."], slice]:
        """Returns the rows of all ranks, in rank order, and the slice of them that is this rank's.

        Each rank may have another number of rows, or none. No gradient flows through it.
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
        """Returns the values of all ranks, in rank order; they are pickled on the way."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._patient)
        return values

    def any_of(self, flag: bool) -> bool:
        """Returns True if the flag is true on any rank."""
        return any(self.all_gather_objects(flag))

    def on_main(self, work: Callable[[], _T]) -> _T:
        """Does the work on rank 0 alone, with the cores of all, and returns its result everywhere.

        The other ranks wait, however long it takes. The result is pickled on the way.

        Raises:
            LookalikeError: `work` did, and now all ranks do.
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
        """Does the work on rank 0 as `on_main` does, but returns its result there alone, None on
        the other ranks.
        """
        kept: list[_T] = []
        self.on_main(lambda: kept.append(work()))
        return kept[0] if kept else None

    def is_first_to_say(self, message: str) -> bool:
        """Returns True if no other rank has said the same; need not be called by all."""
        if self.size == 1:
            return True
        try:
            return bool(self._store.add(f"lookalike said: {message}", 1) == 1)
        except RuntimeError:  # whoever kept the store is gone: better said twice than not at all
            return True


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Inside the block the processes that `torchrun` started together are the ranks of one world.

    Without torchrun's environment variables, or with a world size of 1, it is `ALONE`. A process
    group that is there already is used and left as it is.

    Raises:
        ConfigError: those variables hold what cannot be.
        LostProcessError: another rank ended inside the block, or cannot be reached.
    """
    found = dist.is_available() and dist.is_initialized()
    if not found and not started_together():
        yield ALONE
        return
    with _naming_the_lost():
        if not found:
            # Each kind of device has its own backend; CUDA's connects only when it is first used.
            uses_nccl = torch.cuda.is_available() and dist.is_nccl_available()
            dist.init_process_group("cpu:gloo,cuda:nccl" if uses_nccl else "gloo", timeout=_TIMEOUT)
        try:
            yield _world()
        finally:
            if not found:
                dist.destroy_process_group()


def _world() -> World:
    """Returns the world of the process group that there is."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return ALONE
    return World(
        rank,
        world_size,
        int(os.environ.get("LOCAL_RANK", rank)),
        int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        dist.new_group(backend="gloo", timeout=_PATIENCE),
        dist.distributed_c10d._get_default_store(),
    )


def end_with_parent() -> None:
    """Stops this process when the one that started it is gone, as if by SIGTERM.

    `torchrun` stops its ranks when it is stopped, but not when it is killed.
    """
    if os.name != "posix":  # elsewhere a process does not learn of it
        return
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_TO_SAVE_S)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    """Turns a backend's error about a broken connection into one that says what happened."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        what = first_line(error).partition(". ")[0]
        raise LostProcessError(
            "another process of this command ended, or cannot be reached (as "
            f"{_LOST_PLACE.sub('', what)} shows). What was saved before is intact: start the "
            "same command again; a run continues from where it was saved with --resume"
        ) from error
