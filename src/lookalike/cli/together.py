"""The command line in several processes, which is to read as if it were in one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout

from lookalike.cli.verbs import run_evaluate, run_train
from lookalike.errors import ConfigError, LookalikeError
from lookalike.runtime.world import joined

Run = Callable[[argparse.Namespace, Callable[[str], None]], int]


def run_together(parse: Callable[[], argparse.Namespace], run: Run) -> int:
    """Runs one command line in each of the processes that `torchrun` started.

    The first one prints; of the messages that a command ends with, others print what nobody has
    said yet.
    """
    stderr = sys.stderr
    with ExitStack() as quiet:
        if os.environ.get("RANK", "0") != "0":
            nowhere = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        given = parse()
        try:
            world = quiet.enter_context(joined())
        except LookalikeError as error:
            return run(_failing(error), lambda message: print(message, file=stderr))

        def tell(message: str) -> None:
            if world.is_first_to_say(message):
                print(message, file=stderr)

        return run(_refuse_alone(given), tell)


def _refuse_alone(given: argparse.Namespace) -> argparse.Namespace:
    """Puts an error in the place of verbs that have work for one process only."""
    if given.verb in (run_train, run_evaluate):
        return given
    return _failing(
        ConfigError(
            "only lookalike train and lookalike evaluate run in several processes; start the "
            "others without torchrun"
        )
    )


def _failing(error: LookalikeError) -> argparse.Namespace:
    """A command that ends with an error."""

    def fail(_given: argparse.Namespace) -> None:
        raise error

    return argparse.Namespace(verb=fail)
