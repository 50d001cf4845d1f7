"""`python -m soak --count 200 --seed 1`, in tests/: random faults, and how each one ended."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import psutil

from soak import inputs, machine, models  # noqa: F401 - they add their faults
from soak.ground import FAULTS, Command, copy_ground, make_ground

LIMIT_S, LIMIT_BYTES = 150, 3 * 10**9
WRITTEN = ("out", "cache", "run", "run2")  # where commands may write


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="go on from this one")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="where to keep what failed")
    given = parser.parse_args()
    wrong: list[str] = []
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(given.at_once) as pool:
        ground = Path(name, "ground")
        ground.mkdir()
        make_ground(ground)

        def one(number: int) -> tuple[str, str, list[str]]:
            draw = Random(f"{given.seed}:{number}")
            fault = draw.choice(FAULTS)
            folder = Path(name, str(number))
            copy_ground(ground, folder)
            command = fault(folder, draw)
            outcome, problems = carry_out(command, folder)
            if problems and given.keep:
                shutil.copytree(
                    folder,
                    given.keep / f"{given.seed}-{number}",
                    symlinks=True,
                    ignore_dangling_symlinks=True,
                    ignore=special,
                )
            shutil.rmtree(folder, ignore_errors=True)
            words = " ".join(
                word if len(word) < 80 else word[:77] + "..." for word in command.words
            )
            return f"{number:4} {fault.__name__}: {words!r}", outcome, problems

        for what, outcome, problems in pool.map(one, range(given.first, given.first + given.count)):
            outcomes[outcome] += 1
            print(f"{what} -> {outcome}{''.join(f' ** {one}' for one in problems)}", flush=True)
            wrong += [f"{what}: {'; '.join(problems)}"] if problems else []
    ended = ", ".join(f"{n} {how}" for how, n in outcomes.items())
    print(
        f"\n{given.count} faults of seed {given.seed}: {ended}; {len(wrong)} not as they should be"
    )
    print("\n".join(wrong))
    return 1 if wrong else 0


def special(folder: str, names: list[str]) -> list[str]:
    return [
        one
        for one in names
        if not os.path.isdir(p := os.path.join(folder, one)) and not os.path.isfile(p)
    ]


def carry_out(command: Command, folder: Path) -> tuple[str, list[str]]:
    """Runs a command; returns how it ended, and what was not as it should be."""
    before = contents(folder)
    words = [sys.executable, "-m", "lookalike", *command.words]
    # Started by a shell that becomes the command, so that limits of the shell are the command's.
    shell = ["bash", "-c", f'{command.before or ":"}\nexec "$@"', "bash", *words]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, ExitStack() as given:
        streams = [
            given.enter_context(open(name, "wb")) if name else file
            for name, file in ((command.stdout, out), (command.stderr, err))
        ]
        process = subprocess.Popen(
            shell,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=streams[0],
            stderr=streams[1],
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **command.env},
        )
        with suppress(BrokenPipeError):
            assert process.stdin
            process.stdin.write(command.stdin)
            process.stdin.close()
        problems = watch(process, command)
        out.seek(0)
        err.seek(0)
        told = err.read().decode("utf-8", "replace")
    code = process.returncode
    lines = told.splitlines()
    outcome = f"exit {code}"
    ours = [line for line in lines if line.startswith("lookalike") and ": " in line]
    if code == 2 and not command.stderr:
        outcome += f" {ours[-1][:140]}" if ours else ""
        if len(ours) != 1 or lines[-1] != ours[0] or not ours[0].isprintable():
            problems.append(f"not one line of ours at the end: {lines[-3:]}")
        elif len(ours[0]) > 2000:
            problems.append(f"a line of {len(ours[0])} characters")
    stopped = command.signal_after_s is not None and (code in (130, -command.signal))
    if not (code in (0, 2) or stopped or (code == 1 and command.words[0] == "check")):
        problems.append(f"exit code {code}: {lines[-3:]}")
    if "Traceback" in told:
        problems.append(f"a traceback: {lines[-1:]}")
    if any(ord(one) < 32 and one not in "\n\r" for one in told):
        problems.append("control characters on the terminal")
    if list(folder.rglob("pwned*")):
        problems.append("code of a stranger was run, or its file written")
    changed = [name for name, digest in before.items() if contents(folder).get(name) != digest]
    if changed:
        problems.append(f"changed: {changed[:3]}")
    if not command.may_be_killed and (left := list(folder.rglob(".*lookalike-*"))):
        problems.append(f"left behind: {left[:3]}")
    return outcome.split(" lookalike:")[0], problems


def watch(process: subprocess.Popen[bytes], command: Command) -> list[str]:
    """Waits for the end, sends the signal, and looks at time, memory, and processes left."""
    began, sent, most, problems = time.monotonic(), False, 0, []
    while process.poll() is None:
        time.sleep(0.1)
        gone = time.monotonic() - began
        if command.signal_after_s is not None and not sent and gone > command.signal_after_s:
            process.send_signal(command.signal)
            sent = True
        most = max(most, sum(map(resident, session(process.pid))))
        if gone > LIMIT_S or most > LIMIT_BYTES:
            problems.append(f"after {gone:.0f} s and with {most / 1e9:.1f} GB it had not ended")
            break
    ends = time.monotonic() + (0 if problems else 40 if "&" in command.before else 15)
    while left := [
        one for one in session(process.pid) if one.pid != process.pid or process.poll() is None
    ]:
        if time.monotonic() > ends:
            problems.append(f"processes left: {[safe_line(one) for one in left][:2]}")
            for one in left:
                with suppress(psutil.Error):
                    one.send_signal(signal.SIGKILL)
            break
        time.sleep(0.2)
    process.wait()
    return problems


def session(number: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def safe_line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())[:100]
    return "?"


def contents(folder: Path) -> dict[str, str]:
    """Digests of everything that a command has no business with."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in WRITTEN or not path.is_file() or not os.access(path, os.R_OK):
            continue
        if path.is_symlink():
            continue
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


if __name__ == "__main__":
    sys.exit(main())
