"""The protocol and its files: what is searched in what, and what is written about it."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.photos import draw, write_tree
from helpers.runs import Settings, Told, document
from helpers.runs import evaluate as run
from PIL import Image
from torch import Tensor

from lookalike.commands.evaluate import EvaluateResult
from lookalike.data.transforms import preprocess
from lookalike.errors import ConfigError, DataError, ModelError, OutputError
from lookalike.model.encoder import CLIPEncoder


def measured(result: EvaluateResult, names: dict[str, float]) -> dict[str, float]:
    """Those of the measured metrics that a naive loop has computed as well."""
    assert result.metrics is not None
    return {name: result.metrics[name] for name in names}


def naive_scores(
    settings: dict[str, Any], query: list[Path], gallery: list[Path]
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Embeds image by image, ranks with sorted(), and scores with loops, in float64."""
    encoder = CLIPEncoder(settings["model_name"]).eval()

    def embed(path: Path) -> list[float]:
        pixels = preprocess(Image.open(path).convert("RGB"), encoder.preprocessing)
        with torch.inference_mode():
            return [float(x) for x in encoder(pixels[None])[0].double()]

    vectors = {path: embed(path) for path in {*query, *gallery}}
    totals: dict[str, list[float]] = {}
    retrieved = {}
    for q in query:
        others = [g for g in gallery if g != q]
        score = {g: sum(a * b for a, b in zip(vectors[q], vectors[g], strict=True)) for g in others}
        ranked = sorted(others, key=lambda g: (-score[g], gallery.index(g)))
        retrieved[q.name] = [g.name for g in ranked[:10]]
        right = [g.parent.name == q.parent.name for g in ranked]
        r, hits, ap, ap_at_r = sum(right), 0, 0.0, 0.0
        for rank, is_right in enumerate(right, start=1):
            hits += is_right
            ap += is_right * hits / rank
            ap_at_r += is_right * hits / rank * (rank <= r)
        row = {"mAP": ap / r, "mAP@R": ap_at_r / r}
        row |= {f"recall@{k}": float(any(right[:k])) for k in (1, 5, 10)}
        for name, value in row.items():
            totals.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in totals.items()}, retrieved


def test_leave_one_out_scores_and_retrievals_are_those_of_plain_loops(
    settings: Settings, photos: Path
) -> None:
    chosen = settings(exact_pixels=True)
    result = run(chosen)
    files = sorted((photos / "test").rglob("*.png"))
    metrics, retrieved = naive_scores(chosen, files, files)
    assert measured(result, metrics) == pytest.approx(metrics, abs=1e-6)
    assert document(result, 0) == retrieved
    written = document(result, 1)
    assert written["metrics"] == result.metrics
    assert written["protocol"]["kind"] == "leave-one-out"
    assert written["protocol"]["num_queries"] == written["protocol"]["num_gallery"] == 18


def test_query_and_gallery_scores_are_those_of_plain_loops(
    settings: Settings, photos: Path
) -> None:
    chosen = settings(
        test=None,
        query=str(photos / "query"),
        gallery=str(photos / "gallery"),
        top_k=3,
        exact_pixels=True,
    )
    result = run(chosen)
    query = sorted((photos / "query").rglob("*.png"))
    gallery = sorted((photos / "gallery").rglob("*.png"))
    metrics, retrieved = naive_scores(chosen, query, gallery)
    assert measured(result, metrics) == pytest.approx(metrics, abs=1e-6)
    assert document(result, 0) == {name: row[:3] for name, row in retrieved.items()}
    scores = document(result, 1)["scores"]
    assert set(scores) == set(retrieved)
    assert all(row == sorted(row, reverse=True) and len(row) == 3 for row in scores.values())


def test_a_query_that_lies_in_the_gallery_does_not_find_itself_but_its_copy(
    settings: Settings, tmp_path: Path
) -> None:
    gallery = write_tree(tmp_path / "shop", {"a": 2, "b": 2})
    copy = gallery / "a" / "copy.png"
    shutil.copy(gallery / "a" / "a_001.png", copy)
    query = tmp_path / "asked" / "a"
    query.mkdir(parents=True)
    link = query / "a_001.png"
    try:
        os.symlink(gallery / "a" / "a_001.png", link)  # the same file under another path
    except OSError:
        pytest.skip("this system lets nobody make links")
    result = run(settings(test=None, query=str(tmp_path / "asked"), gallery=str(gallery)))
    row = document(result, 0)["a_001.png"]
    assert row[0] == "copy.png"
    assert "a_001.png" not in row
    assert len(row) == 4


def test_unlabelled_images_are_retrieved_without_metrics(
    settings: Settings, tmp_path: Path
) -> None:
    for side in ("asked", "shop"):
        (tmp_path / side).mkdir()
        for i in range(3):
            draw(i, 0).save(tmp_path / side / f"{side}{i}.png")
    result = run(settings(test=None, query=str(tmp_path / "asked"), gallery=str(tmp_path / "shop")))
    assert result.metrics is None
    assert document(result, 1)["metrics"] is None
    # The same three images on both sides, as different files: each finds its copy first.
    assert {q: row[0] for q, row in document(result, 0).items()} == {
        f"asked{i}.png": f"shop{i}.png" for i in range(3)
    }


def test_queries_without_an_answer_are_counted_apart(settings: Settings, tmp_path: Path) -> None:
    query = write_tree(tmp_path / "asked", {"a": 1, "lonely": 2})
    gallery = write_tree(tmp_path / "shop", {"a": 3, "b": 1})
    result = run(settings(test=None, query=str(query), gallery=str(gallery), top_k=1))
    protocol = document(result, 1)["protocol"]
    assert protocol["num_queries_without_answer"] == 2
    assert protocol["num_queries_scored"] == 1
    only_a = run(
        settings(
            test=None, query=str(query / "a"), gallery=str(gallery), out=str(tmp_path / "other")
        )
    )
    assert only_a.metrics is None  # query/a alone is a flat folder: unlabelled
    assert result.metrics is not None
    assert result.metrics["recall@1"] in (0.0, 1.0)  # one query, not a third of one


def test_labels_that_meet_nowhere_are_an_error(settings: Settings, tmp_path: Path) -> None:
    query = write_tree(tmp_path / "asked", {"cat": 1, "dog": 1})
    gallery = write_tree(tmp_path / "shop", {"Cat": 1, "Dog": 1})
    with pytest.raises(DataError, match=r"no class in common.*'cat'.*'Cat'"):
        run(settings(test=None, query=str(query), gallery=str(gallery)))


def test_images_of_one_group_never_match(settings: Settings, tmp_path: Path) -> None:
    write_tree(tmp_path / "all", {"a": 4, "b": 4})
    rows = ["path,label,group"]
    rows += [f"all/{c}/{c}_{i:03}.png,{c},{c}{i // 2}" for c in "ab" for i in range(4)]
    table = tmp_path / "images.csv"
    table.write_text("\n".join(rows))
    found = document(run(settings(test=str(table))), 0)
    for query, row in found.items():
        number = int(query[2:5])
        partner = f"{query[0]}_{number + 1 - 2 * (number % 2):03}.png"
        assert partner not in row
        assert len(row) == 6  # of 8: not itself, not its partner


def test_a_table_says_which_images_are_queries(settings: Settings, tmp_path: Path) -> None:
    write_tree(tmp_path / "all", {"a": 3, "b": 3})
    rows = ["path,label,split,is_query"]
    for c in "ab":
        rows += [f"all/{c}/{c}_000.png,{c},test,true", f"all/{c}/{c}_001.png,{c},test,false"]
        rows += [f"all/{c}/{c}_002.png,{c},train,"]
    table = tmp_path / "images.csv"
    table.write_text("\n".join(rows))
    result = run(settings(test=str(table)))
    found = document(result, 0)
    assert set(found) == {"a_000.png", "b_000.png"}
    assert {name for row in found.values() for name in row} == {"a_001.png", "b_001.png"}
    other = run(
        settings(test=None, query=str(table), gallery=str(table), out=str(tmp_path / "two"))
    )
    assert document(other, 0) == found


def test_file_names_that_repeat_become_paths_and_a_warning(
    settings: Settings, tmp_path: Path
) -> None:
    for c, label in (("a", 0), ("b", 1)):
        (tmp_path / "all" / c).mkdir(parents=True)
        for i in range(2):
            draw(label, i).save(tmp_path / "all" / c / f"{i}.png")
    told = Told()
    found = document(run(settings(test=str(tmp_path / "all")), told), 0)
    assert set(found) == {"a/0.png", "a/1.png", "b/0.png", "b/1.png"}
    assert any("share a file name" in warning for warning in told.warnings)


def test_unreadable_images_are_left_out_and_written_down(settings: Settings, photos: Path) -> None:
    folder = photos / "test" / "classa"
    whole = (folder / "classa_010.png").read_bytes()
    (folder / "classa_010.png").write_bytes(whole[: len(whole) // 2])  # its header is intact
    (folder / "page.jpg").write_text("<html>no such image</html>")
    result = run(settings())
    written = {Path(one["path"]).name: one["reason"] for one in document(result, 1)["unreadable"]}
    assert set(written) == {"classa_010.png", "page.jpg"}
    assert "HTML" in written["page.jpg"]
    found = document(result, 0)
    assert len(found) == 17
    assert not any("classa_010.png" in row for row in found.values())


def test_results_are_not_replaced_unless_told_to(settings: Settings) -> None:
    run(settings())
    with pytest.raises(OutputError, match="--overwrite"):
        run(settings())
    run(settings(overwrite=True))


def test_nothing_to_evaluate_on_is_said(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="--test, or --query and --gallery"):
        run(settings(test=None))
    with pytest.raises(ConfigError, match="gallery"):
        run(settings(test=None, query="somewhere"))


def test_an_unlabelled_test_folder_says_what_to_give(settings: Settings, photos: Path) -> None:
    with pytest.raises(DataError, match="no labels"):
        run(settings(test=str(photos / "test" / "classa")))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_is_not_unicode_survives(settings: Settings, photos: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.png")
    draw(0, 99).save(photos / "test" / "classa" / "plain.png")
    (photos / "test" / "classa" / "plain.png").rename(photos / "test" / "classa" / name)
    assert name in document(run(settings()), 0)


@pytest.mark.parametrize(
    ("batch_size", "advice"), [(7, "--eval-batch-size 3, or --device cpu"), (1, "--device cpu")]
)
def test_a_device_with_too_little_memory_says_what_to_set(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, batch_size: int, advice: str
) -> None:
    def full(encoder: CLIPEncoder, pixels: Tensor) -> Tensor:
        if len(pixels) == batch_size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return embed(encoder, pixels)

    given = settings(eval_batch_size=batch_size)
    embed = CLIPEncoder.forward
    monkeypatch.setattr(CLIPEncoder, "dim", 24)  # otherwise found by embedding one
    monkeypatch.setattr(CLIPEncoder, "forward", full)
    with pytest.raises(ModelError) as told:
        run(given)
    images = "1 image" if batch_size == 1 else "7 images"
    assert str(told.value) == (
        f"cpu has too little memory to embed {images} at a time (CUDA out of memory); set {advice}"
    )


def test_an_image_that_the_model_makes_nonsense_of_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CLIPEncoder.forward

    def broken(self: CLIPEncoder, pixels: torch.Tensor) -> torch.Tensor:
        embeddings = plain(self, pixels)
        embeddings[2:3] = float("nan")
        return embeddings

    monkeypatch.setattr(CLIPEncoder, "forward", broken)
    with pytest.raises(ModelError, match=r"not finite, first for .*classa_012\.png"):
        run(settings())
