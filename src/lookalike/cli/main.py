"""The command line: from words to a verb, and how a command ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import partial
from inspect import cleandoc

from lookalike import __version__
from lookalike.cli.flags import Parser
from lookalike.cli.output import forget_unprinted
from lookalike.cli.process import (
    quick_end,
    quick_start,
    signals_as_ctrl_c,
    usable_streams,
)
from lookalike.cli.verb import carry_out
from lookalike.cli.verbs import VERBS
from lookalike.errors import ConfigError, Interrupted, LookalikeError
from lookalike.files import briefly, shown
from lookalike.runtime.launch import started_together

USAGE_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Returns:
        The exit code: 0; 1 where `check` found what must be fixed; 2 for our own errors; 130
        for Ctrl-C, SIGTERM and SIGHUP.
    """
    # Read when torch is loaded. Threads that spin while they wait take the cores from the readers
    # and from whatever else runs: training small models went twice as fast without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:] if arguments is None else arguments
    end_with = None
    if arguments is None:  # this process is ours
        quick_start()
        end_with = quick_end()
    with usable_streams(), signals_as_ctrl_c():
        code = _end(partial(_run, words), partial(print, file=sys.stderr))
        if end_with is not None:
            end_with(code)
        return code


def _run(words: Sequence[str]) -> int:
    """Runs one command line, in one process or as one of several."""
    return _run_together(words) if started_together() else carry_out(_parse(words))


def _end(work: Callable[[], int], tell: Callable[[str], None]) -> int:
    """Carries out a command, and turns how it ends into a message and an exit code."""
    try:
        return work()
    except (Interrupted, KeyboardInterrupt) as stopped:
        tell(f"lookalike: {shown(str(stopped)) or 'stopped'}")
        return INTERRUPTED
    except LookalikeError as error:
        tell(f"lookalike: {shown(str(error))}")
        return USAGE_ERROR
    except PermissionError as error:  # of a folder: pathlib raises it when asked what is there
        if error.filename is None:
            raise
        where = briefly(os.fsdecode(error.filename), 300)
        tell(f"lookalike: cannot look at {where}: {error.strerror}; ask its owner, or name another")
        return USAGE_ERROR
    except BrokenPipeError:  # whoever read the results, such as `head`, has seen enough
        forget_unprinted()
        return 0


def _run_together(words: Sequence[str]) -> int:
    """Runs one command line in each of the processes that `torchrun` started.

    Rank 0 prints; of the messages that a command ends with, other ranks print those that nobody
    has printed yet.
    """
    from lookalike.runtime.world import end_with_parent, joined

    end_with_parent()
    stderr = sys.stderr
    with ExitStack() as quiet:
        if os.environ.get("RANK", "0") != "0":
            nowhere = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        world = None

        def work() -> int:
            nonlocal world
            given = _parse(words)
            world = quiet.enter_context(joined())
            if not given.verb.shares_work:
                several = " and ".join(f"lookalike {v.name}" for v in VERBS if v.shares_work)
                raise ConfigError(
                    f"only {several} run in several processes; start others without torchrun"
                )
            return carry_out(given)

        def tell_once(message: str) -> None:
            if world is None or world.is_first_to_say(message):
                print(message, file=stderr)

        return _end(work, tell_once)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the command line as argparse understands it; names the nearest of misspelt words."""
    parser = Parser(
        prog="lookalike",
        description=cleandoc("""
            Image retrieval that works on your own images: fine-tune a CLIP vision encoder so
            that images of the same thing land together, and measure how much better it got.
        """),
        epilog=cleandoc("""
            See it work, with nothing but this package (about two minutes):
              lookalike demo

            On your own images, one folder per class:
              lookalike check photos/train --test photos/test
              lookalike train photos/train --test photos/test --learning-rate 1e-5
        """),
    )
    parser.add_argument("--version", action="version", version=f"lookalike {__version__}")
    parser.add_argument("--help-all", action="help", help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in VERBS:
        verb.add_to(verbs, show_all="--help-all" in arguments)
    names = [verb.name for verb in VERBS]
    first = arguments[0] if arguments else "--help"
    if first.startswith("-") and first not in ("-h", "--help", "--help-all", "--version"):
        parser.refuse("argument", first)
    if not first.startswith("-") and first not in names:
        parser.refuse("command", first, names)
    given, unknown = parser.parse_known_args(arguments or ["--help"])
    if unknown:
        word, takes_test = unknown[0], hasattr(given.verb.config, "test")
        if takes_test and not word.startswith("-") and "test" not in given:
            given.parser.error(f"{word} has no option before it; did you mean --test {word}?")
        given.parser.refuse("argument", word)
    return given
