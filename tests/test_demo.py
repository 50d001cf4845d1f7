"""The demo: what it draws, and that it shows what it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.commands import demo as run
from lookalike.config import TrainConfig
from lookalike.demo.catalogue import draw_view, object_name, write_catalogue
from lookalike.errors import OutputError
from lookalike.progress import Progress, SilentProgress
from lookalike.training.history import TrainResult


def test_an_image_depends_on_seed_object_and_view_alone() -> None:
    one = np.asarray(draw_view(0, 5, 2, 48))
    assert one.shape == (48, 48, 3)
    assert np.array_equal(one, np.asarray(draw_view(0, 5, 2, 48)))
    for other in (draw_view(1, 5, 2, 48), draw_view(0, 6, 2, 48), draw_view(0, 5, 3, 48)):
        assert not np.array_equal(one, np.asarray(other))


def test_every_object_has_a_name_of_its_own_that_any_file_system_takes() -> None:
    names = [object_name(0, i) for i in range(2000)]
    assert len(set(names)) == 2000
    assert all(name.isascii() and name.replace("-", "").isalnum() for name in names)


def test_test_objects_are_never_trained_on(tmp_path: Path) -> None:
    drawn: list[int] = []
    write_catalogue(
        tmp_path, seed=3, num_train_classes=6, num_test_classes=4, views_per_class=3,
        num_query_views=1, num_gallery_views=2, size_px=32, num_workers=1,
        on_progress=drawn.append,
    )  # fmt: skip
    folders = {s: {p.name for p in (tmp_path / s).iterdir()} for s in ("train", "test/query")}
    assert len(folders["train"]) == 6
    assert len(folders["test/query"]) == 4
    assert not folders["train"] & folders["test/query"]
    assert {p.name for p in (tmp_path / "test/gallery").iterdir()} == folders["test/query"]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == len({p.name for p in files}) == sum(drawn) == 6 * 3 + 4 * 3


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="something other than a demo"):
        run.demo(tmp_path, seed=0, progress=SilentProgress())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


class Begun(Exception):  # noqa: N818
    """The training of a demo has begun."""


def test_a_small_demo_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRAIN_CLASSES", 64), ("TRAIN_VIEWS", 4), ("TEST_CLASSES", 6)):
        monkeypatch.setattr(run, name, value)
    result = run.demo(tmp_path / "demo", seed=0, progress=SilentProgress())
    assert [one.epoch for one in result.history] == [0, 1, 2, 3, 4]
    with Image.open(tmp_path / "demo" / run.SHEET) as sheet:
        assert sheet.width > sheet.height / 2
    report = tmp_path / "demo" / "results" / "report.html"
    assert report.stat().st_size < 10**7

    # The second replaces the first: nothing of it is there when the second begins to train.
    def begin(config: TrainConfig, *, progress: Progress) -> TrainResult:
        assert not report.exists()
        raise Begun

    monkeypatch.setattr(run, "train", begin)
    with pytest.raises(Begun):
        run.demo(tmp_path / "demo", seed=0, progress=SilentProgress())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_recognises_objects_it_has_never_seen(tmp_path: Path) -> None:
    result = run.demo(tmp_path / "demo", seed=0, progress=SilentProgress())
    before, after = result.history[0].metrics, result.history[-1].metrics
    assert before is not None
    assert after is not None
    assert before["recall@1"] < 0.40
    assert after["recall@1"] > 0.80
