"""Memory that processes share, in files without a name: none of it lies in /dev/shm, which is
often limited to 64 MB in containers, and full.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing import context, reduction
from typing import Any, TypeVar, overload

import numpy as np
from jaxtyping import Int64

Item = TypeVar("Item")


class SharedArray:
    """A read-only array of any shape whose memory a process that is started with it shares.

    It lies in a file without a name, which the system removes with the last process that has it
    open, however that ends. On Windows, which has no such files, each process gets a copy.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self._file: int | None = None
        if os.name == "posix" and values.size:
            # No room for temporary files is no reason to stop: then each process has a copy.
            with suppress(OSError), tempfile.TemporaryFile() as file:
                file.write(np.ascontiguousarray(values).data)
                file.flush()
                self._adopt(os.dup(file.fileno()), values.dtype, values.shape)

    def _adopt(self, file: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)  # __del__ may come when the interpreter is half gone
        seen = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        self.values = np.frombuffer(seen, dtype=dtype).reshape(shape)

    def __reduce__(self) -> tuple[Callable[..., SharedArray], tuple[Any, ...]]:
        if self._file is None or context.get_spawning_popen() is None:
            return SharedArray, (np.array(self.values),)
        return _opened, (reduction.DupFd(self._file), self.values.dtype, self.values.shape)


def _opened(file: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> SharedArray:
    """Returns, in the process that was started, the array in a file that came with it."""
    array = SharedArray(np.empty(0, dtype))
    array._adopt(file.detach(), dtype, shape)
    return array


class SharedList(Sequence[Item]):
    """Items, such as the references of images, in shared memory: their pickles and 8 bytes each."""

    def __init__(self, items: Iterable[Item]) -> None:
        parts = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = SharedArray(np.cumsum([len(part) for part in parts], dtype=np.int64))
        self._bytes = SharedArray(np.frombuffer(b"".join(parts), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._ends.values)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        ends: Int64[np.ndarray, " items"] = self._ends.values
        index = range(len(self))[index]  # from the end, or an IndexError
        start = ends[index - 1] if index else 0
        item: Item = pickle.loads(self._bytes.values[start : ends[index]].data)  # noqa: S301 - ours
        return item


class SharedBlock:
    """Bytes that two processes read and write; made by one, which starts the other with it.

    `content` is None where the system has no such memory. `in_memory` says that they lie in memory
    alone: otherwise in a file that may be written to the disk.
    """

    def __init__(self, num_bytes: int, *, in_memory: bool) -> None:
        self.content: mmap.mmap | None = None
        self._file: int | None = None
        if os.name != "posix" or not num_bytes:
            return
        with suppress(OSError, AttributeError):  # a system that has not, or has no room
            if in_memory:
                file = os.memfd_create("lookalike")
            else:
                with tempfile.TemporaryFile() as opened:
                    file = os.dup(opened.fileno())
            weakref.finalize(self, os.close, file)
            os.ftruncate(file, num_bytes)
            self._adopt(file)

    def _adopt(self, file: int) -> None:
        self._file, self.content = file, mmap.mmap(file, 0)

    def __reduce__(self) -> tuple[Callable[..., SharedBlock], tuple[Any, ...]]:
        return _opened_block, (None if self._file is None else reduction.DupFd(self._file),)


def _opened_block(file: Any) -> SharedBlock:
    """Returns, in the process that was started, the block in a file that came with it."""
    block = SharedBlock(0, in_memory=False)
    if file is not None:
        descriptor = file.detach()
        weakref.finalize(block, os.close, descriptor)
        block._adopt(descriptor)
    return block
