"""What long work shows while it runs: live bars on a terminal, plain lines elsewhere.

All of it goes to stderr. What lies below the command line is handed a `Progress`, and never prints.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol

from lookalike.files import printable

if TYPE_CHECKING:
    from rich.console import Console

BETWEEN_LINES_S = 10.0
_WIDE = 112  # columns from which a bar has room for all it can say
WORTH_A_LINE_S = 0.5  # what took less needs no line to say that it is done


@contextmanager
def others_hushed() -> Iterator[None]:
    """Holds back warnings and log lines of other packages; errors are raised all the same."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns a number with what it counts, which is `many` (`one` with an s) unless there is one.

    >>> counted(1, "query", "queries"), counted(2485, "image")
    ('1 query', '2,485 images')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


class Task(Protocol):
    """One piece of long work under way."""

    def advance(self, amount: int = 1, **stats: float) -> None:
        """Counts `amount` more units; `stats` (loss=..., lr=...) are shown beside the bar."""


class Progress(Protocol):
    """Where long work and messages are shown. Three ways: live, plain and silent."""

    def note(self, message: str) -> None:
        """Shows one line of information."""

    def warn(self, message: str) -> None:
        """Shows one line that should not be overlooked."""

    def task(
        self, title: str, total: int, unit: str = "images", done: int = 0
    ) -> AbstractContextManager[Task]:
        """Shows work of `total` units, `done` of them before now, while the block runs."""


def default_progress(stream: IO[str] | None = None) -> Progress:
    """Returns live bars where `stream` (default: stderr) is a terminal, else plain lines."""
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
        yield self

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
        safe = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        print(safe, file=self._stream, flush=True)


@dataclass
class _PlainTask:
    """Counts, and writes a line when the last one is old enough."""

    line: Callable[[str], None]
    title: str
    total: int
    unit: str
    done: int

    def __post_init__(self) -> None:
        self.already = self.done
        self.stats: dict[str, float] = {}
        self.start = self.last = time.monotonic()

    def advance(self, amount: int = 1, **stats: float) -> None:
        self.done += amount
        self.stats = stats
        now = time.monotonic()
        if now - self.last >= BETWEEN_LINES_S and self.done < self.total:
            self.last = now
            self.write(now - self.start)

    def close(self) -> None:
        seconds = time.monotonic() - self.start
        if seconds >= WORTH_A_LINE_S:
            self.write(seconds)

    def write(self, seconds: float) -> None:
        rate = (self.done - self.already) / max(seconds, 1e-9)
        left = self.total - self.done
        parts = [f"{self.title}: {self.done:,}/{self.total:,} {self.unit}"]
        parts.append(f"{rate:,.1f} {self.unit}/s")
        parts += [f"{name} {value:.4g}" for name, value in self.stats.items()]
        more = left > 0 and rate > 0
        parts += [f"{_clock(left / rate)} left" if more else f"took {_clock(seconds)}"]
        self.line(" · ".join(parts))


class LiveProgress:
    """Bars that move, with speed, time left and the numbers of the moment."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, message: str) -> None:
        text = printable(message)
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        from rich.text import Text

        self._console.print(
            Text("warning: ", style="yellow") + Text(printable(message)), soft_wrap=True
        )

    @contextmanager
    def task(self, title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Task]:
        from rich import progress as rich

        wide = self._console.width >= _WIDE
        with rich.Progress(
            rich.TextColumn("{task.description:<19}", markup=False),
            rich.BarColumn(bar_width=28 if wide else 8),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[rate]}"),
            *((rich.TimeElapsedColumn(), rich.TextColumn("[dim]gone,")) if wide else ()),
            rich.TimeRemainingColumn(),
            rich.TextColumn("[dim]left"),
            rich.TextColumn("{task.fields[stats]}", style="dim", markup=False),
            console=self._console,
        ) as bars:
            row = bars.add_task(printable(title), total=total, completed=done, rate="", stats="")
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
    """Returns seconds as people say them: 42s, 3:07, 1:02:03."""
    if round(seconds) < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
