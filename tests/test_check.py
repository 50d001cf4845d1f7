"""`lookalike check`: planted trouble is found, told and counted; what is well is left alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.photos import photo
from PIL import Image, ImageEnhance

import lookalike
from lookalike.checks.findings import KINDS, SEVERITIES, CheckResult, Finding
from lookalike.checks.reading.scan import scan
from lookalike.cli.main import main
from lookalike.config.recipes import read_recipe
from lookalike.config.settings import config_from, format_recipe
from lookalike.data.classes import class_key
from lookalike.errors import ConfigError, DataError, Interrupted, OutputError
from lookalike.progress import SilentProgress

CLASSES = ["apple", "kiwi", "leek", "pear"]
Check = Callable[..., CheckResult]


def tinted(label: int, copy: int) -> Image.Image:
    """An image of a class that has nothing in common but a colour."""
    colour = [(230, 40, 40), (40, 230, 40), (40, 40, 230), (230, 230, 40), (40, 230, 230),
              (230, 40, 230)][label]  # fmt: skip
    size = (64, 64)
    return Image.blend(photo(1000 * label + copy, size), Image.new("RGB", size, colour), 0.5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`train` and `test` of four classes, with nothing wrong in them."""
    for nth, label in enumerate(CLASSES):
        for split, count in (("train", 5), ("test", 2)):
            (tmp_path / split / label).mkdir(parents=True)
            for copy in range(count):
                seed = 100 * nth + 10 * (split == "test") + copy
                photo(seed).save(tmp_path / split / label / f"{label}{split}{copy}.png")
    return tmp_path


@pytest.fixture
def check(data: Path) -> Check:
    def run(**changes: Any) -> CheckResult:
        settings: dict[str, Any] = {
            "data": str(data / "train"),
            "test": str(data / "test"),
            "out": str(data / "out"),
            "num_workers": 0,
            "device": "cpu",
            "precision": "fp32",
        }
        config = lookalike.CheckConfig(**(settings | changes))
        return lookalike.check(config, progress=SilentProgress())

    return run


def of_kind(result: CheckResult, kind: str) -> list[Finding]:
    return [finding for finding in result.findings if finding.kind == kind]


def names(finding: Finding) -> list[str]:
    return [f"{image.split}/{image.name}" for image in finding.images]


def kinds(result: CheckResult) -> list[str]:
    return [kind.name for kind, _ in result.by_kind()]


def test_a_clean_data_set_has_nothing_to_mend(check: Check) -> None:
    result = check()
    assert result.findings == []
    assert not result.must_fix
    assert result.verdict() == "Nothing needs fixing."
    assert [(s.name, s.num_files, s.num_readable, s.num_classes) for s in result.splits] == [
        ("train", 20, 20, 4),
        ("test", 8, 8, 4),
    ]
    assert any("--model-name" in one for one in result.left_out)


def test_every_unreadable_file_is_named_with_its_reason(check: Check, data: Path) -> None:
    whole = (data / "train/kiwi/kiwitrain1.png").read_bytes()
    (data / "train/kiwi/kiwitrain1.png").write_bytes(whole[: len(whole) // 2])
    (data / "test/leek/leektest0.png").write_bytes(b"")
    (data / "train/pear/page.jpg").write_text("<!doctype html><html>")
    (data / "train/pear/gone.jpg").symlink_to(data / "nowhere.jpg")
    (data / "train/apple/large.png").write_bytes(whole)
    result = check(max_megapixels=0.0192)
    found = {names(one)[0]: one.says for one in of_kind(result, "unreadable")}
    assert found == {
        "train/kiwi/kiwitrain1.png": "image file is truncated",
        "test/leek/leektest0.png": "empty file (0 bytes)",
        "train/pear/page.jpg": "not an image: an HTML page (a failed download?)",
        "train/pear/gone.jpg": "No such file or directory",
    }
    assert result.must_fix
    assert result.splits[0].num_readable == 20
    all_too_large = check(max_megapixels=0.019)  # another limit: everything is read again
    assert len(of_kind(all_too_large, "unreadable")) == 31


def test_exact_copies_are_told_apart_by_where_they_lie(check: Check, data: Path) -> None:
    apple, kiwi, leek = (data / f"train/{c}/{c}train0.png" for c in ("apple", "kiwi", "leek"))
    (data / "test/apple/again.png").write_bytes(apple.read_bytes())
    (data / "train/pear/copy.png").write_bytes(kiwi.read_bytes())
    Image.open(leek).save(data / "train/leek/lossless.tiff")
    result = check()
    assert kinds(result) == [
        "exact_copies_other_label", "exact_copies_other_split", "exact_copies",
    ]  # fmt: skip
    across_labels, across_splits, within = result.findings
    assert names(across_labels) == ["train/kiwi/kiwitrain0.png", "train/pear/copy.png"]
    assert across_labels.says == "2 in train, labelled kiwi and pear"
    assert names(across_splits) == ["train/apple/appletrain0.png", "test/apple/again.png"]
    assert across_splits.says == "1 in train, 1 in test, labelled apple"
    assert names(within) == ["train/leek/leektrain0.png", "train/leek/lossless.tiff"]
    assert within.images[1].detail == "same pixels, other file (TIFF)"
    assert result.num("must fix") == 2


@pytest.mark.skipif(os.name != "posix", reason="links need no permission here")
def test_one_file_in_two_splits_is_said_to_be_one(check: Check, data: Path) -> None:
    (data / "test/apple/link.png").symlink_to(data / "train/apple/appletrain0.png")
    assert "the very same file" in check().findings[0].says


def changed(image: Image.Image, how: str) -> Image.Image:
    width, height = image.size
    if how == "smaller":
        return image.resize((width * 3 // 5, height * 3 // 5))
    if how == "larger":
        return image.resize((width * 2, height * 2))
    if how == "cut":
        return image.crop((width // 16, 0, width, height - height // 20))
    if how == "brighter":
        return ImageEnhance.Brightness(image).enhance(1.25)
    return image


@pytest.mark.parametrize("how", ["smaller", "larger", "cut", "brighter", "recompressed"])
def test_near_copies_across_splits_are_found(check: Check, data: Path, how: str) -> None:
    original = Image.open(data / "train/kiwi/kiwitrain3.png")
    changed(original, how).save(data / "test/kiwi/near.jpg", quality=60)
    result = check()
    assert kinds(result) == ["near_copies_other_split"]
    assert names(result.findings[0]) == ["train/kiwi/kiwitrain3.png", "test/kiwi/near.jpg"]
    assert result.must_fix


def test_near_copies_are_told_apart_by_where_they_lie(check: Check, data: Path) -> None:
    for original, copy in (
        ("train/kiwi/kiwitrain3.png", "train/kiwi/near.jpg"),
        ("train/leek/leektrain1.png", "train/apple/near.jpg"),
    ):
        Image.open(data / original).resize((120, 90)).save(data / copy)
    result = check()
    assert kinds(result) == ["near_copies_other_label", "near_copies"]
    assert names(result.findings[0]) == ["train/apple/near.jpg", "train/leek/leektrain1.png"]
    assert not result.must_fix


def test_exact_copies_of_a_near_copy_are_told_as_both(check: Check, data: Path) -> None:
    original = data / "train/kiwi/kiwitrain3.png"
    (data / "train/kiwi/twin.png").write_bytes(original.read_bytes())
    (data / "test/kiwi/twin.png").write_bytes(original.read_bytes())
    Image.open(original).resize((100, 75)).save(data / "train/kiwi/near.jpg")
    near, exact = check().findings[1], check().findings[0]
    assert len(exact.images) == 3
    assert (exact.kind, near.kind) == ("exact_copies_other_split", "near_copies_other_split")
    # One of the exact copies in each split and class stands for the others.
    assert names(near) == ["train/kiwi/kiwitrain3.png", "train/kiwi/near.jpg", "test/kiwi/twin.png"]


def test_class_sizes_are_held_against_k(check: Check, data: Path) -> None:
    for path in list((data / "train/kiwi").iterdir())[1:]:
        path.unlink()
    for path in list((data / "train/leek").iterdir())[3:]:
        path.unlink()
    result = check(n_samples_per_class=4)
    sizes = result.classes
    assert sizes is not None
    assert (sizes.num_classes, sizes.num_images, sizes.smallest, sizes.largest) == (4, 14, 1, 5)
    assert (sizes.num_below_k, sizes.num_singletons, sizes.repeated_images) == (2, 1, 1)
    bars = [(bar.describe(), bar.num_classes, bar.below_k) for bar in sizes.histogram]
    assert bars == [
        ("1 image", 1, True), ("2 to 3 images", 1, True), ("4 to 5 images", 2, False),
    ]  # fmt: skip
    assert kinds(result) == ["too_few_classes", "singleton_class", "small_class"]
    assert "3 classes of train have two images or more; a batch takes 4" in (
        result.findings[0].says
    )
    assert kinds(check(n_samples_per_class=2, n_classes_per_batch=3)) == ["singleton_class"]


def test_classes_of_one_split_and_spellings_are_noted(check: Check, data: Path) -> None:
    (data / "test/leek").rename(data / "test/LEEK ")
    (data / "test/pear").rename(data / "test/quince")
    result = check()
    assert kinds(result) == ["similar_class_names", "one_split_only"]
    assert result.findings[0].says == '"LEEK" (2 in test) and "leek" (5 in train)'
    assert [one.says for one in of_kind(result, "one_split_only")] == [
        "2 of 4 classes are only in train: leek, pear",
        "2 of 4 classes are only in test: LEEK, quince",
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Pink_Lady", "pink lady", True),
        ("Pink-Lady", "PINKLADY", True),
        ("Cafe\u0301", "Caf\u00e9", True),
        ("No. 1", "No. 2", False),
        ("lot_1_2", "Lot 1-2", True),
        ("lot 1-2", "lot 12", False),
        ("size-12", "size12", True),
        ("-", "_", False),
    ],
)
def test_spellings_of_one_class_name_are_known(one: str, other: str, same: bool) -> None:
    assert (class_key(one) == class_key(other)) == same


def test_a_name_in_two_classes_of_two_splits_is_noted(check: Check, data: Path) -> None:
    (data / "train/apple/appletrain4.png").rename(data / "train/apple/IMG_12.png")
    (data / "test/pear/peartest1.png").rename(data / "test/pear/IMG_12.png")
    result = check()
    assert kinds(result) == ["repeated_name"]
    assert names(result.findings[0]) == ["train/apple/IMG_12.png", "test/pear/IMG_12.png"]


def test_a_repeated_name_is_not_told_where_the_contents_tell_already(
    check: Check, data: Path
) -> None:
    (data / "train/apple/appletrain4.png").rename(data / "train/apple/IMG_12.png")
    with Image.open(data / "train/apple/IMG_12.png") as image:
        image.resize((120, 90)).save(data / "test/pear/IMG_12.png")
    assert kinds(check()) == ["near_copies_other_split"]


def test_names_that_merely_count_are_not_listed(check: Check, data: Path) -> None:
    for nth in range(12):
        photo(900 + nth).save(data / f"train/apple/{nth:03}.png")
        photo(950 + nth).save(data / f"test/pear/{nth:03}.png")
    result = check()
    assert kinds(result) == []
    assert any("12 file names are in different classes" in one for one in result.left_out)


def test_extremes_are_found(check: Check, data: Path) -> None:
    Image.new("RGB", (200, 200), (9, 9, 200)).save(data / "train/apple/blank.png")
    Image.new("RGB", (210, 200), (9, 9, 200)).save(data / "train/kiwi/blank.png")
    photo(700, (400, 100)).save(data / "train/apple/long.png")
    photo(701, (50, 70)).save(data / "train/apple/tiny.png")
    photo(702).convert("CMYK").save(data / "train/apple/cmyk.jpg")
    result = check()
    found = {(names(one)[0], one.kind, one.says) for one in result.findings}
    assert found == {
        ("train/apple/blank.png", "blank", "200x200 px, one colour within 0.0 of 255 levels"),
        ("train/kiwi/blank.png", "blank", "210x200 px, one colour within 0.0 of 255 levels"),
        ("train/apple/long.png", "extreme_shape",
         "400x100 px: a square cut out of its middle keeps 25% of it"),
        ("train/apple/tiny.png", "tiny", "50x70 px"),
        ("train/apple/cmyk.jpg", "odd_format", "1 x JPEG, mode CMYK"),
    }  # fmt: skip


def test_a_model_adds_wrong_labels_and_its_input_size(
    check: Check, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = check(model_name=str(tiny_clip))
    assert not any("--model-name" in one for one in result.left_out)
    assert of_kind(result, "below_model_input") == []
    monkeypatch.setattr("lookalike.commands.check._input_px", lambda encoder: 121)
    (found,) = of_kind(check(model_name=str(tiny_clip)), "below_model_input")
    assert found.says == "28 of 28 have a shorter side under 121 px"


def test_what_vanishes_before_it_is_embedded_is_named(
    check: Check, data: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = data / "train/kiwi/kiwitrain1.png"

    def scan_and_lose(*args: Any, **options: Any) -> Any:
        facts = scan(*args, **options)
        lost.unlink()
        return facts

    monkeypatch.setattr("lookalike.commands.check.scan", scan_and_lose)
    result = check(model_name=str(tiny_clip))
    (found,) = of_kind(result, "unreadable")
    assert names(found) == ["train/kiwi/kiwitrain1.png"]
    assert "changed during the check" in json.dumps(result.document())
    assert result.must_fix


def test_of_a_test_table_only_test_rows_count(check: Check, data: Path) -> None:
    rows = [
        f"{path.relative_to(data).as_posix()},{path.parent.name},{split}"
        for split in ("train", "test")
        for path in sorted((data / split).rglob("*.png"))
    ]
    (data / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    result = check(test=str(data / "all.csv"))
    assert [(s.name, s.num_files) for s in result.splits] == [("train", 20), ("test", 8)]
    assert not result.must_fix
    both = check(data=str(data / "all.csv"), test=str(data / "test"))
    assert [(s.name, s.num_files) for s in both.splits] == [
        ("train", 20), ("test of all.csv", 8), ("test of test", 8)
    ]  # fmt: skip
    assert len(of_kind(both, "exact_copies_other_split")) == 8


def test_queries_in_their_own_gallery_are_a_leak(check: Check, data: Path) -> None:
    (data / "test/pear/copy.png").write_bytes((data / "test/pear/peartest0.png").read_bytes())
    rows = [
        f"{path.relative_to(data).as_posix()},{path.parent.name},{'copy' in path.name}"
        for path in sorted((data / "test").rglob("*.png"))
    ]
    (data / "test.csv").write_text("\n".join(["path,label,is_query", *rows]))
    result = check(test=str(data / "test.csv"))
    assert [s.name for s in result.splits] == ["train", "test query", "test gallery"]
    assert kinds(result) == ["exact_copies_other_split"]


def test_without_a_training_split_sizes_are_held_against_nothing(check: Check, data: Path) -> None:
    rows = [f"{path.relative_to(data).as_posix()},{path.parent.name},{'AB'['test' in path.name]}"
            for path in sorted(data.rglob("*.png"))]  # fmt: skip
    (data / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    result = check(data=str(data / "all.csv"), test=None, n_samples_per_class=9)
    assert result.classes is None
    assert any("no split is called train" in one for one in result.left_out)


def test_a_wrong_label_is_shown_among_its_neighbours(
    check: Check, data: Path, tiny_clip: Path
) -> None:
    for label in range(6):
        (data / f"drawn/class{label}").mkdir(parents=True)
        for copy in range(12):
            tinted(label, copy).save(data / f"drawn/class{label}/{copy}.png")
    tinted(2, 50).save(data / "drawn/class4/wrong.png")
    result = check(data=str(data / "drawn"), test=None, model_name=str(tiny_clip))
    suspects = of_kind(result, "wrong_label")
    assert [names(one)[0] for one in suspects] == ["train/class4/wrong.png"]
    assert "labelled class4, looks like class2" in suspects[0].says
    roles = [(image.role, image.label) for image in suspects[0].images]
    assert roles == [
        ("suspect", "class4"),
        *[("suggested", "class2")] * 3,
        *[("own", "class4")] * 2,
    ]


def test_a_table_has_its_splits_checked_against_each_other(check: Check, data: Path) -> None:
    (data / "test/apple/copy.png").write_bytes((data / "train/apple/appletrain0.png").read_bytes())
    rows = [
        f"{path.relative_to(data).as_posix()},{path.parent.name},{path.parent.parent.name}"
        for split in ("train", "test")
        for path in sorted((data / split).rglob("*.png"))
    ]
    (data / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    result = check(data=str(data / "all.csv"), test=str(data / "all.csv"))
    assert [(s.name, s.num_files) for s in result.splits] == [("train", 20), ("test", 9)]
    assert kinds(result) == ["exact_copies_other_split"]


def test_images_without_labels_are_checked_as_far_as_can_be(check: Check, data: Path) -> None:
    flat = data / "flat"
    flat.mkdir()
    for copy in range(4):
        photo(copy).save(flat / f"{copy}.png")
    (flat / "again.png").write_bytes((flat / "0.png").read_bytes())
    result = check(data=str(flat), test=None)
    assert result.classes is None
    assert kinds(result) == ["exact_copies"]
    assert result.findings[0].says == "2 in train"


@pytest.mark.skipif(os.name != "posix", reason="names of POSIX systems")
def test_hostile_names_are_told_and_do_no_harm(
    check: Check, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = os.fsencode(data / "train/kiwi")
    for name in (
        b"caf\xe9.jpg",
        b"two\nlines.jpg",
        b"<script>alert(1)</script>".replace(b"/", b""),
    ):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"no image")
    (data / "test/kiwi/<b>bold</b>".replace("/b>", "b>")).write_bytes(
        (data / "train/kiwi/kiwitrain0.png").read_bytes()
    )
    result = check()
    assert len(of_kind(result, "unreadable")) == 3
    page = (data / "out/check.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<b>bold" not in page
    assert "test/<wbr>kiwi/<wbr>&lt;b&gt;bold" in page
    document = json.loads((data / "out/check.json").read_text(encoding="utf-8"))
    told = [f["images"][0]["name"] for f in document["kinds"][0]["findings"]]
    assert os.fsencode(sorted(told)[1]) == b"kiwi/caf\xe9.jpg"


def test_the_document_holds_everything(check: Check, data: Path) -> None:
    (data / "train/pear/page.jpg").write_text("<!doctype html><html>")
    result = check()
    document = json.loads((data / "out/check.json").read_text(encoding="utf-8"))
    assert document == {**result.document(), "config": document["config"]}
    assert list(document) == ["verdict", "must_fix", "counts", "splits", "classes", "kinds",
                              "left_out", "files", "config"]  # fmt: skip
    assert document["counts"] == {"must fix": 1, "look at": 0, "note": 0}
    (kind,) = document["kinds"]
    assert list(kind) == ["name", "severity", "title", "advice", "num_findings", "findings"]
    assert kind["findings"][0]["images"][0] == {
        "split": "train", "name": "pear/page.jpg", "label": "pear",
        "path": str(data / "train/pear/page.jpg"), "detail": "", "role": "",
    }  # fmt: skip


def test_the_page_shows_every_kind_and_needs_no_network(check: Check, data: Path) -> None:
    (data / "train/pear/copy.png").write_bytes((data / "train/kiwi/kiwitrain0.png").read_bytes())
    result = check()
    page = (data / "out/check.html").read_text(encoding="utf-8")
    assert 'id="exact_copies_other_label"' in page
    assert page.count("data-thumb=") == 2 + 1  # the frame's own script names it once
    assert "2 in train, labelled kiwi and pear" in page
    assert result.verdict() in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_page_says_what_it_leaves_out(check: Check, data: Path) -> None:
    for nth in range(65):
        (data / f"train/pear/page{nth}.jpg").write_text("<!doctype html><html>")
    for nth in range(15):
        (data / f"train/kiwi/again{nth}.png").write_bytes(
            (data / "train/kiwi/kiwitrain0.png").read_bytes()
        )
    check()
    page = (data / "out/check.html").read_text(encoding="utf-8")
    assert "5 more are in check.json." in page
    assert "and 4 more images" in page
    document = json.loads((data / "out/check.json").read_text(encoding="utf-8"))
    assert [len(kind["findings"]) for kind in document["kinds"]] == [65, 1]
    assert len(document["kinds"][1]["findings"][0]["images"]) == 16


def test_kinds_are_ordered_by_how_bad_they_are() -> None:
    places = [SEVERITIES.index(kind.severity) for kind in KINDS]
    assert places == sorted(places)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


class TestTheCommand:
    """Exit codes and what is printed."""

    def run(self, data: Path, *more: str) -> int:
        return main(["check", str(data / "train"), "--out", str(data / "out"),
                     "--num-workers", "0", "--device", "cpu", *more])  # fmt: skip

    def test_nothing_to_mend_is_0(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(data, "--test", str(data / "test")) == 0
        printed = capsys.readouterr().out
        assert "Nothing needs fixing." in printed
        assert all(len(line) <= 80 for line in printed.splitlines() if str(data) not in line)

    def test_something_to_mend_is_1(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for nth in range(7):
            (data / f"train/pear/page{nth}.jpg").write_text("<!doctype html><html>")
        assert self.run(data) == 1
        printed = capsys.readouterr().out
        assert "  must fix        7  files that cannot be read" in printed
        assert "train/pear/page0.jpg" in printed
        assert "and 2 more" in printed
        assert "check.html" in printed

    def test_a_check_that_cannot_be_done_is_2(
        self, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["check", str(data / "trian")]) == 2
        assert "did you mean" in capsys.readouterr().err
        assert main(["check"]) == 2
        assert "lookalike check IMAGES" in capsys.readouterr().err

    def test_json_is_one_document(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(data, "--json") == 0
        assert json.loads(capsys.readouterr().out)["must_fix"] is False


def test_all_splits_may_be_given_and_a_folder_given_twice_is_looked_at_once(
    check: Check, data: Path
) -> None:
    with Image.open(data / "train/kiwi/kiwitrain0.png") as image:
        (data / "asked/kiwi").mkdir(parents=True)
        image.save(data / "asked/kiwi/query.png")
    result = check(query=str(data / "asked"), gallery=str(data / "test"))
    assert [split.name for split in result.splits] == ["train", "test", "query"]
    assert kinds(result) == ["exact_copies_other_split"]


def test_where_nothing_can_be_read_that_is_what_is_found(
    check: Check, data: Path, tiny_clip: Path
) -> None:
    for path in [*(data / "train").rglob("*.png"), *(data / "test").rglob("*.png")]:
        path.write_bytes(b"")
    result = check(model_name=str(tiny_clip))
    assert kinds(result) == ["unreadable"]
    assert result.num("must fix") == 28
    assert result.left_out == ["likely wrong labels: there are no images with labels"]


def test_settings_of_a_check_are_a_recipe(tmp_path: Path) -> None:
    config = lookalike.CheckConfig(data="photos", n_samples_per_class=4)
    recipe = tmp_path / "check.yaml"
    recipe.write_text(format_recipe(config), encoding="utf-8")
    assert config_from(lookalike.CheckConfig, read_recipe(recipe)) == config
    with pytest.raises(ConfigError, match="data is empty"):
        lookalike.CheckConfig(data="")


def test_a_folder_of_splits_is_not_taken_for_classes(check: Check, data: Path) -> None:
    both = data / "both"
    both.mkdir()
    (data / "train").rename(both / "train")
    (data / "test").rename(both / "test")
    with pytest.raises(DataError, match="are test, train: splits, not classes"):
        check(data=str(both), test=None)


def test_the_folders_of_a_saved_dataset_are_splits_and_checked_together(
    check: Check, data: Path
) -> None:
    files = sorted((data / "train").rglob("*.png"))[:4]
    rows = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in files],
            "label": ["a", "a", "b", "b"]}  # fmt: skip
    one = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(data / "saved")
    result = check(data=str(data / "saved"), test=None)
    copies = [one for one in result.findings if one.kind == "exact_copies_other_split"]
    assert len(copies) == len({path.read_bytes() for path in files})


def test_findings_do_not_go_among_the_images(check: Check, data: Path) -> None:
    with pytest.raises(ConfigError, match="pass for images"):
        check(out=str(data / "train/out"))


def test_a_scan_file_of_somebody_else_is_refused(check: Check, data: Path) -> None:
    (data / "out").mkdir()
    (data / "out/scan.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(OutputError, match=r"scan\.sqlite.*remove the file"):
        check()


def test_ctrl_c_says_how_to_go_on(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lookalike.checks.reading.scan._remember", stop)
    with pytest.raises(Interrupted, match="The same command continues"):
        check()


def test_ctrl_c_after_the_reading_says_what_is_kept(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lookalike.commands.check.near_copies", stop)
    with pytest.raises(Interrupted, match=r"kept in \S*scan\.sqlite"):
        check()


def test_what_a_system_leaves_in_every_folder_is_no_trouble(check: Check, data: Path) -> None:
    (data / "train/apple/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert not check().must_fix
