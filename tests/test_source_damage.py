"""Sources that are damaged or not as expected: one line that says what is there and what to do."""

from __future__ import annotations

import json
import struct
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from helpers.photos import write_tree
from helpers.sources import add, write_tar
from PIL import Image
from pyarrow import parquet

from lookalike.data.reading.content import read_content
from lookalike.data.reading.decode import read_image
from lookalike.data.sources import load_images, load_unlabelled
from lookalike.errors import DataError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def said(source: Path) -> str:
    """The error of a source that cannot be used, which must be one line."""
    with pytest.raises(DataError) as caught:
        load_images(source)
    assert len(str(caught.value).splitlines()) == 1
    assert source.name in str(caught.value)
    return str(caught.value)


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    Image.new("RGB", (5, 4), "red").save(tmp_path / "red.png")
    return (tmp_path / "red.png").read_bytes()


# Tar


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [2**40, 2**62, 2**64, 2**80, -512, -1024, -(2**70)])
def test_a_member_of_an_absurd_size_is_damage(tmp_path: Path, size: int, kind: bytes) -> None:
    path = write_tar(tmp_path / "x.tar", {"1.png": b"abc", "2.png": b"abc"})
    content = bytearray(path.read_bytes())
    header = content[1024:1536]
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    path.write_bytes(content)
    assert "damaged or cut short" in said(path)


def test_a_note_nested_too_deep_is_named(tmp_path: Path) -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    path = write_tar(tmp_path / "x.tar", {"1.png": b"", "1.json": deep})
    assert "x.tar/1.json is not valid json" in said(path)


# Columns


def test_a_parquet_file_with_damaged_text_is_named(tmp_path: Path, png: bytes) -> None:
    offsets = pa.array(["ab", "cd"]).buffers()[1]
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xff\xfecd")])
    images = pa.array([{"bytes": png, "path": name} for name in "ab"], STRUCT)
    pathless = pa.StructArray.from_arrays([pa.array([png, png]), text], ["bytes", "path"])
    for columns in ({"path": text}, {"path": ["a", "b"], "label": text},
                    {"image": images, "label": text}, {"image": pathless}):  # fmt: skip
        parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
        assert "cannot read" in said(tmp_path / "x.parquet")
    parquet.write_table(pa.table({"path": ["a", "b"], "other": text}), tmp_path / "x.parquet")
    assert load_images(tmp_path / "x.parquet").names == ["a", "b"]


@pytest.mark.parametrize(
    "junk",
    [b"{", b"[]", b"7", b"null", b'{"info": 3}', b'{"info": {"features": {"label": []}}}',
     b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}',
     b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', b"\xff", b"[" * 100_000],
)  # fmt: skip
def test_metadata_that_is_not_that_of_hugging_face_is_ignored(tmp_path: Path, junk: bytes) -> None:
    table = pa.table({"image": [b"a", b"b"], "label": [1, 0]})
    path = tmp_path / "x.parquet"
    parquet.write_table(table.replace_schema_metadata({b"huggingface": junk}), path)
    assert load_images(path).labels == ["1", "0"]


def test_names_of_classes_are_for_numbers_alone(tmp_path: Path) -> None:
    label = {"_type": "ClassLabel", "names": ["cup", "pot"]}
    told = json.dumps({"info": {"features": {"label": label}}}).encode()
    path = tmp_path / "x.parquet"
    for labels, expected in ((["a", "b"], ["a", "b"]), ([1.0, 0.0], ["1", "0"]),
                             ([1, 0], ["pot", "cup"])):  # fmt: skip
        table = pa.table({"image": [b"a", b"b"], "label": labels})
        parquet.write_table(table.replace_schema_metadata({b"huggingface": told}), path)
        assert load_images(path).labels == expected


@pytest.mark.parametrize("name", ["path", "label", "image"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    header = ["path", "label", name, "note", "note"] if name != "image" else [name, name, "note"]
    images = [pa.array([b"x"])] * len(header)
    text = [pa.array(["x"])] * len(header)
    table = pa.Table.from_arrays(images if name == "image" else text, header)
    parquet.write_table(table, tmp_path / "x.parquet")
    expected = f"has 2 columns {name!r}; rename or remove all but one"
    assert expected in said(tmp_path / "x.parquet")
    if name != "image":
        (tmp_path / "x.csv").write_text(f"{','.join(header)}\n{','.join('x' * len(header))}\n")
        assert expected in said(tmp_path / "x.csv")


# Images in columns


@pytest.mark.parametrize("how", ["dictionary", "fixed size", "view", "large"])
@pytest.mark.parametrize("in_struct", [False, True])
def test_bytes_are_read_in_whichever_way_they_are_stored(
    tmp_path: Path, png: bytes, how: str, in_struct: bool
) -> None:
    plain = pa.array([png, png])
    column = {
        "dictionary": plain.dictionary_encode,
        "fixed size": lambda: pa.array([png, png], pa.binary(len(png))),
        "view": lambda: pa.array([png, png], pa.binary_view()),
        "large": lambda: plain.cast(pa.large_binary()),
    }[how]()
    if in_struct:
        column = pa.StructArray.from_arrays([column, pa.array(["a", "b"])], ["bytes", "path"])
    parquet.write_table(pa.table({"image": column}), tmp_path / "x.parquet")
    images = load_images(tmp_path / "x.parquet")
    assert images.names == (["a", "b"] if in_struct else ["000000", "000001"])
    assert [read_content(ref) for ref in images.refs] == [png, png]


@pytest.mark.parametrize(
    "kind",
    [STRUCT, pa.struct([("bytes", pa.null()), ("path", pa.string())]),
     pa.struct([("path", pa.string())])],
    ids=["bytes that are null", "bytes of no type", "no bytes"],
)  # fmt: skip
def test_paths_in_place_of_bytes_are_not_followed_and_said_so(
    tmp_path: Path, kind: pa.DataType
) -> None:
    rows = [{"bytes": None, "path": name} for name in ("a.png", "b.png")]
    table = pa.table({"image": pa.array(rows, kind)})
    parquet.write_table(table, tmp_path / "x.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "x.parquet", tmp_path / "saved"):
        message = said(source)
        assert "paths beside them are not followed" in message
        assert "a table with a column 'path'" in message


def test_what_an_image_column_really_holds_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for value, kind in (([[1, 2]], "list<"), (["a.png"], "string")):
        parquet.write_table(pa.table({"image": value, "label": ["a"]}), path)
        assert f"its columns are image ({kind}" in said(path)
    parquet.write_table(pa.table({"file": ["a.png"]}), path)
    assert "is 'file' meant? Rename it" in said(path)


# Saved datasets


def test_an_empty_split_is_skipped(tmp_path: Path) -> None:
    full = datasets.Dataset.from_dict({"image": [b"1"], "label": ["a"]})
    for number, empty in enumerate(
        [full.select([]), full.filter(lambda _: False), datasets.Dataset.from_dict({})]
    ):
        splits = {"none": empty, "train": full, "test": full}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / f"{number}")
        images = load_images(tmp_path / f"{number}")
        assert (images.splits, images.labels) == (["train", "test"], ["a", "a"])
        datasets.DatasetDict({"none": empty}).save_to_disk(tmp_path / f"none{number}")
        assert "has no rows" in said(tmp_path / f"none{number}")


@pytest.mark.parametrize("junk", ["", "{", "[]", "7", "null", "{}", '{"_data_files": 7}',
                                  '{"_data_files": [7]}', "[" * 100_000])  # fmt: skip
@pytest.mark.parametrize("name", ["dataset_dict.json", "train/state.json"])
def test_a_saved_dataset_whose_description_is_junk_is_refused(
    tmp_path: Path, name: str, junk: str
) -> None:
    full = datasets.Dataset.from_dict({"image": [b"1", b"2"], "label": ["a", "b"]})
    datasets.DatasetDict({"train": full}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / name).write_text(junk)
    message = said(tmp_path / "saved")
    assert message.startswith("cannot read the dataset")
    assert message.endswith("write or copy it again")


def test_places_that_lead_out_of_a_saved_dataset_are_damage(tmp_path: Path) -> None:
    """The library reads wherever they lead, and the process dies of it."""
    for column, cells in (("label", ["cup", "pot"]), ("image", [b"cup", b"pot"])):
        columns = {"image": [b"12345", b"6789"], "label": ["a", "b"], column: cells}
        datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / column)
        (path,) = (tmp_path / column).glob("*.arrow")
        content = path.read_bytes()
        right, wrong = struct.pack("<3i", 0, 3, 6), struct.pack("<3i", 0, 2**30, 2**31 - 1)
        assert content.count(right) == 1
        path.write_bytes(content.replace(right, wrong))
        assert "damaged or cut short" in said(tmp_path / column)


@pytest.mark.parametrize("name", ["../saved2", "/etc", "..", "a/b", "a\\b", "C:", "."])
def test_a_saved_dataset_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    full = datasets.Dataset.from_dict({"image": [b"1", b"2"], "label": ["a", "b"]})
    datasets.DatasetDict({"train": full}).save_to_disk(tmp_path / "saved")
    full.save_to_disk(tmp_path / "saved2")
    told = json.dumps({"splits": [name]})
    (tmp_path / "saved" / "dataset_dict.json").write_text(told)
    assert "does not lie in its folder" in said(tmp_path / "saved")
    state = tmp_path / "saved2" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert "does not lie in its folder" in said(tmp_path / "saved2")


def test_images_of_a_saved_dataset_do_not_need_its_description(tmp_path: Path) -> None:
    full = datasets.Dataset.from_dict({"image": [b"1", b"2"], "label": ["a", "b"]})
    full.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "dataset_info.json").write_text("junk")
    images = load_images(tmp_path / "saved")
    assert [read_content(ref) for ref in images.refs] == [b"1", b"2"]


def test_a_saved_dataset_of_images_that_do_not_lie_in_one_piece_is_refused(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"12", b"34"], pa.binary(2))})
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"fixed_size_binary\[2\]; expected binary. Save"):
        load_images(tmp_path / "saved")


def test_our_own_mistakes_are_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(error: BaseException) -> str:
        monkeypatch.setattr(tarfile.TarFile, "next", lambda _: (_ for _ in ()).throw(error))
        return said(tmp_path / "x.tar")

    with tarfile.open(tmp_path / "x.tar", "w"):
        pass
    assert "there is too little memory for it, or it is damaged" in raising(MemoryError("x"))
    for error in (AttributeError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            raising(error)


# Without labels


def test_without_labels_a_tar_lists_what_its_folder_does(tmp_path: Path, png: bytes) -> None:
    root = write_tree(tmp_path / "tree", {"cup": 2, "pot": 1})
    for name in ("loose.png", "._loose.png", ".x/hidden.png", "cup/.y/hidden.png", "cup/._a.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(png)
    for name in ("notes.txt", "cup/notes.txt", ".DS_Store"):
        (root / name).write_text("no image")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(root, ".")
    from_folder, from_tar = load_unlabelled(root), load_unlabelled(tmp_path / "x.tar")
    assert sorted(from_tar.names) == from_folder.names
    assert {"loose.png", "notes.txt", "cup/notes.txt"} < set(from_tar.names)
    assert not any("/." in f"/{name}" for name in from_tar.names)
    assert from_tar.labels is from_folder.labels is None
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        add(tar, "loose.json", b"{")
    assert load_unlabelled(tmp_path / "x.tar").names == from_tar.names  # notes are not read
    (tmp_path / "x.tar").unlink()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(root, ".")
    for source in (root, tmp_path / "x.tar"):
        with pytest.raises(DataError, match=r"1 image beside them \(loose\.png\)"):
            load_images(source)


def test_hidden_files_of_a_flat_folder_are_no_images(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "._red.png").write_bytes(png)
    assert load_images(tmp_path).names == load_unlabelled(tmp_path).names == ["red.png"]


def test_without_labels_some_may_be_missing_in_every_kind(tmp_path: Path, png: bytes) -> None:
    columns = {"path": ["a.png", "b.png"], "label": ["cup", None], "split": ["train", None]}
    (tmp_path / "x.csv").write_text("path,label,split\na.png,cup,train\nb.png,,\n")
    parquet.write_table(pa.table(columns), tmp_path / "table.parquet")
    parquet.write_table(pa.table({"image": [png, png], **columns}), tmp_path / "images.parquet")
    datasets.Dataset.from_dict({"image": [png, png], **columns}).save_to_disk(tmp_path / "saved")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (("a.png", png), ("a.cls", b"cup"), ("b.png", png)):
            add(tar, name, content)
    for name in ("x.csv", "table.parquet", "images.parquet", "saved", "x.tar"):
        images = load_unlabelled(tmp_path / name)
        assert (images.names, images.labels) == (["a.png", "b.png"], None)
        assert "nothing in column 'label'" in said(tmp_path / name)
        if name not in ("x.csv", "table.parquet"):
            assert [read_image(ref).size for ref in images.refs] == [(5, 4), (5, 4)]


def test_shards_whose_columns_differ_are_told_by_their_types(tmp_path: Path, png: bytes) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, label in (("a", "cat"), ("b", 1)):
        table = pa.table({"image": pa.array([png], pa.binary()), "label": [label]})
        parquet.write_table(table, folder / f"{name}.parquet")
    message = said(folder)
    assert "label: string" in message
    assert "label: int64" in message
