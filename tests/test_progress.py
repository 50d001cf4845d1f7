"""What long work shows: plain lines, live bars, or nothing."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lookalike import progress as progress_module
from lookalike.progress import (
    LiveProgress,
    PlainProgress,
    Progress,
    SilentProgress,
    default_progress,
)

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture(autouse=True)
def _ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the surroundings say about terminals is set by each test."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def live() -> tuple[LiveProgress, io.StringIO]:
    file = io.StringIO()
    return LiveProgress(Console(file=file, force_terminal=True, width=200)), file


def text_of(file: io.StringIO) -> str:
    return _ESCAPES.sub("", file.getvalue())


def test_plain_lines_tell_count_rate_numbers_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    with PlainProgress(stream).task("epoch 1/2", 1000) as task:
        clock.now += 1
        task.advance(25, loss=0.9, lr=1e-7)
        assert stream.getvalue() == ""  # the last line is not old enough
        clock.now += 9
        task.advance(225, loss=0.123456, lr=1e-7)
        clock.now += 30
        task.advance(750, loss=0.0625, lr=1e-7)
    assert stream.getvalue().splitlines() == [
        "epoch 1/2: 250/1,000 images · 25.0 images/s · loss 0.1235 · lr 1e-07 · 30s left",
        "epoch 1/2: 1,000/1,000 images · 25.0 images/s · loss 0.0625 · lr 1e-07 · took 40s",
    ]


def test_work_that_goes_on_counts_only_what_is_new_in_its_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with PlainProgress(stream).task("reading", 4000, "files", done=1000) as task:
        clock.now += 100
        task.advance(1000)
    assert stream.getvalue().splitlines() == [
        "reading: 2,000/4,000 files · 10.0 files/s · 3:20 left",
        "reading: 2,000/4,000 files · 10.0 files/s · 3:20 left",
    ]


def test_long_times_are_told_in_hours(clock: Clock) -> None:
    stream = io.StringIO()
    with PlainProgress(stream).task("epoch 1/1", 3823) as task:
        clock.now += 100
        task.advance(100)
    assert "1:02:03 left" in stream.getvalue()


def test_work_done_at_once_is_not_worth_a_line(clock: Clock) -> None:
    stream = io.StringIO()
    with PlainProgress(stream).task("looking", 10) as task:
        clock.now += 0.1
        task.advance(10)
    assert stream.getvalue() == ""


def test_plain_notes_and_warnings_are_lines(clock: Clock) -> None:
    stream = io.StringIO()
    plain = PlainProgress(stream)
    plain.note("device   cpu [bold]")
    plain.warn("3 files")
    assert stream.getvalue() == "device   cpu [bold]\nwarning: 3 files\n"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "K\\xe4tzchen \\u65e5 \\udcff \\xb7\n"),
        ("cp1252", "Kätzchen \\u65e5 \\udcff ·\n"),
        ("utf-8", "Kätzchen 日 \\udcff ·\n"),
    ],
)
def test_what_a_stream_cannot_show_is_escaped(encoding: str, expected: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    PlainProgress(stream).note("Kätzchen 日 \udcff ·")
    assert raw.getvalue().decode(encoding) == expected


def test_plain_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    PlainProgress().note("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_live_bars_show_title_count_rate_and_numbers() -> None:
    shown, file = live()
    with shown.task("epoch 1/2", 1000, done=500) as task:
        task.advance(100, loss=0.123456, lr=1e-7)
        task.advance(150, loss=0.0625, lr=1e-7)
    last = text_of(file).rstrip().splitlines()[-1]
    assert re.search(r"epoch 1/2 .*750/1000 +[\d,]+\.\d images/s .*loss 0\.0625  lr 1e-07", last)
    assert "left" in last


def test_live_bars_take_no_name_for_markup() -> None:
    shown, file = live()
    title = "[bold]x[/] [1/2] [red"
    with shown.task(title, 10, "files") as task:
        task.advance(1)
    shown.note("photos/[red]/a[/red].png")
    shown.warn("photos/[b]c[/b].png")
    text = text_of(file)
    assert title in text
    assert "photos/[red]/a[/red].png" in text
    assert "warning: photos/[b]c[/b].png" in text


def test_live_bars_take_no_name_for_an_image_sign() -> None:
    shown, file = live()
    with shown.task("drawing :cat:", 10) as task:
        task.advance(1)
    shown.note("photos/:cat:.png")
    shown.warn("photos/:dog:.png")
    text = text_of(file)
    assert "drawing :cat:" in text
    assert "photos/:cat:.png" in text
    assert "photos/:dog:.png" in text


def test_a_long_note_is_not_broken_into_lines() -> None:
    file = io.StringIO()
    name = "/".join(["folder"] * 40)
    shown = LiveProgress(Console(file=file, force_terminal=True, width=40))
    shown.note(name)
    shown.warn(name)
    assert text_of(file).splitlines() == [name, f"warning: {name}"]


def test_silence_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = SilentProgress()
    silent.note("a")
    silent.warn("b")
    with silent.task("c", 10) as task:
        task.advance(3, loss=1.0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "make",
    [
        SilentProgress,
        lambda: PlainProgress(io.StringIO()),
        lambda: LiveProgress(Console(file=io.StringIO(), force_terminal=True)),
    ],
)
def test_an_error_inside_a_task_comes_out(make: Any) -> None:
    shown: Progress = make()
    with pytest.raises(ZeroDivisionError), shown.task("work", 3):
        raise ZeroDivisionError


def test_bars_are_for_terminals_and_lines_for_all_else() -> None:
    assert isinstance(default_progress(FakeTerminal()), LiveProgress)
    assert isinstance(default_progress(io.StringIO()), PlainProgress)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(default_progress(FakeTerminal()), PlainProgress)


def test_a_log_file_gets_lines_even_where_colours_are_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as many CI services do
    assert isinstance(default_progress(io.StringIO()), PlainProgress)


def test_the_stream_chosen_by_default_is_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default_progress().note("hello")
    assert capsys.readouterr() == ("", "hello\n")
    terminal = FakeTerminal()
    monkeypatch.setattr("sys.stderr", terminal)
    default_progress().note("hello")
    assert text_of(terminal) == "hello\n"
