"""The images of a source that are images, by their headers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from lookalike.config import DEFAULT_MAX_MEGAPIXELS
from lookalike.data.images import ImageRef, ImageSet, Unreadable, list_unreadable, shown_path
from lookalike.data.reading.decode import probe_image
from lookalike.errors import DataError, ImageError
from lookalike.files import shown
from lookalike.progress import Progress, SilentProgress

_PROBED_AT_A_TIME = 4096


def why_no_image(ref: ImageRef, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> str | None:
    """Returns why a file's header is not that of an image that can be read; None where it is."""
    try:
        probe_image(ref, max_megapixels)
    except ImageError as error:
        return error.reason
    return None


def keep_readable(
    images: ImageSet,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    progress: Progress | None = None,
) -> tuple[ImageSet, list[Unreadable]]:
    """Reads every file's header and returns the images, and the files that are none.

    Raises:
        DataError: not one of the files is an image.
    """
    progress = progress or SilentProgress()
    reason = partial(why_no_image, max_megapixels=max_megapixels)
    refs = images.refs
    reasons: list[str | None] = []
    with (
        ThreadPoolExecutor(max_workers=8) as pool,
        progress.task("looking at files", len(refs), "files") as task,
    ):
        for start in range(0, len(refs), _PROBED_AT_A_TIME):  # map would queue all at once
            for one in pool.map(reason, refs[start : start + _PROBED_AT_A_TIME]):
                reasons.append(one)
                task.advance()
    bad = [Unreadable(shown_path(ref), why) for ref, why in zip(refs, reasons, strict=True) if why]
    if len(bad) == len(images):
        raise DataError(f"none of the {len(images):,} files in {shown(images.root)} is an image "
                        f"that can be read: {list_unreadable(bad)}")  # fmt: skip
    if bad:
        images = images.subset(i for i, why in enumerate(reasons) if why is None)
    return images, bad
