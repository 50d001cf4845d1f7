"""The sections of the report, in the order of the page.

A section is a module here with `make(context) -> Section | None` (None: not shown), a fragment
`templates/sections/NAME.html.j2`, and a name in this list.
"""

from __future__ import annotations

from collections.abc import Callable

from lookalike.report.section import Context, Section
from lookalike.report.sections import (
    classes,
    curves,
    details,
    health,
    mixtures,
    strips,
    text_search,
    verdict,
)
from lookalike.report.sections import map as flat_map

SECTIONS: list[Callable[[Context], Section | None]] = [
    one.make
    for one in (verdict, curves, text_search, mixtures, strips, classes, flat_map, health, details)
]
