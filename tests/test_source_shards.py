"""Tar shards, Parquet and saved datasets: what is read of them, and what is said of broken ones."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from helpers.photos import draw
from helpers.runs import Watch
from helpers.sources import as_dataset, write_images, write_tar
from pyarrow import parquet

from lookalike.config import TrainConfig
from lookalike.data.images import Cell, ImageRef, Span, shown_path
from lookalike.data.reading import content as reading
from lookalike.data.reading.content import read_content
from lookalike.data.reading.decode import keep_readable, read_image
from lookalike.data.sources import load_images
from lookalike.errors import DataError, ImageError, MissingExtraError
from lookalike.evaluation.protocol import load_protocol
from lookalike.progress import SilentProgress


def png(label: int = 0, copy: int = 0) -> bytes:
    file = io.BytesIO()
    draw(label, copy).save(file, "PNG")
    return file.getvalue()


def webdataset(count: int, first: int = 0) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        members[f"{number:06}.cls"] = str(number % 3).encode()
        members[f"{number:06}.png"] = png(number % 3, number)
    return members


# Tar


def test_samples_have_the_label_of_their_cls_or_json(tmp_path: Path) -> None:
    members = {
        "a/1.jpg": png(1), "a/1.cls": b" cup\n", "a/1.json": b'{"label": "no", "split": "train"}',
        "a/2.json": b'{"class": 7, "split": "test", "group": "g", "is_query": true}',
        "a/2.jpg": png(2),
        "3.v2.JSON": b"[]", "3.cls": b"pot", "3.JPG": png(3), "3.json": b'{"split": "test"}',
    }  # fmt: skip
    images = load_images(write_tar(tmp_path / "x.tar", members))
    assert images.names == ["a/1.jpg", "a/2.jpg", "3.JPG"]
    assert images.labels == ["cup", "7", "pot"]
    assert images.splits == ["train", "test", "test"]
    assert images.groups == ["", "g", ""]
    assert images.is_query == [False, True, False]
    for ref, copy in zip(images.refs, (1, 2, 3), strict=True):
        assert read_content(ref) == png(copy)
        assert shown_path(ref) == f"{tmp_path / 'x.tar'}/{images.names[copy - 1]}"
    assert images.paths == [shown_path(ref) for ref in images.refs]


def test_of_a_labelled_sample_all_but_the_image_is_skipped_and_told(
    tmp_path: Path,
) -> None:
    members = {"1.jpg": png(), "1.seg.png": png(), "1.npy": b"n", "1.txt": b"t", "1.cls": b"a"}
    watch = Watch()
    assert load_images(write_tar(tmp_path / "x.tar", members), watch).names == ["1.jpg"]
    assert "skipped 2 members" in watch.warnings[0]
    assert watch.warnings[0].endswith("1.seg.png, 1.npy")
    without = {name: content for name, content in members.items() if name != "1.cls"}
    images = load_images(write_tar(tmp_path / "y.tar", without))
    assert images.names == ["1.jpg", "1.seg.png", "1.npy"]  # as in a folder


def test_a_tar_of_class_folders_is_as_those_folders(tmp_path: Path) -> None:
    members = {"./cup/deep/IMG.1.png": png(), "./cup/IMG.2.png": png(), "cup/.DS_Store": b"x",
               "pot/raw": png(), "pot/notes.txt": b"x", "LICENSE": b"x"}  # fmt: skip
    watch = Watch()
    images = load_images(write_tar(tmp_path / "x.tar", members), watch)
    assert images.names == ["cup/deep/IMG.1.png", "cup/IMG.2.png", "pot/raw", "pot/notes.txt"]
    assert images.labels == ["cup", "cup", "pot", "pot"]
    assert "LICENSE" in watch.warnings[0]
    _, bad = keep_readable(images)
    assert [(one.path, one.reason) for one in bad] == [
        (f"{tmp_path / 'x.tar'}/pot/notes.txt", "not an image, or one too damaged to be recognised")
    ]
    with pytest.raises(DataError, match="beside them"):
        load_images(write_tar(tmp_path / "y.tar", {**members, "loose.png": png()}))
    assert load_images(write_tar(tmp_path / "z.tar", {"1.png": png()})).labels is None


@pytest.mark.parametrize("by", ["shards-{0000..0002}.tar", "folder"])
def test_shards_are_read_in_order_and_names_say_which(tmp_path: Path, by: str) -> None:
    for number in range(3):
        write_tar(tmp_path / f"shards-{number:04}.tar", webdataset(2, 0))
    (tmp_path / "shards.json").write_text("{}")
    images = load_images(tmp_path if by == "folder" else tmp_path / by)
    assert images.names == [f"shards-{shard:04}.tar/{number:06}.png"
                            for shard in range(3) for number in range(2)]  # fmt: skip
    assert images.labels == ["0", "1"] * 3
    assert images.paths == [shown_path(ref) for ref in images.refs]


def test_ranges_are_those_of_a_shell(tmp_path: Path) -> None:
    for folder in ("a1", "a2"):
        for number in (9, 10):
            write_tar(tmp_path / folder / f"{number}.tar", webdataset(1))
    images = load_images(tmp_path / "a{1..2}" / "{9..10}.tar")
    assert images.names == [f"{name}.tar/000000.png" for name in ("a1/9", "a1/10", "a2/9", "a2/10")]
    literal = write_tar(tmp_path / "x{1..2}.tar", webdataset(1))
    assert load_images(literal).names == ["000000.png"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    for number in (0, 2):
        write_tar(tmp_path / f"s-{number:02}.tar", webdataset(1))
    with pytest.raises(DataError, match=r"2 of the 4 files .* do not exist: .*s-01.tar, .*s-03"):
        load_images(tmp_path / "s-{00..03}.tar")
    with pytest.raises(DataError, match="first number is above the last"):
        load_images(tmp_path / "s-{03..00}.tar")


@pytest.mark.parametrize("method", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_compressed_tar_is_refused_with_what_to_do(
    tmp_path: Path, method: str, ending: str
) -> None:
    path = write_tar(tmp_path / f"x.{ending}", webdataset(2), f"w:{method}")
    with pytest.raises(DataError, match=r"is compressed, .*; uncompress it"):
        load_images(path)


def cut_in_a_member(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_behind_a_member(content: bytes) -> bytes:
    return content[: content.index(b"000001.cls")]


def cut_in_a_header(content: bytes) -> bytes:
    second = content.index(b"000001.cls")
    return content[: second + 100]


def header_overwritten(content: bytes) -> bytes:
    second = content.index(b"000001.cls")
    return content[:second] + b"\x07" * 512 + content[second + 512 :]


@pytest.mark.parametrize(
    "damage",
    [
        cut_in_a_member,
        cut_behind_a_member,
        cut_in_a_header,
        header_overwritten,
        lambda _: b"",
        lambda _: b"no",
    ],
)
def test_a_damaged_tar_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_tar(tmp_path / "x.tar", webdataset(3))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"x\.tar: .*; it is damaged or cut short"):
        load_images(path)


def test_a_tar_that_was_cut_after_it_was_listed_loses_one_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", webdataset(3))
    refs = load_images(path).refs
    last = refs[2]
    assert isinstance(last, Span)
    path.write_bytes(path.read_bytes()[: last.offset + 10])
    assert read_image(refs[1]).size == (40, 36)
    with pytest.raises(ImageError, match=f"cut short: 10 of {last.size:,} bytes"):
        read_image(last)
    path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        read_image(last)


def test_names_and_notes_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    twice = write_tar(tmp_path / "twice.tar", {"a/1.png": png()})
    write_tar(twice, {"a/1.png": png()}, "a")
    with pytest.raises(DataError, match=r"names a/1.png twice, again in image 2"):
        load_images(twice)
    with pytest.raises(DataError, match=r"x\.tar/1\.json is not valid json"):
        load_images(write_tar(tmp_path / "x.tar", {"1.png": png(), "1.json": b"{"}))
    with pytest.raises(DataError, match=r"image 2 of .*y\.tar has nothing in column 'label'"):
        load_images(write_tar(tmp_path / "y.tar", {"1.png": b"", "1.cls": b"a", "2.png": b""}))
    with pytest.raises(DataError, match="has no images"):
        load_images(write_tar(tmp_path / "z.tar", {}))


def test_links_and_hidden_folders_in_a_tar_are_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a/1.png": png(), ".cache/a/2.png": png()})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("a/3.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a/1.png"
        tar.addfile(link)
    watch = Watch()
    assert load_images(path, watch).names == ["a/1.png"]
    assert "skipped 2 members" in watch.warnings[0]


def test_headers_of_large_members_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = png() + b"\0" * 300_000  # what follows a PNG's end is skipped
    images = load_images(write_tar(tmp_path / "x.tar", {"a/1.png": behind}))
    lengths: list[int] = []

    def watched(ref: ImageRef, most: int | None = None) -> bytes:
        lengths.append(len(read_content(ref, most)))
        return read_content(ref, most)

    monkeypatch.setattr("lookalike.data.reading.decode.read_content", watched)
    assert keep_readable(images) == (images, [])
    assert max(lengths) <= 65536


# Parquet


def test_numbers_of_classes_have_the_names_that_the_file_says(tmp_path: Path) -> None:
    names = write_images(tmp_path / "tree", 2)
    as_dataset(tmp_path / "tree", names).to_parquet(tmp_path / "x.parquet")
    images = load_images(tmp_path / "x.parquet")
    assert images.names == names
    assert images.labels == [name.partition("/")[0] for name in names]
    plain = pa.table({"image": [png(1), png(2)], "label": [4, 5], "path": ["b.png", "a.png"],
                      "split": ["train", "test"]})  # fmt: skip
    parquet.write_table(plain, tmp_path / "plain.parquet")
    images = load_images(tmp_path / "plain.parquet")
    assert (images.names, images.labels) == (["b.png", "a.png"], ["4", "5"])
    assert images.splits == ["train", "test"]
    assert [read_content(ref) for ref in images.refs] == [png(1), png(2)]


@pytest.mark.parametrize("saved", [False, True])
def test_each_part_has_names_of_classes_of_its_own(tmp_path: Path, saved: bool) -> None:
    names = write_images(tmp_path / "tree", 2)
    classes = sorted({name.partition("/")[0] for name in names})
    parts = {"train": as_dataset(tmp_path / "tree", names, (*classes,)),
             "test": as_dataset(tmp_path / "tree", names, (*reversed(classes),))}  # fmt: skip
    (tmp_path / "x").mkdir()
    if saved:
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "x")
    else:
        for split, part in parts.items():
            part.to_parquet(tmp_path / f"x/{split}-00000-of-00001.parquet")
    images = load_images(tmp_path / "x")
    assert images.labels == [name.partition("/")[0] for name in names] * 2


def test_files_named_by_split_are_splits_unless_only_one_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(2):
            table = pa.table({"image": [png(number)], "label": ["a"]})
            parquet.write_table(table, tmp_path / f"{split}-{number:05}-of-00002.parquet")
    images = load_images(tmp_path)
    assert images.names[0] == "test-00000-of-00002.parquet/000000"
    assert images.splits == ["test", "test", "train", "train"]
    assert load_images(tmp_path / "test-{00000..00001}-of-00002.parquet").splits is None
    config = TrainConfig(train=str(tmp_path))
    protocol = load_protocol(config, SilentProgress())  # its own test rows are the test
    assert protocol is not None
    assert len(protocol.query) == 2


def test_parquet_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"img": ["a.png"], "label": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(
        DataError, match=r"x.parquet has no column 'image' of bytes.*; its columns are img \(str"
    ):
        load_images(tmp_path)
    parquet.write_table(pa.table({"image": [png()]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"x\.parquet has no column"):
        load_images(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"cannot read .*x\.parquet"):
        load_images(tmp_path)
    parquet.write_table(pa.table({"image": [png()], "label": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="the same columns"):
        load_images(tmp_path)


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Twelve images in row groups of three, with nothing decoded yet."""
    monkeypatch.setattr(reading, "_row_groups", reading._RowGroups())
    table = pa.table({"image": [png(0, copy) for copy in range(12)]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    refs = load_images(tmp_path / "x.parquet").refs
    assert all(isinstance(ref, Cell) for ref in refs)
    return [ref for ref in refs if isinstance(ref, Cell)]


def test_a_row_group_is_decoded_once_and_few_are_kept(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = parquet.ParquetFile.read_row_group

    def watched(self: Any, group: int, **named: Any) -> Any:
        asked.append(group)
        return read(self, group, **named)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", watched)
    for _ in range(2):
        for copy, cell in enumerate(cells):
            assert read_content(cell) == png(0, copy)
    assert asked == [0, 1, 2, 3]
    size = reading._row_groups.column(cells[0]).nbytes
    monkeypatch.setattr(reading, "KEPT_BYTES", 2.5 * size)
    monkeypatch.setattr(reading, "_row_groups", reading._RowGroups())
    asked.clear()
    for group in (0, 1, 0, 2, 0, 1, 3, 3):
        read_content(cells[3 * group])
    assert asked == [0, 1, 2, 1, 3]  # the one that was used longest ago goes first
    assert len(reading._row_groups._kept) == 2


def test_a_parquet_file_that_changes_is_read_anew(cells: list[Cell]) -> None:
    assert read_content(cells[0]) == png(0, 0)
    parquet.write_table(pa.table({"image": [png(1, 1), None]}), cells[0].path)
    assert read_content(cells[0]) == png(1, 1)
    for cell, reason in ((cells[1], "no bytes"), (cells[2], "now has 2 rows"), (cells[5], "group")):
        with pytest.raises(ImageError, match=reason):
            read_content(cell)


# Saved datasets


def test_splits_of_a_saved_dataset_are_splits(tmp_path: Path) -> None:
    names = write_images(tmp_path / "tree", 2)
    whole = as_dataset(tmp_path / "tree", names)
    both = datasets.DatasetDict(
        {"train": whole.select(range(8)), "test": whole.select(range(8, 12))}
    )
    both.save_to_disk(tmp_path / "saved")
    images = load_images(tmp_path / "saved")
    assert images.splits == ["train"] * 8 + ["test"] * 4
    assert [name.partition("/")[0] for name in images.names] == images.splits
    for ref, name in zip(images.refs, names, strict=True):
        assert isinstance(ref, Span)
        assert read_content(ref) == (tmp_path / "tree" / name).read_bytes()
    assert load_images(tmp_path / "saved" / "test").splits is None


def test_a_saved_dataset_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(DataError, match="has no column 'image'"):
        load_images(tmp_path / "texts")
    names = write_images(tmp_path / "tree", 1)
    as_dataset(tmp_path / "tree", names).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:1500])
    with pytest.raises(DataError, match="cannot read the dataset"):
        load_images(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lookalike\[parquet\]'"):
        load_images(tmp_path / "saved")


def test_reading_a_saved_dataset_or_a_tar_takes_no_library(tmp_path: Path) -> None:
    names = write_images(tmp_path / "tree", 1)
    as_dataset(tmp_path / "tree", names).save_to_disk(tmp_path / "saved")
    ref = load_images(tmp_path / "saved").refs[0]
    script = (
        "import sys; from lookalike.data.images import Span\n"
        "from lookalike.data.reading.decode import read_image\n"
        f"print(read_image({ref!r}).size, 'datasets' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "(40, 36) False False", done.stderr
