"""What is searched in what: query and gallery, or leave-one-out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.data.classes import class_key, warnings_of_classes
from lookalike.data.images import ImageRef, ImageSet, Unreadable, held_out_classes, identity
from lookalike.data.reading.decode import keep_readable
from lookalike.data.sources import if_one_class, kind_of, load_images, load_unlabelled
from lookalike.errors import DataError
from lookalike.evaluation.results import hash_of
from lookalike.files import shown
from lookalike.progress import Progress, counted

Config = TrainConfig | EvaluateConfig


@dataclass(frozen=True)
class Holdout:
    """Which classes were kept for the test, by what rule, and a hash of all that there were."""

    rule: str
    seed: int
    classes: list[str]
    of_classes: str


@dataclass(frozen=True)
class Protocol:
    """Queries, gallery, and which of their images must not match.

    `query_ids` and `gallery_ids` name the file each image is: one file has one id wherever
    it stands, so an image is kept from finding itself even where the two sides overlap.
    """

    kind: Literal["query-gallery", "leave-one-out"]
    query: ImageSet
    gallery: ImageSet
    query_ids: list[int]
    gallery_ids: list[int]
    files: Sequence[ImageRef]
    unreadable: list[Unreadable] = field(default_factory=list)
    holdout: Holdout | None = None

    @property
    def labelled(self) -> bool:
        """True where there are labels on both sides, and so metrics."""
        return self.query.labels is not None and self.gallery.labels is not None

    def repeated_names(self) -> int:
        """Returns how many images have a file name that another of their side has as well."""
        sides = (self.query.names, self.gallery.names)
        return sum(len(names) - len(set(map(os.path.basename, names))) for names in sides)

    def sides(self) -> dict[str, ImageSet]:
        """Returns the images by the names that messages have for them."""
        if self.kind == "leave-one-out":
            return {"the test images": self.query}
        return {"the queries": self.query, "the gallery": self.gallery}

    def warnings(self, learned: ImageSet | None = None) -> list[str]:
        """Returns what may be wrong with the classes, those that are learned from included."""
        sources = self.sides() if learned is None else {"the training images": learned}
        told = warnings_of_classes(sources | self.sides())
        if self.labelled and len(set(self.gallery.labels or ())) == 1:
            only = shown((self.gallery.labels or [""])[0])
            told.append(f"all that is searched is of one class, {only!r}: whatever is found is "
                        "right, so the numbers mean nothing")  # fmt: skip
        return told

    def describe(self) -> str:
        """Returns one line for the start of a run."""
        unseen = ", none of them learned from" if self.holdout else ""
        if self.kind == "leave-one-out":
            classes = counted(len(set(self.query.labels or ())), "class", "classes")
            return f"{counted(len(self.query), 'image')}, {classes}, leave-one-out{unseen}"
        sides = {"queries": self.query.labels, "gallery": self.gallery.labels}
        bare = " and ".join(side for side, labels in sides.items() if labels is None)
        queries = counted(len(self.query), "query", "queries")
        without = f"; no labels for {bare}, so no metrics" if bare else ""
        return f"{queries} in a gallery of {len(self.gallery):,}{unseen}{without}"

    def facts(self) -> dict[str, Any]:
        """Returns what the numbers were measured on, for the metrics file.

        `fingerprint` is a hash of all the rest: numbers compare only where it is the same.
        """
        of_file = Counter(self.gallery_ids)
        facts = {
            "kind": self.kind,
            "num_queries": len(self.query),
            "num_gallery": len(self.gallery),
            "num_query_classes": len(set(self.query.labels)) if self.query.labels else None,
            "num_gallery_classes": len(set(self.gallery.labels)) if self.gallery.labels else None,
            "excluded": "the query's own file; images of its group, where groups are given",
            "num_pairs_of_one_file": sum(of_file[identity] for identity in self.query_ids),
        }
        for side, images in (("query", self.query), ("gallery", self.gallery)):
            facts |= {f"{side} {name}": digest for name, digest in images.fingerprints().items()}
        fingerprint = hash_of(facts)  # by whatever rule classes were held out: they are in here
        holdout = asdict(self.holdout) if self.holdout else None
        return facts | {"holdout": holdout, "fingerprint": fingerprint}


def load_protocol(
    config: Config, progress: Progress, holdout: Holdout | None = None
) -> Protocol | None:
    """Returns the protocol a configuration asks for; None if it names no test images.

    `query` and `gallery` are two sources, or one table with a column `is_query`. A `test`
    source is leave-one-out, or, if it is a table with `is_query`, query against gallery. Of
    tables with a column `split` the rows of split `test` count (`query` and `gallery` are
    understood as well). With `holdout_classes` only images of held-out classes take part
    (those of `holdout`, where they were chosen already); of a training source without a test
    beside it, these are the test.

    Raises:
        DataError: sources that are missing, empty, or unlabelled where labels are needed.
    """
    holdout = holdout or find_holdout(config)
    unreadable: list[Unreadable] = []
    sides = _load_sides(config, holdout, unreadable, progress)
    if sides is None:
        return None
    query, gallery = sides
    _check_labels_meet(query, gallery)
    _warn_of_useless_groups(config, [query.groups, gallery.groups], progress)
    files: dict[str, tuple[int, ImageRef]] = {}  # each has one id, across both sides
    query_ids, gallery_ids = (
        [files.setdefault(identity(ref), (len(files), ref))[0] for ref in side.refs]
        for side in sides
    )
    protocol = Protocol(
        "leave-one-out" if query is gallery else "query-gallery", query, gallery,
        query_ids, gallery_ids, [ref for _, ref in files.values()],
        list(dict.fromkeys(unreadable)),  # a file may stand on both sides
        holdout,
    )  # fmt: skip
    if repeated := protocol.repeated_names():
        progress.warn(
            f"{repeated:,} test images share a file name with another; results name images "
            "by their path below the folder instead"
        )
    return protocol


def find_holdout(config: Config) -> Holdout | None:
    """Returns the classes that a configuration keeps from training, out of all its sources have.

    Raises:
        DataError: a source has no labels, or too few classes.
    """
    rule, seed = config.holdout_classes, config.holdout_seed
    if rule is None:
        return None
    train = config.train if isinstance(config, TrainConfig) else None
    labels: set[str] = set()
    for source in dict.fromkeys([train, config.test, config.query, config.gallery]):
        if source is None:
            continue
        images = load_images(source)
        if images.labels is None:
            raise DataError(f"{shown(source)} has no labels, so no classes can be held out of it")
        labels.update(images.labels)
    chosen = held_out_classes(labels, rule, seed)
    return Holdout(rule, seed, sorted(chosen), hash_of(sorted(labels)))


def _load_sides(
    config: Config, holdout: Holdout | None, unreadable: list[Unreadable], progress: Progress
) -> tuple[ImageSet, ImageSet] | None:
    """Queries and gallery, the same of a leave-one-out test; files that are no images go apart."""

    def loaded(source: str, *, needs_labels: bool) -> ImageSet:
        """The images of a source; of a folder where labels are of no use, any."""
        try:
            return load_images(source, progress)
        except DataError as error:
            if needs_labels or kind_of(source) != "folder":
                raise
            progress.note(f"no labels are read of {shown(source)}: {error}")
            return load_unlabelled(source, progress)

    def listed(source: str, *splits: str, needs_labels: bool = True) -> ImageSet:
        """The images of a source that take part, with their groups; none of them opened yet."""
        images = loaded(source, needs_labels=needs_labels).of_split(*splits)
        if holdout is not None:
            images = images.of_classes(set(holdout.classes))
            if not len(images):
                raise DataError(
                    f"{shown(source)} has no image of the {len(holdout.classes):,} held-out "
                    "classes; another holdout_seed holds out others"
                )
        return images.grouped_by(config.group_pattern) if config.group_pattern else images

    def readable(images: ImageSet, side: str) -> ImageSet:
        """Those that are images. Where embeddings are given, no image is needed."""
        if isinstance(config, EvaluateConfig) and getattr(config, f"{side}_embeddings") is not None:
            return images
        images, bad = keep_readable(images, config.max_megapixels, progress)
        unreadable.extend(bad)
        return images

    def one_side(source: str, side: str, *, needs_labels: bool = True) -> ImageSet:
        images = _side_of(listed(source, "test", side, needs_labels=needs_labels), side)
        if not len(images):
            raise DataError(f"{shown(source)} has no {side} rows; its column is_query or split, or "
                            "the holdout, leaves none")  # fmt: skip
        return readable(images, side)

    test = config.test
    splits: tuple[str, ...] = ("test", "query", "gallery")
    if test is None and config.query is None and isinstance(config, TrainConfig):
        train = config.train  # a table may bring its own test rows; a folder has no splits
        own = load_images(train).splits if train and kind_of(train) != "folder" else None
        if "test" in (own or ()):
            test = train
        elif holdout is not None:
            test, splits = train, ("train",)
    if test is None:
        if config.query is None or config.gallery is None:
            return None
        query = one_side(config.query, "query")
        has_labels = query.labels is not None
        return query, one_side(config.gallery, "gallery", needs_labels=has_labels)
    images = listed(test, *splits)
    if images.labels is None:
        raise DataError(
            f"{shown(test)} has no labels, but a test looks for each image's class among "
            "the others; give one folder per class, a table with labels, or --query and "
            f"--gallery{if_one_class(test)}"
        )
    images = readable(images, "test")
    query, gallery = _side_of(images, "query"), _side_of(images, "gallery")
    if not len(query) or not len(gallery):
        raise DataError(f"{shown(test)} needs rows with is_query true and rows with it false")
    return query, gallery


def _side_of(images: ImageSet, side: str) -> ImageSet:
    """The rows of one side, where a column tells them apart; else all."""
    if images.is_query is None:
        return images
    return images.subset(i for i, flag in enumerate(images.is_query) if flag == (side == "query"))


def _check_labels_meet(query: ImageSet, gallery: ImageSet) -> None:
    """Finds labels that can never match before anything is embedded."""
    a, b = query.labels, gallery.labels
    if a is not None and b is not None and not set(a) & set(b):
        spelt = {class_key(label): label for label in b}
        one = next((label for label in a if class_key(label) in spelt), a[0])
        other = spelt.get(class_key(one), b[0])
        differ = "; they differ in spelling only" if class_key(one) in spelt else ""
        deep = [say for say in warnings_of_classes({"the queries": query, "the gallery": gallery})
                if "look like the classes" in say]  # fmt: skip
        raise DataError(
            f"queries and gallery have no class in common (query classes such as {shown(one)!r}, "
            f"gallery classes such as {shown(other)!r}{differ}); use the same class names on both "
            f"sides{''.join(f'. {say}' for say in deep)}"
        )


def _warn_of_useless_groups(
    config: Config, groups: list[list[str] | None], progress: Progress
) -> None:
    """Groups keep images apart only where both sides have them."""
    if None not in groups:
        return
    if config.group_pattern:
        progress.warn(f"group_pattern {config.group_pattern!r} matches no name among the "
                      "queries or in the gallery, so no images are kept apart")  # fmt: skip
    elif groups != [None, None]:
        progress.warn("only one of queries and gallery has groups, so no images are kept apart")
