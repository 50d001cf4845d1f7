"""Tables as people and programs write them, against lists written by hand."""

from __future__ import annotations

import datetime
import decimal
import os
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from helpers.runs import Told
from PIL import Image
from pyarrow import parquet

from lookalike.data.images import ImageSet
from lookalike.data.reading.decode import keep_readable
from lookalike.data.sources import load_images, load_unlabelled
from lookalike.embedding.interchange import write_names
from lookalike.errors import DataError

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs links or such file names")
NFC, NFD = (unicodedata.normalize(form, "café/übung") for form in ("NFC", "NFD"))
ESCAPES = "\x1b[31mred\x1b]0;title\x07"


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "red").save(root / name, "PNG")


def csv(folder: Path, text: str, encoding: str = "utf-8", name: str = "t.csv") -> Path:
    (folder / name).write_bytes(text.encode(encoding, "surrogateescape"))
    return folder / name


def arrow(folder: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pa.table(columns), folder / "t.parquet")
    return folder / "t.parquet"


def said(source: Path) -> str:
    """The error of a table that cannot be used: one line, not a long one, that can be printed."""
    with pytest.raises(DataError) as caught:
        load_images(source)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1_500
    assert source.name in message
    return message


# The header


@pytest.mark.parametrize(
    "header",
    ["path,label, split", "Path,LABEL,Split ", " path,label,split", "\ufeffpath,\u00a0Label,SPLIT",
     "path,label,\tsplit", '"Path","label ","Split"'],
)  # fmt: skip
def test_columns_are_known_whatever_their_blanks_and_capitals(tmp_path: Path, header: str) -> None:
    images = load_images(csv(tmp_path, f"{header}\na.png,cat,test\nb.png,dog,train\n"))
    assert images == ImageSet(
        tmp_path, ["a.png", "b.png"], ["cat", "dog"], splits=["test", "train"]
    )
    names = [name.strip('"') for name in header.split(",")]
    rows = zip(names, (["a.png", "b.png"], ["cat", "dog"], ["test", "train"]), strict=True)
    assert load_images(arrow(tmp_path, dict(rows))) == images


@pytest.mark.parametrize("name", ["is_query", "Is Query", "isQuery", "IS-QUERY"])
def test_words_of_a_name_may_be_joined_in_any_way(tmp_path: Path, name: str) -> None:
    assert load_images(csv(tmp_path, f"path,{name}\na.png,1\n")).is_query == [True]


def test_blanks_behind_delimiters_belong_to_no_cell(tmp_path: Path) -> None:
    put(tmp_path, "a, b.png")
    images = load_images(csv(tmp_path, 'label, path\n"cat", "a, b.png"\n'))
    assert (images.names, images.labels) == (["a, b.png"], ["cat"])


@pytest.mark.parametrize("header", ["path,label, Label", "path,label,label ", "PATH,path,label"])
def test_a_column_that_stands_twice_is_refused_however_it_is_written(
    tmp_path: Path, header: str
) -> None:
    for source in (
        csv(tmp_path, f"{header}\na.png,cat,dog\n"),
        arrow(tmp_path, {name: ["x"] for name in header.split(",")}),
    ):
        assert "has 2 columns" in said(source)
        assert "rename or remove all but one" in said(source)
    images = arrow(tmp_path, {"image": [b"x"], "label": ["a"], " Label": ["b"]})
    assert "has 2 columns 'label', written ' Label', 'label'" in said(images)


@pytest.mark.parametrize(
    ("header", "column", "meant"),
    [("lable", "lable", "label"), ("Labels", "Labels", "label"), ("class", "class", "label"),
     ("spilt", "spilt", "split"), ("subset", "subset", "split"), ("groups", "groups", "group"),
     ("is_qeury", "is_qeury", "is_query")],
)  # fmt: skip
def test_a_near_miss_is_told(tmp_path: Path, header: str, column: str, meant: str) -> None:
    told = Told()
    load_images(csv(tmp_path, f"path,{header}\na.png,1\n"), told)
    assert told.warnings == [
        f"column '{column}' of {tmp_path / 't.csv'} is not used; if it is the {meant}, call it "
        f"'{meant}'"
    ]


def test_a_near_miss_is_told_where_images_are_in_the_table(tmp_path: Path) -> None:
    source = arrow(tmp_path, {"image": [b"x", b"y"], "Labels": [0, 1], "split": ["test", "test"]})
    datasets.Dataset.from_dict({"image": [b"x"], "lable": [0]}).save_to_disk(tmp_path / "saved")
    for path, column in ((source, "Labels"), (tmp_path / "saved", "lable")):
        told = Told()
        assert load_images(path, told).labels is None
        assert told.warnings == [
            f"column '{column}' of {path} is not used; if it is the label, call it 'label'"
        ]


def test_other_columns_are_nobodys_business(tmp_path: Path) -> None:
    told = Told()
    text = "path,label,split,group,table,price,labels\na.png,cat,test,,1,2,3\n"
    load_images(csv(tmp_path, text), told)
    load_unlabelled(csv(tmp_path, "path,lable\na.png,1\n"), told)
    assert told.warnings == []


def test_names_of_columns_are_shown_without_what_they_do_to_a_terminal(tmp_path: Path) -> None:
    for source in (
        csv(tmp_path, f"pa{ESCAPES}th,label\nx,y\n"),
        arrow(tmp_path, {f"pa{ESCAPES}th": ["x"], "label": ["a"]}),
        arrow(tmp_path, {"image": ["x"], ESCAPES * 1_000: ["x"]}),
    ):
        assert "\\x1b[31m" in said(source)
    assert "a.png" not in said(csv(tmp_path, ",".join(["x" * 10_000] * 100) + "\na.png\n"))
    told = Told()
    load_images(csv(tmp_path, "path,la\x1bbel\na.png,1\n"), told)
    assert told.warnings[0].isprintable()


def test_a_file_without_lines_is_no_table(tmp_path: Path) -> None:
    assert "first line" in said(csv(tmp_path, "x" * 2_000_000))


# Cells


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 0, 12], ["1", "0", "12"]),
        ([1.0, -0.0, 12.0], ["1", "0", "12"]),
        (["1", "0.0", "12."], ["1", "0", "12"]),
        (["007", "7", "0"], ["007", "7", "0"]),
        ([1.5, 2.25, 1e20], ["1.5", "2.25", "1e+20"]),
        ([True, False, True], ["True", "False", "True"]),
        ([b"cup", b"pot ", "käse".encode()], ["cup", "pot", "käse"]),
        ([NFC, NFD, "x"], [NFC, NFC, "x"]),
        ([datetime.date(2024, 1, 2)] * 3, ["2024-01-02"] * 3),
        ([decimal.Decimal("1.00"), decimal.Decimal("1.50"), decimal.Decimal("0.00")],
         ["1", "1.50", "0"]),
        (["none", "NA", "null"], ["none", "NA", "null"]),
        (["[a]", "(x", "{1"], ["[a]", "(x", "{1"]),
    ],
)  # fmt: skip
def test_a_label_is_the_same_whatever_type_it_came_as(
    tmp_path: Path, labels: list[Any], expected: list[str]
) -> None:
    columns = {"path": ["a", "b", "c"], "label": labels, "group": labels}
    images = load_images(arrow(tmp_path, columns))
    assert (images.labels, images.groups) == (expected, expected)
    if all(isinstance(label, str) for label in labels):
        rows = "".join(f"{name},{label}\n" for name, label in zip("abc", labels, strict=True))
        assert load_images(csv(tmp_path, f"path,label\n{rows}")).labels == expected


def test_small_floats_are_labels_too(tmp_path: Path) -> None:
    for kind in (pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint64()):
        import numpy as np

        labels = pa.array(np.array([1, 2], kind.to_pandas_dtype()), kind)
        assert load_images(arrow(tmp_path, {"path": ["a", "b"], "label": labels})).labels == [
            "1",
            "2",
        ]
    categories = pa.array(["cat", "dog"]).dictionary_encode()
    assert load_images(arrow(tmp_path, {"path": ["a", "b"], "label": categories})).labels == [
        "cat",
        "dog",
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (float("nan"), "no value (nan)"),
        (float("inf"), "inf"),
        (None, "nothing"),
        (["cup", "red"], "['cup', 'red']"),
        ([], "[]"),
        ({"name": "cup"}, "{'name': 'cup'}"),
        (b"\xff\xfe", "bytes that are no text"),
        ("nan", "'nan', which stands for none"),
        ("<NA>", "'<NA>', which stands for none"),
        ("['cup', 'red']", "a list"),
        ('["cup", true]', "written as text"),
        ("{'name': 'cup'}", "written as text"),
        ("('cup', 1)", "written as text"),
        ("x" * 1_001, "1,001 characters in column 'label'; 1,000 at most"),
        ([["x"] * 1_000] * 100, "a list"),
        (f"['{ESCAPES}']", "written as text"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_by_row_and_value(
    tmp_path: Path, wrong: Any, told: str
) -> None:
    labels = [wrong, None] if not isinstance(wrong, float) else [1.0, wrong]
    row = 2 if isinstance(wrong, float) else 1
    message = said(arrow(tmp_path, {"path": ["a", "b"], "label": labels}))
    assert f"row {row} of" in message
    assert told.removeprefix("a list") in message
    assert "'label'" in message or "has label" in message
    if isinstance(wrong, str):
        quoted = '"' + wrong.replace('"', '""') + '"'
        assert "row 2 of" in said(csv(tmp_path, f"path,label\na,cup\nb,{quoted}\n"))


def test_a_huge_label_is_refused_with_the_bound(tmp_path: Path) -> None:
    for column in ("label", "group", "split"):
        source = csv(tmp_path, f"path,{column}\na,x\nb,{'x' * 10**7}\n")
        assert f"row 2 of {source} has 10,000,000 characters in column '{column}'" in said(source)
    assert "32,767 at most" in said(csv(tmp_path, f"path\n{'x' * 40_000}\n"))


def test_a_missing_group_is_no_group(tmp_path: Path) -> None:
    groups = [float("nan"), 3.0, None]
    columns = {"path": ["a", "b", "c"], "group": pa.array(groups, from_pandas=False)}
    assert load_images(arrow(tmp_path, columns)).groups == ["", "3", ""]
    assert load_images(csv(tmp_path, "path,group\na,nan\nb,3.0\nc,\n")).groups == ["", "3", ""]


def test_splits_are_known_whatever_their_capitals(tmp_path: Path) -> None:
    images = load_images(csv(tmp_path, "path,split\na,Train\nb, TEST\nc,train\n"))
    assert images.of_split("train").names == ["a", "c"]


def test_a_nul_is_damage(tmp_path: Path) -> None:
    assert "row 1 of" in said(csv(tmp_path, "path,label\na\0b.jpg,a\nb.png,a\n"))
    assert "a\\x00b.jpg" in said(arrow(tmp_path, {"path": ["a\0b.jpg"], "label": ["a"]}))


def test_large_cells_that_nobody_reads_are_passed_over(tmp_path: Path) -> None:
    large = "x" * 5_000_000
    source = csv(tmp_path, f"note,path,label\n{large},a.png,cat\n{large},b.png,dog\n")
    assert load_images(source).labels == ["cat", "dog"]
    columns: dict[str, Any] = {"path": ["a", "b"], "label": ["x", "y"]}
    source = arrow(tmp_path, columns | {"note": [large * 5, "y" + large * 5]})
    tracemalloc.start()
    kept = pa.total_allocated_bytes()
    assert load_images(source).labels == ["x", "y"]
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    assert pa.total_allocated_bytes() <= kept + 10_000_000
    tracemalloc.stop()


def test_rows_without_anything_are_passed_over(tmp_path: Path) -> None:
    images = load_images(csv(tmp_path, "path,label\na.png,cat\n,\n\n  ,\nb.png,dog\n,,,\n"))
    assert images.labels == ["cat", "dog"]


# Encodings and delimiters


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("text", ["path,label\nü.png,käse\n", "label\tpath\r\nkäse\tü.png\r\n"])
def test_a_table_is_read_in_any_form_of_unicode(tmp_path: Path, encoding: str, text: str) -> None:
    images = load_images(csv(tmp_path, text, encoding))
    assert (images.names, images.labels) == (["ü.png"], ["käse"])


def test_half_a_character_of_utf16_is_damage(tmp_path: Path) -> None:
    source = csv(tmp_path, "path,label\na.png,b\n", "utf-16")
    source.write_bytes(source.read_bytes()[:-1])
    assert "cannot read the table" in said(source)


@pytest.mark.parametrize("text", ["path,label\na.png,käse\n", "path,label\nü.png,a\n"])
def test_windows_1252_is_refused_as_such(tmp_path: Path, text: str) -> None:
    message = said(csv(tmp_path, text, "cp1252"))
    assert "row 1 of" in message
    assert "Windows-1252" in message
    assert "CSV UTF-8" in message


@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_the_delimiter_is_the_one_that_gives_a_path(
    tmp_path: Path, between: str, name: str
) -> None:
    rows = [("label", "path", "note"), ("cup", "a.png", "x"), ("pot", "b.png", "y")]
    for start in ("", f"sep={between}\r\n"):
        text = start + "".join(f"{between.join(row)}\r\n" for row in rows)
        images = load_images(csv(tmp_path, text, name=name))
        assert (images.names, images.labels) == (["a.png", "b.png"], ["cup", "pot"])


# Files


@pytest.mark.parametrize("stored", [NFC, NFD])
@pytest.mark.parametrize("written", [NFC, NFD])
def test_files_are_found_under_either_form_of_unicode(
    tmp_path: Path, stored: str, written: str
) -> None:
    mixed = written[:5] + unicodedata.normalize("NFC" if written == NFD else "NFD", written[5:])
    put(tmp_path, f"{stored}.png")
    for cell in (f"{written}.png", f"{mixed}.png", str(tmp_path / f"{written}.png")):
        images = load_images(csv(tmp_path, f"path\n{cell}\n"))
        assert keep_readable(images)[1] == []
        assert images.fingerprint() == ImageSet(tmp_path, images.names).fingerprint()
    there = ImageSet(tmp_path, [f"{NFC}.png"]).fingerprint()
    assert load_images(csv(tmp_path, f"path\n{written}.png\n")).fingerprint() == there


@posix_only
def test_paths_of_other_systems_and_people_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "home/x.png", "d/e/a.png", "d/b.png", "d/back\\slash.png", "d/ blank.png ")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = "path\nd\\e\\a.png\n~/x.png\n .\\d\\b.png \nd/back\\slash.png\nd/ blank.png \n"
    images = load_images(csv(tmp_path, text))
    assert images.names == [
        "d/e/a.png", f"{tmp_path}/home/x.png", "d/b.png", "d/back\\slash.png", "d/ blank.png ",
    ]  # fmt: skip
    assert keep_readable(images)[1] == []


def test_paths_relative_to_the_working_folder_are_found_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "d/a.png", "d/b.png")
    (tmp_path / "lists").mkdir()
    source = csv(tmp_path / "lists", "path\nd/gone.png\nd/a.png\n")
    monkeypatch.chdir(tmp_path)
    told = Told()
    images = load_images("lists/t.csv", told)
    assert images.paths == [str(tmp_path / "d/gone.png"), str(tmp_path / "d/a.png")]
    assert "taken from the working folder" in told.warnings[0]
    put(tmp_path / "lists", "d/b.png")  # what lies below the table goes before
    csv(tmp_path / "lists", "path\nd/a.png\nd/b.png\n")
    told = Told()
    images = load_images(source, told)
    assert images.paths == [str(tmp_path / "lists/d/a.png"), str(tmp_path / "lists/d/b.png")]
    assert told.warnings == []


def test_an_error_names_the_full_path_that_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    csv(tmp_path / "lists", "path\nd/a.png\nC:\\d\\b.png\n")
    with pytest.raises(DataError) as caught:
        keep_readable(load_images("lists/t.csv"))
    assert f"{tmp_path}/lists/d/a.png: No such file" in str(caught.value)
    assert f"{tmp_path}/lists/C:\\d\\b.png: No such file" in str(caught.value)


@posix_only
@pytest.mark.parametrize(
    "again", ["d/../d/a.png", "{root}/d/a.png", "link/a.png", "d\\a.png", "e/../a.png",
              "{root}/link/../d/./a.png", " d/a.png"],
)  # fmt: skip
def test_one_file_stands_once_whatever_its_spelling(tmp_path: Path, again: str) -> None:
    put(tmp_path, "d/a.png", "d/e/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    (tmp_path / "e").symlink_to(tmp_path / "d" / "e")
    again = again.format(root=tmp_path)
    message = said(csv(tmp_path, f"path\nd/a.png\nd/e/b.png\n{again}\n"))
    assert "twice, again in row 3: it stands in row 1" in message


def test_a_table_of_names_alone_needs_no_files(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(3_000)]
    images = load_images(csv(tmp_path, "path\n" + "\n".join(names)))
    assert (images.root, images.names) == (tmp_path, names)


def test_a_table_that_lookalike_wrote_is_one_to_read(tmp_path: Path) -> None:
    names, labels = ["=1.png", "'=2.png", "-a/3.png", "'quoted'.png"], ["-1", "@x", "+1", "'q'"]
    put(tmp_path, *names)
    write_names(tmp_path / "images.csv", {"path": names, "label": labels})
    images = load_images(tmp_path / "images.csv")
    assert (images.names, images.labels) == (names, labels)


def test_a_name_that_begins_with_an_apostrophe_is_taken_by_it(tmp_path: Path) -> None:
    put(tmp_path, "'-1.png")
    assert load_images(csv(tmp_path, "path\n'-1.png\n")).names == ["'-1.png"]


@pytest.mark.parametrize("before", ["\n", "\r\n\r\n", ";;\n", " ; \n\n"])
def test_empty_rows_may_stand_before_the_header(tmp_path: Path, before: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"{before}path;label\n1.png;a\n", newline="")
    assert load_images(path).labels == ["a"]


@pytest.mark.parametrize("cell", ['"1.png', '"1.png" x', '"1\\"2.png"'])
def test_a_row_with_a_quote_out_of_place_is_named(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "list.tsv"
    path.write_text(f"path\tlabel\n0.png\ta\n\n{cell}\ta\n3.png\tb\n")
    with pytest.raises(DataError, match=r"row 2 of .*list\.tsv cannot be read: .*quote") as told:
        load_images(path)
    assert str(told.value).isprintable()


@pytest.mark.parametrize("cell", ["https://example.org/1.png", "file:///1.png", "S3://b/1.png"])
def test_an_address_is_no_path(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"path,label\n1.png,a\n{cell},b\n")
    with pytest.raises(DataError, match=f"row 2 of .*list.csv has the address '{cell}'"):
        load_images(path)
