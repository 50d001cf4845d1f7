"""What `lookalike check` prints: one line a kind of trouble, then the first few of each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lookalike.cli.tables import print_files
from lookalike.files import shown
from lookalike.progress import counted

if TYPE_CHECKING:
    from lookalike.checks.findings import CheckResult, ClassSizes, Finding, Kind

_WIDTH = 80
_MOST = {"must mend": 5, "look at": 3, "note": 1}
_MOST_IMAGES = 4
_BAR = 30


def print_findings(result: CheckResult) -> None:
    """The verdict, what was found, and where all of it lies."""
    for split in result.splits:
        found = counted(split.num_classes or 0, "class", "classes")
        classes = found if split.num_classes else "no labels"
        bad = split.num_files - split.num_readable
        unreadable = f", {bad:,} not readable" if bad else ""
        print(f"{shown(split.name)}: {counted(split.num_files, 'file')}{unreadable}; {classes}")
    if result.classes is not None:
        _print_sizes(result.classes)
    print()
    _print_wrapped(result.verdict())
    kinds = result.by_kind()
    if kinds:
        print()
    for kind, findings in kinds:
        print(f"  {kind.severity:<10}{len(findings):>7,}  {kind.title}")
    for kind, findings in kinds:
        _print_kind(kind, findings)
    if result.left_out:
        print("\nNot looked for, or not judged:")
        for one in result.left_out:
            _print_wrapped(one, first="  - ", rest="    ")
    print()
    print_files(result.files)


def _print_sizes(sizes: ClassSizes) -> None:
    longest = max(bar.num_classes for bar in sizes.histogram)
    ranges = [bar.describe() for bar in sizes.histogram]
    width = max(map(len, ranges))
    print(f"\nclass sizes in {shown(sizes.split)}, K = {sizes.n_samples_per_class}:")
    for words, bar in zip(ranges, sizes.histogram, strict=True):
        drawn = "#" * -(-_BAR * bar.num_classes // longest)
        below = "  below K" if bar.below_k and bar.num_classes else ""
        print(f"  {words:>{width}}  {drawn:<{_BAR}} {bar.num_classes:,}{below}")


def _print_kind(kind: Kind, findings: Sequence[Finding]) -> None:
    print(f"\n{kind.title[0].upper()}{kind.title[1:]} ({kind.severity}: {len(findings):,})")
    _print_wrapped(kind.advice, first="  ", rest="  ")
    most = _MOST[kind.severity]
    for finding in findings[:most]:
        names = [shown(f"{one.split}/{one.name}") for one in finding.images]
        if finding.kind == "wrong_label":
            names = names[:1]  # the others are there to be seen
        if len(names) == 1:
            print(f"  - {names[0]}")
            _print_wrapped(finding.says, first="      ", rest="      ")
            continue
        _print_wrapped(finding.says, first="  - ", rest="    ")
        for name in names[:_MOST_IMAGES]:
            print(f"      {name}")
        if len(names) > _MOST_IMAGES:
            print(f"      and {len(names) - _MOST_IMAGES:,} more")
    if len(findings) > most:
        print(f"  and {len(findings) - most:,} more")


def _print_wrapped(text: str, first: str = "", rest: str = "") -> None:
    print(textwrap.fill(shown(text), _WIDTH, initial_indent=first, subsequent_indent=rest,
                        break_long_words=False, break_on_hyphens=False))  # fmt: skip
