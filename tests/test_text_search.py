"""Text search by class name and drift: the numbers against loops, and where they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.reports import embeddings, image_set, leave_one_out
from helpers.runs import Settings, Told
from safetensors.torch import save_file
from torch.nn.functional import normalize

import lookalike
from lookalike.cli.main import main
from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.config.settings import config_from
from lookalike.evaluation import drift
from lookalike.evaluation.drift import (
    measure_drift,
    originals_of,
    read_originals,
    write_originals,
)
from lookalike.evaluation.results import originals_file, result_files
from lookalike.evaluation.text import TextQueries, search_by_text, text_metrics, text_queries
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import SilentProgress


def document(out: Path, epoch: int) -> Any:
    return json.loads(result_files(out, epoch)[1].read_text(encoding="utf-8"))


def train(settings: dict[str, Any], resume: Path | None = None) -> tuple[Any, Told]:
    told = Told()
    config = config_from(TrainConfig, settings)
    return lookalike.train(config, resume=resume, progress=told), told


# --- Numbers ---------------------------------------------------------------------------------


def test_text_metrics_are_what_a_loop_in_float64_finds() -> None:
    generator = torch.Generator().manual_seed(5)
    classes = ["apple", "mug", "no image", "pear"]
    labels = [["apple", "mug", "pear"][i % 3] for i in range(40)]
    rows = normalize(torch.randn(40, 8, generator=generator), dim=1)
    queries = TextQueries(
        classes, classes, normalize(torch.randn(4, 8, generator=generator), dim=1)
    )
    scores = search_by_text(queries, image_set([f"{i}.png" for i in range(40)], labels), rows)
    found = text_metrics(scores)

    precisions, firsts = [], []
    for label, query in zip(classes, queries.embeddings.double(), strict=True):
        if label not in labels:
            continue
        order = np.argsort(-(rows.double() @ query).numpy(), kind="stable")
        right = np.array([labels[i] == label for i in order])
        ranks = np.flatnonzero(right) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        firsts.append(ranks[0])
    assert scores.num_without_answer == 1
    assert found["mAP"] == pytest.approx(np.mean(precisions))
    for k in (1, 5, 10):
        assert found[f"recall@{k}"] == pytest.approx(np.mean(np.array(firsts) <= k))


def test_there_is_one_query_a_class_whose_caption_is_its_name_in_words(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    queries = text_queries(encoder, ["red_mug", "apple", "red_mug"], "my {}", SilentProgress())
    assert queries.labels == ["apple", "red_mug"]
    assert queries.captions == ["my apple", "my red mug"]
    assert queries.embeddings.shape == (2, 24)


def test_drift_is_the_cosine_between_an_image_now_and_then() -> None:
    of_class = torch.arange(30) % 5
    side = image_set([f"{i}.png" for i in range(30)], [str(c) for c in of_class.tolist()])
    then = normalize(embeddings(of_class, noise=1.0), dim=1)
    now = normalize(then + 0.3 * torch.randn(30, 16, generator=torch.manual_seed(1)), dim=1)
    originals = originals_of(leave_one_out(then, side)[0], "run", "test")
    fewer = side.subset(i for i in range(30) if i != 7)  # an image that can be read no more
    keep = [i for i in range(30) if i != 7]
    found = measure_drift(originals, leave_one_out(now[keep], fewer)[0])
    cosines = [float(a.double() @ b.double()) for a, b in zip(then[keep], now[keep], strict=True)]
    assert found is not None
    assert found.num_images == 29
    assert found.mean_cosine == pytest.approx(np.mean(cosines))
    assert found.low_cosine == pytest.approx(np.percentile(cosines, 1))


def test_of_many_images_evenly_spaced_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MOST_IMAGES", 4)
    of_class = torch.arange(10) % 5
    side = image_set([f"{i}.png" for i in range(10)], [str(c) for c in of_class.tolist()])
    rows = embeddings(of_class, noise=1.0)
    kept = originals_of(leave_one_out(rows, side)[0], "run", "test")
    assert kept.names == ["gallery/0.png", "gallery/2.png", "gallery/5.png", "gallery/7.png"]
    assert torch.equal(kept.embeddings, rows[[0, 2, 5, 7]])


def test_originals_come_back_as_they_were_and_only_for_their_run_and_test(tmp_path: Path) -> None:
    of_class = torch.arange(10) % 5
    side = image_set([f"ä{i}.png" for i in range(10)], [str(c) for c in of_class.tolist()])
    kept = originals_of(leave_one_out(embeddings(of_class, noise=1.0), side)[0], "run", "test")
    path = tmp_path / "originals.safetensors"
    assert read_originals(path, "run", "test") is None
    write_originals(path, kept)
    found = read_originals(path, "run", "test")
    assert found is not None
    assert found.names == kept.names
    assert torch.equal(found.embeddings, kept.embeddings)
    assert read_originals(path, "another", "test") is None
    assert read_originals(path, "run", "another") is None
    path.write_bytes(b"cut off")
    assert read_originals(path, "run", "test") is None


def test_originals_are_not_used_where_a_bit_of_them_is_another(tmp_path: Path) -> None:
    of_class = torch.arange(10) % 5
    side = image_set([f"{i}.png" for i in range(10)], [str(c) for c in of_class.tolist()])
    kept = originals_of(leave_one_out(embeddings(of_class, noise=1.0), side)[0], "run", "test")
    path = tmp_path / "originals.safetensors"
    write_originals(path, kept)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.integers(len(whole), size=200).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        found = read_originals(path, "run", "test")
        refused += found is None
        assert found is None or (
            found.names == kept.names and torch.equal(found.embeddings, kept.embeddings)
        )
    assert refused > 150


@pytest.mark.parametrize("scale", [1.0, 1e34, float("nan")])
def test_originals_of_earlier_versions_are_read_as_far_as_they_are_embeddings(
    scale: float, tmp_path: Path
) -> None:
    rows = normalize(torch.randn(3, 4), dim=1)
    rows[1] *= scale
    about = {"run": "run", "test": "test", "names": '["a", "b", "c"]'}
    save_file({"embeddings": rows}, tmp_path / "old.safetensors", metadata=about)
    found = read_originals(tmp_path / "old.safetensors", "run", "test")
    assert (found is not None) == (scale == 1.0)


# --- Where they are told ---------------------------------------------------------------------


def test_every_epoch_tells_text_search_and_drift_and_a_resumed_run_goes_on_from_the_original(
    settings: Settings, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = train(settings(num_epochs=2))
    out = photos / "out"
    documents = [document(out, epoch) for epoch in range(3)]
    assert documents[0]["drift"]["mean_cosine"] == pytest.approx(1.0)
    assert documents[1]["drift"]["mean_cosine"] < 1.0
    for one, summary in zip(documents, result.history, strict=True):
        assert summary.text_metrics == one["text_metrics"]
        assert summary.drift.mean_cosine == one["drift"]["mean_cosine"]
        assert list(one["text_metrics"]) == ["recall@1", "recall@5", "recall@10", "mAP"]
        assert set(one["text_intervals"]) == set(one["text_metrics"])
    half = photos / "half"
    train(settings(num_epochs=1, out=str(half)))
    resumed, told = train(
        settings(num_epochs=2, out=str(half)), half / "weights" / "encoder_epoch_01.pth"
    )
    assert told.warnings == []
    assert document(half, 2)["drift"] == documents[2]["drift"]
    assert document(half, 2)["text_metrics"] == documents[2]["text_metrics"]
    assert [one.drift for one in resumed.history] == [one.drift for one in result.history]


def test_where_the_original_embeddings_are_gone_a_resumed_run_says_so(
    settings: Settings, photos: Path
) -> None:
    train(settings(num_epochs=1))
    out = photos / "out"
    originals_file(out).unlink()
    result, told = train(settings(num_epochs=2), out / "weights" / "encoder_epoch_01.pth")
    assert [message for message in told.warnings if "drift" in message]
    assert result.history[-1].drift is None
    assert document(out, 2)["drift"] is None


def test_evaluate_finds_the_same_text_metrics_as_the_epoch_did(
    settings: Settings, photos: Path
) -> None:
    train(settings(num_epochs=1))
    result = lookalike.evaluate(
        EvaluateConfig(
            test=str(photos / "test"),
            model_name=str(photos / "out" / "weights" / "encoder_epoch_01.pth"),
            out=str(photos / "again"), precision="fp32", device="cpu", num_workers=0, report=False,
        ),
        progress=SilentProgress(),
    )  # fmt: skip
    assert result.text_metrics == document(photos / "out", 1)["text_metrics"]
    assert document(photos / "again", 1)["text_metrics"] == result.text_metrics


def test_pooled_embeddings_have_no_text_metrics_but_drift(settings: Settings, photos: Path) -> None:
    result, _ = train(settings(num_epochs=1, embedding="pooled"))
    assert result.history[1].text_metrics is None
    assert result.history[1].drift.mean_cosine < 1
    assert document(photos / "out", 1)["text_metrics"] is None


def test_the_terminal_shows_text_search_and_drift_within_80_columns(
    settings: Settings, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = settings(num_epochs=1, report="false")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()
             if name not in ("train", "report")]  # fmt: skip
    assert main(["train", options["train"], *flags, "--no-report"]) == 0
    printed = capsys.readouterr().out
    assert "by searching for their class names" in printed
    assert "mean cosine" in printed
    assert "…" not in printed
    tables = [line for line in printed.splitlines() if "/" not in line]  # a path is as it is
    assert max(map(len, tables)) <= 80
