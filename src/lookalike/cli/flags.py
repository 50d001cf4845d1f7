"""Configurations as command-line flags: one flag an option, in the options' own words."""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NoReturn

from lookalike.cli.output import emit
from lookalike.config.settings import options_by_group
from lookalike.errors import nearest
from lookalike.files import printable


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors name the nearest flag there is."""

    def __init__(self, **options: Any) -> None:  # argparse makes sub-parsers by keywords too
        # Keeps the paragraphs of descriptions and gives flags room.
        form = partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=100)
        super().__init__(**{**options, "allow_abbrev": False, "formatter_class": form})

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith("?") else "."
        line = f"{self.prog}: {message}{stop} See {self.prog} --help"
        print(printable(line), file=sys.stderr)
        sys.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints help and versions as results are printed."""
        if file is sys.stdout:
            emit(message)
        else:
            super()._print_message(message, file)

    def refuse(self, kind: str, word: str, known: Sequence[str] = ()) -> NoReturn:
        """Ends the program over a word it has no meaning for; `known`: flags, unless given."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = nearest(word.partition("=")[0], known or flags, cutoff=0.7)
        self.error(f"unknown {kind} {word}" + (f"; did you mean {near}?" if near else ""))


def add_options(
    parser: argparse.ArgumentParser, cls: type, *, leave_out: str, show: Sequence[str] | None
) -> None:
    """Adds a flag for each option of a configuration, in groups. Flags not given leave no trace.

    Args:
        parser: gets the flags.
        cls: the configuration.
        leave_out: an option without a flag.
        show: options that the help shows, in this order within a group; None: all.
    """
    hints = typing.get_type_hints(cls)
    for title, options in options_by_group(cls):
        group = parser.add_argument_group(title)
        if show is not None:
            options.sort(key=lambda one: show.index(one.name) if one.name in show else len(show))
        for option in options:
            if option.name == leave_out:
                continue
            hint, default = hints[option.name], option.default
            if hint is bool:
                takes: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
                default = "on" if default else "off"
            else:
                takes = {"metavar": option.metadata["metavar"] or _metavar(hint)}
            text = option.metadata["help"].replace("%", "%%")
            if default is not None:
                shown = f"{default:g}" if isinstance(default, float) else default
                text += f" (default: {shown})"
            group.add_argument(
                "--" + option.name.replace("_", "-"),
                default=argparse.SUPPRESS,
                help=text if show is None or option.name in show else argparse.SUPPRESS,
                **takes,
            )


def _metavar(hint: Any) -> str:
    """Returns what a flag takes, in one word."""
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is Literal:
        return "|".join(kinds)
    return next(word for kind, word in ((int, "N"), (float, "X"), (str, "TEXT")) if kind in kinds)
