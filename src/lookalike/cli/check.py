"""`lookalike check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lookalike.cli.output import say
from lookalike.cli.tables import print_files, print_wrapped
from lookalike.cli.verb import Verb
from lookalike.config import CheckConfig
from lookalike.files import shown
from lookalike.progress import counted

if TYPE_CHECKING:
    from lookalike.checks.findings import CheckResult, ClassSizes, Finding, Kind

MUST_FIX = 1
_MOST = {"must fix": 5, "look at": 3, "note": 1}
_MOST_IMAGES = 4
_BAR = 30


def print_findings(result: CheckResult) -> None:
    """Prints the verdict, what was found, and where all of it lies."""
    for split in result.splits:
        found = counted(split.num_classes or 0, "class", "classes")
        classes = found if split.num_classes else "no labels"
        bad = split.num_files - split.num_readable
        unreadable = f", {bad:,} unreadable" if bad else ""
        say(f"{shown(split.name)}: {counted(split.num_files, 'file')}{unreadable}; {classes}")
    if result.classes is not None:
        _print_sizes(result.classes)
    say()
    print_wrapped(result.verdict())
    kinds = result.by_kind()
    if kinds:
        say()
    for kind, findings in kinds:
        say(f"  {kind.severity:<10}{len(findings):>7,}  {kind.title}")
    for kind, findings in kinds:
        _print_kind(kind, findings)
    if result.left_out:
        say("\nNot checked:")
        for one in result.left_out:
            print_wrapped(one, first="  - ", rest="    ")
    say()
    print_files(result.files)


def _print_sizes(sizes: ClassSizes) -> None:
    longest = max(bar.num_classes for bar in sizes.histogram)
    ranges = [bar.describe() for bar in sizes.histogram]
    width = max(map(len, ranges))
    say(f"\nClass sizes in {shown(sizes.split)}, K = {sizes.n_samples_per_class}:")
    for words, bar in zip(ranges, sizes.histogram, strict=True):
        drawn = "#" * -(-_BAR * bar.num_classes // longest)
        below = "  below K" if bar.below_k and bar.num_classes else ""
        say(f"  {words:>{width}}  {drawn:<{_BAR}} {bar.num_classes:,}{below}")


def _print_kind(kind: Kind, findings: Sequence[Finding]) -> None:
    say(f"\n{kind.title[0].upper()}{kind.title[1:]} ({kind.severity}: {len(findings):,})")
    print_wrapped(kind.advice, first="  ", rest="  ")
    most = _MOST[kind.severity]
    for finding in findings[:most]:
        names = [shown(f"{one.split}/{one.name}") for one in finding.images]
        if finding.kind == "wrong_label":
            names = names[:1]  # the others are there to be seen
        if len(names) == 1:
            say(f"  - {names[0]}")
            print_wrapped(finding.says, first="      ", rest="      ")
            continue
        print_wrapped(finding.says, first="  - ", rest="    ")
        for name in names[:_MOST_IMAGES]:
            say(f"      {name}")
        if len(names) > _MOST_IMAGES:
            say(f"      and {len(names) - _MOST_IMAGES:,} more")
    if len(findings) > most:
        say(f"  and {len(findings) - most:,} more")


VERB = Verb(
    name="check",
    show=print_findings,
    exit_code=lambda result: MUST_FIX if result.must_fix else 0,
    help="find what is wrong with your images before you spend time on them",
    usage="check IMAGES [--test IMAGES] [--model-name NAME] [options]",
    description="""
        Decodes every file and names what is wrong: files that cannot be read, exact and near
        copies (within a class, under different labels, across splits), class sizes against K,
        class names that differ only in spelling, blank, tiny and extremely long images. With
        --model-name, also labels that are likely wrong. Your files are not changed.

        If stopped, it continues where it left off; run again, it reads only files that changed.
    """,
    examples="""
        examples:
          lookalike check photos/train --test photos/test
          lookalike check photos/train --test photos/test --model-name facebook/dinov2-small
          lookalike check catalogue.csv --n-samples-per-class 4 --out checks/catalogue
          lookalike check photos/train --query new/ --gallery shop/ --json

        exit code:
          0  nothing needs fixing
          1  something must be fixed: unreadable files, copies across splits, exact copies
             under different labels, too few classes for a batch
          2  the check could not be run

        writes, in --out:
          check.html    the findings with their images, in one file
          check.json    every finding in full
          scan.sqlite   what was read of each file, so that the next check is quick
    """,
    config=CheckConfig,
    positional=("data", "IMAGES"),
)
