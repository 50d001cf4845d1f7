"""An image of what was retrieved: each row a query, then its first results."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from lookalike.data.images import ImageRef
from lookalike.data.reading.decode import read_image
from lookalike.evaluation.retrieval import Retrieval
from lookalike.files import write_whole

_THUMB_PX, _GAP_PX, _FRAME_PX = 96, 10, 4
_RIGHT, _WRONG, _QUERY, _PAPER = "#2e9e5b", "#d1495b", "#5b6470", "white"


def write_sheet(path: Path, retrieval: Retrieval, *, num_queries: int = 6, ranks: int = 4) -> None:
    """Writes a PNG of a few queries (grey frames) and their results (green right, red wrong)."""
    labels, gallery_labels = retrieval.query.labels or [], retrieval.gallery.labels or []
    step = max(1, len(retrieval.query) // num_queries)
    chosen = range(step // 2, len(retrieval.query), step)[:num_queries]
    cell = _THUMB_PX + 2 * _FRAME_PX + _GAP_PX
    size = (cell * (ranks + 1) + 3 * _GAP_PX, cell * len(chosen) + _GAP_PX)
    sheet = Image.new("RGB", size, _PAPER)
    query_refs, gallery_refs = retrieval.query.refs, retrieval.gallery.refs
    for row, query in enumerate(chosen):
        top = _GAP_PX + row * cell
        _paste(sheet, query_refs[query], (_GAP_PX, top), _QUERY)
        positions = [p for p in retrieval.positions[query].tolist() if p >= 0][:ranks]
        for rank, position in enumerate(positions):
            colour = _RIGHT if labels[query] == gallery_labels[position] else _WRONG
            left = 3 * _GAP_PX + (rank + 1) * cell  # a wider gap sets the query apart
            _paste(sheet, gallery_refs[position], (left, top), colour)
    write_whole(path, lambda file: sheet.save(file, "PNG"))


def _paste(sheet: Image.Image, ref: ImageRef, corner: tuple[int, int], colour: str) -> None:
    """Pastes a framed thumbnail."""
    left, top = corner
    side = _THUMB_PX + 2 * _FRAME_PX
    ImageDraw.Draw(sheet).rounded_rectangle(
        (left, top, left + side - 1, top + side - 1), radius=_FRAME_PX, fill=colour
    )
    thumb = read_image(ref).resize((_THUMB_PX, _THUMB_PX), Image.Resampling.LANCZOS)
    sheet.paste(thumb, (left + _FRAME_PX, top + _FRAME_PX))
