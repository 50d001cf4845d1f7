"""The command run in this process, and what it answered."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.cli.main import main

MACHINE = ["--device", "cpu", "--precision", "fp32", "--num-workers", "0"]
Words = list[str | Path]


@dataclass(frozen=True)
class Outcome:
    """What one command line came to."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def lookalike(*words: str | Path, encoding: str = "utf-8") -> Outcome:
    """Runs a command line in this process, its output going to pipes of some encoding.

    Results are read as UTF-8, as whoever takes them up will do.
    """
    raw_out, raw_err = io.BytesIO(), io.BytesIO()
    out, err = (
        io.TextIOWrapper(raw, encoding=encoding, newline="\n", write_through=True)
        for raw in (raw_out, raw_err)
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(
        code, raw_out.getvalue().decode("utf-8"), raw_err.getvalue().decode(err.encoding)
    )


def lookalike_process(*words: str | Path, code: str | None = None) -> subprocess.Popen[str]:
    """Starts a command line as a process of its own."""
    start = ["-c", code] if code else ["-m", "lookalike"]
    return subprocess.Popen(
        [sys.executable, *start, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
    )


def assert_refused(outcome: Outcome, *parts: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that holds all of these."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("lookalike: ")
    for part in parts:
        assert part in lines[0]


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
