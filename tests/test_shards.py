"""Embeddings as a folder of parts: killed and gone on with, by one process or two, and read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import lookalike
from lookalike import EmbedConfig, EmbedResult
from lookalike.config import EvaluateConfig
from lookalike.data.images import ImageSet
from lookalike.data.sources import load_unlabelled
from lookalike.embedding.interchange import rows_of_images
from lookalike.embedding.shards import Plan, open_shards
from lookalike.errors import ConfigError, DataError, OutputError
from lookalike.progress import SilentProgress
from lookalike.search.rows import Rows
from lookalike.search.topk import top_k

JOB = Path(__file__).parent / "helpers" / "embedding_job.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def embed_settings(photos: Path, tiny_clip: Path) -> Settings:
    """Settings of a small embed command (18 images in parts of 8), which arguments change."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "data": str(photos / "test"),
            "model_name": str(tiny_clip),
            "out": str(photos / "rows"),
            "images_per_part": 8,
            "eval_batch_size": 4,
            "num_workers": 0,
            "device": "cpu",
            "precision": "fp32",
        } | changes

    return make


class Noted(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def run(settings: dict[str, Any], progress: Noted | None = None) -> EmbedResult:
    return lookalike.embed(EmbedConfig(**settings), progress=progress or SilentProgress())


def evaluated(out: Path, **settings: Any) -> lookalike.EvaluateResult:
    config = EvaluateConfig(out=str(out), **settings)
    return lookalike.evaluate(config, progress=SilentProgress())


def rows_of(folder: Path) -> np.ndarray:
    return np.concatenate(open_shards(folder).embeddings)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def spoil(photos: Path, *positions: int) -> list[str]:
    """Truncates test images; their names."""
    paths = sorted((photos / "test").rglob("*.png"))
    for position in positions:
        paths[position].write_bytes(paths[position].read_bytes()[:200])
    return [paths[position].name for position in positions]


def many(folder: Path, count: int) -> Path:
    """So many tiny images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


@pytest.mark.parametrize(
    ("num_images", "per_part", "batch", "expected"),
    [
        (10, 4, 2, [[(0, 2), (2, 4)], [(4, 6), (6, 8)], [(8, 10)]]),
        (9, 6, 3, [[(0, 3), (3, 6)], [(6, 9)]]),
        (5, 6, 4, [[(0, 4), (4, 5)]]),
        (0, 4, 2, []),
    ],
)
def test_a_source_is_cut_into_parts_and_these_into_batches(
    num_images: int, per_part: int, batch: int, expected: list[list[tuple[int, int]]]
) -> None:
    plan = Plan(num_images, per_part, batch)
    found = [plan.requests_of(number) for number in range(plan.num_parts)]
    assert [[(r.indices[0], r.indices[-1] + 1) for r in part] for part in found] == expected


def test_the_rows_are_those_that_evaluation_embeds_to_the_bit(
    embed_settings: Settings, photos: Path, tiny_clip: Path
) -> None:
    result = run(embed_settings())
    measured = evaluated(photos / "out", test=str(photos / "test"), model_name=str(tiny_clip),
                         precision="fp32", device="cpu", num_workers=0, eval_batch_size=4,
                         report=False)  # fmt: skip
    assert measured.retrieval is not None
    assert np.array_equal(rows_of(result.folder), measured.retrieval.gallery_embeddings[:].numpy())
    assert (result.num_images, result.num_rows, result.num_parts, result.dim) == (18, 18, 3, 24)
    shards = open_shards(result.folder)
    assert shards.names == load_unlabelled(photos / "test").names
    assert shards.embedder["fingerprint"] == result.fingerprint
    assert all(isinstance(one, np.memmap) for one in shards.embeddings)


def test_the_same_command_again_embeds_nothing(embed_settings: Settings) -> None:
    first = run(embed_settings())
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    progress = Noted()
    again = run(embed_settings(), progress)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before
    assert again.num_parts_before == again.num_parts == 3
    assert any("3 of 3 parts" in note for note in progress.notes)


def test_only_what_is_missing_or_damaged_is_embedded_again_and_that_is_said_once(
    embed_settings: Settings,
) -> None:
    folder = run(embed_settings()).folder
    expected = rows_of(folder)
    kept = (folder / "part-00001.npy").stat().st_mtime_ns
    (folder / "part-00002.json").unlink()  # killed before the mark was written
    damaged = folder / "part-00000.npy"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    abandoned = folder / ".part-00002.npy.1234abcd.lookalike-tmp"
    abandoned.write_text("killed while it was written")
    progress = Noted()
    result = run(embed_settings(), progress)
    assert result.num_parts_before == 1
    assert np.array_equal(rows_of(folder), expected)
    assert (folder / "part-00001.npy").stat().st_mtime_ns == kept
    assert len(progress.warnings) == 1
    assert "part-00000.npy" in progress.warnings[0]
    assert not list(folder.glob(".*"))


def test_a_folder_of_something_else_is_refused_with_both_named_and_the_way_out(
    embed_settings: Settings, photos: Path, tmp_path: Path
) -> None:
    first = run(embed_settings())
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    for change, words in (
        ({"embedding": "pooled"}, rf"projected 24-d, fingerprint {first.fingerprint}.*pooled 32-d"),
        ({"data": str(photos / "query")}, r"18 images of .*test.*6 images of .*query"),
        ({"eval_batch_size": 8}, r"eval_batch_size 4 there, 8 now"),
        ({"exact_pixels": True, "images_per_part": 16}, r"exact_pixels False there, True now; "
         "images_per_part 8 there, 16 now"),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=f"{words}.*--overwrite.*--out"):
            run(embed_settings(**change))
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
    replaced = run(embed_settings(data=str(photos / "query"), overwrite=True))
    assert (replaced.num_images, replaced.num_parts_before) == (6, 0)
    assert names_in(first.folder) == ["images.csv", "manifest.json", "part-00000.json",
                                      "part-00000.npy"]  # fmt: skip
    (first.folder / "manifest.json").unlink()
    with pytest.raises(OutputError, match=r"part-00000\.json exists, but there is no manifest"):
        run(embed_settings(overwrite=True))


def test_other_files_of_the_same_names_are_refused(embed_settings: Settings, photos: Path) -> None:
    run(embed_settings())
    changed = next((photos / "test").rglob("*.png"))
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(OutputError, match="have the same names, but other files"):
        run(embed_settings())


def test_files_of_others_are_left_alone(embed_settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "images.csv").write_text("path,label\n1.jpg,mug\n")
    with pytest.raises(OutputError, match=r"images\.csv exists, and would be replaced"):
        run(embed_settings(out=str(out)))
    (out / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(OutputError, match=r"manifest\.json was not written by lookalike embed"):
        run(embed_settings(out=str(out), overwrite=True))
    assert (out / "images.csv").read_text() == "path,label\n1.jpg,mug\n"
    assert names_in(out) == ["images.csv", "manifest.json"]


def test_a_damaged_mark_and_a_damaged_list_are_mended(embed_settings: Settings) -> None:
    folder = run(embed_settings()).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    lines = (folder / "images.csv").read_text().splitlines(keepends=True)
    (folder / "images.csv").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=r"images\.csv names 17 images where 18 were embedded"):
        open_shards(folder)
    (folder / "part-00001.json").write_text("")
    assert run(embed_settings()).num_parts_before == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_unreadable_images_have_no_row_and_are_named(
    embed_settings: Settings, photos: Path
) -> None:
    expected = np.delete(rows_of(run(embed_settings()).folder), [3, 8, 9], axis=0)
    bad = spoil(photos, 3, 8, 9)
    result = run(embed_settings(out=str(photos / "spoilt"), num_workers=2))
    assert [Path(one.path).name for one in result.unreadable] == bad
    assert {one.reason for one in result.unreadable} == {"image file is truncated"}
    assert result.num_rows == 15
    shards = open_shards(result.folder)
    assert [Path(name).name for name in shards.unreadable] == bad
    assert not set(shards.names) & set(shards.unreadable)
    assert len(shards.names) == 15
    # Batches have fewer rows than before, so rounding may differ.
    assert np.allclose(rows_of(result.folder), expected, atol=1e-6)


def test_a_command_of_which_all_images_fail_fails(embed_settings: Settings, photos: Path) -> None:
    spoil(photos, *range(18))
    for _ in range(2):  # going on does not make it better
        with pytest.raises(DataError, match="none of the 18 images can be read"):
            run(embed_settings())


def test_a_place_among_the_images_is_refused(embed_settings: Settings, photos: Path) -> None:
    with pytest.raises(ConfigError, match="inside the images"):
        run(embed_settings(out=str(photos / "test" / "rows")))
    with pytest.raises(ConfigError, match="lookalike embed IMAGES"):
        run(embed_settings(data=None))


def test_parts_hold_whole_batches(embed_settings: Settings) -> None:
    folder = run(embed_settings(images_per_part=5)).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["images_per_part"] == 8


def test_shards_are_searched_where_they_lie(embed_settings: Settings) -> None:
    shards = open_shards(run(embed_settings()).folder)
    rows = torch.from_numpy(np.concatenate(shards.embeddings))
    for found, expected in zip(top_k(rows[:5], shards.embeddings, 4), top_k(rows[:5], rows, 4),
                               strict=True):  # fmt: skip
        assert torch.equal(found, expected)


def test_chosen_rows_of_shards_are_as_those_of_a_tensor() -> None:
    rows = torch.nn.functional.normalize(torch.randn(11, 6), dim=1)
    shards = [one.numpy() for one in rows.split(4)]
    order = torch.tensor([7, 0, 10, 3, 3])
    chosen, expected = Rows(shards, order.numpy()), rows[order]
    assert (len(chosen), chosen.shape) == (5, (5, 6))
    assert torch.equal(chosen[:], expected)
    assert torch.equal(chosen[1:3], expected[1:3])
    assert torch.equal(chosen[::2], expected[::2])
    assert torch.equal(chosen[-2:], expected[-2:])
    assert torch.equal(chosen[4], expected[4])
    assert torch.equal(chosen[torch.tensor([2, 0])], expected[[2, 0]])
    again = Rows(chosen, np.array([4, 1]))
    assert torch.equal(again[:], expected[[4, 1]])
    assert torch.equal(Rows(shards)[:], rows)
    for found, by_tensor in zip(top_k(chosen, rows, 3), top_k(expected, rows, 3), strict=True):
        assert torch.equal(found, by_tensor)


@pytest.mark.parametrize("report", [False, True])
def test_evaluation_of_a_folder_scores_as_the_model_does(
    embed_settings: Settings, photos: Path, tiny_clip: Path, report: bool
) -> None:
    folder = run(embed_settings()).folder
    test = str(photos / "test")
    given = evaluated(photos / "a", test=test, test_embeddings=str(folder), report=report)
    model = evaluated(photos / "b", test=test, model_name=str(tiny_clip), precision="fp32",
                      device="cpu", num_workers=0, eval_batch_size=4, report=False)  # fmt: skip
    assert given.metrics == model.metrics
    assert given.retrieval is not None
    assert isinstance(given.retrieval.gallery_embeddings, Rows)
    documents = [json.loads((photos / name / "results/metrics_epoch_00.json").read_text())
                 for name in "ab"]  # fmt: skip
    assert documents[0]["health"] == documents[1]["health"]


def test_queries_and_gallery_are_read_from_one_folder_of_more_images(
    embed_settings: Settings, photos: Path
) -> None:
    """By where they lie, in another order, and without those that could not be read."""
    (photos / "all").mkdir()
    for side in ("gallery", "query"):
        (photos / side).rename(photos / "all" / side)
    bad = sorted((photos / "all" / "gallery").rglob("*.png"))[0]
    bad.write_bytes(bad.read_bytes()[:200])
    folder = run(embed_settings(data=str(photos / "all"))).folder
    table = photos / "query.csv"
    names = sorted((path for path in (photos / "all" / "query").rglob("*.png")), reverse=True)
    table.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in names))
    result = evaluated(photos / "out", query=str(table), gallery=str(photos / "all" / "gallery"),
                       query_embeddings=str(folder), gallery_embeddings=str(folder),
                       report=False, save_embeddings="npy")  # fmt: skip
    assert result.retrieval is not None
    assert result.retrieval.query.names == [str(path) for path in names]
    shards = open_shards(folder)
    rows = torch.from_numpy(np.concatenate(shards.embeddings))
    expected = rows[[shards.names.index(f"query/{path.parent.name}/{path.name}") for path in names]]
    assert torch.equal(result.retrieval.query_embeddings[:], expected)
    assert len(result.retrieval.gallery) == 11
    assert [Path(one.path).name for one in result.unreadable] == [bad.name]
    saved = photos / "out/results/embeddings_epoch_00_query.npy"
    assert np.array_equal(np.load(saved), expected.numpy())


def test_images_elsewhere_have_no_row_as_long_as_those_that_were_embedded_are_there(
    embed_settings: Settings, photos: Path
) -> None:
    folder, test, moved = run(embed_settings()).folder, photos / "test", photos / "moved"
    shutil.copytree(test, moved)
    (photos / "link").symlink_to(test, target_is_directory=True)
    options: dict[str, Any] = {"test_embeddings": str(folder), "report": False}
    evaluated(photos / "a", test=str(photos / "link"), **options)
    part = next(path for path in sorted(test.iterdir()) if path.is_dir())
    evaluated(photos / "b", query=str(part), gallery=str(test), query_embeddings=str(folder),
              gallery_embeddings=str(folder), report=False)  # fmt: skip
    words = rf"18 of 18 images have no embedding in .*; it is of images in .*{test.name} such as"
    with pytest.raises(DataError, match=words):
        evaluated(photos / "c", test=str(moved), **options)
    shutil.rmtree(test)
    evaluated(photos / "c", test=str(moved), **options)


def test_images_are_known_by_their_real_places(tmp_path: Path) -> None:
    """Links to folders and files, `..` behind a link, absolute paths in a table, parts of files."""
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "a", other / "deep"):
        folder.mkdir(parents=True)
    for file in (root / "1.png", root / "a/1.png", other / "1.png", other / "2.png"):
        file.write_bytes(b"")
    (root / "link").symlink_to(other / "deep")
    (other / "file.png").symlink_to(root / "a/1.png")
    names = ["1.png", "a/1.png", "link/../1.png", str(other / "2.png"), "x.tar/3.png"]
    (root / "x.tar").write_bytes(b"")
    told: list[str] = []

    class Noting(SilentProgress):
        def warn(self, message: str) -> None:
            told.append(message)

    def rows(folder: Path, *names_there: str) -> list[int]:
        images = ImageSet(folder, list(names_there))
        return rows_of_images(tmp_path / "e", names, images, Noting(), root=str(root))

    assert rows(root / "a", "1.png") == [1]
    assert rows(other, "1.png", "2.png", "file.png") == [2, 3, 1]
    assert rows(tmp_path, "root/x.tar/3.png") == [4]
    with pytest.raises(DataError, match="1 of 1 images have no embedding"):
        rows(other / "deep", "1.png")
    with pytest.raises(DataError, match="1 of 1 images have no embedding"):
        rows(tmp_path / "copy", "x.tar/3.png")
    assert not told
    root.rename(tmp_path / "moved")
    assert rows(tmp_path / "moved/a", "1.png") == [1]
    assert rows(tmp_path / "moved", "1.png", "x.tar/3.png") == [0, 4]
    assert [text.split(" found in")[0] for text in told] == ["1 image", "2 images"]


def test_a_folder_that_is_not_finished_or_not_ours_is_not_read(
    embed_settings: Settings, photos: Path
) -> None:
    folder = run(embed_settings()).folder
    part, mark = folder / "part-00001.npy", folder / "part-00001.json"
    whole = part.read_bytes()
    part.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"part-00001\.npy cannot be read or is incomplete"):
        open_shards(folder)
    part.write_bytes(whole[:100].replace(b"  ", b" {") + whole[100:])  # no header in Python
    with pytest.raises(DataError, match=r"part-00001\.npy cannot be read or is incomplete"):
        open_shards(folder)
    np.save(part, np.ones((2, 24), np.float32))
    with pytest.raises(DataError, match=r"shape \(2, 24\); expected float32 of \(8, 24\)"):
        open_shards(folder)
    mark.unlink()
    with pytest.raises(DataError, match="not finished: 2 of 3 parts"):
        open_shards(folder)
    manifest = folder / "manifest.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"format": "lookalike-embeddings-9"})
    )
    with pytest.raises(DataError, match="in format 'lookalike-embeddings-9'"):
        open_shards(folder)
    with pytest.raises(OutputError, match="format 'lookalike-embeddings-9'"):
        run(embed_settings())
    manifest.write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read as JSON"):
        evaluated(photos / "out", test=str(photos / "test"), test_embeddings=str(folder))


@pytest.mark.parametrize("name", ["manifest.json", "part-00001.json"])
def test_what_is_lost_or_changed_in_a_file_of_a_folder_is_an_error_that_names_it(
    embed_settings: Settings, name: str
) -> None:
    folder = run(embed_settings()).folder
    file = folder / name
    document = json.loads(file.read_text())
    used = {key: document[key] for key in ("images", "embedder", "settings") if key in document}
    changed: list[Any] = [{}, {**document, "rows": 7}, {**document, "rows": "8"},
                          {**document, "unreadable": [{"position": 99}]},
                          {**document, "unreadable": 3},
                          {**document, "rows": 7, "unreadable": [
                              {"position": 8.0, "path": "a", "reason": "b"}]}]  # fmt: skip
    if used:
        others: list[Any] = [None, [], {}, {"dim": "a"}]
        changed = [{**document, key: other} for key in used for other in others]
        changed.append({**document, "settings": {**used["settings"], "images_per_part": 0}})
    for one in changed:
        file.write_text(json.dumps(one))
        with pytest.raises(DataError, match=rf"{name} (is damaged|does not fit)|in format None"):
            open_shards(folder)
        if used:
            with pytest.raises(OutputError, match=rf"{name} that is damaged.*--overwrite"):
                run(embed_settings())
    if used:
        for content in ("", json.dumps(document)[:100]):
            file.write_text(content)
            with pytest.raises(DataError, match=r"cannot be read as JSON .* with --overwrite"):
                run(embed_settings())
            assert run(embed_settings(overwrite=True)).num_parts_before == 0
    file.write_text(json.dumps(document))
    (folder / "part-99999.json").write_text('{"unreadable": [{}]}')  # of no part
    assert run(embed_settings()).num_parts_before == 3


def start(words: list[str], settings: dict[str, Any], folder: Path) -> str:
    """Runs embedding_job.py; what it printed."""
    config = folder / "config.json"
    config.write_text(json.dumps(settings))
    command = [sys.executable, *words, str(JOB), str(config)]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_and_compare(
    settings: dict[str, Any], folder: Path, kills: int, seed: int
) -> list[dict[str, Any]]:
    """Kills a command so often, and compares what came of it with what comes without."""
    config, out = folder / "config.json", Path(settings["out"])
    config.write_text(json.dumps(settings))
    command = [sys.executable, str(JOB), str(config), str(kills), str(seed)]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=290, check=False
    )
    assert done.returncode == 0, done.stderr
    lives: list[dict[str, Any]] = json.loads(done.stdout)
    assert sum(not one["ended"] for one in lives) == kills
    assert lives[-1]["ended"]
    for before, after in pairwise(lives):
        if not before["ended"]:  # what was done is not done again
            assert before["done"].items() <= after["done"].items()
    whole = out.with_name(f"{out.name}-whole")
    assert names_in(out) == names_in(whole)
    for name in names_in(whole):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    return lives


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX systems")
def test_a_command_killed_at_random_moments_ends_bit_for_bit_like_an_uninterrupted_one(
    embed_settings: Settings, tmp_path: Path
) -> None:
    settings = embed_settings(data=str(many(tmp_path / "many", 300)), out=str(tmp_path / "out"))
    lives = kill_and_compare(settings, tmp_path, kills=5, seed=1)
    assert any(0 < len(one["done"]) < 38 for one in lives if not one["ended"])
    shards = open_shards(tmp_path / "out")
    assert shards.names == [f"{number:04}.png" for number in range(300)]  # each once
    assert sum(map(len, shards.embeddings)) == 300


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX systems")
@pytest.mark.parametrize(
    ("num_workers", "kills", "seed"), [(0, 15, 0), (0, 15, 1), (0, 15, 2), (2, 5, 0)]
)
def test_a_command_killed_many_times_ends_like_an_uninterrupted_one(
    embed_settings: Settings, tmp_path: Path, num_workers: int, kills: int, seed: int
) -> None:
    data = str(many(tmp_path / "many", 2000))
    settings = embed_settings(data=data, out=str(tmp_path / "out"), num_workers=num_workers)
    kill_and_compare(settings, tmp_path, kills=kills, seed=seed)


@pytest.mark.slow
def test_two_processes_write_the_bits_of_one(embed_settings: Settings, tmp_path: Path) -> None:
    data = many(tmp_path / "many", 61)
    for number in (5, 40):
        path = data / f"{number:04}.png"
        path.write_bytes(path.read_bytes()[:60])
    alone = run(embed_settings(data=str(data), out=str(tmp_path / "alone")))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start(torchrun, embed_settings(data=str(data), out=str(tmp_path / "two")), tmp_path)
    names = names_in(alone.folder)
    assert names == names_in(tmp_path / "two")
    for name in names:
        assert (alone.folder / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_readers_end_with_a_command_that_is_killed(embed_settings: Settings) -> None:
    settings = embed_settings(num_workers=2, eval_batch_size=1, images_per_part=1)
    code = f"import lookalike; lookalike.embed(lookalike.EmbedConfig(**{settings!r}))"
    with subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT) as command:
        ends = time.monotonic() + 100
        while not list(Path(settings["out"]).glob("part-*.json")):
            assert time.monotonic() < ends, "nothing came"
            time.sleep(0.01)
        others = psutil.Process(command.pid).children(recursive=True)
        command.kill()
    assert len(others) >= 2
    assert not psutil.wait_procs(others, timeout=30)[1]
