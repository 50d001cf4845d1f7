"""Images made small enough to travel inside a page, within a bound."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from PIL import Image

from lookalike.config import MAX_PILLOW_MEGAPIXELS
from lookalike.data.images import FileKey, ImageRef, file_key
from lookalike.data.reading.decode import read_image
from lookalike.errors import ImageError

SIDE_PX = 104
MAX_BYTES = 12 * 10**6
"""What all thumbnails of one page may take together, unless told otherwise."""

_AT_A_TIME = 256


class Thumbnails:
    """Thumbnails as data URIs, each image once, the more important ones first.

    `uris[number_of[ref]]` is an image's thumbnail. An image has none where its file cannot be
    decoded, or where the bound was reached before it (`num_left_out` counts these).
    """

    def __init__(self, *, side_px: int = SIDE_PX, max_bytes: int = MAX_BYTES) -> None:
        self.side_px, self.max_bytes = side_px, max_bytes
        self.uris: list[str] = []
        self.number_of: dict[ImageRef, int] = {}
        self.num_bytes = 0
        self.num_left_out = 0

    def add(
        self, refs: Iterable[ImageRef], *, on_progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Makes the thumbnails of these images, until the bound is reached.

        `on_progress` is told, again and again, how many more are done.
        """
        wanted = [ref for ref in dict.fromkeys(refs) if ref not in self.number_of]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(wanted), _AT_A_TIME):
                if self.num_bytes >= self.max_bytes:
                    self.num_left_out += len(wanted) - start
                    return
                some = wanted[start : start + _AT_A_TIME]
                for ref, uri in zip(some, pool.map(self._uri, some), strict=True):
                    if uri is not None and self.num_bytes + len(uri) > self.max_bytes:
                        self.num_left_out += 1
                    elif uri is not None:
                        self.number_of[ref] = len(self.uris)
                        self.uris.append(uri)
                        self.num_bytes += len(uri)
                on_progress(len(some))

    def _uri(self, ref: ImageRef) -> str | None:
        try:
            return _make_uri(ref, self.side_px, file_key(ref))
        except ImageError:
            return None  # whoever lists the file says why it cannot be read


@lru_cache(maxsize=4096)  # some 15 MB; the next epoch's report shows mostly the same images
def _make_uri(ref: ImageRef, side_px: int, key: FileKey) -> str:  # noqa: ARG001 - of the cache
    # Whoever lists the image has judged its size.
    image = read_image(ref, MAX_PILLOW_MEGAPIXELS, draft_px=2 * side_px)
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=70, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
