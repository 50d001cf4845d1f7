"""`lookalike recipes`."""

from __future__ import annotations

import argparse
from inspect import cleandoc
from typing import Any

from lookalike.cli.output import print_utf8
from lookalike.cli.verb import Verb
from lookalike.config.recipes import SHIPPED, find_recipe, shipped_text, summary

_USE_A_RECIPE = """
    to use:   lookalike train photos/train --test photos/test --recipe strong
    to read:  lookalike recipes strong
    to edit:  lookalike recipes strong > mine.yaml, and then --recipe mine.yaml
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to print")


def _call(given: argparse.Namespace) -> list[str]:
    return [given.name] if given.name else []


def _document(names: list[str]) -> dict[str, Any]:
    return {
        name: {"summary": summary(name), "settings": find_recipe(name)} for name in names or SHIPPED
    }


def print_recipes(names: list[str]) -> None:
    """Prints the file of the recipe that is named, or all that ship in a line each."""
    if names:
        print_utf8(shipped_text(names[0]))
    else:
        width = max(map(len, SHIPPED))
        lines = [f"{name:<{width}}  {summary(name)}" for name in SHIPPED]
        print_utf8("\n".join(lines) + f"\n\n{cleandoc(_USE_A_RECIPE)}\n")


VERB = Verb(
    name="recipes",
    show=print_recipes,
    document=_document,
    call=_call,
    help="list the recipes that ship with Lookalike, or print one",
    usage="recipes [NAME] [--json]",
    description="""
        A recipe is a named set of settings for train. Without a name, lists the recipes that
        ship, one per line; with a name, prints that recipe's file: its purpose, hardware, time,
        what to expect, and the settings with their reasons.

        lookalike train --recipe NAME uses the shipped recipe of that name wherever it runs; give
        a file of your own by its path, such as mine.yaml or ./strong.
    """,
    examples="""
        examples:
          lookalike recipes
          lookalike recipes strong
          lookalike recipes strong > mine.yaml
    """,
    add=_add,
)
