"""Options of optimisation in whole runs: what is trained, measured and saved, and going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Settings, Watch, assert_same_bits, load, press_ctrl_c, train
from torch import Tensor

import lookalike
from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.config.settings import config_from
from lookalike.errors import CheckpointError, ConfigError, Interrupted

LORA: dict[str, Any] = {"lora_rank": 3, "learning_rate": 1e-2}
EVERYTHING: dict[str, Any] = {
    **LORA, "layer_decay": 0.7, "frozen_layers": 1, "schedule": "cosine", "warmup_steps": 2,
}  # fmt: skip
KNOBS = pytest.mark.parametrize(
    "options",
    [
        pytest.param(LORA, id="lora"),
        pytest.param(EVERYTHING, id="everything"),
    ],
)


def original(settings: Settings) -> dict[str, Tensor]:
    return lookalike.CLIPEncoder(settings()["model_name"]).state_dict()


def layer_of(name: str) -> int:
    """Of a parameter of the tiny CLIP, which has two."""
    for part, layer in (("layers.0.", 1), ("layers.1.", 2), ("post_", 3), ("projection", 3)):
        if part in name:
            return layer
    return 0


@KNOBS
@pytest.mark.parametrize("at_step", [3, 7])
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    settings: Settings, photos: Path, at_step: int, options: dict[str, Any]
) -> None:
    # Both lie inside an epoch of five;
    whole = load(train(settings(num_epochs=2, out=str(photos / "whole"), **options)).checkpoint)
    with pytest.raises(Interrupted):
        train(settings(num_epochs=2, **options), watch=Watch(at_step, press_ctrl_c))
    saved = photos / "out" / "weights" / "interrupted.pth"
    parts = load(train(settings(num_epochs=2, **options), resume=saved).checkpoint)
    different = ("state", "config", "versions")
    assert parts.keys() == whole.keys()
    assert_same_bits(*({k: v for k, v in one.items() if k not in different}
                       for one in (parts, whole)))  # fmt: skip


@KNOBS
def test_the_checkpoint_holds_what_was_measured_as_a_plain_model(
    settings: Settings, photos: Path, options: dict[str, Any]
) -> None:
    result = train(settings(num_epochs=2, **options))
    saved = load(result.checkpoint)
    assert saved["model_state_dict"].keys() == original(settings).keys()
    assert_same_bits(dict(result.encoder.state_dict()), saved["model_state_dict"])
    known = {k: v for k, v in settings().items() if k not in ("train", "learning_rate")}
    config = config_from(EvaluateConfig, known, {"model_name": str(result.checkpoint),
                                                 "out": str(photos / "evaluated")})  # fmt: skip
    evaluated = lookalike.evaluate(config, progress=Watch())
    assert evaluated.metrics == result.history[-1].metrics
    assert evaluated.retrieval is not None
    assert result.retrieval is not None
    assert torch.equal(evaluated.retrieval.similarities, result.retrieval.similarities)


def test_saving_and_measuring_on_the_way_change_nothing(settings: Settings, photos: Path) -> None:
    whole = load(train(settings(num_epochs=2, **EVERYTHING)).checkpoint)
    # Never measured, and stopped three times.
    quiet = settings(num_epochs=2, test=None, out=str(photos / "quiet"), **EVERYTHING)
    resume = None
    for _ in range(3):
        with pytest.raises(Interrupted):
            train(quiet, resume=resume, watch=Watch(2, press_ctrl_c))
        resume = photos / "quiet" / "weights" / "interrupted.pth"
        resume = resume if resume.exists() else photos / "quiet/weights/encoder_epoch_01.pth"
    parts = load(train(quiet, resume=resume).checkpoint)
    for key in ("model_state_dict", "training_state_dict"):
        assert_same_bits(parts[key], whole[key])


def test_lora_changes_the_attention_by_matrices_of_its_rank_and_nothing_else(
    settings: Settings,
) -> None:
    saved = load(train(settings(**LORA)).checkpoint)
    for name, tensor in original(settings).items():
        change = saved["model_state_dict"][name].double() - tensor.double()
        if "vision_model" in name and "self_attn" in name and name.endswith("weight"):
            sizes = torch.linalg.svdvals(change)
            assert sizes[2] > 1e-4
            assert sizes[3] < 1e-3 * sizes[2], name
        else:
            assert not change.any(), name


def test_an_ordinary_run_saves_its_weights_once(settings: Settings) -> None:
    saved = load(train(settings()).checkpoint)
    assert saved["training_state_dict"] == {}


def test_frozen_layers_end_as_they_began_and_the_others_do_not(settings: Settings) -> None:
    trained = load(train(settings(frozen_layers=1)).checkpoint)["model_state_dict"]
    for name, tensor in original(settings).items():
        vision = "text" not in name and "logit" not in name
        moves = vision and layer_of(name) > 1
        assert torch.equal(trained[name], tensor) is not moves, name


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frozen_layers": 3}, r"frozen_layers is 3, .* has 2 layers"),
        ({"lora_rank": 2, "frozen_layers": 2}, r"linear layers of attention, .* has none"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    settings: Settings, photos: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        train(settings(**options))
    assert not (photos / "out" / "weights").exists()


def test_going_on_with_another_rank_is_refused(settings: Settings) -> None:
    first = train(settings(**LORA)).checkpoint
    changed = settings(**LORA) | {"lora_rank": 4, "num_epochs": 2}
    with pytest.raises(ConfigError, match=r"lora_rank: 3 -> 4"):
        train(changed, resume=first)


def test_weights_of_layers_that_are_not_there_are_refused(settings: Settings, photos: Path) -> None:
    content = load(train(settings(**LORA)).checkpoint)
    content["training_state_dict"]["backbone.elsewhere.lora_A.default.weight"] = torch.zeros(3, 3)
    torch.save(content, photos / "other.pth")
    with pytest.raises(CheckpointError, match=r"backbone\.elsewhere"):
        train(
            settings(num_epochs=2, out=str(photos / "other"), **LORA), resume=photos / "other.pth"
        )


def test_the_options_go_together(settings: Settings) -> None:
    config = config_from(TrainConfig, settings(**EVERYTHING))
    assert config.lora_rank == 3
    watch = Watch()
    train(settings(num_epochs=8, augmentation="none", **EVERYTHING | {"schedule": "constant"}),
          watch=watch)  # fmt: skip
    assert sum(watch.losses[-10:]) < 0.9 * sum(watch.losses[:10])


def test_a_rank_wider_than_the_layers_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"lora_rank is 33; the layers of attention are 32 wide"):
        train(settings(lora_rank=33))


def test_what_does_not_fit_in_memory_is_refused_before_it_is_taken(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.runtime.memory.free_bytes", lambda _: 5 * 10**8)
    with pytest.raises(ConfigError, match=r"cross_batch_memory .* 0\.5 GB free; lower --cross"):
        train(settings(cross_batch_memory=10_000_000))
    with pytest.raises(ConfigError, match=r"a batch of 262,144 images .* lower --n-classes"):
        train(settings(n_samples_per_class=65_536))


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999}", "(" * 3000 + ")" * 3000])
def test_a_pattern_that_python_cannot_compile_is_told_in_a_short_line(pattern: str) -> None:
    with pytest.raises(ConfigError, match="is not a regular expression") as caught:
        EvaluateConfig(test="photos", group_pattern=pattern)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["out", "test", "model_name", "decode_cache", "group_pattern"])
def test_text_that_no_file_can_be_named_by_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is a\\x00b"):
        config_from(EvaluateConfig, {name: "a\0b"})
