"""A verb of the command line: its words, its flags, and the function that carries it out."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from inspect import cleandoc
from operator import methodcaller
from typing import Any

from lookalike.cli.flags import Parser, add_options
from lookalike.cli.inputs import look_at_inputs
from lookalike.cli.output import print_json, print_utf8
from lookalike.cli.tables import tell_unreadable
from lookalike.config.recipes import read_recipe
from lookalike.config.settings import config_from, format_recipe
from lookalike.errors import OutputError
from lookalike.progress import default_progress

# Flags that are not options of a configuration.
_OTHERS = {"verb", "parser", "recipe", "print_config", "json", "resume"}


def call_configured(given: argparse.Namespace) -> Any:
    """Calls the command of the verb's name on a configuration of recipe and flags.

    Returns:
        What the command returns; None where the configuration was only to be printed.
    """
    recipe = read_recipe(given.recipe) if given.recipe else {}
    config = config_from(given.verb.config, recipe, options_of(given))
    if given.print_config:
        print_utf8(format_recipe(config))
        return None
    look_at_inputs(config)
    name = given.verb.name
    command = getattr(import_module(f"lookalike.commands.{name}"), name)
    return command(config, progress=default_progress())


@dataclass(frozen=True)
class Verb:
    """One command: `lookalike NAME`."""

    name: str
    show: Callable[[Any], None]  # prints a result as tables
    help: str  # one line for `lookalike --help`
    usage: str  # after `lookalike `
    description: str  # above the flags, indented as in the source
    examples: str  # below the flags
    document: Callable[[Any], Mapping[str, Any]] = methodcaller("document")  # a result for JSON
    call: Callable[[argparse.Namespace], Any] = call_configured  # None: there is nothing to print
    exit_code: Callable[[Any], int] | None = None  # 0 without
    unreadable_in: str = "below results/"  # all files that could not be read
    config: Any = None  # whose options are flags
    positional: tuple[str, str] | None = None  # option without a flag, and its metavar
    first: tuple[str, ...] = ()  # flags that `--help` shows if not all; `--help-all` does
    recipe_help: tuple[str, str] = ("FILE", "settings from a YAML file; flags override it")
    add: Callable[[argparse.ArgumentParser], None] | None = None  # flags of no configuration
    shares_work: bool = False  # among the processes that `torchrun` started

    def add_to(self, verbs: Any, *, show_all: bool) -> None:
        """Adds the verb's parser to the command line's."""
        parser: Parser = verbs.add_parser(
            self.name,
            usage=f"lookalike {self.usage}",
            help=self.help,
            description=cleandoc(self.description),
            epilog=cleandoc(self.examples),
        )
        more = "show all options and exit" if self.first else argparse.SUPPRESS
        parser.add_argument("--help-all", action="help", help=more)
        unnamed, metavar = self.positional or ("", "")
        if unnamed:
            help_of = {one.name: one.metadata["help"] for one in fields(self.config)}
            parser.add_argument(unnamed, nargs="?", default=argparse.SUPPRESS, metavar=metavar,
                                help=help_of[unnamed])  # fmt: skip
        if self.add is not None:
            self.add(parser)
        if self.config is not None:
            takes, text = self.recipe_help
            parser.add_argument("--recipe", metavar=takes, help=text)
            parser.add_argument("--print-config", action="store_true",
                                help="print the settings as a recipe and exit")  # fmt: skip
            show = self.first if self.first and not show_all else None
            add_options(parser, self.config, leave_out=unnamed, show=show)
        parser.add_argument("--json", action="store_true",
                            help="print one JSON document instead of tables")  # fmt: skip
        parser.set_defaults(verb=self, parser=parser)


def carry_out(given: argparse.Namespace) -> int:
    """Carries out a command line, prints what comes of it, and returns the exit code."""
    verb: Verb = given.verb
    if verb.config is not None:
        _look_at_temporary_folder()
    result = verb.call(given)
    if result is None:
        return 0
    if given.json:
        print_json(verb.document(result))
    else:
        verb.show(result)
    tell_unreadable(getattr(result, "unreadable", ()), verb.unreadable_in)
    return verb.exit_code(result) if verb.exit_code else 0


def _look_at_temporary_folder() -> None:
    """Raises OutputError where no temporary file can be written, which some libraries do as soon as
    they are imported.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise OutputError(
            "there is no folder for temporary files that can be written to; free some room, or "
            "name one in the environment variable TMPDIR"
        ) from error


def options_of(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a configuration among the flags that were given."""
    return {name: value for name, value in vars(given).items() if name not in _OTHERS}
