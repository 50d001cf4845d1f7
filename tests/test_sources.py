"""What is found in folders and tables, against lists written by hand."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lookalike.data.images import ImageSet, Unreadable, list_unreadable
from lookalike.data.reading.decode import keep_readable
from lookalike.data.sources import load_images
from lookalike.errors import DataError, MissingExtraError
from lookalike.progress import SilentProgress, Task

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs links or such file names")
any_bytes_in_names = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems refuse names that are no UTF-8"
)


class Recording(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.tasks: list[tuple[str, int, str]] = []
        self.advanced = 0

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Task]:
        self.tasks.append((title, total, unit))
        recording = self

        class _Task:
            def advance(self, amount: int = 1, **stats: float) -> None:
                recording.advanced += amount

        yield _Task()


def put(root: Path, *names: str) -> Path:
    """Writes a small image at each name below a folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "red").save(path, "PNG")
    return root


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def said(source: Path) -> str:
    """The error of a source that cannot be used, which must be one line."""
    with pytest.raises(DataError) as caught:
        load_images(source)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Folders


def test_a_tree_gives_each_image_the_name_of_its_folder(tmp_path: Path) -> None:
    put(tmp_path, "cat/b.png", "cat/a.png", "dog/a.png")
    images = load_images(tmp_path)
    assert images.names == ["cat/a.png", "cat/b.png", "dog/a.png"]
    assert images.labels == ["cat", "cat", "dog"]
    assert images.paths == [os.path.join(tmp_path, name) for name in images.names]
    assert all(Path(path).is_file() for path in images.paths)
    assert (images.groups, images.splits, images.is_query) == (None, None, None)
    assert len(images) == 3


def test_in_a_deeper_tree_the_first_folder_is_the_label(tmp_path: Path) -> None:
    put(tmp_path, "cat/2024/may/a.png", "cat/b.png", "dog/2024/a.png")
    images = load_images(tmp_path)
    assert images.names == ["cat/2024/may/a.png", "cat/b.png", "dog/2024/a.png"]
    assert images.labels == ["cat", "cat", "dog"]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.png")
    images = load_images(str(tmp_path))
    assert (images.names, images.labels) == (["a.png", "b.png"], None)


def test_every_file_counts_until_it_is_read(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "no_extension").touch()
    assert load_images(tmp_path).names == ["cat/a.png", "cat/no_extension", "cat/notes.txt"]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_does_not_depend_on_that_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    put(tmp_path, *[f"{folder}/{file}.png" for folder in "bac" for file in ("9", "10", "A")])
    list_folder = os.scandir

    def shuffled(path: str) -> list[os.DirEntry[str]]:
        entries = list(list_folder(path))
        random.Random(seed).shuffle(entries)
        return entries

    monkeypatch.setattr(os, "scandir", shuffled)
    names = [f"{folder}/{file}.png" for folder in "abc" for file in ("10", "9", "A")]
    assert load_images(tmp_path).names == names


def test_odd_names_are_kept_to_the_letter(tmp_path: Path) -> None:
    names = [
        "  two spaces/  leading.png",
        "[brackets]/[a-z]{1}.png",
        "apfel, birne/semi;colon.png",
        "caf\u00e9/nfc.png",
        "cafe\u0301/nfd.png",
        "100%_#hash/-dash.png",
        "\u65e5\u672c\u8a9e/\U0001f34e.png",
    ]
    images = load_images(put(tmp_path, *names))
    assert sorted(images.names) == sorted(names)
    assert set(images.labels or ()) == {
        "two spaces", "[brackets]", "apfel, birne", "caf\u00e9", "100%_#hash", "\u65e5\u672c\u8a9e",
    }  # fmt: skip
    kept, bad = keep_readable(images)
    assert (len(kept), bad) == (7, [])


@posix_only
def test_names_with_line_breaks_and_quotes_are_kept_to_the_letter(tmp_path: Path) -> None:
    names = ["new\nline/a\tb\n.png", "quo\"te's/back\\slash.png", "wild*?/<|>:.png"]
    images = load_images(put(tmp_path, *names))
    assert sorted(images.names) == sorted(names)
    assert len(keep_readable(images)[0]) == 3


@any_bytes_in_names
def test_names_that_are_no_utf8_are_kept_to_the_byte(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff\xfe.png", "wb") as file:
        Image.new("RGB", (2, 2)).save(file, "PNG")
    images = load_images(tmp_path)
    assert [os.fsencode(name) for name in images.names] == [b"caf\xe9/\xff\xfe.png"]
    kept, bad = keep_readable(images)
    assert (len(kept), bad) == (1, [])
    assert len(images.fingerprint()) == 16


def test_hidden_folders_are_skipped_and_said_so(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png", ".thumbnails/a.png", "cat/.cache/b.png")
    progress = Recording()
    assert load_images(tmp_path, progress).names == ["cat/a.png"]
    (warning,) = progress.warnings
    assert ".thumbnails" in warning
    assert "cat/.cache" in warning
    assert "hidden" in warning


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "owl" / "2024").mkdir(parents=True)
    progress = Recording()
    assert load_images(tmp_path, progress).labels == ["cat"]
    (warning,) = progress.warnings
    assert "dog" in warning
    assert "owl/2024" in warning
    assert "cat" not in warning.replace(str(tmp_path), "")


def test_a_tree_in_order_gives_no_warning(tmp_path: Path) -> None:
    progress = Recording()
    load_images(put(tmp_path, "cat/a.png", "dog/deep/a.png"), progress)
    assert progress.warnings == []


def test_a_long_list_of_folders_is_cut_short(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png")
    for number in range(9):
        (tmp_path / f"empty{number}").mkdir()
    progress = Recording()
    load_images(tmp_path, progress)
    (warning,) = progress.warnings
    assert "empty0, empty1, empty2 and 6 more" in warning


def test_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png", "loose.png", "stray.jpg")
    message = said(tmp_path)
    assert "2 images" in message
    assert "loose.png, stray.jpg" in message
    assert "move" in message


def test_other_files_beside_class_folders_are_skipped_and_said_so(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png")
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    progress = Recording()
    assert load_images(tmp_path, progress).names == ["cat/a.png"]
    (warning,) = progress.warnings
    assert warning.endswith(": LICENSE")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    assert "no files" in said(tmp_path)
    (tmp_path / "cat").mkdir()
    assert "no files" in said(tmp_path)


def test_a_missing_folder_is_an_error_that_names_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    message = said(tmp_path / "galery")
    assert "galery does not exist" in message
    assert f"did you mean {tmp_path / 'gallery'}?" in message


@pytest.mark.parametrize("missing", ["wholly-other", "no/such/gallery"])
def test_a_missing_folder_with_nothing_near_is_an_error(tmp_path: Path, missing: str) -> None:
    (tmp_path / "gallery").mkdir()
    message = said(tmp_path / missing)
    assert "does not exist" in message
    assert "did you mean" not in message


@pytest.mark.parametrize("target", ["gone", "link"])
def test_a_link_to_nothing_is_told_as_one(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    assert f"link is a link to {target}, where nothing is" in said(tmp_path / "link")


def test_one_image_is_no_source(tmp_path: Path) -> None:
    message = said(put(tmp_path, "a.png") / "a.png")
    assert "neither a folder nor a table" in message
    for ending in (".csv", ".tsv", ".parquet"):
        assert ending in message


# Links


@posix_only
def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "store", "a.png")
    put(tmp_path / "tree", "dog/b.png")
    (tmp_path / "tree" / "cat").symlink_to(tmp_path / "store")
    images = load_images(tmp_path / "tree")
    assert (images.names, images.labels) == (["cat/a.png", "dog/b.png"], ["cat", "dog"])


@posix_only
def test_links_in_a_circle_end(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png", "cat/deep/b.png", "dog/c.png")
    (tmp_path / "cat" / "deep" / "up").symlink_to(tmp_path / "cat")
    (tmp_path / "dog" / "root").symlink_to("..")
    (tmp_path / "dog" / "self").symlink_to(".")
    assert load_images(tmp_path).names == ["cat/a.png", "cat/deep/b.png", "dog/c.png"]


@posix_only
def test_a_link_to_itself_is_told_of_like_a_broken_one(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png")
    (tmp_path / "cat" / "loop").symlink_to("loop")
    images = load_images(tmp_path)
    assert images.names == ["cat/a.png", "cat/loop"]
    kept, bad = keep_readable(images)
    assert kept.names == ["cat/a.png"]
    assert [one.path for one in bad] == [os.path.join(tmp_path, "cat/loop")]


@posix_only
def test_a_broken_link_is_named_when_it_is_read(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png")
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    images = load_images(tmp_path)
    assert images.names == ["cat/a.png", "cat/gone.png"]
    kept, bad = keep_readable(images)
    assert kept.names == ["cat/a.png"]
    assert bad == [Unreadable(os.path.join(tmp_path, "cat/gone.png"), "No such file or directory")]


@posix_only
def test_what_is_neither_file_nor_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "cat/a.png")
    os.mkfifo(tmp_path / "cat" / "pipe")
    monkeypatch.chdir(tmp_path / "cat")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    (tmp_path / "cat" / "device").symlink_to("/dev/zero")
    images = load_images(tmp_path)
    assert images.names == ["cat/a.png", "cat/device", "cat/pipe", "cat/socket"]
    kept, bad = keep_readable(images)
    assert kept.names == ["cat/a.png"]
    assert [Path(one.path).name for one in bad] == ["device", "pipe", "socket"]
    assert {one.reason for one in bad} == {"not a regular file (a pipe, socket, device or folder)"}


# Tables

FULL = [
    ("path", "label", "split", "is_query", "group"),
    ("cat/a.png", "cat", "train", "true", "monday"),
    ("dog/b.png", "dog", "test", "false", ""),
    ("dog/c.png", "dog", "test", "", "tuesday"),
]


@pytest.mark.parametrize(("name", "between"), [("list.csv", ","), ("list.TSV", "\t")])
def test_a_table_gives_all_columns(tmp_path: Path, name: str, between: str) -> None:
    text = "\n".join(between.join(row) for row in FULL) + "\n"
    assert load_images(table(tmp_path, text, name)) == ImageSet(
        root=tmp_path,
        names=["cat/a.png", "dog/b.png", "dog/c.png"],
        labels=["cat", "dog", "dog"],
        groups=["monday", "", "tuesday"],
        splits=["train", "test", "test"],
        is_query=[True, False, False],
    )


def test_a_parquet_table_gives_all_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "path": ["cat/a.png", "dog/b.png"],
        "label": [7, 2**53 + 1],
        "split": ["train", "test"],
        "is_query": [True, None],
        "group": ["monday", None],
        "price": [1.5, None],
    }
    path = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    assert load_images(path) == ImageSet(
        root=tmp_path,
        names=["cat/a.png", "dog/b.png"],
        labels=["7", "9007199254740993"],
        groups=["monday", ""],
        splits=["train", "test"],
        is_query=[True, False],
    )


def test_a_table_of_paths_alone_says_nothing_else(tmp_path: Path) -> None:
    images = load_images(table(tmp_path, "path\nb.png\na.png\n"))
    assert images == ImageSet(tmp_path, ["b.png", "a.png"])  # in the table's order


def test_paths_may_be_relative_to_the_table_or_absolute(tmp_path: Path) -> None:
    put(tmp_path / "here", "a.png")
    put(tmp_path / "there", "b.png")
    absolute = tmp_path / "there" / "b.png"
    for there in (absolute, "../there/b.png"):
        images = load_images(table(tmp_path / "here", f"path\na.png\n{there}\n"))
        assert [Path(path).resolve() for path in images.paths] == [
            (tmp_path / "here" / "a.png").resolve(),
            absolute.resolve(),
        ]
        assert keep_readable(images)[1] == []


def test_the_path_of_a_table_may_be_relative_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.png")
    table(tmp_path, "path\na.png\n")
    monkeypatch.chdir(tmp_path)
    assert keep_readable(load_images("list.csv"))[1] == []


def test_spaces_belong_to_paths_but_not_to_labels(tmp_path: Path) -> None:
    images = load_images(table(tmp_path, "path,label,split\n  a.png, cat , test\n"))
    assert (images.names, images.labels, images.splits) == (["  a.png"], ["cat"], ["test"])


def test_quoted_cells_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    images = load_images(table(tmp_path, 'label,path\ncat,"a,b""c\n\rd.png"\n'))
    assert (images.names, images.labels) == (['a,b"c\n\rd.png'], ["cat"])


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    images = load_images(table(tmp_path, "\ufeffpath,label\r\ncaf\u00e9.png,1\r\n\r\n"))
    assert (images.names, images.labels) == (["caf\u00e9.png"], ["1"])


@any_bytes_in_names
def test_a_table_may_name_files_that_are_no_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        Image.new("RGB", (2, 2)).save(file, "PNG")
    images = load_images(table(tmp_path, "path\ncaf\udce9.png\n"))
    assert keep_readable(images)[1] == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [("1", True), ("0", False), ("TRUE", True), ("No", False), (" yes ", True), ("", False)],
)
def test_is_query_takes_the_usual_words(tmp_path: Path, word: str, expected: bool) -> None:
    images = load_images(table(tmp_path, f"path,is_query\na.png,{word}\n"))
    assert images.is_query == [expected]


def test_is_query_takes_no_other_word(tmp_path: Path) -> None:
    message = said(table(tmp_path, "path,is_query\na.png,true\nb.png,maybe\n"))
    for part in ("row 2", "'maybe'", "true or false"):
        assert part in message


@pytest.mark.parametrize(
    ("header", "hint"), [("Pathe,label", "'Pathe'"), ("file_path,label", "'file_path'")]
)
def test_a_table_without_paths_names_its_columns_and_a_near_one(
    tmp_path: Path, header: str, hint: str
) -> None:
    message = said(table(tmp_path, f"{header}\na.png,cat\n"))
    assert "no column 'path'" in message
    assert f"is {hint} meant?" in message
    assert "path, label, split, is_query, group" in message


def test_a_table_without_paths_or_anything_near_names_its_columns(tmp_path: Path) -> None:
    message = said(table(tmp_path, "url,score\nx,1\n"))
    assert "no column 'path'; its columns are url, score" in message
    assert "meant" not in message


@pytest.mark.parametrize("text", ["path\n", "path,label\n\n\n"])
def test_a_table_without_rows_is_an_error(tmp_path: Path, text: str) -> None:
    assert "no rows" in said(table(tmp_path, text))


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_table_without_a_header_is_said_to_be_empty(tmp_path: Path, text: str) -> None:
    assert "empty" in said(table(tmp_path, text))


def test_a_path_listed_twice_is_an_error(tmp_path: Path) -> None:
    message = said(table(tmp_path, "path\na.png\nb.png\na.png\n"))
    for part in ("a.png twice", "row 3"):
        assert part in message


@pytest.mark.parametrize("again", ["./a.png", "x//a.png", "x/./a.png", ".//x/a.png"])
def test_a_path_listed_twice_is_an_error_however_it_is_written(tmp_path: Path, again: str) -> None:
    message = said(table(tmp_path, f"path\na.png\nx/a.png\n{again}\n"))
    assert "a.png twice, again in row 3" in message


@posix_only
def test_names_in_a_table_keep_their_meaning(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    put(tmp_path, "elsewhere/up.png", "lists/up.png")
    (tmp_path / "lists" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    images = load_images(table(tmp_path / "lists", "path\nlink/../up.png\nup.png\n../x.jpg\n"))
    assert images.names == ["link/../up.png", "up.png", "../x.jpg"]
    assert os.path.samefile(images.paths[0], tmp_path / "elsewhere" / "up.png")


@pytest.mark.parametrize("row", ["a.png,cat,more", "a.png"])
def test_a_row_with_a_different_number_of_cells_is_an_error(tmp_path: Path, row: str) -> None:
    message = said(table(tmp_path, f"path,label\nb.png,dog\n{row}\n"))
    for part in ("row 2", "different number of cells from the header (2)", "quote"):
        assert part in message


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("path,label\na.png,cat\n ,dog\n", "path"),
        ("path,label\na.png,cat\nb.png, \n", "label"),
        ("path,split\na.png,test\nb.png,\n", "split"),
    ],
)
def test_a_cell_that_must_be_filled_is_an_error_when_empty(
    tmp_path: Path, text: str, column: str
) -> None:
    message = said(table(tmp_path, text))
    for part in ("row 2", f"column '{column}'"):
        assert part in message


def test_an_open_quote_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    assert "row 1 of" in said(table(tmp_path, 'path,label\n"a.png,cat\n'))


def test_a_damaged_parquet_table_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    assert "cannot read the table" in said(table(tmp_path, "PAR1 and junk", "list.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lookalike\[parquet\]'"):
        load_images(table(tmp_path, "", "list.parquet"))


# Parts of a set


@pytest.fixture
def full(tmp_path: Path) -> ImageSet:
    return load_images(table(tmp_path, "\n".join(",".join(row) for row in FULL) + "\n"))


def test_a_split_takes_its_rows_of_every_column(full: ImageSet) -> None:
    test = full.of_split("test")
    assert test.names == ["dog/b.png", "dog/c.png"]
    assert (test.labels, test.groups) == (["dog", "dog"], ["", "tuesday"])
    assert (test.splits, test.is_query) == (["test", "test"], [False, False])
    assert test.root == full.root
    assert full.of_split("train", "test") == full


def test_a_split_without_rows_is_an_error_that_names_those_there_are(full: ImageSet) -> None:
    with pytest.raises(DataError, match=r"split 'val' or 'dev'; there are 'test', 'train'"):
        full.of_split("val", "dev")


def test_a_source_without_splits_is_all_of_every_split(tmp_path: Path) -> None:
    images = load_images(put(tmp_path, "cat/a.png"))
    assert images.of_split("test") == images


def test_a_subset_keeps_the_order_asked_for(full: ImageSet) -> None:
    part = full.subset(iter([2, 0]))
    assert part.names == ["dog/c.png", "cat/a.png"]
    assert part.labels == ["dog", "cat"]
    assert part.groups == ["tuesday", "monday"]
    assert part.splits == ["test", "train"]
    assert part.is_query == [False, True]


# The fingerprint


def test_the_same_list_elsewhere_has_the_same_fingerprint(tmp_path: Path) -> None:
    names = ["cat/a.png", "dog/b.png"]
    here = load_images(put(tmp_path / "here", *names))
    there = load_images(put(tmp_path / "there", *names))
    assert here.root != there.root
    assert here.fingerprint() == there.fingerprint()


def test_every_change_of_name_label_group_order_or_number_changes_the_fingerprint() -> None:
    root = Path("root")
    sets = [
        ImageSet(root, ["a", "b"]),
        ImageSet(root, ["a", "c"]),
        ImageSet(root, ["b", "a"]),
        ImageSet(root, ["a"]),
        ImageSet(root, ["ab"]),
        ImageSet(root, ["a", "b"], labels=["x", "x"]),
        ImageSet(root, ["a", "b"], labels=["x", "y"]),
        ImageSet(root, ["a", "b"], labels=["y", "x"]),
        ImageSet(root, ["a", "b"], labels=["x", "x"], groups=["g", ""]),
        ImageSet(root, ["a", "b"], labels=["x", "x"], groups=["", "g"]),
        ImageSet(root, ["a", "b"], groups=["x", "x"]),
        ImageSet(root, ["a\nb"]),
        ImageSet(root, ["a\udce9"]),
    ]
    assert len({one.fingerprint() for one in sets}) == len(sets)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(*[st.text("ab\n", max_size=3)] * 3), max_size=4),
    st.lists(st.tuples(*[st.text("ab\n", max_size=3)] * 3), max_size=4),
)
@example([("x", "", "g"), ("\ny", "", "")], [("x", "", "g\n"), ("y", "", "")])
def test_two_lists_share_a_fingerprint_only_if_they_are_equal(
    one: list[tuple[str, str, str]], other: list[tuple[str, str, str]]
) -> None:
    def fingerprint(rows: list[tuple[str, str, str]]) -> str:
        names, labels, groups = ([row[column] for row in rows] for column in range(3))
        return ImageSet(Path(), names, labels, groups).fingerprint()

    assert (fingerprint(one) == fingerprint(other)) == (one == other)


# What can be read


def test_files_that_are_no_images_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png", "cat/c.png", "dog/e.png")
    (tmp_path / "cat" / "b.jpg").touch()
    (tmp_path / "dog" / "d.jpg").write_text("<html>not found</html>")
    progress = Recording()
    kept, bad = keep_readable(load_images(tmp_path), progress=progress)
    assert kept.names == ["cat/a.png", "cat/c.png", "dog/e.png"]
    assert kept.labels == ["cat", "cat", "dog"]
    assert [os.path.relpath(one.path, tmp_path) for one in bad] == [
        os.path.join("cat", "b.jpg"),
        os.path.join("dog", "d.jpg"),
    ]
    assert bad[0].reason == "empty file (0 bytes)"
    assert "HTML" in bad[1].reason
    assert [task[1:] for task in progress.tasks] == [(5, "files")]
    assert progress.advanced == 5


def test_where_all_can_be_read_all_are_kept(tmp_path: Path) -> None:
    images = load_images(put(tmp_path, "cat/a.png", "dog/b.png"))
    assert keep_readable(images) == (images, [])


def test_every_column_follows_what_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "dog/b.png")
    text = "\n".join(",".join(row) for row in FULL) + "\n"
    kept, bad = keep_readable(load_images(table(tmp_path, text)))
    assert len(bad) == 2
    assert kept == ImageSet(tmp_path, ["dog/b.png"], ["dog"], [""], ["test"], [False])


def test_an_image_above_the_size_limit_is_named(tmp_path: Path) -> None:
    put(tmp_path, "cat/small.png")
    Image.new("L", (100, 100)).save(tmp_path / "cat" / "large.png")
    kept, bad = keep_readable(load_images(tmp_path), max_megapixels=0.005)
    assert kept.names == ["cat/small.png"]
    assert "above the limit of 0.005" in bad[0].reason


def test_reasons_stay_with_their_files_however_the_threads_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookalike.data.reading import decode
    from lookalike.errors import ImageError

    def slow_for_the_first(path: str, _max_megapixels: float) -> None:
        number = int(Path(path).stem)
        time.sleep(0.02 if number < 4 else 0)
        if number % 3:
            raise ImageError(path, f"reason {number}")

    monkeypatch.setattr(decode, "probe_image", slow_for_the_first)
    images = ImageSet(tmp_path, [f"{number}.png" for number in range(40)])
    kept, bad = keep_readable(images)
    assert kept.names == [f"{number}.png" for number in range(0, 40, 3)]
    wanted = [number for number in range(40) if number % 3]
    assert [(Path(one.path).stem, one.reason) for one in bad] == [
        (str(number), f"reason {number}") for number in wanted
    ]


def test_if_no_file_can_be_read_it_is_an_error_with_count_and_reasons(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(DataError) as caught:
        keep_readable(load_images(tmp_path))
    message = str(caught.value)
    assert "none of the 5 files" in message
    assert "0.jpg: empty file (0 bytes)" in message
    assert "and 2 more" in message
    assert len(message.splitlines()) == 1


def test_a_list_of_bad_files_is_one_line_whatever_their_names() -> None:
    bad = [Unreadable("far/away/new\nline\udce9.jpg", "truncated")]
    assert list_unreadable(bad) == "far/away/new\\nline\\udce9.jpg: truncated"
    assert list_unreadable(bad * 3, most=1) == (
        "far/away/new\\nline\\udce9.jpg: truncated; and 2 more"
    )


def test_a_table_with_semicolons_is_read_as_spreadsheets_write_it(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path;label\na,b.png;cat\n")
    images = load_images(tmp_path / "list.csv")
    assert (images.names, images.labels) == (["a,b.png"], ["cat"])


def test_a_column_that_is_meant_for_the_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,class,split\na.png,a,train\n")
    with pytest.raises(DataError, match="is 'image' meant"):
        load_images(tmp_path / "t.csv")
