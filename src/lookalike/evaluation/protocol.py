"""What is searched in what: query and gallery, or leave-one-out."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.data.images import ImageRef, ImageSet, Unreadable, held_out_classes, identity
from lookalike.data.reading.decode import keep_readable
from lookalike.data.sources import kind_of, load_images
from lookalike.errors import DataError
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
        sides = [self.query, self.gallery]
        return sum(
            len(side) - len({os.path.basename(name) for name in side.names}) for side in sides
        )

    def _num_pairs_of_one_file(self) -> int:
        of_gallery = Counter(self.gallery_ids)
        return sum(of_gallery[identity] for identity in self.query_ids)

    def describe(self) -> str:
        """Returns one line for the start of a run."""
        unseen = ", none of them learned from" if self.holdout else ""
        if self.kind == "leave-one-out":
            classes = counted(len(set(self.query.labels or ())), "class", "classes")
            return f"{counted(len(self.query), 'image')}, {classes}, leave-one-out{unseen}"
        sides = {"queries": self.query.labels, "gallery": self.gallery.labels}
        bare = " and ".join(side for side, labels in sides.items() if labels is None)
        queries = counted(len(self.query), "query", "queries")
        return f"{queries} in a gallery of {len(self.gallery):,}{unseen}" + (
            f"; no labels for {bare}, so no metrics" if bare else ""
        )

    def facts(self) -> dict[str, Any]:
        """Returns what the numbers were measured on, for the metrics file.

        `fingerprint` is a hash of all the rest: numbers compare only where it is the same.
        """
        facts = {
            "kind": self.kind,
            "num_queries": len(self.query),
            "num_gallery": len(self.gallery),
            "num_query_classes": len(set(self.query.labels)) if self.query.labels else None,
            "num_gallery_classes": len(set(self.gallery.labels)) if self.gallery.labels else None,
            "excluded": "the query's own file; images of its group, where groups are given",
            "num_pairs_of_one_file": self._num_pairs_of_one_file(),
        }
        for side, images in (("query", self.query), ("gallery", self.gallery)):
            facts |= {
                f"{side} {column}": digest for column, digest in images.fingerprints().items()
            }
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
    protocol = _load(config, holdout or find_holdout(config), progress)
    if protocol is not None:
        _check_labels_meet(protocol)
        _warn_of_useless_groups(config, protocol, progress)
    repeated = protocol.repeated_names() if protocol else 0
    if repeated:
        progress.warn(
            f"{repeated:,} test images share their file name with another; results name images "
            "by their path below the folder instead"
        )
    return protocol


def find_holdout(config: Config) -> Holdout | None:
    """Returns the classes that a configuration keeps from training, out of all its sources have.

    Raises:
        DataError: a source has no labels, or too few classes.
    """
    if config.holdout_classes is None:
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
    chosen = held_out_classes(labels, config.holdout_classes, config.holdout_seed)
    return Holdout(
        config.holdout_classes, config.holdout_seed, sorted(chosen), hash_of(sorted(labels))
    )


def _load(config: Config, holdout: Holdout | None, progress: Progress) -> Protocol | None:
    test = config.test
    splits: tuple[str, ...] = ("test", "query", "gallery")
    if test is None and config.query is None and isinstance(config, TrainConfig):
        test = _source_with_test_rows(config.train)
        if test is None and holdout is not None:
            test, splits = config.train, ("train",)
    if test is not None:
        images = _listed(test, splits, config, holdout, progress)
        return _single_source(images, config, holdout, progress)
    if config.query is None or config.gallery is None:
        return None
    query, bad_queries = _side(config.query, "query", config, holdout, progress)
    gallery, bad_gallery = _side(config.gallery, "gallery", config, holdout, progress)
    unreadable = list(dict.fromkeys(bad_queries + bad_gallery))  # a file may stand on both sides
    return _protocol("query-gallery", query, gallery, unreadable, holdout)


def _listed(
    source: str,
    splits: tuple[str, ...],
    config: Config,
    holdout: Holdout | None,
    progress: Progress,
) -> ImageSet:
    """The images of a source that take part, with their groups; none of them opened yet."""
    images = load_images(source, progress).of_split(*splits)
    if holdout is not None:
        images = images.of_classes(set(holdout.classes))
        if not len(images):
            raise DataError(f"{shown(source)} has no image of the {len(holdout.classes):,} "
                            "held-out classes; another holdout_seed holds out others")  # fmt: skip
    return images.grouped_by(config.group_pattern) if config.group_pattern else images


def _single_source(
    images: ImageSet, config: Config, holdout: Holdout | None, progress: Progress
) -> Protocol:
    if images.labels is None:
        raise DataError(
            f"{shown(images.root)} has no labels, and a test searches each image's class among "
            "the others; give a class-per-folder tree, a table with labels, or --query and "
            "--gallery"
        )
    images, bad = _readable(images, config, "test", progress)
    if images.is_query is None:
        return _protocol("leave-one-out", images, images, bad, holdout)
    flags = images.is_query
    query = images.subset(i for i, flag in enumerate(flags) if flag)
    gallery = images.subset(i for i, flag in enumerate(flags) if not flag)
    if not len(query) or not len(gallery):
        raise DataError(
            f"{shown(images.root)} needs rows with is_query true and rows with it false"
        )
    return _protocol("query-gallery", query, gallery, bad, holdout)


def _side(
    source: str, side: str, config: Config, holdout: Holdout | None, progress: Progress
) -> tuple[ImageSet, list[Unreadable]]:
    """One side of a query/gallery protocol."""
    images = _listed(source, ("test", side), config, holdout, progress)
    if images.is_query is not None:
        wanted = side == "query"
        images = images.subset(i for i, flag in enumerate(images.is_query) if flag == wanted)
    if not len(images):
        raise DataError(f"{shown(source)} has no {side} rows; its column is_query or split, or "
                        "the holdout, leaves none over")  # fmt: skip
    return _readable(images, config, side, progress)


def _readable(
    images: ImageSet, config: Config, side: str, progress: Progress
) -> tuple[ImageSet, list[Unreadable]]:
    """Without files that are no images. Where embeddings are given, no image is needed."""
    if isinstance(config, EvaluateConfig) and getattr(config, f"{side}_embeddings") is not None:
        return images, []
    return keep_readable(images, config.max_megapixels, progress)


def _source_with_test_rows(source: str | None) -> str | None:
    """The training source, if it brings its own test rows; a folder of files has no splits."""
    if source is None or kind_of(source) == "folder":
        return None
    splits = load_images(source).splits
    return source if splits is not None and "test" in splits else None


def _protocol(
    kind: Literal["query-gallery", "leave-one-out"],
    query: ImageSet,
    gallery: ImageSet,
    unreadable: list[Unreadable],
    holdout: Holdout | None,
) -> Protocol:
    """Gives each file one id, across both sides."""
    ids: dict[str, int] = {}
    files: list[ImageRef] = []
    columns: list[list[int]] = []
    for side in (query, gallery):
        columns.append([])
        for ref in side.refs:
            number = ids.setdefault(identity(ref), len(ids))
            if number == len(files):
                files.append(ref)
            columns[-1].append(number)
    return Protocol(kind, query, gallery, columns[0], columns[1], files, unreadable, holdout)


def _check_labels_meet(protocol: Protocol) -> None:
    """Finds labels that can never match before anything is embedded."""
    query, gallery = protocol.query.labels, protocol.gallery.labels
    if query is None or gallery is None or set(query) & set(gallery):
        return
    raise DataError(
        f"queries and gallery have no class in common (query classes such as {shown(query[0])!r}, "
        f"gallery classes such as {shown(gallery[0])!r}); use the same class names on both sides"
    )


def _warn_of_useless_groups(config: Config, protocol: Protocol, progress: Progress) -> None:
    """Groups keep images apart only where both sides have them."""
    groups = [protocol.query.groups, protocol.gallery.groups]
    if None not in groups:
        return
    if config.group_pattern:
        progress.warn(f"group_pattern {config.group_pattern!r} finds nothing in the names of "
                      "queries or of the gallery, so no images are kept apart")  # fmt: skip
    elif groups != [None, None]:
        progress.warn("only one of queries and gallery has groups, so no images are kept apart")


def hash_of(facts: Any) -> str:
    """Returns a short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
