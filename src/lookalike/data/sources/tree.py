"""Images labelled by the folders they lie in."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from lookalike.data.images import ImageSet
from lookalike.data.reading.decode import why_no_image
from lookalike.data.sources.cells import name_of_class
from lookalike.data.sources.columns import some
from lookalike.errors import DataError
from lookalike.files import shown
from lookalike.progress import Progress, counted

# How the parts of a data set are called, each by the option that it is given with.
_PARTS = {
    "": ("train", "training", "bounding box train"),
    "--test": ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"),
    "--query": ("query", "queries", "probe", "probes"),
    "--gallery": ("gallery", "galleries", "index", "reference", "references", "database",
                  "bounding box test"),
}  # fmt: skip
_OFTEN_CLASSES = {"probe", "probes", "index", "reference", "references", "database"}
_OPTION_OF = {word: option for option, words in _PARTS.items() for word in words}
_FILLING = {"set", "split", "images", "image", "imgs", "img", "photos", "pictures", "data"}


def label_by_folder(images: ImageSet, paths: Sequence[str], progress: Progress) -> ImageSet:
    """Returns images labelled by the first folder on their path; as they are where none has one.

    Raises:
        DataError: there are images beside the folders, or the folders are parts of a data set.
    """
    in_folders = [i for i, path in enumerate(paths) if "/" in path]
    if not in_folders:
        return images
    root = images.root
    if len(in_folders) < len(images):
        refs = images.refs
        loose = [i for i, path in enumerate(paths) if "/" not in path]
        # A note, a licence or a .DS_Store beside the class folders is common and harmless.
        found = [paths[i] for i in loose if why_no_image(refs[i]) is None]
        if found:
            raise DataError(
                f"{shown(root)} holds class folders and also {counted(len(found), 'image')} "
                f"beside them ({some(found)}); move these into a class folder, or out of it"
            )
        progress.warn(
            f"skipped files that cannot be read as images in {shown(root)}: "
            f"{some([paths[i] for i in loose])}"
        )
        images = images.subset(in_folders)
    inside = [paths[i] for i in in_folders]
    _refuse_parts(images, inside)
    label_of = {name: name_of_class(name) for name in {path.partition("/")[0] for path in inside}}
    _tell_merged(label_of, images, progress)
    return replace(images, labels=[label_of[path.partition("/")[0]] for path in inside])


def _part(folder: str) -> str | None:
    """Returns the part of a data set that a folder is called as, in the words above."""
    words = re.sub(r"[\s_\-.]+", " ", folder.casefold()).split()
    name = " ".join([word for word in words if word not in _FILLING] or words)
    return next((one for one in (name, name.removesuffix("set")) if one in _OPTION_OF), None)


def _refuse_parts(images: ImageSet, paths: Sequence[str]) -> None:
    """Raises a `DataError` where folders are called as parts of a data set, not as classes."""
    folders = sorted({path.partition("/")[0] for path in paths})
    parts = {folder: part for folder in folders if (part := _part(folder))}
    if len(parts) < len(folders):  # what lies beside parts (distractors, labels) is none of them
        parts = {one: part for one, part in parts.items() if part not in _OFTEN_CLASSES}
    options = {folder: _OPTION_OF[part] for folder, part in parts.items()}
    are_deep = all(path.count("/") > 1 for path in paths if path.partition("/")[0] in parts)
    are_several = len(set(options.values())) > 1
    if len(parts) < len(folders) or _OFTEN_CLASSES.issuperset(parts.values()):
        are_parts = are_deep and are_several
    else:
        are_parts = are_deep or len(folders) > 1
    if not are_parts:
        return
    root = images.root
    are = "are" if len(parts) == len(folders) else "include"
    lists = f"the folders in {shown(root)} {are} {some(parts)}: splits, not classes"
    if images.places is not None:
        raise DataError(f"{lists}. Make a source of each, and give each in its place")
    wanted: dict[str, str] = {}
    for folder, option in options.items():
        wanted.setdefault(str(option), shlex.quote(os.path.join(root, folder)))
    if {"--query", "--gallery"} <= set(wanted):
        wanted.pop("--test", None)
    given = " ".join(f"{option} {wanted[option]}".strip() for option in _PARTS if option in wanted)
    raise DataError(f"{lists}. Instead of {shown(root)} give each in its place: {shown(given)}")


def _tell_merged(label_of: dict[str, str], images: ImageSet, progress: Progress) -> None:
    """Warns of folders that are one class by the way in which labels are compared."""
    of_label: dict[str, list[str]] = {}
    for folder, label in sorted(label_of.items()):
        of_label.setdefault(label, []).append(folder)
    merged = [" and ".join(map(shown, folders)) for folders in of_label.values() if folders[1:]]
    if merged:
        progress.warn(f"folders of {shown(images.root)} that are one class: {some(merged)}")
