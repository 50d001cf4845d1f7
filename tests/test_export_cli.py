"""`lookalike export` as a command: what it prints where, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import MACHINE, assert_refused, files_below, lookalike

from lookalike.config import ExportConfig
from lookalike.config.recipes import read_recipe
from lookalike.config.settings import config_from


def test_a_run_is_exported_and_the_export_evaluated_with_the_same_result(
    photos: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    trained = lookalike(
        "train", photos / "train", "--test", photos / "test", "--model-name", tiny_clip,
        "--learning-rate", "1e-3", "--out", tmp_path / "run", "--json", "--no-report", *MACHINE,
    )  # fmt: skip
    checkpoint = tmp_path / "run/weights/encoder_epoch_01.pth"
    outcome = lookalike("export", checkpoint, "--out", tmp_path / "clip")
    assert outcome.code == 0
    assert "projected embeddings of 24 numbers" in outcome.out
    assert "same embeddings, to the last bit" in outcome.out
    assert "no measured numbers" not in outcome.out
    for name in files_below(tmp_path / "clip"):
        assert f"  {tmp_path / 'clip' / name}\n" in outcome.out
    assert "model    encoder_epoch_01.pth" in outcome.err
    evaluated = lookalike(
        "evaluate", "--test", photos / "test", "--model-name", tmp_path / "clip",
        "--out", tmp_path / "again", "--json", "--no-report", *MACHINE,
    )  # fmt: skip
    assert evaluated.json()["metrics"] == trained.json()["history"][1]["metrics"]


def test_json_is_one_document(tiny_clip: Path, tmp_path: Path) -> None:
    outcome = lookalike("export", tiny_clip, "--out", tmp_path / "out", "--json")
    assert outcome.code == 0
    document = outcome.json()
    assert document["folder"] == str(tmp_path / "out")
    assert {Path(path) for path in document["files"]} == set((tmp_path / "out").iterdir())
    assert document["embedding"] == {"kind": "projected", "dim": 24}
    agreement = document["agreement"]
    assert (agreement["num_images"], agreement["largest_difference"]) == (3, 0)
    assert agreement["smallest_cosine"] == pytest.approx(1)
    assert document["unmeasured"] == "it was not trained with Lookalike"
    assert document["url"] is None


def test_what_stands_in_the_way_is_one_line(tiny_clip: Path, tmp_path: Path) -> None:
    assert_refused(lookalike("export"), "nothing to export", "weights/encoder_epoch_01.pth")
    assert_refused(lookalike("export", tmp_path / "no.pth"), "no.pth does not exist")
    assert_refused(lookalike("export", tiny_clip, "--to", "tflite"), "to is 'tflite'", "or onnx")
    assert_refused(lookalike("export", tiny_clip, "--out", tiny_clip), "is not a Lookalike export")
    assert_refused(lookalike("export", tiny_clip, "--push-to-hub", "clip"), "OWNER/NAME")
    misspelt = lookalike("export", tiny_clip, "--licence", "mit")
    assert misspelt.code == 2
    assert "did you mean --license?" in misspelt.err


def test_printed_settings_are_a_recipe(tmp_path: Path) -> None:
    words = ["export", "one.pth", "--to", "onnx", "--no-private", "--push-to-hub", "jane/clip"]
    printed = lookalike(*words, "--print-config")
    assert (printed.code, printed.err) == (0, "")
    (tmp_path / "mine.yaml").write_text(printed.out, encoding="utf-8")
    config = config_from(ExportConfig, read_recipe(tmp_path / "mine.yaml"))
    assert config == ExportConfig(
        model_name="one.pth", to="onnx", private=False, push_to_hub="jane/clip"
    )
