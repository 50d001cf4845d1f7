"""Configurations as command-line flags: one flag an option, in the options' own words."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import typing
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from lookalike.config.settings import options_by_group


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors name the nearest flag there is."""

    def __init__(self, **options: Any) -> None:  # argparse makes sub-parsers by keywords too
        super().__init__(**{**options, "allow_abbrev": False, "formatter_class": _HelpFormatter})

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith("?") else "."
        print(f"{self.prog}: {message}{stop} See {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """Ends the program over words it has no meaning for."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        self.error(f"unknown argument {words[0]}{nearest(words[0].partition('=')[0], flags)}")


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint at the known word that was perhaps meant."""
    begun = [one for one in known if len(word) > 2 and one.startswith(word)]
    near = begun or difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of descriptions and gives flags room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def add_options(
    parser: argparse.ArgumentParser,
    cls: type,
    *,
    leave_out: Sequence[str] = (),
    show: Sequence[str] | None = None,
) -> None:
    """Adds a flag for each option of a configuration. Flags not given leave no trace.

    Args:
        parser: gets the flags, in groups.
        cls: the configuration.
        leave_out: options without a flag.
        show: options that the help shows, in this order within a group; None: all.
    """
    hints = typing.get_type_hints(cls)
    for title, options in options_by_group(cls):
        group = parser.add_argument_group(title)
        if show is not None:
            options.sort(key=lambda one: show.index(one.name) if one.name in show else len(show))
        for option in options:
            if option.name not in leave_out:
                is_shown = show is None or option.name in show
                _add_flag(group, option, hints[option.name], is_shown=is_shown)


def _add_flag(group: Any, option: dataclasses.Field[Any], hint: Any, *, is_shown: bool) -> None:
    flag = "--" + option.name.replace("_", "-")
    text = option.metadata["help"].replace("%", "%%")
    if hint is bool:
        group.add_argument(
            flag,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=f"{text} (default: {'on' if option.default else 'off'})"
            if is_shown
            else argparse.SUPPRESS,
        )
        return
    if option.default is not None:
        text += f" (default: {_default(option.default)})"
    metavar = option.metadata["metavar"] or _metavar(hint)
    group.add_argument(
        flag,
        default=argparse.SUPPRESS,
        metavar=metavar,
        help=text if is_shown else argparse.SUPPRESS,
    )


def _default(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(hint: Any) -> str:
    """What a flag takes, in one word."""
    if typing.get_origin(hint) is Literal:
        return "|".join(typing.get_args(hint))
    options = typing.get_args(hint) or (hint,)
    for option, word in ((int, "N"), (float, "X"), (str, "TEXT")):
        if option in options:
            return word
    return "VALUE"
