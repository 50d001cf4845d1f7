"""A verb of the command line: its words, its flags, and the function that carries it out."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any

from lookalike.cli.flags import Parser, add_options
from lookalike.config.recipes import read_recipe
from lookalike.config.settings import ConfigT, config_from, format_recipe

# Flags that are no options of a configuration.
_OTHERS = {"verb", "parser", "recipe", "print_config", "json", "resume"}


@dataclass(frozen=True)
class Verb:
    """One command: `lookalike NAME`."""

    name: str
    run: Callable[[argparse.Namespace], int | None]  # prints results; returns the exit code
    help: str  # one line for `lookalike --help`
    usage: str  # after `lookalike `
    description: str  # above the flags, indented as in the source
    examples: str  # below the flags
    config: type | None = None  # whose options are flags
    positional: tuple[str, str, str] | None = None  # option without a flag: name, metavar, help
    first: tuple[str, ...] = ()  # flags that `--help` shows if not all; `--help-all` does
    recipe_help: tuple[str, str] = ("FILE", "settings from a YAML file; flags win")
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
        if self.first:
            parser.add_argument("--help-all", action="help", help="show all options and exit")
        unnamed = ""
        if self.positional is not None:
            unnamed, metavar, text = self.positional
            parser.add_argument(
                unnamed, nargs="?", default=argparse.SUPPRESS, metavar=metavar, help=text
            )
        if self.add is not None:
            self.add(parser)
        if self.config is not None:
            metavar, text = self.recipe_help
            parser.add_argument("--recipe", metavar=metavar, help=text)
            parser.add_argument("--print-config", action="store_true",
                                help="print the settings as a recipe and exit")  # fmt: skip
            show = self.first if self.first and not show_all else None
            add_options(parser, self.config, leave_out=unnamed, show=show)
        parser.add_argument("--json", action="store_true",
                            help="print one JSON document instead of tables")  # fmt: skip
        parser.set_defaults(verb=self, parser=parser)


def options_of(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a configuration among the flags that were given."""
    return {name: value for name, value in vars(given).items() if name not in _OTHERS}


def configured(given: argparse.Namespace, cls: type[ConfigT]) -> ConfigT | None:
    """Returns the configuration of recipe and flags; None where it was only to be printed."""
    recipe = read_recipe(given.recipe) if given.recipe else {}
    config = config_from(cls, recipe, options_of(given))
    if given.print_config:
        print_utf8(format_recipe(config))
        return None
    return config


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Prints one JSON document."""
    print_utf8(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def print_utf8(text: str) -> None:
    """Prints text for a program to read: in UTF-8, whatever the terminal or pipe is set to."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"), end="")
