"""The demo: what it draws, and that it shows what it promises."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.commands import assert_refused, lookalike
from helpers.limits import disk_with_room_for, posix_only
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


@pytest.mark.parametrize("words", [["demo"], ["export", "model"]])
def test_a_folder_that_cannot_be_looked_into_is_one_line(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "model").symlink_to(tiny_clip)
    monkeypatch.chdir(tmp_path)
    look = os.listdir

    def closed(path: Any) -> list[str]:  # permissions do not bind the superuser
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return look(path)

    monkeypatch.setattr(os, "listdir", closed)
    assert_refused(lookalike(*words, "--out", "closed"), "cannot write", "closed: Permission")


_DRAW = """
import sys
from pathlib import Path
from lookalike.demo.catalogue import write_catalogue
write_catalogue(
    Path(sys.argv[1]), seed=3, num_train_classes=int(sys.argv[2]), num_test_classes=0,
    views_per_class=2, num_query_views=1, num_gallery_views=2, size_px=16, num_workers=2,
    on_progress=lambda count: None,
)
"""


@contextlib.contextmanager
def drawing(
    folder: Path, num_classes: int
) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A process that draws a catalogue, and the two that help it."""
    words = [sys.executable, "-c", _DRAW, str(folder), str(num_classes)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        helpers: list[psutil.Process] = []
        while len(helpers) < 2:
            assert process.poll() is None
            children = psutil.Process(process.pid).children()
            helpers = [one for one in children if "spawn_main" in " ".join(one.cmdline())]
        yield process, helpers


@posix_only
def test_ctrl_c_is_left_to_the_process_that_draws_and_not_to_its_helpers(tmp_path: Path) -> None:
    with drawing(tmp_path, 40) as (process, helpers):
        for one in helpers:  # as a terminal does, and before any of our lines is run there
            one.send_signal(signal.SIGINT)
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    assert len(list(tmp_path.rglob("*.jpg"))) == 80


@posix_only
def test_no_process_goes_on_drawing_where_the_one_that_started_it_is_killed(tmp_path: Path) -> None:
    with drawing(tmp_path, 100_000) as (process, helpers):
        while not list(tmp_path.rglob("*.jpg")):
            assert process.poll() is None
        process.kill()
        assert not psutil.wait_procs(helpers, timeout=20)[1]


@posix_only
def test_a_helper_that_is_killed_ends_the_drawing_with_one_line(tmp_path: Path) -> None:
    with drawing(tmp_path, 100_000) as (process, helpers):
        helpers[0].kill()
        last = process.communicate()[1].decode().splitlines()[-1]
    assert "OutputError: a process that draws images was ended" in last


@posix_only
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_catalogue_that_finds_no_room_says_so(tmp_path: Path, num_workers: int) -> None:
    with (
        disk_with_room_for(300),
        pytest.raises(OutputError, match=r"cannot write .*catalogue: .*room"),
    ):
        write_catalogue(
            tmp_path / "catalogue", seed=3, num_train_classes=6, num_test_classes=0,
            views_per_class=3, num_query_views=1, num_gallery_views=2, size_px=32,
            num_workers=num_workers, on_progress=lambda count: None,
        )  # fmt: skip


@posix_only
def test_a_demo_that_finds_no_room_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TRAIN_CLASSES", 2), ("TRAIN_VIEWS", 2), ("TEST_CLASSES", 2)):
        monkeypatch.setattr(run, name, value)
    for num_bytes in (400, 20_000):  # for images, and for weights
        with disk_with_room_for(num_bytes):
            outcome = lookalike("demo", "--out", tmp_path / "demo")
        assert outcome.code == 2, outcome.err
        assert outcome.err.splitlines()[-1].startswith("lookalike: cannot write ")


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
