"""The scan: files are read once, in processes that a bad file may kill, and remembered."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.decoders import crash_or_hang, die
from helpers.photos import draw, swap, write_twins
from PIL import Image

from lookalike.checks.reading.image import ImageFacts, chroma_of, describe_file, luma_of
from lookalike.checks.reading.scan import scan
from lookalike.checks.reading.workers import describe_files
from lookalike.data.images import ImageRef
from lookalike.data.reading.decode import read_image
from lookalike.errors import ImageError
from lookalike.progress import SilentProgress

LIMIT = 10.0


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{nth}.png") for nth in range(6)]
    for nth, path in enumerate(paths):
        draw(nth, 0).save(path)
    return paths


class Reader:
    """`describe_file` that counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[ImageRef] = []

    def __call__(self, path: ImageRef, max_megapixels: float) -> ImageFacts:
        self.asked.append(path)
        return describe_file(path, max_megapixels)


def read(
    paths: Sequence[str], file: Path, reader: Reader | None = None, limit: float = LIMIT
) -> list[ImageFacts]:
    return scan(paths, file, max_megapixels=limit, num_workers=0, progress=SilentProgress(),
                describe=reader or describe_file)  # fmt: skip


def test_facts_are_what_the_file_and_its_pixels_say(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    draw(1, 0, (64, 32)).convert("L").save(path, exif=exif, quality=95)
    facts = describe_file(str(path), LIMIT)
    assert facts.readable
    assert (facts.format, facts.mode, facts.width, facts.height) == ("JPEG", "L", 32, 64)
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).digest()
    upright = np.asarray(Image.open(path).transpose(Image.Transpose.ROTATE_270), dtype=np.float64)
    assert facts.contrast == pytest.approx(upright.std(), rel=0.01)
    by_hand = upright.reshape(32, 2, 32, 1).mean(axis=(1, 3))
    assert np.abs(luma_of(facts.thumb) - by_hand).max() <= 1
    assert np.abs(chroma_of(facts.thumb) - 128).max() <= 1


def test_pixels_have_one_hash_however_they_are_stored(tmp_path: Path) -> None:
    image = draw(2, 0)
    for name in ("a.png", "c.webp", "d.bmp"):
        image.save(tmp_path / name, lossless=True)
    image.save(tmp_path / "b.png", compress_level=1)
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png")
    facts = {p.name: describe_file(str(p), LIMIT) for p in tmp_path.iterdir()}
    turned = facts.pop("turned.png")
    assert len({one.pixels_sha256 for one in facts.values()}) == 1
    assert len({one.sha256 for one in facts.values()}) == 4
    assert turned.pixels_sha256 not in {one.pixels_sha256 for one in facts.values()}


def test_images_of_other_sizes_have_other_hashes(tmp_path: Path) -> None:
    for name, size in (("wide.png", (60, 40)), ("tall.png", (40, 60))):
        Image.new("RGB", size, (10, 20, 30)).save(tmp_path / name)
    wide, tall = (describe_file(str(tmp_path / f"{n}.png"), LIMIT) for n in ("wide", "tall"))
    assert wide.pixels_sha256 != tall.pixels_sha256


def test_a_second_scan_reads_only_what_has_changed(files: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "scan.sqlite"
    first = read(files, kept)
    reader = Reader()
    assert read(files, kept, reader) == first
    assert reader.asked == []

    draw(9, 9).save(files[2])
    os.utime(files[4], ns=(0, 0))
    draw(7, 7).save(tmp_path / "new.png")
    again = read([*files, str(tmp_path / "new.png")], kept, reader)
    assert reader.asked == [files[2], files[4], str(tmp_path / "new.png")]
    assert again[2].sha256 != first[2].sha256
    assert again[4] == first[4]


@pytest.mark.parametrize("what", ["files", "folders", "copy"])
def test_files_that_change_places_are_read_again_though_size_and_time_are_the_same(
    tmp_path: Path, what: str
) -> None:
    paths, kept = write_twins(tmp_path), tmp_path / "scan.sqlite"
    first = [one.pixels_sha256 for one in read(paths, kept)]
    swap(paths, what)
    again = [one.pixels_sha256 for one in read(paths, kept)]
    assert again == [first[1], first[1] if what == "copy" else first[0]]


def test_another_limit_of_megapixels_reads_again(files: list[str], tmp_path: Path) -> None:
    kept, reader = tmp_path / "scan.sqlite", Reader()
    read(files, kept, reader)
    strict = read(files, kept, reader, limit=0.001)
    assert len(reader.asked) == 2 * len(files)
    assert all("above the limit" in str(one.reason) for one in strict)


def test_what_is_unreadable_is_remembered_and_what_fails_for_the_moment_is_not(
    tmp_path: Path,
) -> None:
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(b"no image")
    kept, reader = tmp_path / "scan.sqlite", Reader()
    for _ in range(2):
        facts = read([str(broken), str(missing)], kept, reader)
        assert not facts[0].readable
        assert facts[1].reason == "No such file or directory"
    assert reader.asked == [str(broken), str(missing), str(missing)]


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_a_machine_that_fails_is_not_held_against_the_file(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", fail)
        assert not any(one.readable for one in read(files, tmp_path / "scan.sqlite"))
    assert all(one.readable for one in read(files, tmp_path / "scan.sqlite"))


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link.png"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    assert "pipe" in str(describe_file(str(link), LIMIT).reason)
    with pytest.raises(ImageError, match="pipe"):
        read_image(str(link))


def test_a_file_that_is_listed_twice_is_known_twice(files: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "scan.sqlite"
    twice = [files[0], *files]
    assert read(twice, kept) == read(twice, kept)
    assert read(twice, kept)[0] == read(twice, kept)[1]


def test_a_scan_of_another_version_is_begun_anew(files: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "scan.sqlite"
    read(files, kept)
    with sqlite3.connect(kept) as database:
        database.execute("PRAGMA user_version = 0")
    database.close()
    reader = Reader()
    read(files, kept, reader)
    assert reader.asked == files


@pytest.mark.skipif(os.name != "posix", reason="names of POSIX systems")
def test_names_may_be_of_any_bytes(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png")
    draw(0, 0).save(path)
    kept, reader = tmp_path / "scan.sqlite", Reader()
    for _ in range(2):
        assert read([path], kept, reader)[0].readable
    assert reader.asked == [path]


def test_workers_find_what_one_process_finds(files: list[str]) -> None:
    alone = dict(describe_files(files, max_megapixels=LIMIT, num_workers=0))
    together = dict(describe_files(files, max_megapixels=LIMIT, num_workers=2))
    assert together == alone
    assert sorted(together) == list(range(6))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_a_file_that_kills_or_hangs_its_reader_is_named_and_the_rest_is_read(
    files: list[str],
) -> None:
    found = dict(
        describe_files(
            files, max_megapixels=LIMIT, num_workers=1, describe=crash_or_hang, hang_s=1.5
        )
    )
    assert sorted(found) == list(range(6))
    assert found[1].reason == "reading it ended its process (SIGSEGV)"
    assert found[3].reason == "the decoder hangs: no result after 1.5 s"
    assert all(found[i].sha256 == files[i].encode() for i in (0, 2, 4, 5))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_files_that_killed_their_reader_are_tried_again_the_next_time(
    files: list[str], tmp_path: Path
) -> None:
    kept = tmp_path / "scan.sqlite"
    lost = scan(files[:2], kept, max_megapixels=LIMIT, num_workers=1, progress=SilentProgress(),
                describe=die)  # fmt: skip
    assert [one.reason for one in lost] == ["reading it ended its process (SIGKILL)"] * 2
    assert all(one.readable for one in read(files[:2], kept))


SCAN_SLOWLY = """
import sys, time
from pathlib import Path
from lookalike.checks.reading import scan
from lookalike.progress import SilentProgress

scan._COMMIT_S = 0.05
def slowly(path, max_megapixels):
    time.sleep(0.1)
    print(path, flush=True)
    return scan.describe_file(path, max_megapixels)

scan.scan(sys.argv[2:], Path(sys.argv[1]), max_megapixels=10.0, num_workers=0,
          progress=SilentProgress(), describe=slowly)
"""


def test_a_killed_scan_goes_on_where_it_was(files: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "scan.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", SCAN_SLOWLY, str(kept), *files], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    process.kill()
    process.communicate()
    reader = Reader()
    facts = read(files, kept, reader)
    assert 0 < len(reader.asked) <= 4  # the first two at least were kept
    assert files[0] not in reader.asked
    assert facts == [describe_file(path, LIMIT) for path in files]
