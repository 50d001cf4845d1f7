"""What the command line answers to what people get wrong at first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.commands import MACHINE, Outcome, Words, assert_refused, lookalike

from lookalike.cli.embed import print_embedded
from lookalike.cli.verbs import VERBS
from lookalike.commands.embed import EmbedResult


def assert_usage_error(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2
    assert all(part in outcome.err for part in parts), outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of two epochs, as far as its files' names go."""
    weights = tmp_path / "first" / "weights"
    weights.mkdir(parents=True)
    for name in ("encoder_epoch_01.pth", "encoder_epoch_02.pth"):
        (weights / name).touch()
    return tmp_path / "first"


def test_a_run_that_does_not_exist_is_named_with_the_one_that_may_be_meant(run: Path) -> None:
    missing = run.with_name("frist")
    refused: list[Words] = [
        ["compare", missing],
        ["compare", missing, run],
        ["train", "--resume", missing],
        ["train", "--resume", "--out", missing],
    ]
    for words in refused:
        assert_refused(lookalike(*words), "frist does not exist", f"did you mean {run}?")
    assert not missing.exists()
    assert_refused(lookalike("train", "--resume", missing), "--resume FILE")


def test_a_runs_folder_given_as_the_model_names_its_checkpoints(photos: Path, run: Path) -> None:
    checkpoint = run / "weights" / "encoder_epoch_02.pth"
    for folder in (run, run / "weights"):
        words: Words = ["--test", photos / "test", "--model-name", folder, "--out", photos / "out"]
        answer = lookalike("evaluate", *words, *MACHINE)
        assert_refused(answer, f"{folder} is a run's folder", f"checkpoints: {checkpoint}")


def test_images_without_a_flag_are_pointed_to_the_flag(photos: Path) -> None:
    test = str(photos / "test")
    assert_usage_error(lookalike("evaluate", test), f"did you mean --test {test}?")
    answer = lookalike("train", photos / "train", test)
    assert_usage_error(answer, f"did you mean --test {test}?")
    assert_usage_error(lookalike("evaluate", "--test", test, "x"), "unknown argument x")
    assert_usage_error(lookalike("embed", photos, "x"), "unknown argument x")


def test_every_command_takes_help_all() -> None:
    for verb in VERBS:
        answer = lookalike(verb.name, "--help-all")
        assert (answer.code, answer.err) == (0, "")
        assert answer.out.startswith(f"usage: lookalike {verb.name}")
        if not verb.first:
            assert answer.out == lookalike(verb.name, "--help").out
    assert lookalike("--help-all").out == lookalike("--help").out


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder in which none can be made")
def test_a_folder_that_cannot_be_made_is_explained(photos: Path, tiny_clip: Path) -> None:
    refused: list[Words] = [
        ["check", photos / "train", "--out", "/proc/foo"],
        ["evaluate", "--test", photos / "test", "--model-name", tiny_clip, "--out", "/proc/foo"],
    ]
    for words in refused:
        answer = lookalike(*words)
        assert_refused(answer, "cannot write /proc/foo: nothing can be created there", "--out")
        assert "before" not in answer.err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dinov2-smal", "Did you mean facebook/dinov2-small?"),
        ("facebook/dinov2-smal", "Did you mean facebook/dinov2-small?"),
        ("clip-vit-base-patch32", "Did you mean openai/clip-vit-base-patch32?"),
        ("facebook/dinov2-giant", "Check the name"),
        ("openai/clip-vit-large-patch14", "Check the name"),
    ],
)
def test_a_misspelt_model_name_is_answered_with_the_nearest_and_the_forms_there_are(
    photos: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(photos / "nothing here"))
    answer = lookalike("embed", photos / "train", "--model-name", name, "--out", photos / "out")
    assert_refused(
        answer, f"model {name} is not on this disk", hint, "hub id", "Transformers folder", ".pth"
    )


def test_check_says_once_that_it_was_given_splits(photos: Path) -> None:
    (photos / "both").mkdir()
    for split in ("train", "test"):
        (photos / split).rename(photos / "both" / split)
    answer = lookalike("check", photos / "both", "--out", photos / "out")
    right = f"{photos / 'both' / 'train'} --test {photos / 'both' / 'test'}"
    assert_refused(answer, "splits, not classes", right)


def test_a_single_class_is_pointed_to_its_parent(photos: Path, tiny_clip: Path) -> None:
    one, out = photos / "train" / "classa", photos / "out"
    says = f"is one class of {photos / 'train'}, give that"
    answer = lookalike("check", one, "--out", out)
    assert answer.code == 0
    assert says in answer.err
    settings: Words = ["--model-name", tiny_clip, "--out", out, *MACHINE]
    assert_refused(lookalike("train", one, *settings), says)
    assert_refused(lookalike("evaluate", "--test", one, *settings), says)
    lone = photos / "query" / "classa"
    for other in "bcdef":
        (lone.with_name(f"class{other}")).rename(photos / f"elsewhere {other}")
    assert "class" not in lookalike("check", lone, "--out", out).err


def test_sizes_of_classes_are_shown_no_wider_than_they_are(photos: Path) -> None:
    shown = lookalike("check", photos / "train", "--out", photos / "out").out
    assert "\n  5 images  ####" in shown


@pytest.mark.parametrize(
    ("before", "says"),
    [(0, "in 3 parts.\n"), (1, "in 3 parts; 1 was there already.\n"),
     (2, "in 3 parts; 2 were there already.\n"), (3, "in 3 parts; all were there already.\n")],
)  # fmt: skip
def test_embed_says_how_much_was_there_already(
    before: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_embedded(EmbedResult(Path("out"), "clip", "projected", 24, "0f", 9, 3, before, []))
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "module", "says"),
    [
        (["--lora-rank", "2"], "peft", "lora_rank needs peft, which is not installed: pip install "
         "'lookalike[lora]'"),
        (["--track", "tensorboard"], "torch.utils.tensorboard", "track tensorboard needs "
         "TensorBoard, which is not installed: pip install 'lookalike[tensorboard]'"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    photos: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch,
    flags: list[str], module: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    words: Words = ["train", photos / "train", "--model-name", tiny_clip, "--out", photos / "out"]
    assert_refused(lookalike(*words, *flags, *MACHINE), says)


def test_a_name_that_no_disk_could_have_is_one_short_line() -> None:
    name = "x" * 5000
    for words in (["compare", name], ["evaluate", "--test", name], ["train", f"--resume={name}"],
                  ["evaluate", "--test", ".", "--model-name", f"{name}.pth"]):  # fmt: skip
        outcome = lookalike(*words)
        assert_refused(outcome, "does not exist")
        assert len(outcome.err) < 600
