"""References of images, the key that says when one has changed, and what is kept by it."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.photos import draw, write_tree
from helpers.sources import write_tar

import lookalike
from lookalike.checks.reading.image import describe_file
from lookalike.checks.reading.scan import scan
from lookalike.data.images import (
    Cell,
    FileKey,
    ImageRef,
    ImageSet,
    InMemory,
    Span,
    file_key,
    identity,
    shown_path,
)
from lookalike.data.reading.cache import CachedReader, Reads
from lookalike.data.reading.decode import read_image
from lookalike.data.reading.loader import ImageLoader, chunks
from lookalike.data.reading.shared import SharedList
from lookalike.data.sources import SOURCES, Source, load_images
from lookalike.data.transforms import Preprocessing
from lookalike.evaluation.protocol import load_protocol
from lookalike.progress import SilentProgress
from lookalike.report.thumbnails import Thumbnails
from lookalike.runtime.device import make_runtime

HOW = Preprocessing(16, 12, None, 3, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), exact=False)


def png(label: int, copy: int = 0) -> bytes:
    file = io.BytesIO()
    draw(label, copy).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Four images of as many bytes each, so that only their place tells them apart."""
    members = {f"{copy}.png": png(1, copy) for copy in range(4)}
    size = max(map(len, members.values()))
    padded = {name: content.ljust(size, b"\0") for name, content in members.items()}
    return write_tar(tmp_path / "x.tar", padded)


def touch(path: str | Path) -> None:
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


REFERENCES: list[ImageRef] = [
    "a/1.png", "byte \udcff", Span("x.tar", 512, 10**12, "ü.png"), Span("x.tar", 512, 9, "1.png"),
    Cell("x.parquet", "image.bytes", 3, 4, "5.png"), InMemory("1.png", b"\0\xff"),
]  # fmt: skip


def test_references_survive_pickling_and_sharing_and_tell_themselves_apart() -> None:
    assert list(SharedList(REFERENCES)) == REFERENCES
    assert pickle.loads(pickle.dumps(REFERENCES)) == REFERENCES
    assert len(set(REFERENCES)) == len(set(map(identity, REFERENCES))) == len(REFERENCES)


def test_a_reference_is_small_in_what_workers_share() -> None:
    refs = [Span("shards/shards-0000.tar", 512 * i, 40_000, f"{i:09}.jpg") for i in range(10_000)]
    assert len(SharedList(refs)._bytes.values) < 160 * len(refs)


def test_a_key_changes_with_its_file_and_not_with_the_way_to_it(
    tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link.tar"
    link.symlink_to(tar)
    first, second = load_images(tar).refs[:2]
    status = tar.stat()
    assert file_key(str(tar)) == (
        os.path.realpath(tar), "", status.st_size, status.st_mtime_ns, status.st_ctime_ns,
        status.st_ino,
    )  # fmt: skip
    assert file_key(first) != file_key(second)
    assert file_key(first)[2:] == file_key(second)[2:] == file_key(str(tar))[2:]
    assert file_key(first) == file_key(load_images(link).refs[0])
    assert identity(first) == identity(load_images(link).refs[0]) == file_key(first).identity
    monkeypatch.chdir(tmp_path)
    assert file_key("link.tar") == file_key(str(tar))
    before = file_key(first)
    touch(tar)
    assert file_key(first) != before
    assert file_key(first).identity == before.identity
    assert file_key("no/such.png") == FileKey(os.path.abspath("no/such.png"), "", -1, -1)
    assert file_key("a\0b").num_bytes == -1


def test_bytes_in_memory_are_known_by_what_they_are() -> None:
    one, same, other = InMemory("a", png(1)), InMemory("b", png(1)), InMemory("a", png(2))
    assert file_key(one) == file_key(same) != file_key(other)
    assert identity(one) == identity(same) != identity(other)


def test_bytes_in_memory_are_read_as_their_file_is(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    refs: list[ImageRef] = [
        str(tmp_path / "1.png"),
        InMemory("1", png(1)),
        InMemory("2", b"<html>"),
    ]
    for workers in (0, 1):
        loader = ImageLoader(refs, HOW, make_runtime("cpu", "fp32", workers), max_megapixels=1)
        (batch,) = loader.read(chunks(3, 3))
        assert torch.equal(batch.pixels[0], batch.pixels[1])
        assert [(one.path, one.reason[:12]) for one in batch.unreadable] == [("2", "not an image")]


def test_a_subset_keeps_the_places_of_its_images(tar: Path) -> None:
    images = load_images(tar)
    some = images.subset([3, 1])
    assert list(some.refs) == [images.refs[3], images.refs[1]]
    assert some.names == ["3.png", "1.png"]
    assert list(ImageSet(Path("a"), ["b/c"]).refs) == [os.path.join("a", "b/c")]


def test_a_decode_cache_keeps_members_apart_and_drops_them_with_their_tar(
    tar: Path, tmp_path: Path
) -> None:
    cached = CachedReader(tmp_path / "cache", 10**9, 0)
    refs = load_images(tar).refs
    for _ in range(2):
        for ref in refs:
            assert cached.read(ref).tobytes() == read_image(ref).tobytes()
    assert cached.take_reads() == Reads(from_cache=4, decoded=4, added=4)
    touch(tar)
    cached.read(refs[0])
    assert cached.take_reads() == Reads(decoded=1, added=1)


def test_outdated_members_are_removed_where_room_is_short(tar: Path, tmp_path: Path) -> None:
    from lookalike.data.reading.cache import DecodeCache

    other = write_tar(tmp_path / "y.tar", {"1.png": png(3)})
    cache = DecodeCache(tmp_path / "cache", 45_000, SilentProgress(), kept_free=0)
    cache.draft_sizes.add(None)
    for ref in (*load_images(tar).refs, *load_images(other).refs):
        cache.reader.read(ref)
    assert cache.reader.take_reads().added == 5
    touch(other)
    cache.prepare()
    assert "1 outdated removed" in cache.describe()


def test_a_second_scan_reads_members_again_only_where_their_tar_changed(
    tar: Path, tmp_path: Path
) -> None:
    asked: list[ImageRef] = []

    def describe(ref: ImageRef, max_megapixels: float) -> Any:
        asked.append(ref)
        return describe_file(ref, max_megapixels)

    def scanned(refs: Sequence[ImageRef]) -> Any:
        asked.clear()
        return scan(refs, tmp_path / "scan.sqlite", max_megapixels=1, num_workers=0,
                    progress=SilentProgress(), describe=describe)  # fmt: skip

    refs = [*load_images(tar).refs, InMemory("m", png(5))]
    facts = scanned(refs)
    assert len({one.sha256 for one in facts}) == 5
    assert all(one.readable for one in facts)
    assert scanned(refs) == facts
    assert asked == []
    touch(tar)
    assert scanned(refs) == facts
    assert asked == refs[:4]
    assert scan(refs, tmp_path / "other.sqlite", max_megapixels=1, num_workers=2,
                progress=SilentProgress()) == facts  # fmt: skip


def test_a_member_on_both_sides_is_never_searched_in_itself(tmp_path: Path) -> None:
    members = {f"{name}/{copy}.png": png(label, copy)
               for label, name in enumerate("ab") for copy in range(2)}  # fmt: skip
    tar = write_tar(tmp_path / "x.tar", members)
    (tmp_path / "link.tar").symlink_to(tar)
    config = lookalike.EvaluateConfig(
        model_name="none", query=str(tar), gallery=str(tmp_path / "link.tar")
    )
    protocol = load_protocol(config, SilentProgress())
    assert protocol is not None
    assert protocol.query_ids == protocol.gallery_ids == [0, 1, 2, 3]
    assert list(map(shown_path, protocol.files)) == [f"{tar}/{name}" for name in members]


def test_thumbnails_are_made_of_any_reference(tar: Path) -> None:
    thumbnails = Thumbnails()
    refs = [*load_images(tar).refs, InMemory("m", png(5)), InMemory("n", b"no")]
    thumbnails.add(refs)
    assert list(thumbnails.number_of) == refs[:-1]
    assert len(set(thumbnails.uris)) == 5


def test_a_kind_that_is_added_is_asked_before_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "tree", {"a": 1})
    ours = load_images(root)
    theirs = ImageSet(root, ["x"])
    monkeypatch.setitem(SOURCES, "mine", Source(os.path.isdir, lambda source, progress: theirs))
    assert load_images(root) == theirs != ours
