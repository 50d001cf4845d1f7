"""What class names and folders of several sources tell: the same in check, train and evaluate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import MACHINE, Words, lookalike
from helpers.photos import write_tree
from helpers.runs import Settings, Told

import lookalike as package
from lookalike.data.classes import deeper_classes, spelt_apart, warnings_of_classes
from lookalike.data.images import ImageSet
from lookalike.errors import DataError
from lookalike.evaluation.protocol import Protocol, load_protocol
from lookalike.progress import SilentProgress


def images(*names: str, labels: list[str] | None = None) -> ImageSet:
    return ImageSet(Path("root"), list(names), labels or [name.split("/")[0] for name in names])


def protocol_of(**options: Any) -> Protocol:
    sources: dict[str, Any] = {name: str(value) for name, value in options.items()}
    protocol = load_protocol(package.EvaluateConfig(**sources), SilentProgress())
    assert protocol is not None
    return protocol


def test_spellings_of_one_class_come_together() -> None:
    labels = ["Cup", "cup", "tea pot", "tea-pot", "Tea_Pot ", "7", "07", "lot 1-2", "lot 12"]
    assert spelt_apart(labels) == [["Cup", "cup"], ["Tea_Pot ", "tea pot", "tea-pot"]]


@pytest.mark.parametrize(
    ("names", "elsewhere", "expected"),
    [
        # years above the classes, which come again
        (["2024/cup/a", "2024/pot/a", "2024/jug/a", "2025/cup/b", "2025/pot/b"], [],
         ["cup", "jug", "pot"]),
        # one folder above all of them
        (["images/cup/a", "images/pot/a"], [], ["cup", "pot"]),
        # the classes of the other source
        (["part1/cup/a", "part1/pot/a", "part2/jug/a"], ["cup", "pot", "jug"],
         ["cup", "jug", "pot"]),
        (["new/Cup/a", "old/pot/a"], ["cup", "pot"], ["Cup", "pot"]),
        # views within classes; kinds within classes; shoots by number; some images not so deep
        (["cup/front/a", "cup/back/a", "pot/front/a", "pot/back/a", "jug/front/a"], [], []),
        (["cup/red/a", "cup/blue/a", "pot/iron/a", "pot/clay/a"], [], []),
        (["cup/1/a", "cup/2/a", "cup/3/a", "pot/1/a", "pot/2/a"], [], []),
        (["2024/cup/a", "2024/pot/a", "2024/jug/a", "2025/cup/b", "2025/b"], [], []),
        (["images/cup/a"], [], []),
        (["cup/a", "pot/a"], ["cup", "pot"], []),
        (["cup/pot/a", "pot/cup/a"], ["cup", "pot"], []),
    ],
)  # fmt: skip
def test_second_folders_that_look_like_the_classes_are_found(
    names: list[str], elsewhere: list[str], expected: list[str]
) -> None:
    assert deeper_classes(images(*names), elsewhere) == expected


def test_folders_of_a_table_with_labels_of_its_own_mean_nothing() -> None:
    names = ["2024/cup/a", "2024/pot/a", "2025/cup/b"]
    assert deeper_classes(images(*names, labels=["x", "y", "x"])) == []
    assert deeper_classes(ImageSet(Path(), names)) == []


def test_only_what_is_asked_about_is_told_in_lines_that_can_be_shown() -> None:
    sources = {
        "the queries": images("Cup/a", "\x1b[31mpot/a"),
        "the gallery": images("cup/b", "\x1b[31mPot/b", "jug/b", "Jug/b"),
    }
    (told,) = warnings_of_classes(sources)
    assert "'Cup' (the queries) and 'cup' (the gallery)" in told
    assert "'Jug' (the gallery) and 'jug' (the gallery)" in told
    assert told.isprintable()
    (told,) = warnings_of_classes(sources, about=["the queries"])
    assert "Jug" not in told
    assert warnings_of_classes({"one": images("a/b"), "bare": ImageSet(Path(), ["x"])}) == []


def test_queries_and_gallery_whose_classes_differ_in_spelling_are_warned_of(tmp_path: Path) -> None:
    query = write_tree(tmp_path / "query", {"Cup": 1, "pot": 1})
    gallery = write_tree(tmp_path / "gallery", {"cup": 1, "pot": 1})
    (told,) = protocol_of(query=query, gallery=gallery).warnings()
    assert "'Cup' (the queries) and 'cup' (the gallery)" in told
    (gallery / "pot").rename(gallery / "Pot")
    with pytest.raises(DataError, match=r"no class in common.*'Cup'.*'cup'; they differ in spell"):
        protocol_of(query=query, gallery=gallery)


def test_classes_below_another_folder_are_told_where_none_is_in_common(tmp_path: Path) -> None:
    query = write_tree(tmp_path / "query", {"cup": 1, "pot": 1})
    (tmp_path / "gallery").mkdir()
    write_tree(tmp_path / "gallery" / "all", {"cup": 1, "pot": 1})
    with pytest.raises(DataError, match=r"such as cup, pot, look like the classes"):
        protocol_of(query=query, gallery=tmp_path / "gallery")


@pytest.mark.parametrize("rows", ["cup/0,x,0 pot/0,x,1", "cup/0,cup,0 cup/1,cup,1 pot/0,pot,1"])
@pytest.mark.parametrize("columns", ["path,label,is_query", "path,label,note"])
def test_numbers_of_a_gallery_of_one_class_are_said_to_mean_nothing(
    tmp_path: Path, rows: str, columns: str
) -> None:
    root = write_tree(tmp_path / "d", {"cup": 2, "pot": 2})
    names = {"cup/0": "cup/cup_000.png", "cup/1": "cup/cup_001.png", "pot/0": "pot/pot_000.png"}
    for short, name in names.items():
        rows = rows.replace(f"{short},", f"{root}/{name},")
    (tmp_path / "t.csv").write_text("\n".join([columns, *rows.split()]))
    told = protocol_of(test=tmp_path / "t.csv").warnings()
    is_one = ",x," in rows or "is_query" in columns
    assert ["one class" in one and "mean nothing" in one for one in told] == [True] * is_one


def test_one_folder_above_the_classes_is_told_with_the_one_class_it_makes(tmp_path: Path) -> None:
    write_tree(tmp_path / "d" / "images", {"cup": 2, "pot": 2})
    deeper, one_class = protocol_of(test=tmp_path / "d").warnings()
    assert "cup, pot, look like the classes" in deeper
    assert "one class, 'images'" in one_class


def test_a_gallery_without_a_use_for_labels_may_be_of_any_form(tmp_path: Path) -> None:
    gallery = write_tree(tmp_path / "shop", {"cup": 2, "query": 1, "gallery": 1})
    (gallery / "cup" / "cup_000.png").rename(gallery / "loose.png")
    query = write_tree(tmp_path / "asked", {"x": 2}) / "x"
    protocol = protocol_of(query=query, gallery=gallery)
    assert (len(protocol.gallery), protocol.labelled) == (4, False)
    with pytest.raises(DataError, match="holds class folders and also 1 image"):
        protocol_of(query=gallery, gallery=query)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_file_under_two_names_is_one_in_a_test_and_in_training(
    settings: Settings, photos: Path
) -> None:
    for path in sorted((photos / "query").rglob("*.png")):
        os.link(path, photos / "gallery" / path.parent.name / "same.png")
    protocol = protocol_of(query=photos / "query", gallery=photos / "gallery")
    assert protocol.facts()["num_pairs_of_one_file"] == 6
    for number, path in enumerate(sorted((photos / "test").rglob("*.png"))[:4]):
        os.link(path, photos / "train" / path.parent.name / f"same{number}.png")
    told = Told()
    package.train(settings(num_epochs=0, n_classes_per_batch=2, n_samples_per_class=2),
                  progress=told)  # fmt: skip
    assert any("4 of the 18 test images are trained on as well" in one for one in told.warnings)


def test_train_and_evaluate_and_check_say_the_same(
    settings: Settings, photos: Path, tiny_clip: Path
) -> None:
    (photos / "gallery" / "classa").rename(photos / "gallery" / "Class A")
    (photos / "train" / "classb").rename(photos / "train" / "Classb")
    sides: Words = ["--query", photos / "query", "--gallery", photos / "gallery"]
    model: Words = ["--model-name", tiny_clip, *MACHINE, "--no-report"]
    evaluated = lookalike("evaluate", *sides, *model, "--out", photos / "e")
    assert evaluated.code == 0
    assert "warning: classes that differ in spelling only" in evaluated.err
    assert "'Class A' (the gallery) and 'classa' (the queries)" in evaluated.err
    few: Words = ["--num-epochs", "0", "--n-classes-per-batch", "2", "--n-samples-per-class", "2"]
    trained = lookalike("train", photos / "train", *sides, *model, *few, "--out", photos / "t")
    assert trained.code == 0
    assert "'Class A' (the gallery) and 'classa' (the training images, the queries)" in trained.err
    assert "'Classb' (the training images) and 'classb' (the queries, the gallery)" in trained.err
    checked = lookalike("check", photos / "train", *sides, "--out", photos / "c", *MACHINE)
    assert "Class names that differ only in spelling (look at: 2)" in checked.out


def test_a_split_above_the_classes_is_refused_by_every_verb(photos: Path, tiny_clip: Path) -> None:
    both = photos / "both"
    both.mkdir()
    for side in ("query", "gallery"):
        (photos / side).rename(both / side)
    right = f"--query {both}/query --gallery {both}/gallery"
    model: Words = ["--model-name", tiny_clip, *MACHINE]
    for words in (["evaluate", "--test", both, *model], ["check", both, *MACHINE],
                  ["train", photos / "train", "--test", both, *model],
                  ["train", both, *model]):  # fmt: skip
        outcome = lookalike(*words, "--out", photos / "o")
        assert outcome.code == 2, words
        assert outcome.err.strip().splitlines()[-1].endswith(right)


def test_check_finds_classes_that_lie_too_deep(photos: Path) -> None:
    for number, path in enumerate(sorted((photos / "test").iterdir())):
        place = photos / "parts" / f"part{number % 2}" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    outcome = lookalike("check", photos / "train", "--test", photos / "parts", "--out",
                        photos / "c", *MACHINE)  # fmt: skip
    assert "Folders below the classes that look like the classes (look at: 1)" in outcome.out
    assert "test: in the classes part0, part1 lie classa, classb" in outcome.out
