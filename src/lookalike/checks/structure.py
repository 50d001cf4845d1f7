"""What names, sizes and headers tell: classes against P and K, class names, extremes."""

from __future__ import annotations

import os
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from lookalike.checks.findings import Bar, ClassSizes, Files, Finding, FoundImage, listed
from lookalike.checks.reading.image import BLANK_CONTRAST
from lookalike.files import shown

TINY_PX = 64
HUGE_MEGAPIXELS = 40.0
EXTREME_ASPECT = 3.0

_USUAL = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L"), ("WEBP", "RGB"),
          ("MPO", "RGB"), ("HEIF", "RGB"), ("AVIF", "RGB"), ("BMP", "RGB"),
          ("TIFF", "RGB")}  # fmt: skip
_EXAMPLES = 6
_SCHEME_SHARE = 0.1  # of all images; names that repeat more often are a way of counting


def class_key(label: str) -> str:
    """Returns a key that is the same for all spellings of one class name.

    >>> class_key("Pink_Lady") == class_key("pink lady") == class_key("Pink-Lady ")
    True
    """
    folded = unicodedata.normalize("NFKC", label).casefold()
    spaced = re.sub(r"[\s_\-]+", " ", folded).strip()
    return re.sub(r"(?<!\d) | (?!\d)", "", spaced) or label  # "lot 1-2" is not "lot 12"


def unreadable(files: Files) -> Iterator[Finding]:
    """Every file that is no image, and why."""
    for position, facts in enumerate(files.facts):
        if facts.reason is not None:
            yield Finding("unreadable", facts.reason, [files.image(position)])


def class_sizes(files: Files, split: str, num_per_batch: int, k: int) -> ClassSizes | None:
    """Sizes of the classes of a split; None where it has no labels or no images."""
    counts = Counter(_readable_labels(files, split))
    if not counts:
        return None
    sizes = sorted(counts.values())
    return ClassSizes(
        split=split,
        num_classes=len(sizes),
        num_images=sum(sizes),
        n_classes_per_batch=num_per_batch,
        n_samples_per_class=k,
        smallest=sizes[0],
        median=float(statistics.median(sizes)),
        largest=sizes[-1],
        num_below_k=sum(size < k for size in sizes),
        num_singletons=sum(size == 1 for size in sizes),
        repeated_images=sum(k - size for size in sizes if 1 < size < k),
        histogram=_histogram(sizes, k),
    )


def small_classes(files: Files, sizes: ClassSizes) -> Iterator[Finding]:
    """Classes too few, of a single image, and of fewer than K."""
    able = sizes.num_classes - sizes.num_singletons
    if able < sizes.n_classes_per_batch:
        yield Finding(
            "too_few_classes",
            f"{able} classes of {sizes.split} have two images or more; a batch takes "
            f"{sizes.n_classes_per_batch}",
            [],
        )
    of_class: defaultdict[str, list[int]] = defaultdict(list)
    for position in _readable_of(files, sizes.split):
        of_class[str(files.labels[position])].append(position)
    for label, members in sorted(of_class.items()):
        if len(members) < sizes.n_samples_per_class:
            kind = "singleton_class" if len(members) == 1 else "small_class"
            says = f"{shown(label)}: {len(members)} of K = {sizes.n_samples_per_class}"
            yield Finding(kind, says, [files.image(i) for i in members[:_EXAMPLES]])


def classes_across_splits(files: Files) -> Iterator[Finding]:
    """Classes that some splits lack, one finding a split."""
    splits = list(dict.fromkeys(files.splits))
    labels = {split: set(_readable_labels(files, split)) for split in splits}
    labelled = [split for split in splits if labels[split]]
    for split in labelled:
        others = set().union(*(labels[other] for other in labelled if other != split))
        alone = sorted(labels[split] - others)
        if alone and len(labelled) > 1:
            says = f"{len(alone):,} of {len(labels[split]):,} classes are only in {split}: "
            yield Finding("one_split_only", says + listed(alone, 8), [])


def similar_class_names(files: Files) -> Iterator[Finding]:
    """Classes that are one class by all but spelling."""
    spellings: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for position, label in enumerate(files.labels):
        if label is not None and files.facts[position].readable:
            spellings[class_key(label)][label].append(position)
    for _, members in sorted(spellings.items()):
        if len(members) > 1:
            parts = [
                f"{_quoted(label)} ({len(at):,} in {listed(sorted({files.splits[i] for i in at}))})"
                for label, at in sorted(members.items())
            ]
            images = [files.image(i) for at in members.values() for i in at[:2]]
            yield Finding("similar_class_names", " and ".join(parts), images)


def repeated_names(files: Files, copies: Sequence[int]) -> tuple[list[Finding], str | None]:
    """File names that stand once in each of two splits, under different labels.

    Where the images are copies of each other, that is told already. Where a large share of all
    names repeats they are a way of counting (001.jpg, 002.jpg), and say nothing.

    Returns:
        The findings, or none and why.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(files.names):
        places[os.path.basename(name)].append(position)
    found = []
    for name, members in sorted(places.items()):
        if len(members) != 2:
            continue
        a, b = members
        both_read = files.facts[a].readable and files.facts[b].readable
        if (
            both_read
            and files.splits[a] != files.splits[b]
            and None not in (files.labels[a], files.labels[b])
            and class_key(str(files.labels[a])) != class_key(str(files.labels[b]))
            and copies[a] != copies[b]
        ):
            images = [files.image(a), files.image(b)]
            found.append(Finding("repeated_name", shown(name), images))
    if 2 * len(found) > max(20, _SCHEME_SHARE * len(files)):
        return [], (f"{len(found):,} file names stand in different classes of two splits, as "
                    "numbered files do; they are not listed")  # fmt: skip
    return found, None


def extremes(files: Files, model_input_px: int | None) -> Iterator[Finding]:
    """Images that show nothing, are tiny, huge, or extremely long; unusual formats."""
    odd: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    below: list[int] = []
    for position, facts in enumerate(files.facts):
        if not facts.readable:
            continue
        short, long = sorted((facts.width, facts.height))
        size = f"{facts.width}x{facts.height} px"
        found: list[tuple[str, str]] = []
        if facts.contrast < BLANK_CONTRAST:
            found.append(("blank", f"{size}, one colour within {facts.contrast:.1f} of 255 levels"))
        if short < TINY_PX:
            found.append(("tiny", size))
        elif model_input_px is not None and short < model_input_px:
            below.append(position)
        if long >= EXTREME_ASPECT * short:
            found.append(("extreme_shape", f"{size}: a square cut out of its middle keeps "
                          f"{short / long:.0%} of it"))  # fmt: skip
        if facts.width * facts.height > HUGE_MEGAPIXELS * 1e6:
            found.append(("huge", size))
        for kind, says in found:
            yield Finding(kind, says, [files.image(position)])
        if (facts.format, facts.mode) not in _USUAL:
            odd[facts.format, facts.mode].append(position)
    if below:
        says = f"{len(below):,} of {len(files):,} have a shorter side under {model_input_px} px"
        yield Finding("below_model_input", says, _examples(files, below))
    for (stored_as, mode), members in sorted(odd.items()):
        says = f"{len(members):,} x {stored_as}, mode {mode}"
        yield Finding("odd_format", says, _examples(files, members))


def _readable_of(files: Files, split: str) -> Iterator[int]:
    for position, facts in enumerate(files.facts):
        if facts.readable and files.splits[position] == split:
            yield position


def _readable_labels(files: Files, split: str) -> list[str]:
    labels = (files.labels[position] for position in _readable_of(files, split))
    return [label for label in labels if label is not None]


def _examples(files: Files, positions: Sequence[int]) -> list[FoundImage]:
    return [files.image(i) for i in positions[:_EXAMPLES]]


def _histogram(sizes: Sequence[int], k: int) -> list[Bar]:
    """Counts classes of 1, 2 to K-1, K to 2K-1, 2K to 4K-1, ... images, from the smallest."""
    edges = sorted({1, 2, k})
    while edges[-1] <= sizes[-1]:
        edges.append(edges[-1] * 2)
    return [
        Bar(low, high - 1, sum(low <= size < high for size in sizes), low < k)
        for low, high in pairwise(edges)
        if sizes[0] < high
    ]


def _quoted(label: str) -> str:
    return f'"{shown(label)}"'
