"""Folders as systems and people leave them: what is passed over, and what is no class."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from helpers.runs import Told
from PIL import Image

from lookalike.data.images import ImageSet, identity
from lookalike.data.sources import folder, load_images, load_unlabelled
from lookalike.data.sources.leftovers import is_leftover
from lookalike.errors import DataError

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs links or such file names")

FOLDERS = ("@eaDir", "#recycle", "#snapshot", "@Recycle", "__MACOSX", "$RECYCLE.BIN",
           "System Volume Information", "lost+found", "found.000", "LOST.DIR")  # fmt: skip
FILES = ("Thumbs.db", "desktop.ini", "Desktop.ini", "ehthumbs.db", "Picasa.ini",
         "ZbThumbnail.info", "cup.png@SynoResource", "Icon\r")  # fmt: skip
HIDDEN = (".DS_Store", "._a.png", ".picasa.ini", ".thumbnails", ".picasaoriginals",
          ".ipynb_checkpoints", ".Trash-1000", ".@__thumb")  # fmt: skip


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "red").save(root / name, "PNG")
    return root


def tree(root: Path, *classes: str) -> Path:
    return put(root, *[f"{label}/{number}.png" for label in classes for number in range(2)])


def said(source: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_images(source)
    assert str(caught.value).isprintable()
    return str(caught.value)


# What systems leave


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_systems_leave_is_passed_over_and_counted(tmp_path: Path, kind: str) -> None:
    root = tree(tmp_path / "d", "cup", "pot")
    names = load_images(root).names
    for place in (root, root / "cup", root / "pot"):
        for name in (*FOLDERS, *HIDDEN[3:]):
            put(place, f"{name}/SYNOFILE_THUMB_M.png", f"{name}/deep/x.png")
        for name in (*FILES, *HIDDEN[:3]):
            put(place, name)
    source, told = root, Told()
    if kind == "tar":
        source = tmp_path / "d.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(root, ".")
    for load in (load_images, load_unlabelled):
        assert sorted(load(source, told).names) == names
    if kind == "folder":
        assert any("@eaDir (3)" in one and "Thumbs.db (3)" in one for one in told.warnings)
    else:
        assert any("what lies in hidden folders or systems leave" in one for one in told.warnings)


def test_what_systems_leave_makes_no_tree_of_a_flat_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "@eaDir/a.png/SYNOFILE_THUMB_M.png", "Thumbs.db")
    images = load_images(tmp_path)
    assert (images.names, images.labels) == (["a.png"], None)


def test_what_systems_leave_beside_shards_is_passed_over(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "cup", "pot")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        tar.add(root, ".")
    (tmp_path / "shards" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "shards" / "@eaDir" / "a.tar").mkdir(parents=True)
    assert len(load_images(tmp_path / "shards")) == 4


@pytest.mark.parametrize(
    "name", ["thumbs", "recycled", "index", "desktop", "lost", "macosx", "found"]
)
def test_other_names_are_classes(tmp_path: Path, name: str) -> None:
    assert not is_leftover(name, is_folder=True)
    assert set(load_images(tree(tmp_path, name, "cup")).labels or ()) == {name, "cup"}


@posix_only
def test_folders_linked_to_each_other_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_MOST_VISITS", 5)
    names = [f"f{number}" for number in range(12)]
    put(tmp_path, *[f"{name}/a.png" for name in names])
    for one in names:
        for other in names:
            (tmp_path / one / f"to_{other}").symlink_to(tmp_path / other)
    assert "more than 5 ways" in said(tmp_path)


@pytest.mark.parametrize("name", ["shards-{0..999999999}.tar", "{0..999}{0..999}{0..99}.parquet"])
def test_a_range_of_too_many_files_is_refused_at_once(tmp_path: Path, name: str) -> None:
    assert "1,000,000 at most" in said(tmp_path / name)


@posix_only
@pytest.mark.parametrize("name", ["t.csv", "t.tar", "t.parquet", "pipe"])
def test_a_pipe_is_no_source(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "neither a file nor a folder" in said(tmp_path / name)


# Splits are not classes


@pytest.mark.parametrize(
    ("folders", "given"),
    [
        (("query", "gallery"), "--query {0}/query --gallery {0}/gallery"),
        (("Queries", "Gallery"), "--query {0}/Queries --gallery {0}/Gallery"),
        (("probe", "gallery"), "--query {0}/probe --gallery {0}/gallery"),
        (("query", "index"), "--query {0}/query --gallery {0}/index"),
        (("query_images", "database"), "--query {0}/query_images --gallery {0}/database"),
        (("train", "query", "gallery"),
         "{0}/train --query {0}/query --gallery {0}/gallery"),
        (("bounding_box_train", "bounding_box_test", "query"),
         "{0}/bounding_box_train --query {0}/query --gallery {0}/bounding_box_test"),
        (("train", "test"), "{0}/train --test {0}/test"),
        (("Training", "validation"), "{0}/Training --test {0}/validation"),
        (("train_set", "testset", "val"), "{0}/train_set --test {0}/testset"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["cup/a.png", "a.png"])
def test_a_folder_of_splits_is_refused_with_the_right_options(
    tmp_path: Path, folders: tuple[str, ...], given: str, inside: str
) -> None:
    root = put(tmp_path / "photos", *[f"{name}/{inside}" for name in folders])
    put(root, "@eaDir/a.png")
    message = said(root)
    assert f"the folders in {root} are {', '.join(sorted(folders))}: splits, not classes" in message
    assert message.endswith(given.format(root))
    assert len(load_unlabelled(root)) == len(folders)


@pytest.mark.parametrize("folders", [("reference", "index"), ("query", "cup"), ("probe",),
                                     ("train", "tram"), ("gallery",)])  # fmt: skip
def test_classes_may_be_called_as_splits_are(tmp_path: Path, folders: tuple[str, ...]) -> None:
    assert set(load_images(tree(tmp_path, *folders)).labels or ()) == set(folders)


def test_one_split_of_classes_is_refused(tmp_path: Path) -> None:
    message = said(put(tmp_path / "photos", "test/cup/a.png", "test/pot/a.png"))
    assert message.endswith(f"--test {tmp_path / 'photos' / 'test'}")


def test_splits_with_other_folders_beside_them_are_refused(tmp_path: Path) -> None:
    beside = ("query/cup/a.png", "gallery/cup/a.png", "distractors/a.png", "index/cup/a.png")
    root = put(tmp_path / "photos", *beside)
    message = said(root)
    assert f"the folders in {root} include gallery, query: splits, not classes" in message
    assert message.endswith(f"--query {root}/query --gallery {root}/gallery")


@pytest.mark.parametrize("beside", ["query/a.png", "train/cup/a.png", "test/cup/a.png"])
def test_classes_beside_others_may_be_called_as_splits_are(tmp_path: Path, beside: str) -> None:
    root = put(tmp_path / "photos", "tram/cup/a.png", "test/cup/a.png", beside)
    if beside.startswith("train"):
        assert "include test, train" in said(root)
    else:
        assert "test" in (load_images(root).labels or ())


def test_a_tar_of_splits_is_refused(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "query/cup/a.png", "gallery/cup/a.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(root, ".")
    assert "are gallery, query: splits, not classes" in said(tmp_path / "x.tar")


# Labels


def test_folders_that_differ_in_unicode_form_alone_are_one_class(tmp_path: Path) -> None:
    root, told = tree(tmp_path, "caf\u00e9", "cafe\u0301", "7", "07"), Told()
    assert sorted(set(load_images(root, told).labels or ())) == ["07", "7", "caf\u00e9"]
    (warning,) = told.warnings
    assert "that are one class: cafe\u0301 and caf\u00e9" in warning


def test_a_folder_and_a_table_give_a_class_one_label(tmp_path: Path) -> None:
    names = ["1", "2.0", "007", "cafe\u0301", " cup "]
    root = tree(tmp_path / "d", *names)
    rows = "".join(
        f"{i}.png,{name}\n" for i, name in enumerate(["1.0", "2", "007", "caf\u00e9", "cup"])
    )
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    assert set(load_images(root).labels or ()) == set(load_images(tmp_path / "t.csv").labels or ())


# Unlabelled


def test_without_labels_any_folder_is_taken_however_deep_and_mixed(tmp_path: Path) -> None:
    deep = "/".join(f"level{number:02}" for number in range(60))
    names = ["a.png", "query/b.png", "gallery/cup/c.png", f"{deep}/d.png", "train/e.png",
             "caf\u00e9/f.png", "cafe\u0301/f.png"]  # fmt: skip
    put(tmp_path, *names, "@eaDir/x.png", ".git/x.png")
    assert load_unlabelled(tmp_path).names == sorted(names)


# One file


@posix_only
def test_one_file_has_one_identity_by_path_and_by_every_kind_of_link(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "other.png")
    os.link(tmp_path / "a.png", tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to(tmp_path / "hard.png")
    (tmp_path / "folder").symlink_to(tmp_path)
    names = ["a.png", "./a.png", "hard.png", "soft.png", "folder/hard.png"]
    assert len({identity(os.path.join(tmp_path, name)) for name in names}) == 1
    assert identity(str(tmp_path / "other.png")) != identity(str(tmp_path / "a.png"))
    assert identity("a\0b.png") != identity("a\0c.png")
    assert identity(str(tmp_path / "gone")) != identity(str(tmp_path / "gone2"))


def test_a_fingerprint_is_that_of_a_list_whatever_form_its_names_are_stored_in() -> None:
    forms = (ImageSet(Path(), [name]) for name in ("caf\u00e9", "cafe\u0301"))
    assert len({images.fingerprint() for images in forms}) == 1
