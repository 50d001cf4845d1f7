"""Findings from names, sizes and headers: classes against P and K, class names, extremes."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from lookalike.checks.findings import Bar, ClassSizes, Files, Finding, FoundImage, listed
from lookalike.checks.reading.image import BLANK_CONTRAST
from lookalike.data.classes import class_key, deeper_classes, spelt_apart
from lookalike.data.images import ImageSet
from lookalike.files import shown

TINY_PX = 64
HUGE_MEGAPIXELS = 40.0
EXTREME_ASPECT = 3.0

_USUAL = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L"), ("WEBP", "RGB"),
          ("MPO", "RGB"), ("HEIF", "RGB"), ("AVIF", "RGB"), ("BMP", "RGB"),
          ("TIFF", "RGB")}  # fmt: skip
_EXAMPLES = 6
_SCHEME_SHARE = 0.1  # of all images; names that repeat more often are a way of counting


def unreadable(files: Files) -> Iterator[Finding]:
    """Yields every file that is no image, and why."""
    for position, facts in enumerate(files.facts):
        if facts.reason is not None:
            yield Finding("unreadable", facts.reason, [files.image(position)])


def class_sizes(files: Files, split: str, num_per_batch: int, k: int) -> ClassSizes | None:
    """Returns the sizes of a split's classes; None where it has no labels or no images."""
    sizes = sorted(map(len, _by_label(files, split).values()))
    if not sizes:
        return None
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
    """Yields classes too few, of a single image, and of fewer than K."""
    able = sizes.num_classes - sizes.num_singletons
    if able < sizes.n_classes_per_batch:
        says = f"{able} classes of {sizes.split} have two images or more"
        says += f"; a batch takes {sizes.n_classes_per_batch}"
        yield Finding("too_few_classes", says, [])
    for label, members in sorted(_by_label(files, sizes.split).items()):
        if len(members) < sizes.n_samples_per_class:
            kind = "singleton_class" if len(members) == 1 else "small_class"
            says = f"{shown(label)}: {len(members)} of K = {sizes.n_samples_per_class}"
            yield Finding(kind, says, _examples(files, members))


def classes_across_splits(files: Files) -> Iterator[Finding]:
    """Yields classes that some splits lack, one finding a split."""
    every = {split: set(_by_label(files, split)) for split in dict.fromkeys(files.splits)}
    labelled = {split: labels for split, labels in every.items() if labels}
    for split, labels in labelled.items():
        others = set().union(*(labelled[other] for other in labelled if other != split))
        alone = sorted(labels - others)
        if alone and len(labelled) > 1:
            says = f"{len(alone):,} of {len(labels):,} classes are only in {split}: "
            yield Finding("one_split_only", says + listed(alone, 8), [])


def similar_class_names(files: Files) -> Iterator[Finding]:
    """Yields classes that are one class by all but spelling."""
    by_label = _by_label(files)
    for labels in spelt_apart(by_label):
        one_class = {label: by_label[label] for label in labels}
        parts = []
        for label, members in one_class.items():
            splits = sorted({files.splits[i] for i in members})
            parts.append(f'"{shown(label)}" ({len(members):,} in {listed(splits)})')
        images = [files.image(i) for members in one_class.values() for i in members[:2]]
        yield Finding("similar_class_names", " and ".join(parts), images)


def classes_too_high(sources: Sequence[tuple[str, ImageSet]]) -> Iterator[Finding]:
    """Yields splits whose second folders look like the classes, of a name and images each."""
    for name, images in sources:
        others = [label for other, one in sources if other != name for label in one.labels or ()]
        if deep := deeper_classes(images, others):
            of = listed(sorted(set(images.labels or ())))
            yield Finding(
                "deeper_classes", f"{name}: in the classes {of} lie {listed(deep, 8)}", []
            )


def repeated_names(files: Files, copies: Sequence[int]) -> tuple[list[Finding], str | None]:
    """Finds file names that stand once in each of two splits, under different labels.

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
        if len(members) != 2 or not all(files.facts[i].readable for i in members):
            continue
        splits, sets = {files.splits[i] for i in members}, {copies[i] for i in members}
        classes = {class_key(label) for i in members if (label := files.labels[i]) is not None}
        if len(splits) == len(sets) == len(classes) == 2:
            images = [files.image(i) for i in members]
            found.append(Finding("repeated_name", shown(name), images))
    if 2 * len(found) > max(20, _SCHEME_SHARE * len(files)):
        return [], (f"{len(found):,} file names are in different classes of two splits, as "
                    "numbered files are; they are not listed")  # fmt: skip
    return found, None


def extremes(files: Files, model_input_px: int | None) -> Iterator[Finding]:
    """Yields images that show nothing, are tiny, huge, or extremely long; unusual formats."""
    odd: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    below: list[int] = []
    for position, facts in enumerate(files.facts):
        if not facts.readable:
            continue
        short, long = sorted((facts.width, facts.height))
        size = f"{facts.width}x{facts.height} px"
        grey = f"{size}, one colour within {facts.contrast:.1f} of 255 levels"
        cut = f"{size}: a square cut out of its middle keeps {short / long:.0%} of it"
        for kind, is_so, says in (
            ("blank", facts.contrast < BLANK_CONTRAST, grey),
            ("extreme_shape", long >= EXTREME_ASPECT * short, cut),
            ("tiny", short < TINY_PX, size),
            ("huge", short * long > HUGE_MEGAPIXELS * 1e6, size),
        ):
            if is_so:
                yield Finding(kind, says, [files.image(position)])
        if TINY_PX <= short < (model_input_px or 0):
            below.append(position)
        if (facts.format, facts.mode) not in _USUAL:
            odd[facts.format, facts.mode].append(position)
    if below:
        says = f"{len(below):,} of {len(files):,} have a shorter side under {model_input_px} px"
        yield Finding("below_model_input", says, _examples(files, below))
    for (stored_as, mode), members in sorted(odd.items()):
        says = f"{len(members):,} x {stored_as}, mode {mode}"
        yield Finding("odd_format", says, _examples(files, members))


def _by_label(files: Files, split: str | None = None) -> dict[str, list[int]]:
    """Returns positions of the readable images of each label, in a split or (None) in all."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(files.labels):
        here = split is None or files.splits[position] == split
        if here and label is not None and files.facts[position].readable:
            members[label].append(position)
    return members


def _examples(files: Files, positions: Sequence[int]) -> list[FoundImage]:
    return [files.image(i) for i in positions[:_EXAMPLES]]


def _histogram(sizes: Sequence[int], k: int) -> list[Bar]:
    """Counts classes of 1, 2 to K-1, K to 2K-1, 2K to 4K-1, ... images, from the smallest."""
    edges = sorted({1, 2, k})
    while edges[-1] <= sizes[-1]:
        edges.append(edges[-1] * 2)
    inner = [edge for edge in edges if sizes[0] < edge <= sizes[-1]]
    return [
        Bar(low, high - 1, sum(low <= size < high for size in sizes), low < k)
        for low, high in pairwise([sizes[0], *inner, sizes[-1] + 1])
    ]
