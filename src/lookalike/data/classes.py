"""What the classes of several sources tell of each other: one class spelt twice, folders too deep.

Training and evaluation warn of it, and the data set check lists it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from lookalike.data.images import ImageSet
from lookalike.files import shown

_MOST = 3  # examples in a message


def class_key(label: str) -> str:
    """Returns a key that is the same for all spellings of one class name.

    >>> class_key("Pink_Lady") == class_key("pink lady") == class_key("Pink-Lady ")
    True
    """
    folded = unicodedata.normalize("NFKC", label).casefold()
    spaced = re.sub(r"[\s_\-]+", " ", folded).strip()
    return re.sub(r"(?<!\d) | (?!\d)", "", spaced) or label  # "lot 1-2" is not "lot 12"


def spelt_apart(labels: Iterable[str]) -> list[list[str]]:
    """Returns the labels that are one by all but spelling, those of each class together."""
    spellings: dict[str, set[str]] = {}
    for label in labels:
        spellings.setdefault(class_key(label), set()).add(label)
    return [sorted(one) for _, one in sorted(spellings.items()) if len(one) > 1]


def deeper_classes(images: ImageSet, elsewhere: Iterable[str] = ()) -> list[str]:
    """Returns the second folders on the images' paths where these look like the classes.

    They do where they are the classes of another source, `elsewhere`; or where all images lie so
    deep, and the same folders come again in several of the first folders and are more than these
    (as in 2024/cup, 2024/pot, 2025/cup, 2025/pot), or there is one first folder. Empty where
    nothing speaks for it, or labels are not the first folders.
    """
    paths = [name.split("/") for name in images.names]
    below: dict[str, set[str]] = {}
    for path, label in zip(paths, images.labels or (), strict=False):
        if class_key(path[0]) != class_key(label):
            return []
        below.setdefault(label, set()).update(path[1:2] if len(path) > 2 else ())
    if images.labels is None or not any(below.values()):
        return []
    second = set().union(*below.values())
    known = {class_key(label) for label in elsewhere}
    of_elsewhere = {name for name in second if class_key(name) in known}
    if 2 * len(of_elsewhere) > len(second) and not known & {class_key(label) for label in below}:
        return sorted(of_elsewhere)
    is_deep = all(len(path) > 2 for path in paths)
    repeated = sum(map(len, below.values())) > len(second) and not all(map(str.isdigit, second))
    alike = repeated and len(second) > len(below)
    return sorted(second) if is_deep and (alike or (len(below) == 1 and len(second) > 1)) else []


def warnings_of_classes(
    sources: Mapping[str, ImageSet], about: Iterable[str] | None = None
) -> list[str]:
    """Returns what may be wrong with the classes of labelled sources, in sentences.

    Args:
        sources: by the names that messages have for them, such as "the queries".
        about: the sources of which anything is to be told; None: all of them.
    """
    labels = {name: set(images.labels) for name, images in sources.items() if images.labels}
    about = set(labels) if about is None else set(about) & set(labels)
    told = []
    groups = [
        group for group in spelt_apart(set().union(*labels.values()))
        if any(label in labels[name] for name in about for label in group)
    ]  # fmt: skip
    if groups:
        some = "; ".join(
            " and ".join(f"{shown(label)!r} ({_where(label, labels)})" for label in group[:_MOST])
            for group in groups[:_MOST]
        )
        more = f"; and {len(groups) - _MOST:,} more" if len(groups) > _MOST else ""
        told.append(f"classes that differ in spelling only count as different: {some}{more}; give "
                    "each one name")  # fmt: skip
    for name in sorted(about):
        others = set().union(*(labels[one] for one in labels if one != name))
        if deep := deeper_classes(sources[name], others):
            root, first = sources[name].root, sorted(labels[name])
            told.append(
                f"the classes of {name} are the folders {_some(first)} in {shown(root)}; those in "
                f"them, such as {_some(deep)}, look like the classes: if they are, give the folder "
                "that holds them, or list the images in a table with a column 'label'"
            )
    return told


def _where(label: str, labels: Mapping[str, set[str]]) -> str:
    return ", ".join(name for name, own in labels.items() if label in own)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return ", ".join(map(shown, names[:_MOST])) + more
