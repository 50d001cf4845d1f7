"""An objective from outside: any module that is called as `loss(embeddings, labels)`."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Settings, Watch, assert_same_bits, load, press_ctrl_c
from torch import Tensor, nn

import lookalike
from lookalike.cli.main import main
from lookalike.config import TrainConfig
from lookalike.errors import ConfigError, Interrupted
from lookalike.training.history import TrainResult
from lookalike.training.losses.registry import OBJECTIVES


class Proxies(nn.Module):
    """A proxy for each class, how often it was called, and dropout, which draws random numbers."""

    def __init__(self, num_classes: int = 6, dim: int = 24) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.eye(num_classes, dim))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        logits = 10 * nn.functional.dropout(embeddings, 0.1) @ self.proxies.T
        return nn.functional.cross_entropy(logits, labels)


class Others(Proxies):
    """The same by another name."""


def train(
    settings: dict[str, Any],
    objective: nn.Module | None,
    resume: Path | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    return lookalike.train(settings, resume=resume, objective=objective, progress=watch or Watch())


def test_a_module_of_ones_own_learns_and_is_resumed_bit_for_bit(
    settings: Settings, photos: Path
) -> None:
    watch, objective = Watch(), Proxies()
    whole = train(settings(num_epochs=3, out=str(photos / "whole")), objective, watch=watch)
    assert sum(watch.losses[-5:]) < 0.9 * sum(watch.losses[:5])
    assert int(objective.calls) == 15
    assert not torch.equal(objective.proxies, Proxies().proxies)
    with pytest.raises(Interrupted):
        train(settings(num_epochs=3), Proxies(), watch=Watch(7, press_ctrl_c))
    saved = photos / "out/weights/interrupted.pth"
    resumed = train(settings(num_epochs=3), Proxies(), resume=saved)
    found, expected = load(resumed.checkpoint), load(whole.checkpoint)
    for part in ("model_state_dict", "objective_state_dict", "optimizer_state_dict"):
        assert_same_bits(found[part], expected[part])
    assert int(expected["objective_state_dict"]["calls"]) == 15


def test_it_computes_what_ours_does_where_it_is_the_same(settings: Settings, photos: Path) -> None:
    class Copied(lookalike.SupConLoss):
        pass

    one = train(settings(out=str(photos / "one")), None)
    other = train(settings(out=str(photos / "other")), Copied(0.07))
    for part in ("model_state_dict", "optimizer_state_dict"):
        assert_same_bits(load(one.checkpoint)[part], load(other.checkpoint)[part])


def test_checkpoint_and_results_say_its_class(settings: Settings, photos: Path) -> None:
    saved = train(settings(), Proxies()).checkpoint
    assert load(saved)["config"]["objective"] == "Proxies"
    written = json.loads((photos / "out/results/metrics_epoch_01.json").read_text())
    assert written["config"]["objective"] == "Proxies"


def test_its_parameters_are_trained_at_their_own_rate(settings: Settings) -> None:
    saved = load(train(settings(learning_rate=1e-5), Proxies()).checkpoint)
    *_, own = saved["optimizer_state_dict"]["param_groups"]
    assert own["lr"] == pytest.approx(1e-3)
    assert own["weight_decay"] == 0
    assert len(own["params"]) == 1


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (None, r"objective is 'Proxies'; expected supcon or arcface, or the module of that class"),
        (Others(), r"objective is 'Proxies', and the module passed in is a Others"),
    ],
)
def test_going_on_without_it_or_with_another_is_refused_in_a_line(
    settings: Settings, photos: Path, capsys: pytest.CaptureFixture[str], objective: Any, told: str
) -> None:
    saved = train(settings(), Proxies()).checkpoint
    with pytest.raises(ConfigError, match=told) as refused:
        train({"num_epochs": 2}, objective, resume=saved)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="objective: Proxies -> "):
        lookalike.train(
            TrainConfig(**settings(num_epochs=2)), objective=objective, resume=saved,
            progress=Watch(),
        )  # fmt: skip
    if objective is None:
        assert main(["train", "--resume", str(saved), "--num-epochs", "2"]) == 2
        assert "objective is 'Proxies'" in capsys.readouterr().err


def test_a_run_with_ours_does_not_go_on_with_ones_own(settings: Settings) -> None:
    saved = train(settings(), None).checkpoint
    with pytest.raises(ConfigError, match="objective: supcon -> Proxies"):
        train({"num_epochs": 2}, Proxies(), resume=saved)


@pytest.mark.parametrize(
    ("changes", "objective", "told"),
    [
        ({"objective": "supconn"}, None, r"objective is 'supconn'; expected supcon or arcface"),
        ({"objective": "arcface"}, Proxies(), "'arcface', and the module passed in is a Proxies"),
        ({"cross_batch_memory": 9}, Proxies(), "works with the objective supcon, not Proxies"),
        ({"margin": 0.1}, None, "margin works with the objective arcface, not supcon"),
        ({}, Proxies, r"objective is <class .*; expected a torch\.nn\.Module that is called"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    settings: Settings, photos: Path, changes: dict[str, Any], objective: Any, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        train(settings(**changes), objective)
    assert not (photos / "out").exists()


def test_the_option_names_what_ships() -> None:
    (option,) = (
        one for one in TrainConfig.__dataclass_fields__.values() if one.name == "objective"
    )
    assert option.metadata["metavar"] == "|".join(OBJECTIVES)
    assert all(f"{name}: " in option.metadata["help"] for name in OBJECTIVES)
    names = typing.get_type_hints(TrainConfig)
    assert all(one in names for objective in OBJECTIVES.values() for one in objective.options)
