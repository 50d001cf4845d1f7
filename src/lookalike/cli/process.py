"""The process of a command: the streams it prints to, and the signals that end it."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import IO, Any


@contextmanager
def usable_streams() -> Iterator[None]:
    """Inside the block both streams can be printed to, whatever a terminal can show.

    Where stderr cannot be written to (its disk is full, its reader is gone), messages are lost and
    the work goes on.
    """
    for descriptor in (0, 1, 2):  # a closed one would be given to the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, err = sys.stdout or nowhere, sys.stderr or nowhere
        for stream in (out, err):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        kept: Any = _Unfailing(err)
        with redirect_stdout(out), redirect_stderr(kept):
            yield


class _Unfailing:
    """A stream as it is, but what cannot be written to it is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


@contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """Inside the block SIGTERM, and SIGHUP of a terminal that closes, do what Ctrl-C does.

    A signal that is ignored (as `nohup` has it) or has a handler already keeps that.
    """
    if threading.current_thread() is not threading.main_thread():  # gets no signals
        yield
        return
    names = ("SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) == signal.default_int_handler:
                signal.signal(number, signal.SIG_DFL)


def quick_start() -> None:
    """Has this process look for unreachable objects less often than Python does of itself.

    What torch and Transformers make while they are imported stays for good, and to look through it
    again and again took a sixth of the time.
    """
    gc.set_threshold(50_000, 10, 10)


def quick_end() -> Callable[[int], None]:
    """Returns what takes the exit code of this process when it is done; to be called first.

    From then on the process ends with that code, also where it is told to stop while it tidies up:
    what was registered for the end is run, but objects are not freed one by one, which took as
    long as a sixth of the whole command.
    """
    ended_with: int | None = None

    def leave() -> None:
        if ended_with is not None:  # else an error that nobody expected is being shown
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):  # closed, full, or none
                    stream.flush()
            os._exit(ended_with)

    def end_with(code: int) -> None:
        nonlocal ended_with
        ended_with = code
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, lambda *_: os._exit(code))

    atexit.register(leave)  # the first to be registered is the last to be run
    return end_with
