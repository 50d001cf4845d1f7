"""The outcome of a check: findings of some twenty kinds, each with its images and advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lookalike.checks.reading.image import ImageFacts
from lookalike.data.images import ImageRef, shown_path
from lookalike.files import shown
from lookalike.progress import counted

Severity = Literal["must fix", "look at", "note"]
SEVERITIES: tuple[Severity, ...] = ("must fix", "look at", "note")


@dataclass(frozen=True)
class Kind:
    """A kind of trouble: what it is called, how bad it is, what it means and what to do."""

    name: str
    severity: Severity
    title: str
    advice: str


KINDS: tuple[Kind, ...] = (
    Kind("unreadable", "must fix", "files that cannot be read",
         "Replace or remove them. Training leaves them out and says so."),
    Kind("too_few_classes", "must fix", "too few classes to train on",
         "Add classes or images, or lower --n-classes-per-batch."),
    Kind("exact_copies_other_label", "must fix", "exact copies under different labels",
         "At most one of the labels is right: keep that copy, remove the others."),
    Kind("exact_copies_other_split", "must fix", "exact copies across splits",
         "A test that shares images with training (or queries with their gallery) measures "
         "memory. Remove them from one side."),
    Kind("near_copies_other_split", "must fix", "near copies across splits",
         "Resized, recompressed, cut or brightened copies, or shots of one burst, leak as exact "
         "ones do. Keep each group within one split."),
    Kind("wrong_label", "look at", "likely wrong labels",
         "Each looks like the suggested class. Look at the images; move those that are wrong."),
    Kind("near_copies_other_label", "look at", "near copies under different labels",
         "One photo, two labels: decide which is right."),
    Kind("similar_class_names", "look at", "class names that differ only in spelling",
         "If they mean the same thing, give it one name: the loss pushes classes apart."),
    Kind("deeper_classes", "look at", "folders below the classes that look like the classes",
         "The first folder on an image's path is its class. If the next one is meant, name the "
         "folder that holds these, or list the images in a table with a column label."),
    Kind("exact_copies", "look at", "exact copies within a class",
         "They count twice, and make positives that are too easy. Keep one."),
    Kind("blank", "look at", "images that show nothing",
         "Nearly one colour throughout. Remove them, unless that is what the class looks like."),
    Kind("extreme_shape", "look at", "extremely long or wide images",
         "A model that cuts out the middle sees little of them. Crop them to what matters."),
    Kind("tiny", "look at", "tiny images",
         "Little can be seen in them. Find larger ones, or remove them."),
    Kind("singleton_class", "look at", "classes of a single image",
         "There is no pair to learn from: training leaves them out (see train --singletons)."),
    Kind("near_copies", "note", "near copies within a class",
         "They are easy positives. Keep them if your users take such photos."),
    Kind("small_class", "note", "classes with fewer images than K",
         "Their images are repeated to fill a batch. These classes need more images most."),
    Kind("one_split_only", "note", "classes in only one split",
         "Expected for a test on new classes; otherwise images are missing."),
    Kind("below_model_input", "note", "images smaller than the model's input",
         "They are enlarged. A model with a smaller input may do as well at less cost."),
    Kind("repeated_name", "note", "one file name in different classes of two splits",
         "By chance, since cameras number files; or one image was filed under two classes."),
    Kind("huge", "note", "very large images",
         "They take long to decode, every epoch. Smaller copies train just as well."),
    Kind("odd_format", "note", "unusual formats and colour modes",
         "They are converted: grey is stretched to 8 bits, transparency laid over white, colour "
         "made RGB. Make sure that this is what you want."),
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    """All files of all splits, one entry a file in every column. `labels` are None without."""

    refs: list[ImageRef]
    names: list[str]
    splits: list[str]
    labels: list[str | None]
    facts: list[ImageFacts]

    def __len__(self) -> int:
        return len(self.refs)

    def image(self, position: int, detail: str = "", role: str = "") -> FoundImage:
        """Returns one file as findings name it."""
        ref = self.refs[position]
        where = self.splits[position], self.names[position], self.labels[position]
        return FoundImage(*where, shown_path(ref), detail, role, ref)


@dataclass(frozen=True)
class FoundImage:
    """An image of a finding. `name` is relative to the split's folder.

    `role` tells the images of a likely wrong label apart: "suspect", "suggested" (a neighbour
    of the suggested class) or "own" (the nearest of its own class).
    """

    split: str
    name: str
    label: str | None
    path: str
    detail: str = ""
    role: str = ""
    ref: ImageRef = ""

    def facts(self) -> dict[str, Any]:
        """Returns it for JSON, without the reference: `path` says it."""
        return {name: value for name, value in vars(self).items() if name != "ref"}


@dataclass(frozen=True)
class Finding:
    """One trouble. `images` are those it is about, or some of them where they are many."""

    kind: str
    says: str
    images: list[FoundImage]


@dataclass(frozen=True)
class Split:
    """One split as it was found."""

    name: str
    source: str
    num_files: int
    num_readable: int
    num_classes: int


@dataclass(frozen=True)
class Bar:
    """The number of classes that have from `smallest` to `largest` images."""

    smallest: int
    largest: int
    num_classes: int
    below_k: bool

    def describe(self) -> str:
        """Returns the range in words."""
        if self.smallest == self.largest:
            return counted(self.smallest, "image")
        return f"{self.smallest:,} to {self.largest:,} images"


@dataclass(frozen=True)
class ClassSizes:
    """The classes of the training split against P and K; counts of readable images.

    `histogram` has a bar for each range of sizes, those below K first.
    """

    split: str
    num_classes: int
    num_images: int
    n_classes_per_batch: int
    n_samples_per_class: int
    smallest: int
    median: float
    largest: int
    num_below_k: int
    num_singletons: int
    repeated_images: int
    histogram: list[Bar]


@dataclass(frozen=True)
class CheckResult:
    """All that a check found, the worst kinds first.

    Attributes:
        findings: in the order of `KINDS`.
        splits: what was looked at.
        classes: sizes of the training classes; None without labels.
        left_out: what was not looked for, and what to do to have it.
        files: what was written.
    """

    findings: list[Finding]
    splits: list[Split]
    classes: ClassSizes | None
    left_out: list[str]
    files: list[Path]

    def by_kind(self) -> list[tuple[Kind, list[Finding]]]:
        """Returns the kinds that were found, worst first, with their findings."""
        of_kind: dict[str, list[Finding]] = {}
        for finding in self.findings:
            of_kind.setdefault(finding.kind, []).append(finding)
        return [(kind, of_kind[kind.name]) for kind in KINDS if kind.name in of_kind]

    def num(self, severity: Severity) -> int:
        """Returns the number of findings of a severity."""
        names = {kind.name for kind in KINDS if kind.severity == severity}
        return sum(finding.kind in names for finding in self.findings)

    @property
    def must_fix(self) -> bool:
        """True if something must be fixed before training or measuring makes sense."""
        return self.num("must fix") > 0

    def verdict(self) -> str:
        """Returns the outcome in one sentence."""
        bad = self.num("must fix")
        counts = [f"{counted(bad, 'thing')} must be fixed" if bad else "Nothing needs fixing"]
        counts += [f"{self.num(s):,} to {s}" for s in SEVERITIES[1:] if self.num(s)]
        return "; ".join(counts) + "."

    def document(self) -> dict[str, Any]:
        """Returns the whole outcome for JSON."""
        return {
            "verdict": self.verdict(),
            "must_fix": self.must_fix,
            "counts": {severity: self.num(severity) for severity in SEVERITIES},
            "splits": [asdict(split) for split in self.splits],
            "classes": asdict(self.classes) if self.classes else None,
            "kinds": [
                {**asdict(kind), "num_findings": len(found),
                 "findings": [{"says": one.says, "images": [image.facts() for image in one.images]}
                              for one in found]}
                for kind, found in self.by_kind()
            ],
            "left_out": self.left_out,
            "files": [shown(path) for path in self.files],
        }  # fmt: skip


def listed(words: Sequence[str], most: int = 3) -> str:
    """Returns the first few of some names, and how many more there are.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    told = ", ".join(shown(word) for word in words[:most])
    return told + (f" and {len(words) - most:,} more" if len(words) > most else "")
