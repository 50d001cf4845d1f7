"""What long work shows while it runs: live bars on a terminal, plain lines elsewhere.

Everything here goes to stderr; results go to stdout and are somebody else's business. Rooms
below the command line are handed a `Progress` and never print.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

BETWEEN_LINES_S = 10.0
_WIDE = 112  # columns from which a bar has room for all it can say
WORTH_A_LINE_S = 0.5  # what took less needs no line to say that it is done


@contextmanager
def others_hushed() -> Iterator[None]:
    """Inside the block warnings and log lines of other packages are held back, for a step of theirs
    that remarks on itself whatever it is given; what goes wrong is raised all the same.
    """
    level = logging.root.manager.disable
    logging.disable(max(level, logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with what it counts, which is `many` (`one` with an s) unless there is one.

    >>> counted(1, "query", "queries"), counted(2485, "image")
    ('1 query', '2,485 images')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


class Task(Protocol):
    """One piece of long work under way."""

    def advance(self, amount: int = 1, **stats: float) -> None:
        """`amount` more units are done; `stats` (loss=..., lr=...) stand beside the bar."""


class Progress(Protocol):
    """Where long work and messages are shown. Three ways: live, plain and silent."""

    def note(self, message: str) -> None:
        """Shows one line of information."""

    def warn(self, message: str) -> None:
        """Shows one line that should not be overlooked."""

    def task(
        self, title: str, total: int, unit: str = "images", done: int = 0
    ) -> AbstractContextManager[Task]:
        """A piece of work of `total` units, `done` of them before now, while the block runs."""


def default_progress(stream: IO[str] | None = None) -> Progress:
    """Live bars if `stream` (default: stderr) is a terminal that can draw them, else lines."""
    from rich.console import Console

    stream = stream or sys.stderr
    console = Console(file=stream, highlight=False)
    # Asked of the stream itself: rich takes forced colours for a terminal.
    can_draw = stream.isatty() and not console.is_dumb_terminal
    return LiveProgress(console) if can_draw else PlainProgress(stream)


class SilentProgress:
    """Shows nothing: for callers that bring their own display, and for tests."""

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...

    @contextmanager
    def task(self, title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Task]:
        yield _SilentTask()


class _SilentTask:
    def advance(self, amount: int = 1, **stats: float) -> None: ...


class PlainProgress:
    """Lines of text, one every few seconds: for logs, pipes and dumb terminals."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream: IO[str] = stream or sys.stderr

    def note(self, message: str) -> None:
        self._line(message)

    def warn(self, message: str) -> None:
        self._line(f"warning: {message}")

    @contextmanager
    def task(self, title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Task]:
        task = _PlainTask(self._line, title, total, unit, done)
        yield task
        task.close()

    def _line(self, text: str) -> None:
        # A stream that cannot show a character (ASCII logs, cp1252 pipes) shows its escape.
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        safe = text.encode(encoding, "backslashreplace").decode(encoding)
        print(safe, file=self._stream, flush=True)


class _PlainTask:
    """Counts, and writes a line when the last one is old enough."""

    def __init__(
        self, line: Callable[[str], None], title: str, total: int, unit: str, done: int
    ) -> None:
        self._line, self._title, self._total, self._unit = line, title, total, unit
        self._done, self._already = done, done
        self._stats: dict[str, float] = {}
        self._start = self._last = time.monotonic()

    def advance(self, amount: int = 1, **stats: float) -> None:
        self._done += amount
        self._stats = stats
        now = time.monotonic()
        if now - self._last >= BETWEEN_LINES_S and self._done < self._total:
            self._last = now
            self._write(now)

    def close(self) -> None:
        now = time.monotonic()
        if now - self._start >= WORTH_A_LINE_S:
            self._write(now)

    def _write(self, now: float) -> None:
        seconds = max(now - self._start, 1e-9)
        rate = (self._done - self._already) / seconds
        parts = [f"{self._title}: {self._done:,}/{self._total:,} {self._unit}"]
        parts += [f"{rate:,.1f} {self._unit}/s"]
        parts += [f"{name} {value:.4g}" for name, value in self._stats.items()]
        if self._done < self._total and rate > 0:
            parts.append(f"{_clock((self._total - self._done) / rate)} left")
        else:
            parts.append(f"took {_clock(seconds)}")
        self._line(" · ".join(parts))


class LiveProgress:
    """Bars that move, with speed, time left and the numbers of the moment."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, message: str) -> None:
        from rich.text import Text

        self._console.print(Text(message), soft_wrap=True)

    def warn(self, message: str) -> None:
        from rich.text import Text

        self._console.print(Text("warning: ", style="yellow") + Text(message), soft_wrap=True)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Task]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        wide = self._console.width >= _WIDE
        with Progress(
            TextColumn("{task.description:<19}", markup=False),
            BarColumn(bar_width=28 if wide else 8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            *((TimeElapsedColumn(), TextColumn("[dim]gone,")) if wide else ()),
            TimeRemainingColumn(),
            TextColumn("[dim]left"),
            TextColumn("{task.fields[stats]}", style="dim", markup=False),
            console=self._console,
        ) as bars:
            row = bars.add_task(title, total=total, completed=done, rate="", stats="")
            started = time.monotonic()
            counted = 0

            class _LiveTask:
                def advance(self, amount: int = 1, **stats: float) -> None:
                    nonlocal counted
                    counted += amount
                    rate = counted / max(time.monotonic() - started, 1e-9)
                    text = "  ".join(f"{name} {value:.4g}" for name, value in stats.items())
                    bars.update(row, advance=amount, rate=f"{rate:,.1f} {unit}/s", stats=text)

            yield _LiveTask()


def _clock(seconds: float) -> str:
    """Seconds as people say them: 42s, 3:07, 1:02:03."""
    if round(seconds) < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
