"""`lookalike bench`: what it measures, and what it says of bad input."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import MACHINE, assert_refused, files_below, lookalike
from helpers.photos import draw, write_tree

import lookalike as package
from lookalike.benchmark.advice import STAGES
from lookalike.benchmark.timing import (
    Sample,
    gigaflops,
    read_one_by_one,
    spread,
    time_device,
    time_whole,
)
from lookalike.config import BenchConfig
from lookalike.data.reading.loader import ImageLoader, chunks
from lookalike.data.transforms import Preprocessing
from lookalike.embedding.embedder import Embedder
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import SilentProgress
from lookalike.runtime.device import make_runtime

QUICK = ["--seconds", "0.2", "--eval-batch-size", "4", *MACHINE]
HOW = Preprocessing(32, 32, 32, 3, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), exact=False)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Six small PNG files, two large ones, a large JPEG file, and one that is no image."""
    root = write_tree(tmp_path / "mixed", {"cup": 6})
    for copy in range(2):
        draw(1, copy, (320, 160)).save(root / "cup" / f"large{copy}.png")
    draw(1, 2, (320, 800)).save(root / "cup" / "photo.jpg")
    (root / "notes.txt").write_text("no image")
    return root


def test_every_stage_is_measured_and_the_shares_add_up(mixed: Path, tiny_clip: Path) -> None:
    outcome = lookalike("bench", mixed, "--model-name", tiny_clip, "--json", *QUICK)
    assert outcome.code == 0, outcome.err
    document = outcome.json()
    stages = document["stages"]
    assert tuple(stages) == STAGES
    assert sum(one["share"] for one in stages.values()) == pytest.approx(1)
    for name, one in stages.items():
        if name == "transfer":  # there is no way to go on a CPU
            assert (one["mean_ms"], one["images_per_s"], one["share"]) == (0, None, 0)
        else:
            assert min(one["median_ms"], one["mean_ms"], one["images_per_s"]) > 0
    assert document["whole_images_per_s"] > 0
    alone = document["model_alone_images_per_s"]
    assert alone == pytest.approx(1000 / stages["model"]["mean_ms"])
    reached = document["whole_images_per_s"] / alone
    assert document["whole_of_model_alone"] == pytest.approx(reached)
    assert document["limit"] in STAGES
    assert document["limit"] in document["advice"][0]
    for number in (1_000, 100_000, 1_000_000):
        expected = number / document["whole_images_per_s"]
        assert document["seconds_for"][str(number)] == pytest.approx(expected)


def test_the_files_are_told_apart_and_unreadable_ones_named(mixed: Path, tiny_clip: Path) -> None:
    outcome = lookalike("bench", mixed, "--model-name", tiny_clip, "--json", *QUICK)
    images = outcome.json()["images"]
    assert (images["num_found"], images["num_measured"]) == (10, 9)
    assert images["formats"] == {"PNG": 8, "JPEG": 1}
    assert images["median_megapixels"] == pytest.approx(40 * 36 / 1e6)
    # 64 px are enough for an input of 32: the large PNG files are decoded in full, the JPEG file
    # at a fraction, which still has more than four times as many on its shorter side.
    assert (images["enough_px"], images["oversized"], images["large"]) == (64, {"PNG": 2}, 1)
    (bad,) = outcome.json()["unreadable"]
    assert bad["path"] == str(mixed / "notes.txt")
    assert "1 file could not be read and was skipped" in outcome.err
    assert "notes.txt: not an image" in outcome.err
    exact = lookalike("bench", mixed, "--model-name", tiny_clip, "--json", "--exact-pixels", *QUICK)
    assert exact.json()["images"]["oversized"] == {"PNG": 2, "JPEG": 1}


def test_the_table_fits_a_terminal(
    mixed: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = lookalike("bench", mixed, "--model-name", tiny_clip, *QUICK[:-1], "1")
    assert outcome.code == 0, outcome.err
    assert max(map(len, outcome.out.splitlines())) <= 80
    for words in (*STAGES, "model alone", "all together", "to start 1 worker", "what limits is",
                  "At this rate: 1,000 images in "):  # fmt: skip
        assert words in outcome.out
    assert "9 of 10 images: 8 PNG, 1 JPEG" in outcome.out


def test_what_stands_in_the_way_is_one_line(tmp_path: Path, tiny_clip: Path) -> None:
    assert_refused(lookalike("bench"), "nothing to measure with", "lookalike bench IMAGES")
    assert_refused(lookalike("bench", tmp_path / "no"), "does not exist")
    assert_refused(lookalike("bench", tmp_path, "--seconds", "0"), "seconds is 0", "above 0")
    (tmp_path / "words").mkdir()
    for i in range(3):
        (tmp_path / "words" / f"{i}.txt").write_text("no image")
    outcome = lookalike("bench", tmp_path / "words", "--model-name", tiny_clip, *QUICK)
    assert outcome.code == 2
    assert "none of the 3 images that were tried can be read" in outcome.err
    assert "0.txt: not an image" in outcome.err


def test_where_many_files_are_bad_the_rest_is_said_to_be_in_json(
    tmp_path: Path, tiny_clip: Path
) -> None:
    root = write_tree(tmp_path / "bad", {"cup": 1})
    for i in range(22):
        (root / f"{i}.txt").write_text("no image")
    outcome = lookalike("bench", root, "--model-name", tiny_clip, *QUICK)
    assert outcome.code == 0
    assert "22 files could not be read and were skipped" in outcome.err
    assert outcome.err.endswith("  ... and 2 more, listed in full by --json\n")
    assert "1 of 23 images: 1 PNG;" in outcome.out


def test_it_is_there_in_python_and_writes_nothing(
    mixed: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = BenchConfig(data=str(mixed), model_name=str(tiny_clip), seconds=0.1, device="cpu",
                         eval_batch_size=2, num_workers=0, num_images=4)  # fmt: skip
    result = package.bench(config, progress=SilentProgress())
    assert result.speed.images.num_measured + len(result.unreadable) == 4
    assert result.advice
    assert result.workers_start_s == 0
    assert files_below(tmp_path) == before


def test_images_are_taken_evenly_from_all_of_them() -> None:
    paths = [str(i) for i in range(100)]
    assert sorted(map(int, spread(paths, 10))) == list(range(0, 100, 10))
    assert sorted(map(int, spread(paths, 1000))) == list(range(100))
    # Where time runs out, those that were read so far are spread as well.
    assert max(map(int, spread(paths, 100)[:20])) > 80


def read(paths: list[str], how: Preprocessing = HOW, seconds: float = 60, keep: int = 99) -> Sample:
    progress = SilentProgress()
    return read_one_by_one(
        paths, how, keep=keep, seconds=seconds, max_megapixels=1, progress=progress
    )


def test_what_is_measured_are_the_loaders_own_pixels(mixed: Path) -> None:
    paths = sorted(str(path) for path in (mixed / "cup").iterdir())
    sample = read(paths)
    loader = ImageLoader(paths, HOW, make_runtime("cpu", "fp32", 0), max_megapixels=1)
    (batch,) = loader.read(chunks(len(paths), len(paths)))
    assert sample.pixels.equal(batch.pixels)
    assert [one.ref for one in sample.images] == paths
    photo = next(one for one in sample.images if str(one.ref).endswith("photo.jpg"))
    assert (photo.stored, photo.decoded) == ((320, 800), (80, 200))
    assert photo.num_bytes == Path(str(photo.ref)).stat().st_size
    exact = read(paths, replace(HOW, exact=True))
    assert all(one.stored == one.decoded for one in exact.images)


def test_a_batch_is_full_whatever_was_kept(mixed: Path) -> None:
    paths = sorted(str(path) for path in (mixed / "cup").iterdir())
    sample = read(paths, keep=3)
    assert (len(sample.images), len(sample.pixels)) == (9, 3)
    batch = sample.batch(7)
    assert batch.equal(sample.pixels[[0, 1, 2, 0, 1, 2, 0]])
    assert sample.batch(2).equal(sample.pixels[:2])


def test_reading_ends_when_the_time_is_over_but_not_before_one_could_be_read(mixed: Path) -> None:
    paths = [str(mixed / "notes.txt"), *sorted(str(path) for path in (mixed / "cup").iterdir())]
    sample = read(paths, seconds=1e-9)
    assert (len(sample.images), len(sample.unreadable)) == (1, 1)


def test_the_whole_counts_what_came_after_the_first_batches(mixed: Path, tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    encoder.register_forward_hook(lambda *_: time.sleep(0.05))
    embedder = Embedder(encoder, precision="fp32", num_workers=0, batch_size=4)
    paths = sorted(str(path) for path in (mixed / "cup").iterdir())
    rate, start_s = time_whole(embedder, paths, num_images=8)
    # Two batches of four are counted, of 50 ms and more each; the first of three is not.
    assert 0 < rate <= 80
    assert start_s == 0


def test_what_warms_the_model_up_is_not_counted(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    waits = iter([1.0])
    encoder.register_forward_hook(lambda *_: time.sleep(next(waits, 0.01)))
    embedder = Embedder(encoder, precision="fp32", num_workers=0)
    transfer, model = time_device(embedder, HOW.black(4), seconds=0.1)
    assert (transfer.mean_ms, transfer.images_per_s) == (0, None)
    assert 10 / 4 <= model.median_ms < 1000 / 4
    assert 10 / 4 <= model.mean_ms < 1000 / 4


def test_the_arithmetic_of_a_model_is_counted(tiny_clip: Path) -> None:
    # By hand: patches of 8 px, 16 and a class token, 32 wide, two layers with 64 inside.
    tokens, width, inner = 17, 32, 64
    patches = 2 * 16 * (3 * 8 * 8) * width
    layer = 2 * tokens * (4 * width * width + 2 * width * inner) + 2 * 2 * tokens * tokens * width
    projection = 2 * width * 24
    by_hand = (patches + 2 * layer + projection) / 1e9
    assert gigaflops(CLIPEncoder(str(tiny_clip))) == pytest.approx(by_hand)
