"""Going on with a run from Python as the command does, and in what memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Settings, Watch, assert_same_bits, load, press_ctrl_c
from torch import Tensor
from torch.nn import Parameter

import lookalike
from lookalike.cli.main import main
from lookalike.commands.train import training_config
from lookalike.config import TrainConfig
from lookalike.config.settings import config_from, merge_options
from lookalike.errors import CheckpointError, ConfigError, Interrupted
from lookalike.training.step.step import TrainingStep


def train(options: Mapping[str, Any], **more: Any) -> Any:
    return lookalike.train(options, progress=Watch(), **more)


def test_saved_settings_hold_unless_the_mapping_says_otherwise(
    settings: Settings, photos: Path
) -> None:
    whole = train(settings(num_epochs=2, temperature=0.1, seed=3, out=str(photos / "whole")))
    first = train(settings(temperature="0.1", seed=3))
    again = train({"num_epochs": "2"}, resume=first.checkpoint)
    assert again.checkpoint == photos / "out/weights/encoder_epoch_02.pth"
    assert_same_bits(load(again.checkpoint)["model_state_dict"],
                     load(whole.checkpoint)["model_state_dict"])  # fmt: skip
    with pytest.raises(ConfigError, match=r"temperature: 0\.1 -> 0\.2"):
        train({"num_epochs": 3, "temperature": 0.2}, resume=again.checkpoint)
    with pytest.raises(ConfigError, match=r"unknown key 'temprature'; did you mean 'temperature'"):
        train({"temprature": 0.2}, resume=again.checkpoint)


def test_a_mapping_is_what_a_configuration_is(settings: Settings, photos: Path) -> None:
    one = train(settings(out=str(photos / "one"), learning_rate="1e-3"))
    other = train(config_from(TrainConfig, settings(out=str(photos / "other"))))  # type: ignore[arg-type]
    assert_same_bits(load(one.checkpoint)["model_state_dict"],
                     load(other.checkpoint)["model_state_dict"])  # fmt: skip


@pytest.mark.parametrize("ask", [str, Path])
def test_a_folder_means_its_newest_checkpoint(
    settings: Settings, photos: Path, ask: Callable[[Path], Any]
) -> None:
    shared = settings(num_epochs=2)
    with pytest.raises(Interrupted):
        lookalike.train(shared, progress=Watch(7, press_ctrl_c))
    assert (photos / "out/weights/interrupted.pth").exists()
    result = train({}, resume=ask(photos / "out"))
    assert [one.epoch for one in result.history] == [0, 1, 2]
    whole = train({**shared, "out": str(photos / "whole")})
    assert_same_bits(load(result.checkpoint)["model_state_dict"],
                     load(whole.checkpoint)["model_state_dict"])  # fmt: skip
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        train({}, resume=photos / "train")


def test_the_configuration_of_a_resumed_run_can_be_asked_for(settings: Settings) -> None:
    saved = train(settings(temperature=0.2)).checkpoint
    config = training_config({"num_epochs": 4}, saved.parents[1])
    assert (config.temperature, config.num_epochs) == (0.2, 4)
    assert config == training_config({"num_epochs": 4}, saved)
    assert training_config({"num_epochs": 4}) == TrainConfig(num_epochs=4)


def test_the_test_images_of_flags_undo_those_of_a_recipe_and_of_a_saved_run(
    settings: Settings, photos: Path
) -> None:
    saved = train(settings()).checkpoint
    sides = {side: str(photos / side) for side in ("query", "gallery")}
    merged = merge_options(TrainConfig, {"test": "elsewhere", "num_epochs": 2}, sides)
    config = training_config(merged, saved)
    assert (config.test, config.query, config.gallery) == (None, *sides.values())
    assert config == config_from(TrainConfig, settings(), {"num_epochs": 2}, sides)
    back = training_config(merge_options(TrainConfig, sides, {"test": "elsewhere"}), saved)
    assert (back.test, back.query, back.gallery) == ("elsewhere", None, None)


def bytes_of_tensors() -> int:
    """What the storages of all live tensors take, each counted once."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if type(one) in (Tensor, Parameter):  # no imitations, such as the compiler's
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def in_python(folder: Path) -> None:
    train({"num_epochs": 2}, resume=folder)


def by_the_command(folder: Path) -> None:
    words = ["train", "--resume", "--out", str(folder), "--num-epochs", "2"]
    assert main(words) == 0


@pytest.mark.parametrize("resume", [in_python, by_the_command])
def test_a_resumed_run_holds_no_checkpoint_and_reads_it_once(
    settings: Settings,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    resume: Callable[[Path], None],
) -> None:
    """While it trains as many bytes of tensors are alive as in a run that was never stopped."""
    measured: list[int] = []
    take, read = TrainingStep.take, list[Path]()

    def weighing(step: TrainingStep, *batch: Any, seed: tuple[int, ...]) -> Any:
        stepped = take(step, *batch, seed=seed)
        if not measured:  # of the first step of each run: to look at all objects takes long
            measured.append(bytes_of_tensors())
        return stepped

    def counting(file: Any, **options: Any) -> Any:
        read.append(Path(file.name))
        return load_file(file, **options)

    load_file = torch.load
    monkeypatch.setattr(TrainingStep, "take", weighing)
    before = bytes_of_tensors()
    train(settings(num_epochs=1))
    whole = measured.pop() - before
    model = load_file(photos / "out/weights/encoder_epoch_01.pth")["model_state_dict"]
    model_bytes = sum(one.nbytes for one in model.values())
    del model

    monkeypatch.setattr(torch, "load", counting)
    before = bytes_of_tensors()
    resume(photos / "out")
    assert measured.pop() - before < whole + 0.2 * model_bytes
    assert read == [photos / "out/weights/encoder_epoch_01.pth"]
