"""Groups of copies as findings: within a class, under different labels, across splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from lookalike.checks.copies.duplicates import NearCopy
from lookalike.checks.findings import Files, Finding
from lookalike.data.classes import class_key
from lookalike.data.images import identity
from lookalike.files import shown


def exact_findings(files: Files, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """Yields one finding a group of images with the same pixels."""
    for group in groups:
        images = []
        for position in group:
            facts, first = files.facts[position], files.facts[group[0]]
            same_bytes = facts.sha256 == first.sha256
            detail = "" if same_bytes else f"same pixels, other file ({facts.format})"
            images.append(files.image(position, detail))
        says = _spread(files, group)
        if len({identity(files.refs[position]) for position in group}) == 1:
            says += "; it is the very same file"
        yield Finding(_copy_kind(files, group, "exact_copies"), says, images)


def near_findings(
    files: Files, near: Sequence[NearCopy], copies: Sequence[int]
) -> Iterator[Finding]:
    """Yields one finding a cluster; of exact copies in one split and class only the first."""
    agreement: defaultdict[int, float] = defaultdict(float)  # by cluster
    for one in near:
        cluster = copies[one.first]
        agreement[cluster] = max(agreement[cluster], one.agreement)
    firsts: defaultdict[int, dict[Any, int]] = defaultdict(dict)
    for position, cluster in enumerate(copies):
        if cluster in agreement:
            pixels = files.facts[position].pixels_sha256
            alike = (pixels, files.splits[position], files.labels[position])
            firsts[cluster].setdefault(alike, position)
    for cluster, first_of in firsts.items():
        group = list(first_of.values())
        sizes = [f"{files.facts[i].width}x{files.facts[i].height} px" for i in group]
        images = [files.image(i, size) for i, size in zip(group, sizes, strict=True)]
        says = f"{_spread(files, group)}; they agree by {agreement[cluster]:.0%} in detail"
        yield Finding(_copy_kind(files, group, "near_copies"), says, images)


def _copy_kind(files: Files, group: Sequence[int], kind: str) -> str:
    labels = {class_key(files.labels[i] or "") for i in group if files.labels[i] is not None}
    across = len({files.splits[i] for i in group}) > 1
    if len(labels) > 1 and not (across and kind == "near_copies"):
        return f"{kind}_other_label"
    return f"{kind}_other_split" if across else kind


def _spread(files: Files, group: Sequence[int]) -> str:
    """Returns where a group of copies lies: "2 in train, 1 in test, labelled Apple"."""
    splits = Counter(files.splits[i] for i in group)
    says = ", ".join(f"{count} in {shown(split)}" for split, count in splits.items())
    labels = list(dict.fromkeys(label for i in group if (label := files.labels[i]) is not None))
    if labels:
        says += f", labelled {' and '.join(map(shown, labels[:4]))}"
    return says + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
