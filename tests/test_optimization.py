"""Groups of parameters and their learning rates."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers.models import dinov2
from torch import Tensor, nn

from lookalike.config import TrainConfig
from lookalike.model.encoder import CLIPEncoder
from lookalike.training.optimization.optimizer import make_optimizer
from lookalike.training.optimization.schedule import learning_rate_at, set_learning_rate

# Of a tiny CLIP of two layers, by hand: how often layer_decay is multiplied in.
POWERS = {"embeddings": 3, "pre_layrnorm": 3, "encoder.layers.0": 2, "encoder.layers.1": 1,
          "post_layernorm": 0, "visual_projection": 0}  # fmt: skip


def power_of(name: str) -> int:
    (power,) = (p for part, p in POWERS.items() if f".{part}." in name)
    return power


def set_gradients(encoder: CLIPEncoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in encoder.trainable_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights_of(encoder: CLIPEncoder) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in encoder.trainable_parameters()}


def test_each_parameter_moves_as_adamw_moves_it_alone_with_its_layers_rate(
    tiny_clip: Path,
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    alone = {name: p.detach().clone().double() for name, p in encoder.trainable_parameters()}
    config = TrainConfig(learning_rate=0.01, layer_decay=0.5, weight_decay=0.3)
    optimizer = make_optimizer(encoder, config)
    means = {name: torch.zeros_like(p) for name, p in alone.items()}
    squares = copy.deepcopy(means)
    for step, rate in enumerate([0.01, 0.004, 0.02], 1):
        set_gradients(encoder, step)
        set_learning_rate(optimizer, rate)
        for name, parameter in encoder.trainable_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.double()
            lr = rate * 0.5 ** power_of(name)
            is_matrix = name.endswith("weight") and parameter.ndim >= 2
            decay = 0.3 if is_matrix and "position" not in name else 0.0
            means[name] = 0.9 * means[name] + 0.1 * gradient
            squares[name] = 0.999 * squares[name] + 0.001 * gradient**2
            denominator = (squares[name] / (1 - 0.999**step)).sqrt() + 1e-8
            alone[name] = alone[name] * (1 - lr * decay)
            alone[name] = alone[name] - lr * means[name] / (1 - 0.9**step) / denominator
        optimizer.step()
    for name, parameter in encoder.trainable_parameters():
        torch.testing.assert_close(parameter.double(), alone[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("share", "steps"), [(0.1, 4), (0.12, 5), (0.0, 0), (0.999, 44), (7, 7)])
def test_a_warm_up_may_be_a_share_of_the_run(share: float, steps: int) -> None:
    def rates(warmup_steps: float) -> list[float]:
        config = TrainConfig(learning_rate=1, schedule="cosine", warmup_steps=warmup_steps)
        return [learning_rate_at(config, step, total_steps=44) for step in range(44)]

    assert rates(share) == rates(steps)
    assert rates(share)[: steps + 1] == [(step + 1) / steps for step in range(steps)] + (
        [1.0] if steps < 44 else []
    )


def decayed(encoder: CLIPEncoder) -> set[str]:
    """The names of the parameters that weight decay shrinks."""
    optimizer = make_optimizer(encoder, TrainConfig(weight_decay=0.3))
    found = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.3
             for p in group["params"]}  # fmt: skip
    return {name for name, p in encoder.trainable_parameters() if id(p) in found}


def test_positions_of_clip_are_no_matrix_to_decay(tiny_clip: Path) -> None:
    tower = "backbone.vision_model"
    blocks = {
        f"{tower}.encoder.layers.{i}.{part}.weight"
        for i in range(2)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                     "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    }  # fmt: skip
    others = {f"{tower}.embeddings.patch_embedding.weight", "backbone.visual_projection.weight"}
    assert decayed(CLIPEncoder(str(tiny_clip))) == blocks | others


def test_only_weight_matrices_are_decayed_not_tokens_and_positions(tmp_path: Path) -> None:
    names = decayed(CLIPEncoder(dinov2(tmp_path / "model")))
    blocks = {
        f"backbone.encoder.layer.{i}.{part}.weight"
        for i in range(2)
        for part in ("attention.q_proj", "attention.k_proj", "attention.v_proj",
                     "attention.o_proj", "mlp.fc1", "mlp.fc2")
    }  # fmt: skip
    assert names == blocks | {"backbone.embeddings.patch_embeddings.projection.weight"}


def test_options_that_need_no_layers_do_not_look_for_them(tmp_path: Path) -> None:
    encoder = CLIPEncoder(dinov2(tmp_path / "model"))
    encoder.backbone = nn.Linear(2, 2)
    optimizer = make_optimizer(encoder, TrainConfig())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_the_objectives_parameters_follow_the_schedule_at_their_own_rate(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    centers = nn.Parameter(torch.zeros(3, 24))
    config = TrainConfig(learning_rate=1e-5)
    optimizer = make_optimizer(encoder, config, [centers])
    (group,) = (g for g in optimizer.param_groups if any(p is centers for p in g["params"]))
    assert group["weight_decay"] == 0
    set_learning_rate(optimizer, 0.5e-5)
    assert group["lr"] == pytest.approx(0.5e-3)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 1 + len(weights_of(encoder))
