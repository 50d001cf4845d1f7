"""Milliseconds from a file to a model's pixels: decoded exactly, quickly, or not again.

    python benchmarks/speed/reading.py

One process reads and resizes to 224 px as CLIP's processor does. Exact pixels are the processor's
to the last bit; quick ones are the default; from the cache is what an epoch after the first does
with --decode-cache, for the same pixels as the quick ones. Files and cache are in the system's
memory: a disk that is slower than that adds what it takes to read them, whose size is told. Writes
Markdown to stdout.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import describe, in_turns, photo, write_photos

from lookalike.data.reading.cache import CachedReader, Reads
from lookalike.data.reading.decode import read_image
from lookalike.data.transforms import Preprocessing, preprocess

EXACT = Preprocessing(224, 224, 224, 3, 1 / 255, (0.0,) * 3, (1.0,) * 3, exact=True)
QUICK = Preprocessing(224, 224, 224, 3, 1 / 255, (0.0,) * 3, (1.0,) * 3, exact=False)
SIZES = {"256x256": (256, 256), "640x480": (640, 480), "4000x3000": (4000, 3000)}
ROOMY = 100_000_000_000  # bytes that the cache may take


@dataclass(frozen=True)
class Row:
    """Milliseconds an image, and megabytes on disk of a file and of what is kept of it."""

    exact: float
    quick: float
    cached: float
    file_mb: float
    kept_mb: float


def main() -> None:
    """Writes the files, reads them in turns, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual images")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe('torch', 'pillow')}; one process, ms an image\n")
    print(
        "| files | exact | quick | from the cache | quick / exact | from the cache / quick "
        "| MB of a file | MB kept |\n|---|" + "---|" * 7
    )
    for name, size in SIZES.items():
        count = max(2, round(min(100, 40_000_000 // (size[0] * size[1])) * given.share))
        with tempfile.TemporaryDirectory() as folder:
            paths = write_photos(Path(folder) / "photos", count, size)
            _print(f"JPEG {name}", _measured(paths, Path(folder) / "cache", given.rounds))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.png"
        photo(SIZES["4000x3000"], 0).save(path)
        _print("PNG 4000x3000", _measured([path], Path(folder) / "cache", given.rounds))


def _measured(paths: list[Path], folder: Path, rounds: int) -> Row:
    names = [str(path) for path in paths]
    cached = CachedReader(folder, ROOMY, kept_free=0)

    def from_cache() -> None:
        for name in names:
            preprocess(cached.read(name, draft_px=QUICK.draft_px()), QUICK)

    def decoded(how: Preprocessing) -> Callable[[], None]:
        def case() -> None:
            for name in names:
                preprocess(read_image(name, draft_px=how.draft_px()), how)

        return case

    from_cache()
    if cached.take_reads() != Reads(decoded=len(names), added=len(names)):
        raise SystemExit(f"the cache in {folder} does not work: is the disk full?")
    cases = {"exact": decoded(EXACT), "quick": decoded(QUICK), "cached": from_cache}
    ms = {name: 1e3 * s / len(names) for name, s in in_turns(cases, rounds).items()}
    return Row(**ms, file_mb=_mean_mb(paths), kept_mb=_mean_mb(list(folder.glob("*/*.rgb"))))


def _mean_mb(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / len(paths) / 1e6


def _print(name: str, row: Row) -> None:
    print(
        f"| {name} | {row.exact:.2f} | {row.quick:.2f} | {row.cached:.2f} "
        f"| {row.quick / row.exact:.2f} | {row.cached / row.quick:.2f} "
        f"| {row.file_mb:.2f} | {row.kept_mb:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
