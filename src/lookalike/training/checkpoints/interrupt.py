"""Ctrl-C and SIGTERM that wait for the step in hand."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HEARD = b"\nstopping after this step, then saving; once more stops at once and saves nothing\n"


class Interrupt:
    """`requested` is true once somebody asked the run to stop."""

    requested = False


@contextmanager
def deferred_interrupt(*, quiet: bool = False) -> Iterator[Interrupt]:
    """Inside the block the first Ctrl-C or SIGTERM is only noted; a second one acts at once.

    A signal in the middle of an optimiser step would leave half of the weights changed; whoever
    runs the steps looks at `requested` between them. Outside of the main thread Python delivers
    no signals, and nothing is changed. `quiet` leaves it to another process to say what happens.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        if not quiet:
            os.write(2, _HEARD)  # of all ways to print, the one that is safe in a signal handler

    signals = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(number, note) for number in signals]
    try:
        yield interrupt
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
