"""The command: what is asked, what is answered where, and what happens to bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import (
    MACHINE,
    Outcome,
    Words,
    assert_refused,
    files_below,
    lookalike,
    lookalike_process,
)
from helpers.photos import draw, write_tree

from lookalike.cli import tables
from lookalike.cli.output import print_json
from lookalike.config import BenchConfig, CheckConfig, EvaluateConfig, ExportConfig, TrainConfig
from lookalike.config.recipes import read_recipe
from lookalike.config.settings import config_from
from lookalike.evaluation.drift import Drift
from lookalike.evaluation.metrics import headline
from lookalike.progress import SilentProgress, Task
from lookalike.training.history import Best, EpochSummary

CLASSES = [f"class{c}" for c in "abcdef"]
VERBS = ["train", "evaluate", "compare", "check", "bench", "export", "recipes", "demo"]

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and names of POSIX systems")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that no test changes: `train` and `test` trees, flat `asked` and `stock`."""
    root = tmp_path_factory.mktemp("shop")
    write_tree(root / "train", dict.fromkeys(CLASSES, 4))
    write_tree(root / "test", dict.fromkeys(CLASSES, 2), first=10)
    for side in ("asked", "stock"):
        (root / side).mkdir()
        for i in range(4):
            draw(i, 0).save(root / side / f"{side}{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(
    shop: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """A finished run that no test changes, and what it printed."""
    out = tmp_path_factory.mktemp("run")
    outcome = lookalike(
        "train", shop / "train", "--test", shop / "test", "--model-name", tiny_clip,
        "--learning-rate", "1e-3", "--out", out, "--top-k", "3", *MACHINE,
    )  # fmt: skip
    return out, outcome


@pytest.fixture
def small_run(photos: Path, tiny_clip: Path) -> list[str]:
    """The words of a run on images of the test's own, which write below `photos / "out"`."""
    return [
        "train", str(photos / "train"), "--test", str(photos / "test"),
        "--model-name", str(tiny_clip), "--learning-rate", "1e-3",
        "--out", str(photos / "out"), *MACHINE,
    ]  # fmt: skip


# --- Help and words --------------------------------------------------------------------------


LONG = ("train", "evaluate")  # of which --help shows a part


def sections_of_help(verb: str, flag: str = "--help") -> dict[str, str]:
    """Returns the help of each flag, on one line."""
    outcome = lookalike(verb, flag)
    assert (outcome.code, outcome.err) == (0, "")
    assert max(len(line) for line in outcome.out.splitlines()) <= 100
    found: dict[str, str] = {}
    flag = ""
    for line in outcome.out.partition("options:")[2].partition("\nexamples:")[0].splitlines():
        start = re.match(r"  (?:-h, )?--([a-z0-9-]+)", line)
        flag = start[1] if start else flag if line.startswith("   ") else ""
        if flag:
            found[flag] = f"{found.get(flag, '')} {line.strip()}"
    return found


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_help_names_every_verb(words: list[str]) -> None:
    outcome = lookalike(*words)
    assert (outcome.code, outcome.err) == (0, "")
    for verb in VERBS:
        assert re.search(rf"^  +{verb}  ", outcome.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("verb", "config"),
    [
        ("train", TrainConfig),
        ("evaluate", EvaluateConfig),
        ("check", CheckConfig),
        ("bench", BenchConfig),
        ("export", ExportConfig),
    ],
)
def test_the_help_of_a_verb_shows_every_option_with_its_default(verb: str, config: Any) -> None:
    sections = sections_of_help(verb, "--help-all" if verb in LONG else "--help")
    for option in dataclasses.fields(config):
        about = {"train": "train", "check": "data", "bench": "data", "export": "model_name"}
        if about.get(verb) == option.name:
            continue  # what it is all about is no flag
        said = sections[option.name.replace("_", "-")]
        assert option.metadata["help"] in said
        if option.default is not None and not isinstance(option.default, bool):
            default = re.search(r"\(default: ([^)]*)\)$", said)
            assert default, said
            value = float(default[1]) if isinstance(option.default, float) else default[1]
            assert value == (option.default if isinstance(value, float) else str(option.default))


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_thirty_flags_at_most(verb: str) -> None:
    shown = sections_of_help(verb)
    assert 1 <= len(shown) <= 30
    if verb in LONG:
        everything = sections_of_help(verb, "--help-all")
        assert list(shown) != list(everything)
        assert set(shown) < set(everything)
        assert {name: everything[name] for name in shown} == shown
        assert "show all options" in shown["help-all"]


def test_the_short_help_of_train_has_the_flags_a_first_run_needs_in_their_order() -> None:
    shown = list(sections_of_help("train"))
    first = ["test", "model-name", "num-epochs", "learning-rate", "n-classes-per-batch", "out"]
    assert [name for name in shown if name in first] == first


def test_the_help_shows_the_defaults_of_the_mission() -> None:
    sections = sections_of_help("train")
    for flag, default in {
        "model-name": "openai/clip-vit-large-patch14-336",
        "temperature": "0.07",
        "num-epochs": "1",
        "learning-rate": "1e-07",
        "n-classes-per-batch": "4",
        "n-samples-per-class": "2",
        "top-k": "10",
    }.items():
        assert sections[flag].endswith(f"(default: {default})")


def test_the_help_tells_what_switches_are_by_default() -> None:
    sections = sections_of_help("train", "--help-all")
    for flag in ("overwrite", "gradient-checkpointing"):
        assert re.search(r"\(default: (off|no|false|False)\)", sections[flag]), sections[flag]


def test_the_help_of_the_demo_shows_its_flags() -> None:
    sections = sections_of_help("demo")
    assert sections["out"].endswith("(default: lookalike-demo)")
    assert sections["seed"].endswith("(default: 0)")
    assert "json" in sections


def test_the_version_is_told() -> None:
    outcome = lookalike("--version")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.fullmatch(r"lookalike \d+\.\d+\.\d+\S*\n", outcome.out)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "photos", "--learning-rat", "1e-5"], "--learning-rate"),
        (["train", "photos", "--learning-rat=1e-5"], "--learning-rate"),
        (["train", "photos", "--top_k", "3"], "--top-k"),
        (["train", "--gradient-checkpoint", "photos"], "--gradient-checkpointing"),
        (["evaluate", "--galery", "photos"], "--gallery"),
        (["evaluate", "--overwrit"], "--overwrite"),
        (["demo", "--sed", "3"], "--seed"),
        (["--vresion"], "--version"),
        (["trian", "photos"], "train"),
        (["eval", "--test", "photos"], "evaluate"),
    ],
)
def test_an_unknown_word_names_the_nearest(words: list[str], meant: str) -> None:
    outcome = lookalike(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    wrong = next(word for word in words if word not in VERBS and word != "photos")
    assert f"{wrong.partition('=')[0]}" in outcome.err
    assert re.search(rf"did you mean {meant}\?", outcome.err), outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "photos", "--xyzzy"], "--xyzzy"),
        (["embed", "photos", "more"], "more"),
        (["xyzzy"], "xyzzy"),
        (["train", "--top-k"], "--top-k: expected one argument"),
    ],
)
def test_a_word_without_a_meaning_is_one_line_and_points_at_the_help(
    words: list[str], message: str
) -> None:
    outcome = lookalike(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert message in outcome.err
    assert "--help" in outcome.err
    assert "did you mean" not in outcome.err


# --- Settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "p", "--top-k", "0"], "top_k is 0; it must be at least 1"),
        (["train", "p", "--learning-rate", "nan"], "learning_rate is nan"),
        (["train", "p", "--num-epochs", "1.5"], "num_epochs is '1.5'; expected a whole number"),
        (["train", "p", "--schedule", "linear"], "expected constant or cosine"),
        (["train", "p", "--test", "t", "--query", "q"], "either test, or query and gallery"),
        (["evaluate", "--query", "q"], "query is given without gallery"),
        (["train"], "nothing to train on"),
        (["evaluate"], "nothing to evaluate"),
    ],
)
def test_an_impossible_setting_is_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(lookalike(*words), message)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("learnign_rate: 1e-5\n", ["unknown key 'learnign_rate'", "did you mean 'learning_rate'"]),
        ("- 1\n", ["holds a list"]),
        ("train: [\nout: x\n", ["is not YAML"]),
        ("top_k: 0\n", ["top_k is 0"]),
        (None, ["cannot read the recipe", "No such file"]),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(
    tmp_path: Path, content: str | None, messages: list[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    if content is not None:
        recipe.write_text(content)
    assert_refused(lookalike("train", "photos", "--recipe", recipe), *messages)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_printed_settings_are_a_recipe_that_gives_the_same_settings(
    verb: str, tmp_path: Path
) -> None:
    words = [verb, "--test", "Bilder/Tür #1: neu", "--top-k", "3", "--num-workers", "0",
             "--max-megapixels", "12.5", "--overwrite"]  # fmt: skip
    if verb == "train":
        words += ["日本", "--learning-rate", "2e-5", "--max-grad-norm", "none"]
    printed = lookalike(*words, "--print-config")
    assert (printed.code, printed.err) == (0, "")
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes(printed.out.encode("utf-8"))
    again = lookalike(verb, "--recipe", recipe, "--print-config")
    assert again == printed
    settings = read_recipe(recipe)
    assert "overwrite" not in settings  # it was wished for once
    expected: dict[str, Any] = {"test": "Bilder/Tür #1: neu", "top_k": 3, "num_workers": 0}
    if verb == "train":
        expected |= {"train": "日本", "max_grad_norm": None}
        assert config_from(TrainConfig, settings).learning_rate == 2e-5
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_settings_printed_to_a_file_of_another_encoding_are_still_a_recipe(
    encoding: str, tmp_path: Path
) -> None:
    # Windows writes `> mine.yaml` in cp1252; a recipe is read as UTF-8.
    printed = lookalike("train", "Tür/日本", "--print-config", encoding=encoding)
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes(printed.out.encode("utf-8"))
    assert read_recipe(recipe)["train"] == "Tür/日本"


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("top-k: 7\nseed: 3\noverwrite: true\n")
    words = ["train", "--recipe", str(recipe), "--top-k", "5", "--no-overwrite", "--print-config"]
    printed = tmp_path / "printed.yaml"
    printed.write_text(lookalike(*words).out)
    config = config_from(TrainConfig, read_recipe(printed))
    assert (config.top_k, config.seed, config.overwrite) == (5, 3, False)


def test_test_images_of_a_flag_take_the_place_of_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("test: old\n")
    outcome = lookalike(
        "train", "--recipe", recipe, "--query", "q", "--gallery", "g", "--print-config"
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^test: null", outcome.out, re.MULTILINE)


# --- Results ---------------------------------------------------------------------------------


def test_results_go_to_stdout_and_progress_to_stderr(trained: tuple[Path, Outcome]) -> None:
    out, outcome = trained
    assert outcome.code == 0
    for word in ("model", "train", "test", "batches", "device"):
        assert re.search(rf"^{word} +\S", outcome.err, re.MULTILINE)
        assert not re.search(rf"^{word}  +\S", outcome.out, re.MULTILINE)
    assert "24 images, 6 classes" in outcome.err
    assert "mAP@R" not in outcome.err
    metrics = [
        json.loads((out / f"results/metrics_epoch_0{epoch}.json").read_text("utf-8"))
        for epoch in (0, 1)
    ]
    rows = {
        row[0] if row[0] == "change" else f"{row[0]} {row[1]}": row
        for line in outcome.out.partition("Images found by")[0].splitlines()
        if (row := line.replace(" best", "").split()) and row[0] in ("epoch", "change")
    }
    names = ["recall@1", "recall@5", "recall@10", "mAP", "mAP@R"]
    header = next(line for line in outcome.out.splitlines() if "loss" in line)
    assert header.split() == ["loss", *names]
    before, after = ([one["metrics"][name] for name in names] for one in metrics)
    assert rows["epoch 0"][2:] == [f"{value:.4f}" for value in before]
    assert rows["epoch 1"][2:] == [f"{value:.4f}" for value in (metrics[1]["loss"], *after)]
    assert rows["change"][1:] == [f"{b - a:+.4f}" for a, b in zip(before, after, strict=True)]
    written = outcome.out.partition("Written:\n")[2].split("\n  ")
    assert sorted(Path(line.strip()) for line in written) == sorted(out.rglob("*.*"))


def test_the_best_epoch_is_marked_and_its_checkpoint_named(
    trained: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    out, outcome = trained
    values = [
        json.loads((out / f"results/metrics_epoch_0{epoch}.json").read_text("utf-8"))["metrics"]
        for epoch in (0, 1)
    ]
    best = int(values[1]["mAP@R"] > values[0]["mAP@R"])
    marked = [line.split()[:3] for line in outcome.out.splitlines() if " best " in line]
    assert marked == [["epoch", str(best), "best"]]
    assert f"Best by mAP@R: epoch {best} ({values[best]['mAP@R']:.4f})" in outcome.out

    history = [EpochSummary(epoch, 0.5, dict.fromkeys(headline(), 0.1)) for epoch in (0, 1, 2)]
    for one, end in [
        (Best(2, "MRR", 0.2, Path("weights/encoder_epoch_02.pth")),
         "Best by MRR: epoch 2 (0.2000), weights/encoder_epoch_02.pth"),
        (Best(1, "MRR", 0.1), "epoch 1 (0.1000); its checkpoint is not in the run's folder."),
        (Best(0, "MRR", 0.3), "epoch 0 (0.3000), the baseline: training did not help"),
    ]:  # fmt: skip
        tables.print_history(history, one)
        shown = capsys.readouterr().out
        assert end in shown
        assert ("change to last" in shown) is (one.epoch == 1)
        assert "barely" not in shown
    history[-1] = EpochSummary(2, 0.5, history[-1].metrics, drift=Drift(1.0, 1.0, 9))
    tables.print_history(history, Best(0, "MRR", 0.3))
    assert "barely moved the embeddings (mean cosine 1.0000): raise" in capsys.readouterr().out
    tables.print_history(history, None)
    assert "best" not in capsys.readouterr().out.lower()


def test_the_preview_shows_what_the_results_hold(trained: tuple[Path, Outcome]) -> None:
    out, outcome = trained
    retrieved = json.loads((out / "results/retrieval_results_epoch_01.json").read_text("utf-8"))
    preview = outcome.out.partition("Retrieved for 3 of 12 queries:")[2].partition("Written:")[0]
    shown: dict[str, list[list[str]]] = {}
    query = ""
    for line in filter(None, preview.splitlines()):
        if line.startswith("    "):
            shown[query].append(line.split())
        else:
            query = line.strip()
            shown[query] = []
    assert len(shown) == 3
    for name, rows in shown.items():
        assert [row[0] for row in rows] == ["1", "2", "3"]
        assert [Path(row[3]).name for row in rows] == retrieved[Path(name).name]
        for _, verdict, _, found in rows:
            assert (verdict == "right") is (Path(found).parent == Path(name).parent)


def test_a_run_writes_the_files_of_the_mission(trained: tuple[Path, Outcome]) -> None:
    out, _ = trained
    assert files_below(out) == [
        "results/metrics_epoch_00.json",
        "results/metrics_epoch_01.json",
        "results/original_embeddings.safetensors",
        "results/report.html",
        "results/retrieval_results_epoch_00.json",
        "results/retrieval_results_epoch_01.json",
        "weights/encoder_epoch_01.pth",
    ]
    names = {f"{label}_{i:03}.png" for label in CLASSES for i in (10, 11)}
    for epoch in (0, 1):
        retrieved = json.loads(
            (out / f"results/retrieval_results_epoch_0{epoch}.json").read_text("utf-8")
        )
        assert set(retrieved) == names
        for query, row in retrieved.items():
            assert len(row) == len(set(row)) == 3
            assert set(row) <= names - {query}


def test_evaluating_a_checkpoint_prints_the_metrics_of_its_epoch(
    trained: tuple[Path, Outcome], shop: Path, tmp_path: Path
) -> None:
    run, _ = trained
    words: Words = ["evaluate", "--test", shop / "test", "--top-k", "3", "--out", tmp_path,
             "--model-name", run / "weights/encoder_epoch_01.pth", *MACHINE]  # fmt: skip
    outcome = lookalike(*words, "--json")
    assert outcome.code == 0
    document = outcome.json()
    expected = json.loads((run / "results/metrics_epoch_01.json").read_text("utf-8"))["metrics"]
    assert document["metrics"] == expected
    assert document["unreadable"] == []
    assert [Path(path) for path in document["files"]] == [
        tmp_path / "results/retrieval_results_epoch_01.json",
        tmp_path / "results/metrics_epoch_01.json",
        tmp_path / "results/report.html",
    ]
    retrieved, again = (
        folder / "results/retrieval_results_epoch_01.json" for folder in (run, tmp_path)
    )
    assert retrieved.read_bytes() == again.read_bytes()
    assert_refused(lookalike(*words), "already exists", "--out", "--overwrite")
    table = lookalike(*words, "--overwrite")
    assert table.code == 0
    lines = [line.split() for line in table.out.splitlines() if line.strip()]
    header, numbers = lines[0], lines[2]
    assert dict(zip(header, numbers, strict=True)) == {
        name: f"{expected[name]:.4f}" for name in headline()
    }


def test_training_prints_one_json_document_and_nothing_else(
    shop: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    outcome = lookalike(
        "train", shop / "train", "--query", shop / "test", "--gallery", shop / "train",
        "--model-name", tiny_clip, "--out", tmp_path, "--json", *MACHINE,
    )  # fmt: skip
    assert outcome.code == 0
    document = outcome.json()
    assert [one["epoch"] for one in document["history"]] == [0, 1]
    assert document["history"][0]["loss"] is None
    assert document["history"][1]["loss"] > 0
    best = document["best"]
    assert best["metric"] == "mAP@R"
    assert best["value"] == max(one["metrics"]["mAP@R"] for one in document["history"])
    assert best["value"] == document["history"][best["epoch"]]["metrics"]["mAP@R"]
    assert best["checkpoint"] in (None, *document["files"])
    assert set(document["history"][1]["metrics"]) == {
        "recall@1", "recall@5", "recall@10", "mAP", "mAP@R", "mAP@10/min(10,R)", "R-precision",
        "precision@10", "nDCG@10", "MRR", "median rank",
    }  # fmt: skip
    assert {Path(path) for path in document["files"]} == set(tmp_path.rglob("*.*"))
    assert "device" in outcome.err


def test_unlabelled_images_are_retrieved_best_first(
    shop: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    outcome = lookalike(
        "evaluate", "--query", shop / "asked", "--gallery", shop / "stock", "--top-k", "50",
        "--model-name", tiny_clip, "--out", tmp_path, *MACHINE,
    )  # fmt: skip
    assert outcome.code == 0
    retrieved = json.loads((tmp_path / "results/retrieval_results_epoch_00.json").read_bytes())
    assert set(retrieved) == {f"asked{i}.png" for i in range(4)}
    for i in range(4):
        row = retrieved[f"asked{i}.png"]
        assert row[0] == f"stock{i}.png"  # the very same image, under another name
        assert sorted(row) == [f"stock{j}.png" for j in range(4)]  # fewer than top_k: all
    assert "recall" not in outcome.out
    assert "right" not in outcome.out
    assert "wrong" not in outcome.out
    assert "no labels" in outcome.err


def test_images_that_share_a_file_name_are_named_by_their_paths(
    tiny_clip: Path, tmp_path: Path
) -> None:
    for label in "ab":
        (tmp_path / "test" / label).mkdir(parents=True)
        for i in range(2):
            draw(ord(label), i).save(tmp_path / "test" / label / f"{i}.png")
    outcome = lookalike(
        "evaluate", "--test", tmp_path / "test", "--model-name", tiny_clip, "--out", tmp_path,
        *MACHINE,
    )  # fmt: skip
    assert outcome.code == 0
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "share a file name" in warnings[0]
    names = {"a/0.png", "a/1.png", "b/0.png", "b/1.png"}
    retrieved = json.loads((tmp_path / "results/retrieval_results_epoch_00.json").read_bytes())
    assert {query: set(row) for query, row in retrieved.items()} == {
        name: names - {name} for name in names
    }


def test_json_is_json_on_a_stream_of_any_encoding(
    shop: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "Äpfel 日本"
    outcome = lookalike(
        "evaluate", "--query", shop / "asked", "--gallery", shop / "stock",
        "--model-name", tiny_clip, "--out", out, "--json", *MACHINE, encoding="ascii",
    )  # fmt: skip
    assert outcome.code == 0
    assert {Path(path).parent for path in outcome.json()["files"]} == {out / "results"}


@pytest.mark.slow
def test_the_real_command_works_as_a_process_of_its_own(
    shop: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    process = lookalike_process(
        "evaluate", "--test", shop / "test", "--model-name", tiny_clip, "--out", tmp_path,
        "--json", *MACHINE,
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "recall@1" in json.loads(out)["metrics"]
    assert all(re.match(r"(model|test|device) +\S|evaluating", line) for line in err.splitlines())


def test_the_module_is_the_command() -> None:
    process = lookalike_process("trian")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "did you mean train?" in err
    assert len(err.splitlines()) == 1


# --- Bad input -------------------------------------------------------------------------------


def test_a_missing_folder_names_one_like_it(shop: Path, tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), *MACHINE]
    missing = lookalike("train", shop / "trian", *words)
    assert_refused(missing, "trian does not exist", f"did you mean {shop / 'train'}?")
    missing = lookalike("evaluate", "--test", shop / "tset", *words)
    assert_refused(missing, "tset does not exist", f"did you mean {shop / 'test'}?")
    missing = lookalike("evaluate", "--query", shop / "q", "--gallery", shop / "stock", *words)
    assert_refused(missing, "does not exist")


def test_a_folder_without_images_is_refused(tmp_path: Path, tiny_clip: Path) -> None:
    words = ["--out", str(tmp_path / "out"), "--model-name", str(tiny_clip), *MACHINE]
    (tmp_path / "empty").mkdir()
    assert_refused(lookalike("train", tmp_path / "empty", *words), "no files in")
    for label in "ab":
        (tmp_path / "texts" / label).mkdir(parents=True)
        (tmp_path / "texts" / label / "notes.txt").write_text("no image")
    refused = lookalike("train", tmp_path / "texts", *words)
    assert_refused(refused, "none of the 2 files", "is an image", "notes.txt: not an image")
    refused = lookalike("evaluate", "--test", tmp_path / "texts", *words)
    assert_refused(refused, "none of the 2 files")


@pytest.mark.parametrize(
    ("counts", "words", "messages"),
    [
        ({"a": 5}, [], ["There must be images of at least two classes"]),
        ({"a": 3, "b": 3}, [], ["needs 4 different classes", "--n-classes-per-batch 2"]),
        ({"a": 3, "b": 1}, ["--n-classes-per-batch", "2"], ["2 different", "--singletons repeat"]),
        (
            dict.fromkeys("abcdef", 2),
            ["--n-classes-per-batch", "7"],
            ["needs 7 different classes", "6 can take part", "--n-classes-per-batch 6"],
        ),
    ],
)
def test_too_few_classes_are_refused_with_what_to_set(
    tmp_path: Path, tiny_clip: Path, counts: dict[str, int], words: list[str], messages: list[str]
) -> None:
    folder = write_tree(tmp_path / "few", counts)
    outcome = lookalike(
        "train", folder, "--model-name", tiny_clip, "--out", tmp_path / "out", *MACHINE, *words
    )
    assert_refused(outcome, *messages)


def test_classes_smaller_than_k_are_counted_and_the_run_goes_on(
    tmp_path: Path, tiny_clip: Path
) -> None:
    folder = write_tree(tmp_path / "small", {"a": 5, "b": 5, "c": 3, "d": 2, "e": 1})
    outcome = lookalike(
        "train", folder, "--model-name", tiny_clip, "--out", tmp_path / "out", *MACHINE,
        "--n-samples-per-class", "5",
    )  # fmt: skip
    assert outcome.code == 0
    # c lacks 2 images of 5, d 3; e has a single one and is left out.
    assert re.search(
        r"warning: 2 classes with fewer than 5 images; repeats fill 5 places",
        outcome.err,
    )
    assert re.search(r"warning: left out: 1 class with a single image; --singletons", outcome.err)


def spoil(tree: Path) -> dict[str, str]:
    """Puts four kinds of unreadable files into a tree; their names, with a word of the reason."""
    content = next((tree / "classa").iterdir()).read_bytes()
    (tree / "classa" / "cut.png").write_bytes(content[: len(content) // 2])
    (tree / "classb" / "zero.jpg").write_bytes(b"")
    (tree / "classc" / "page.jpg").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (tree / "classd" / "noise.png").write_bytes(bytes(range(256)))
    return {
        "cut.png": "truncated",
        "zero.jpg": "empty file",
        "page.jpg": "HTML page",
        "noise.png": "not an image",
    }


def test_unreadable_files_are_named_counted_and_repeated_at_the_end(
    small_run: list[str], photos: Path
) -> None:
    reasons = spoil(photos / "train")
    spoil(photos / "test")
    outcome = lookalike(*small_run, "--json")
    assert outcome.code == 0
    document = outcome.json()
    assert sorted(
        (Path(one["path"]).relative_to(photos).parts[0], Path(one["path"]).name)
        for one in document["unreadable"]
    ) == sorted((side, name) for side in ("train", "test") for name in reasons)
    for one in document["unreadable"]:
        assert reasons[Path(one["path"]).name] in one["reason"]
    lines = outcome.err.splitlines()
    count = lines.index("warning: 8 files could not be read and were skipped:")
    assert len(lines[count + 1 :]) == 8
    for side in ("train", "test"):
        for name, reason in reasons.items():
            told = [line for line in lines[count + 1 :] if f"{os.sep}{name}: " in line]
            assert any(str(photos / side) in line and reason in line for line in told)
    metrics = json.loads((photos / "out/results/metrics_epoch_01.json").read_bytes())
    assert {Path(one["path"]).name for one in metrics["unreadable"]} == set(reasons)
    retrieved = json.loads((photos / "out/results/retrieval_results_epoch_01.json").read_bytes())
    assert len(retrieved) == 18
    assert not set(retrieved) & set(reasons)


def test_images_that_are_all_unreadable_stop_the_run(small_run: list[str], photos: Path) -> None:
    for path in (photos / "train").rglob("*.png"):
        path.write_bytes(b"")
    assert_refused(lookalike(*small_run), "none of the 30 files", "empty file (0 bytes)")
    # Headers that are whole over pixels that are not: found out when they are decoded.
    for path in (photos / "test").rglob("*.png"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    words = ["evaluate", *small_run[2:6], "--out", str(photos / "out"), *MACHINE]
    outcome = lookalike(*words)
    assert (outcome.code, outcome.out) == (2, "")
    last = outcome.err.splitlines()[-1]
    assert last.startswith("lookalike: none of the 18 images can be read: ")
    assert "and 15 more" in last


def test_a_model_that_cannot_be_found_is_named_with_a_way_out(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words: Words = ["evaluate", "--test", shop / "test", "--out", tmp_path / "out", *MACHINE]
    refused = lookalike(*words, "--model-name", "nobody/no-such-model")
    assert_refused(refused, "nobody/no-such-model is not on this disk", "a Transformers folder")
    refused = lookalike(*words, "--model-name", "./models/no such folder")
    assert_refused(refused, "no such folder does not exist", "Give a Transformers folder")
    refused = lookalike(*words, "--model-name", "./weights/no such.pth")
    assert_refused(refused, "no such.pth does not exist", "Give a Transformers folder")


def test_a_folder_that_is_no_model_says_what_it_lacks(
    shop: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    words: Words = ["evaluate", "--test", shop / "test", "--out", tmp_path / "out", *MACHINE]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(lookalike(*words, "--model-name", empty), "empty", "config.json")
    without = tmp_path / "without weights"
    shutil.copytree(tiny_clip, without)
    (without / "model.safetensors").unlink()
    refused = lookalike(*words, "--model-name", without)
    assert_refused(refused, "without weights", "model.safetensors")
    blind = tmp_path / "blind"
    shutil.copytree(tiny_clip, blind)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (blind / name).unlink(missing_ok=True)
    refused = lookalike(*words, "--model-name", blind)
    assert_refused(refused, "blind", "preprocessor_config.json")


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_checkpoint_that_is_not_ours_is_refused_and_none_of_its_code_runs(
    shop: Path, tmp_path: Path, trained: tuple[Path, Outcome]
) -> None:
    proof = tmp_path / "proof"
    bad = {
        "torch.pth": lambda path: torch.save({"model_state_dict": _Touch(proof)}, path),
        "plain.pth": lambda path: path.write_bytes(pickle.dumps(_Touch(proof))),
        "empty.pth": lambda path: path.write_bytes(b""),
        "text.pth": lambda path: path.write_text("weights"),
        "other.pth": lambda path: torch.save({"weight": torch.zeros(3)}, path),
        "list.pth": lambda path: torch.save([torch.zeros(3)], path),
        "cut.pth": lambda path: path.write_bytes(
            (trained[0] / "weights/encoder_epoch_01.pth").read_bytes()[:5000]
        ),
    }
    for name, make in bad.items():
        make(tmp_path / name)
        uses: list[Words] = [
            ["evaluate", "--test", shop / "test", "--model-name", tmp_path / name],
            ["train", shop / "train", "--model-name", tmp_path / name],
            ["train", shop / "train", "--resume", tmp_path / name],
        ]
        for words in uses:
            outcome = lookalike(*words, "--out", tmp_path / "out", *MACHINE)
            assert_refused(outcome, f"{name} is not a Lookalike checkpoint")
    assert not proof.exists()
    torch.load(tmp_path / "torch.pth", weights_only=False)
    assert proof.exists()  # the trap was armed


def test_a_checkpoint_of_another_shape_is_refused(
    shop: Path, tmp_path: Path, trained: tuple[Path, Outcome]
) -> None:
    content = torch.load(trained[0] / "weights/encoder_epoch_01.pth", weights_only=True)
    name = next(key for key in content["model_state_dict"] if key.endswith("projection.weight"))
    content["model_state_dict"][name] = torch.zeros(3, 3)
    torch.save(content, tmp_path / "other.pth")
    outcome = lookalike(
        "evaluate", "--test", shop / "test", "--model-name", tmp_path / "other.pth",
        "--out", tmp_path / "out", *MACHINE,
    )  # fmt: skip
    assert_refused(outcome, "other.pth", "do not fit", name.rpartition(".")[0].rpartition(".")[2])


def test_a_missing_checkpoint_is_named(shop: Path, tmp_path: Path) -> None:
    words = ["train", str(shop / "train"), "--out", str(tmp_path)]
    assert_refused(lookalike(*words, "--resume"), "there is no checkpoint in", "--resume FILE")
    refused = lookalike(*words, "--resume", tmp_path / "none.pth")
    assert_refused(refused, "none.pth does not exist", "--resume FILE")


def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(
    small_run: list[str], photos: Path
) -> None:
    (photos / "notes.txt").write_text("mine")
    for out in (photos / "notes.txt", photos / "notes.txt" / "deeper"):
        words = [*small_run[:-8], "--out", str(out), *MACHINE]
        assert_refused(lookalike(*words), "cannot write", "Choose a folder, not a file, with --out")
        evaluate = ["evaluate", *small_run[2:6], "--out", str(out), *MACHINE]
        assert_refused(lookalike(*evaluate), "cannot write", "not a file, with --out")
    assert (photos / "notes.txt").read_text() == "mine"


def test_a_folder_that_holds_a_run_is_left_as_it_is(
    trained: tuple[Path, Outcome], shop: Path, tiny_clip: Path
) -> None:
    out, _ = trained
    before = {name: (out / name).read_bytes() for name in files_below(out)}
    outcome = lookalike("train", shop / "train", "--model-name", tiny_clip, "--out", out, *MACHINE)
    assert_refused(outcome, "already holds a run", "--resume", "--overwrite", "--out")
    assert {name: (out / name).read_bytes() for name in files_below(out)} == before


@pytest.mark.parametrize(
    "mistake",
    [["--test", "nowhere"], ["--model-name", "nobody/no-such-model"], ["--device", "tpu"]],
)
def test_nothing_is_overwritten_by_a_run_that_cannot_start(
    trained: tuple[Path, Outcome], shop: Path, tiny_clip: Path, tmp_path: Path, mistake: list[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    outcome = lookalike(
        "train", shop / "train", "--model-name", tiny_clip, "--out", out, *MACHINE,
        "--overwrite", *mistake,
    )  # fmt: skip
    assert_refused(outcome)
    assert files_below(out) == files_below(trained[0])


def test_somebody_elses_folder_is_no_place_for_the_demo(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    assert_refused(lookalike("demo", "--out", tmp_path), "choose another folder with --out")
    file = tmp_path / "letters.txt"
    assert_refused(lookalike("demo", "--out", file), "Choose a folder, not a file")
    assert files_below(tmp_path) == ["letters.txt"]


def test_an_error_that_is_not_ours_keeps_its_traceback(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("lookalike.commands.train.train", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        lookalike(*small_run)


@posix_only
def test_a_full_disk_leaves_the_last_good_checkpoint(
    trained: tuple[Path, Outcome], tmp_path: Path
) -> None:
    if sys.platform == "win32":
        return
    import resource

    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    checkpoint = out / "weights/encoder_epoch_01.pth"
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        outcome = lookalike("train", "--resume", out, "--out", out, "--num-epochs", "2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (outcome.code, outcome.out) == (2, "")
    last = outcome.err.splitlines()[-1]
    assert last.startswith("lookalike: cannot write ")
    assert "Free some room" in last
    assert checkpoint.read_bytes() == before
    assert files_below(out) == files_below(trained[0])
    assert lookalike("train", "--resume", "--out", out, "--num-epochs", "2").code == 0


@pytest.mark.parametrize("on_posix", [False, pytest.param(True, marks=posix_only)])
def test_odd_names_survive_the_whole_way(tmp_path: Path, tiny_clip: Path, on_posix: bool) -> None:
    odd = [
        " leading.png", "-dash.png", "#hash.png", "[bold]x[-].png", "Äpfel.png", "日本.jpg",
        "🐈.png", "e\u0301.png", "it's.png", "100% & more; $HOME.png", "no extension",
    ]  # fmt: skip
    labels = ["Kätzchen", "日本", "[red]", "no", "-x", "a b"]
    if on_posix:
        odd = ["new\nline.png", "tab\t.png", "back\\slash.png", 'quo"te.png', "colon:cat:.png",
               "\x1b[31mred.png", os.fsdecode(b"latin\xe9.png"), "trailing "]  # fmt: skip
        labels = ["new\nline", os.fsdecode(b"K\xe4tzchen"), "a:b", "*", "<b>", "tab\t"]
    try:
        for n, label in enumerate(labels):
            folder = tmp_path / "train" / label
            folder.mkdir(parents=True)
            for i, name in enumerate(odd):
                with open(folder / f"{n}{name}" if n else folder / name, "wb") as file:
                    draw(n, i).save(file, "PNG")
        out = tmp_path / ("out\n" + os.fsdecode(b"\xff") if on_posix else "out [Äpfel] 日本")
        out.mkdir()
    except OSError:
        if not on_posix:
            raise
        pytest.skip("this disk takes only names in UTF-8")
    words: Words = ["--model-name", tiny_clip, "--out", out, *MACHINE]
    outcome = lookalike("train", tmp_path / "train", "--test", tmp_path / "train", *words)
    assert outcome.code == 0, outcome.err
    expected = {f"{n}{name}" if n else name for n in range(len(labels)) for name in odd}
    retrieved = json.loads((out / "results/retrieval_results_epoch_01.json").read_bytes())
    assert set(retrieved) == expected
    assert all(set(row) <= expected for row in retrieved.values())
    for line in (outcome.out + outcome.err).splitlines():
        assert line.isprintable()
    again = lookalike("train", "--resume", "--num-epochs", "2", "--out", out, "--json")
    assert again.code == 0, again.err
    assert [one["epoch"] for one in again.json()["history"]] == [0, 1, 2]


# --- Ctrl-C ----------------------------------------------------------------------------------


def command_told_in(err: str) -> list[str]:
    """The words after `lookalike` of the command that an interrupted run says to go on with."""
    told = re.search(r"^lookalike: stopped at .*Continue with: lookalike (train --resume .+)$", err,
                     re.MULTILINE)  # fmt: skip
    assert told, err
    return shlex.split(told[1])


class _StopAt(SilentProgress):
    """Presses Ctrl-C when a training step is done."""

    def __init__(self, step: int) -> None:
        self._steps_left = step

    @contextmanager
    def task(self, title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Task]:
        yield self

    def advance(self, amount: int = 1, **stats: float) -> None:
        if "loss" in stats:
            self._steps_left -= 1
            if self._steps_left == 0:
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("folder", ["out", "my run's $HOME"])
def test_ctrl_c_in_an_epoch_ends_with_130_and_a_command_that_finishes_the_run(
    small_run: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    out = photos / folder
    with monkeypatch.context() as patch:
        patch.setattr("lookalike.progress.default_progress", lambda: _StopAt(2))
        stopped = lookalike(*small_run, "--out", out)
    assert (stopped.code, stopped.out) == (130, "")
    assert len(stopped.err.splitlines()) == 1
    assert "step 2 of " in stopped.err
    finished = lookalike(*command_told_in(stopped.err))
    assert finished.code == 0, finished.err
    assert "epoch 1" in finished.out
    assert files_below(out)[-1] == "weights/encoder_epoch_01.pth"


def test_ctrl_c_while_an_epoch_is_saved_loses_nothing(
    small_run: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def save_and_press_ctrl_c(*args: Any, **options: Any) -> None:
        save(*args, **options)
        monkeypatch.setattr(torch, "save", save)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch, "save", save_and_press_ctrl_c)
    stopped = lookalike(*small_run)
    assert (stopped.code, stopped.out) == (130, "")
    finished = lookalike(*command_told_in(stopped.err))
    assert finished.code == 0, finished.err
    assert "epoch 1" in finished.out


def test_ctrl_c_before_the_first_step_is_130_without_a_traceback(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("lookalike.commands.train.train", pressed)
    stopped = lookalike(*small_run)
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err == "lookalike: stopped\n"


@posix_only
@pytest.mark.slow
def test_ctrl_c_sent_to_a_real_process_ends_it_with_130_and_a_way_to_go_on(
    photos: Path, tiny_clip: Path
) -> None:
    # The same images under many names make an epoch that is long enough to be met in.
    for path in sorted((photos / "train").rglob("*.png")):
        for copy in range(20):
            os.link(path, path.with_stem(f"{path.stem}_{copy}"))
    code = (
        "import sys, lookalike.progress as p; p.BETWEEN_LINES_S = 0.0\n"
        "from lookalike.cli.main import main; sys.exit(main())"
    )
    process = lookalike_process(
        "train", photos / "train", "--test", photos / "test", "--model-name", tiny_clip,
        "--out", photos / "out", *MACHINE, code=code,
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    with process:
        for line in process.stderr:
            if line.startswith("epoch 1/1: "):
                process.send_signal(signal.SIGINT)
                break
        err, out = process.stderr.read(), process.stdout.read()
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert (photos / "out/weights/interrupted.pth").is_file()
    finished = lookalike(*command_told_in(err))
    assert finished.code == 0, finished.err
    assert files_below(photos / "out/weights") == ["encoder_epoch_01.pth"]
    history = [line.split()[:2] for line in finished.out.splitlines() if "epoch" in line]
    assert history[:2] == [["epoch", "0"], ["epoch", "1"]]


def test_json_on_a_terminal_is_shown_and_comes_back_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = {"na\x9b31mme": ["\u202egpj.exe", "\x7f\x1b[2J", "\U000e0041", "\udce9", "日本 😀"]}
    print_json(document)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert "日本 😀" in printed
    assert json.loads(printed) == document


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "abc"),
        ("WORLD_SIZE", "-2"),
        ("WORLD_SIZE", "9" * 5000),
        ("RANK", "2"),
        ("RANK", "0.5"),
        ("MASTER_PORT", "abc"),
        ("MASTER_PORT", "65536"),
        ("LOCAL_RANK", ""),
        ("LOCAL_WORLD_SIZE", "\x1b[2J"),
    ],
)
def test_an_environment_that_torchrun_never_makes_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for key, one in {**TORCHRUN, name: value}.items():
        monkeypatch.setenv(key, one)
    assert_refused(lookalike("recipes"), f"environment variable {name} is", "torchrun")


@pytest.mark.parametrize("value", ["abc", "2", ""])
def test_a_world_size_without_the_rest_is_not_of_torchrun(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    monkeypatch.setenv("RANK", "1")
    outcome = lookalike("recipes")
    assert (outcome.code, outcome.err) == (0, "")
    assert "strong" in outcome.out
