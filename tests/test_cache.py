"""Decoded images kept on disk, against files that are decoded each time."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from helpers.photos import draw, swap, write_twins
from helpers.runs import Settings, Watch, assert_same_bits, load
from helpers.runs import train as run_training
from PIL import Image

import lookalike
from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.config.settings import changed_on_resume, config_from
from lookalike.data.reading import cache as caching
from lookalike.data.reading.cache import CachedReader, DecodeCache, Reads
from lookalike.data.reading.decode import read_image
from lookalike.data.reading.loader import ImageLoader, chunks
from lookalike.data.reading.reader import Batch
from lookalike.data.transforms import Augmentation, Preprocessing
from lookalike.errors import ConfigError, ImageError
from lookalike.runtime.device import Runtime

HOW = Preprocessing(16, 12, None, 3, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), exact=False)
AUGMENTATION = Augmentation("crop-flip", 0.3)
BLOCK = 4096
PLENTY = 10**9


def noise(size: tuple[int, int], channels: int, seed: int = 0) -> np.ndarray:
    shape = (size[1], size[0], channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def turned(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise((30, 20), 3)).save(folder / "turned.jpg", exif=exif)
    return folder / "turned.jpg"


def written(name: str, image: Image.Image, **how: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image.save(folder / name, **how)
        return folder / name

    return write


SIXTEEN_BIT = Image.fromarray((noise((31, 17), 2).view(np.uint16)).reshape(17, 31))
CHANNELS = [Image.fromarray(noise((31, 17), 1, seed)[:, :, 0]) for seed in range(4)]
KINDS: dict[str, Callable[[Path], Path]] = {
    "PNG": written("plain.png", Image.fromarray(noise((31, 17), 3))),
    "grey": written("grey.png", Image.fromarray(noise((31, 17), 1)[:, :, 0])),
    "16-bit": written("deep.png", SIXTEEN_BIT),
    "transparent": written("transparent.png", Image.fromarray(noise((31, 17), 4))),
    "palette": written("palette.gif", Image.fromarray(noise((31, 17), 1)[:, :, 0]).convert("P"),
                       transparency=3),
    "JPEG": written("large.jpg", draw(1, 1, (800, 600))),
    "CMYK": written("print.jpg", Image.merge("CMYK", CHANNELS)),
    "turned by EXIF": turned,
    "one pixel": written("dot.png", Image.new("RGB", (1, 1), (1, 2, 3))),
}  # fmt: skip


def same_image(one: Image.Image, other: Image.Image) -> bool:
    return (one.mode, one.size, one.tobytes()) == (other.mode, other.size, other.tobytes())


def reader(folder: Path, max_bytes: int = PLENTY, kept_free: int = 0) -> CachedReader:
    return CachedReader(folder, max_bytes, kept_free)


def open_cache(folder: Path, max_bytes: int = PLENTY, watch: Watch | None = None) -> DecodeCache:
    return DecodeCache(folder, max_bytes, watch or Watch(), kept_free=0)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*.rgb"))


def others(folder: Path) -> list[str]:
    """All that lies in the folder beside kept images."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".rgb"]
    return sorted(path.name for path in files)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Ten images of 40 x 36 px, each of which takes two blocks of a disk when it is kept."""
    (tmp_path / "images").mkdir()
    for number in range(10):
        draw(number, 0).save(tmp_path / "images" / f"{number}.png")
    return [str(tmp_path / "images" / f"{number}.png") for number in range(10)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decoded."""
    seen: list[str] = []

    def watched(path: str, *given: Any, **named: Any) -> Image.Image:
        seen.append(path)
        return read_image(path, *given, **named)

    monkeypatch.setattr(caching, "read_image", watched)
    monkeypatch.setattr("lookalike.data.reading.reader.read_image", watched)
    return seen


# The same images


@pytest.mark.parametrize("draft_px", [None, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_image_is_the_decoded_one_to_the_last_bit(
    tmp_path: Path, folder: Path, decoded: list[str], kind: str, draft_px: int | None
) -> None:
    path = str(KINDS[kind](tmp_path))
    expected = read_image(path, draft_px=draft_px)
    cached = reader(folder)
    for _ in range(3):
        assert same_image(cached.read(path, 89, draft_px=draft_px), expected)
    assert decoded == [path]
    assert cached.take_reads() == Reads(from_cache=2, decoded=1, added=1)
    assert cached.take_reads() == Reads()
    # Its file ends with the pixels as they are.
    (file,) = kept(folder)
    assert file.read_bytes().endswith(np.asarray(expected).tobytes())
    assert file.stat().st_size < 3 * expected.width * expected.height + 1000


def test_a_kept_image_can_be_changed_by_its_reader_alone(folder: Path, paths: list[str]) -> None:
    cached = reader(folder)
    for _ in range(3):
        image = cached.read(paths[0])
        assert same_image(image, read_image(paths[0]))
        image.paste((0, 0, 0), (0, 0, 10, 10))


def batches(
    paths: list[str], cache: DecodeCache | None, num_workers: int = 0, training: bool = True
) -> Iterator[Batch]:
    """Two epochs."""
    loader = ImageLoader(
        paths,
        HOW,
        Runtime(torch.device("cpu"), "fp32", num_workers),
        max_megapixels=10,
        augmentation=AUGMENTATION if training else None,
        labels=["one"] * len(paths) if training else None,
        cache=cache,
    )
    for epoch in range(2):
        requests = chunks(len(paths), 4)
        yield from loader.read(
            request._replace(seed=(epoch, number)) for number, request in enumerate(requests)
        )


def same_batches(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.pixels, b.pixels) and a[1:5] == b[1:5]
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("training", [True, False])
def test_batches_are_the_same_with_a_cache_and_without(
    tmp_path: Path, folder: Path, paths: list[str], training: bool
) -> None:
    many = paths + [str(write(tmp_path)) for write in KINDS.values()]
    (tmp_path / "broken.png").write_bytes(Path(paths[0]).read_bytes()[:900])
    many.append(str(tmp_path / "broken.png"))
    plain = list(batches(many, None, training=training))
    for _ in range(2):
        assert same_batches(list(batches(many, open_cache(folder), training=training)), plain)
    assert any(batch.unreadable for batch in plain)


def test_in_a_second_epoch_no_file_is_decoded(
    folder: Path, paths: list[str], decoded: list[str]
) -> None:
    cache = open_cache(folder)
    list(batches(paths, cache))
    assert decoded == paths
    assert cache.reads == Reads(from_cache=10, decoded=10, added=10)
    list(batches(paths, open_cache(folder)))  # nor in another command
    assert decoded == paths


def test_what_the_parts_of_a_batch_came_to_is_added_up(
    folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.data.reading.loader._PART_BYTES", 1)  # a part is one image
    cache = open_cache(folder)
    read = [batch.reads for batch in batches(paths, cache, training=False)]
    added = [Reads(decoded=n, added=n) for n in (4, 4, 2)]
    assert read == added + [Reads(from_cache=n) for n in (4, 4, 2)]
    assert cache.reads == Reads(from_cache=10, decoded=10, added=10)


def test_readers_in_two_processes_use_one_folder_at_a_time(folder: Path, paths: list[str]) -> None:
    plain = list(batches(paths, None))
    caches = [open_cache(folder), open_cache(folder)]
    pairs = zip(*(batches(paths, cache, num_workers=1) for cache in caches), strict=True)
    first, second = (list(read) for read in zip(*pairs, strict=True))
    assert same_batches(first, plain)
    assert same_batches(second, plain)
    for cache in caches:
        assert cache.reads.from_cache + cache.reads.decoded == 20
        assert cache.reads.from_cache >= 10
    assert len(kept(folder)) == 10
    assert others(folder) == ["used"]


def test_readers_that_write_the_same_images_at_once_all_get_them(
    folder: Path, paths: list[str]
) -> None:
    def read_all(number: int) -> list[Image.Image]:
        cached = reader(folder)
        return [cached.read(path) for _ in range(5) for path in paths[number:] + paths[:number]]

    expected = [read_image(path) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        for number, images in enumerate(pool.map(read_all, range(4))):
            for place, image in enumerate(images):
                assert same_image(image, expected[(place + number) % 10])
    assert len(kept(folder)) == 10
    assert others(folder) == ["used"]


# What an image is known by


def test_a_file_that_changed_is_decoded_anew_and_takes_the_place_of_the_old_one(
    folder: Path, paths: list[str]
) -> None:
    cached, path = reader(folder), Path(paths[0])
    cached.read(paths[0])
    before = path.stat()
    Image.new("RGB", (40, 36), (9, 9, 9)).save(path)  # another size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert same_image(cached.read(paths[0]), read_image(paths[0]))
    flat = path.stat()
    Image.new("RGB", (40, 36), (8, 8, 8)).save(path)  # the same size
    assert path.stat().st_size == flat.st_size
    os.utime(path, ns=(flat.st_atime_ns, flat.st_mtime_ns + 1))
    assert same_image(cached.read(paths[0]), read_image(paths[0]))
    assert cached.take_reads() == Reads(decoded=3, added=3)
    assert len(kept(folder)) == 1


@pytest.mark.parametrize("what", ["files", "folders", "copy"])
def test_images_that_change_places_are_decoded_anew_though_size_and_time_are_the_same(
    tmp_path: Path, folder: Path, what: str
) -> None:
    paths = write_twins(tmp_path)
    cached = reader(folder)
    before = [cached.read(path) for path in paths]
    swap(paths, what)
    after = [cached.read(path) for path in paths]
    assert same_image(after[0], before[1])
    assert same_image(after[1], before[1] if what == "copy" else before[0])


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(
    folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: str, *given: Any, **named: Any) -> Image.Image:
        image = read_image(path, *given, **named)
        Image.new("RGB", (4, 4)).save(path)
        return image

    monkeypatch.setattr(caching, "read_image", slow)
    cached = reader(folder)
    cached.read(paths[0])
    assert cached.take_reads() == Reads(decoded=1)
    assert kept(folder) == []


def test_other_decoders_decode_anew(
    folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = reader(folder)
    cached.read(paths[0])
    monkeypatch.setattr(caching, "_decoders", lambda: "of another year")
    cached.read(paths[0])
    cached.read(paths[0])
    assert cached.take_reads() == Reads(from_cache=1, decoded=2, added=2)


def test_a_drafted_image_is_another_one(tmp_path: Path, folder: Path) -> None:
    path = str(KINDS["JPEG"](tmp_path))
    cached = reader(folder)
    for draft_px, size in ((None, (800, 600)), (300, (400, 300)), (100, (200, 150))) * 2:
        assert cached.read(path, draft_px=draft_px).size == size
    assert cached.take_reads() == Reads(from_cache=3, decoded=3, added=3)


def test_a_path_is_the_same_from_wherever_it_is_named(
    folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = reader(folder)
    cached.read(paths[0])
    monkeypatch.chdir(Path(paths[0]).parent)
    cached.read("0.png")
    assert cached.take_reads() == Reads(from_cache=1, decoded=1, added=1)


def test_an_image_above_the_limit_is_refused_though_it_is_kept(
    tmp_path: Path, folder: Path
) -> None:
    path = str(KINDS["JPEG"](tmp_path))
    cached = reader(folder)
    cached.read(path, 10, draft_px=100)  # 200 x 150 px are kept of 0.48 megapixels
    with pytest.raises(ImageError, match=r"above the limit of 0\.4"):
        cached.read(path, 0.4, draft_px=100)
    cached.read(path, 11, draft_px=100)
    cached.read(path, 0.5, draft_px=100)  # allowed, which is found out once
    cached.read(path, 0.5, draft_px=100)
    cached.read(path, 10, draft_px=100)
    assert cached.take_reads() == Reads(from_cache=3, decoded=2, added=2)


def test_nothing_is_kept_of_what_cannot_be_read(tmp_path: Path, folder: Path) -> None:
    whole = KINDS["JPEG"](tmp_path).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.jpg").write_text("<html>")
    cached = reader(folder)
    for name in ("cut.jpg", "page.jpg", "missing.jpg", "nul\0.jpg"):
        with pytest.raises(ImageError) as plain:
            read_image(str(tmp_path / name))
        with pytest.raises(ImageError) as told:
            cached.read(str(tmp_path / name))
        assert (told.value.path, told.value.reason) == (plain.value.path, plain.value.reason)
    assert cached.take_reads() == Reads()
    assert kept(folder) == []


# Damage


def flip(place: int) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[place] ^= 1
        return bytes(changed)

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of a pixel": flip(-1000),
    "the last bit": flip(-1),
    "a bit of the head": flip(40),
    "the mark": flip(0),
    "the checksum": flip(17),
    "the length of the head": flip(20),
    "a long head": lambda content: content[:20] + struct.pack("<I", 2**32 - 1) + content[24:],
    "cut short": lambda content: content[:-1],
    "cut in the head": lambda content: content[:60],
    "cut at the start": lambda content: content[:5],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "zeros, as after a power cut": lambda content: bytes(len(content)),
    "foreign": lambda content: b"something else entirely" * 300,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_decoded_anew_and_replaced(
    folder: Path, paths: list[str], decoded: list[str], kind: str
) -> None:
    cached = reader(folder)
    cached.read(paths[0])
    (file,) = kept(folder)
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[kind](whole))
    assert same_image(cached.read(paths[0]), read_image(paths[0]))
    assert len(decoded) == 2
    assert file.read_bytes() == whole
    assert same_image(cached.read(paths[0]), read_image(paths[0]))
    assert len(decoded) == 2


@pytest.mark.parametrize("head", [b"[" * 50_000, b'{"width": 1e400}', b"5"])
def test_a_head_that_is_none_is_damage_whatever_its_checksum(
    folder: Path, paths: list[str], head: bytes
) -> None:
    cached = reader(folder)
    cached.read(paths[0])
    (file,) = kept(folder)
    mark = file.read_bytes()[:16]
    file.write_bytes(mark + struct.pack("<II", zlib.crc32(head), len(head)) + head)
    assert same_image(cached.read(paths[0]), read_image(paths[0]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("of", ["a kept image", "the account"])
def test_nobody_waits_for_a_pipe_in_the_place_of_a_file(
    folder: Path, paths: list[str], of: str
) -> None:
    cached = reader(folder)
    cached.read(paths[0])
    path = kept(folder)[0] if of == "a kept image" else folder / "used"
    path.unlink()
    os.mkfifo(path)
    read: list[Image.Image] = []
    waiting = Thread(target=lambda: read.extend(map(cached.read, paths[:2])), daemon=True)
    waiting.start()
    waiting.join(timeout=30)
    assert all(map(same_image, read, map(read_image, paths[:2])))
    assert len(read) == 2


def test_the_kept_image_of_another_file_is_not_taken_for_this_one(
    folder: Path, paths: list[str]
) -> None:
    cached = reader(folder)
    cached.read(paths[0])
    (first,) = kept(folder)
    cached.read(paths[1])
    (second,) = set(kept(folder)) - {first}
    shutil.copy(first, second)
    assert same_image(cached.read(paths[1]), read_image(paths[1]))


# The bound


def test_when_the_folder_is_full_what_is_in_it_stays(
    folder: Path, paths: list[str], decoded: list[str]
) -> None:
    cache = open_cache(folder, max_bytes=6 * BLOCK + 100)  # three images of two blocks each
    cache.prepare()
    plain = list(batches(paths, None))
    decoded.clear()
    assert same_batches(list(batches(paths, cache)), plain)
    assert cache.reads == Reads(from_cache=3, decoded=17, added=3, without_room=14)
    assert decoded == paths + paths[3:]
    assert len(kept(folder)) == 3
    # As before in a command that comes later, for which there is nothing outdated to remove.
    later = open_cache(folder, max_bytes=6 * BLOCK + 100)
    later.draft_sizes.add(HOW.draft_px(0.3))
    later.prepare()
    list(batches(paths, later))
    assert later.reads == Reads(from_cache=6, decoded=14, without_room=14)
    assert "no room for 14: raise --decode-cache-gb" in str(later.reads)


def test_readers_that_know_nothing_of_each_other_keep_the_bound_together(
    folder: Path, paths: list[str]
) -> None:
    readers = [reader(folder, max_bytes=8 * BLOCK) for _ in range(5)]
    for number, path in enumerate(paths):
        readers[number % 5].read(path)
    assert len(kept(folder)) == 4
    assert sum(one.take_reads().without_room for one in readers) == 6


def test_a_disk_is_never_filled_to_its_end(folder: Path, paths: list[str]) -> None:
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    cached = reader(folder, kept_free=2 * free)
    assert same_image(cached.read(paths[0]), read_image(paths[0]))
    assert cached.take_reads() == Reads(decoded=1, without_room=1)
    assert kept(folder) == []


def test_the_account_is_put_right_when_a_command_begins(folder: Path, paths: list[str]) -> None:
    cached = reader(folder)
    for path in paths:
        cached.read(path)
    assert (folder / "used").stat().st_size == 20  # blocks
    for file in kept(folder)[:4]:
        file.unlink()
    cache = open_cache(folder)
    cache.draft_sizes.add(None)
    cache.prepare()
    assert (folder / "used").stat().st_size == 12
    assert cache.describe() == f"{folder}: 6 decoded images, 0.0 of 1 GB"


# Failures


def test_a_full_disk_is_a_warning_once(
    folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    watch = Watch()
    cache = open_cache(folder, watch=watch)
    cache.prepare()
    assert same_batches(list(batches(paths, cache)), list(batches(paths, None)))
    (warning,) = watch.warnings
    assert warning.startswith(f"cannot keep decoded images in {folder}: No space left on device")
    assert cache.reads == Reads(decoded=20, failure="No space left on device")
    assert kept(folder) == []
    assert others(folder) == ["CACHEDIR.TAG", "used"]  # and nothing half-written


def test_a_folder_that_cannot_be_made_is_a_warning_once(folder: Path, paths: list[str]) -> None:
    folder.write_text("a file")
    watch = Watch()
    cache = open_cache(folder, watch=watch)
    cache.prepare()
    assert same_batches(list(batches(paths, cache)), list(batches(paths, None)))
    assert len(watch.warnings) == 1
    assert "File exists" in watch.warnings[0]


def test_what_is_in_a_folder_that_cannot_be_written_to_is_read(
    folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(batches(paths[:5], open_cache(folder)))

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    watch = Watch()
    cache = open_cache(folder, watch=watch)
    cache.prepare()
    list(batches(paths, cache))
    assert len(watch.warnings) == 1
    assert cache.describe() == f"{folder}: 5 decoded images, 0.0 of 1 GB"
    assert cache.reads == replace(Reads(from_cache=10, decoded=10), failure="Read-only file system")


def test_an_image_too_large_to_be_copied_is_read_all_the_same(
    folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: Image.Image) -> bytes:
        raise MemoryError

    cached, expected = reader(folder), read_image(paths[0])
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "tobytes", no_memory)
        image = cached.read(paths[0])
    assert same_image(image, expected)
    assert cached.take_reads().failure == "no memory for a copy of 40x36 px"


# Outdated images


@pytest.fixture
def outdated(folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A cache of ten images, of which those returned are of no use any more."""
    cached = reader(folder)
    for path in paths[:6]:
        cached.read(path)
    fine = set(kept(folder))
    cached.read(paths[6])
    Path(paths[6]).unlink()
    cached.read(paths[7])
    os.utime(paths[7], ns=(0, 0))
    cached.read(paths[8], draft_px=50)
    with monkeypatch.context() as patch:
        patch.setattr(caching, "_decoders", lambda: "of another year")
        cached.read(paths[9])
    damaged = kept(folder)[0].with_name("0" * 32 + ".rgb")
    damaged.write_bytes(b"no" * 4096)
    return sorted(set(kept(folder)) - fine)


def test_where_room_is_needed_what_is_outdated_goes(folder: Path, outdated: list[Path]) -> None:
    before = kept(folder)
    foreign = [folder / "ab" / "notes.txt", folder / "holiday.rgb", folder / "ab" / "x.rgb"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("somebody else's")
    cache = open_cache(folder, max_bytes=24 * BLOCK)
    cache.draft_sizes.add(None)
    cache.prepare()
    assert len(outdated) == 5
    assert [path for path in before if not path.exists()] == outdated
    assert all(path.exists() for path in foreign)
    assert (folder / "used").stat().st_size == 12
    assert cache.describe().endswith("6 decoded images, 0.0 of 9.8304e-05 GB; 5 outdated removed")


def test_where_there_is_room_nothing_goes(folder: Path, outdated: list[Path]) -> None:
    cache = open_cache(folder)
    cache.draft_sizes.add(None)
    cache.prepare()
    assert len(kept(folder)) == 11
    assert set(outdated) <= set(kept(folder))


def test_what_a_killed_process_left_goes_after_an_hour(folder: Path, paths: list[str]) -> None:
    reader(folder).read(paths[0])
    (file,) = kept(folder)
    old, new = (file.with_name(f".{file.name}.0000000{n}.tmp") for n in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    open_cache(folder).prepare()
    assert not old.exists()
    assert new.exists()
    assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886")


# The commands


def test_a_training_run_is_the_same_to_the_last_bit_and_later_decodes_nothing(
    settings: Settings, photos: Path, decoded: list[str]
) -> None:
    plain = run_training(settings(num_epochs=2, out=str(photos / "plain")))
    cached: dict[str, Any] = {"num_epochs": 2, "decode_cache": str(photos / "kept")}
    decoded.clear()
    watches = []
    for number in range(2):
        watches.append(Watch())
        out = str(photos / f"cached{number}")
        result = run_training(settings(out=out, **cached), watch=watches[-1])
        one, other = load(plain.checkpoint), load(result.checkpoint)
        assert_same_bits(one["model_state_dict"], other["model_state_dict"])
        assert_same_bits(one["optimizer_state_dict"], other["optimizer_state_dict"])
        assert [e.metrics for e in plain.history] == [e.metrics for e in result.history]
        assert len(decoded) == len(set(decoded)) == 30 + 18  # once, in the first run's first epoch
    first, second = ([note for note in watch.notes if "cache " in note] for watch in watches)
    assert first[0].endswith("kept: 0 decoded images, 0.0 of 20 GB")
    # An epoch has 40 places, since classes of 5 repeat one for pairs; 18 are measured three times.
    assert first[1] == "cache    86 images read from it, 48 decoded, 48 of these kept"
    assert second[0].endswith("kept: 48 decoded images, 0.0 of 20 GB")
    assert second[1] == "cache    134 images read from it, 0 decoded"


def test_an_evaluation_is_the_same_and_reads_what_another_has_kept(
    settings: Settings, photos: Path, decoded: list[str]
) -> None:
    def evaluate(out: str, **changes: Any) -> tuple[Any, list[str]]:
        known = settings(out=str(photos / out), **changes)
        watch = Watch()
        config = config_from(
            EvaluateConfig,
            {k: v for k, v in known.items() if k not in ("train", "learning_rate")},
        )
        return lookalike.evaluate(config, progress=watch), watch.notes

    plain, _ = evaluate("plain")
    evaluate("one", decode_cache=str(photos / "kept"))
    decoded.clear()
    again, notes = evaluate("two", decode_cache=str(photos / "kept"))
    assert decoded == []
    assert again.metrics == plain.metrics
    assert torch.equal(again.retrieval.query_embeddings, plain.retrieval.query_embeddings)
    assert notes[-1] == "cache    18 images read from it, 0 decoded"


def test_a_resumed_run_may_bring_a_cache_and_a_folder_has_a_name() -> None:
    before = {"decode_cache": None, "decode_cache_gb": 20.0, "top_k": 10}
    assert changed_on_resume(before, TrainConfig(decode_cache="a", decode_cache_gb=1)) == []
    with pytest.raises(ConfigError, match="decode_cache is empty"):
        TrainConfig(decode_cache="")
    with pytest.raises(ConfigError, match="decode_cache_gb is 0"):
        TrainConfig(decode_cache_gb=0)
    assert TrainConfig().decode_cache is None
