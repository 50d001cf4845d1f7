"""What training goes on from: the shape that each entry of a checkpoint has to have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lookalike.model.loading import schema
from lookalike.model.loading.checkpoint import MOST_EPOCHS, tensors
from lookalike.training.sharding import sharded_like

_MOST = 2**63 - 1
_name = schema.text(most=1000)
_FOLLOWS_SCHEDULE = ("lr", "initial_lr")  # set anew before each step
_bytes_by_device = schema.mapping_of(schema.text(most=20), schema.bytes_tensor)


def _count_or_word(value: Any, where: str) -> None:
    check = (
        schema.text(most=100, pattern=r"\w+") if isinstance(value, str) else schema.whole(0, _MOST)
    )
    check(value, where)


def _random_states(value: Any, where: str) -> None:
    """Of each process: those of the CPU, and perhaps of another device."""
    schema.list_of(_bytes_by_device)(value, where)
    for place, states in enumerate(value):
        if "cpu" not in states:
            raise schema.MisfitError(f"{where}[{place}] has no state of the CPU")


def _state_of_objective(value: Any, where: str) -> None:
    """Tensors, or what an objective of one's own keeps beside them."""

    def one(part: Any, place: str) -> None:
        if isinstance(part, Tensor):
            schema.tensor(part, place)
            if part.is_floating_point() and not bool(part.isfinite().all()):
                raise schema.MisfitError(f"{place} holds what is no finite number")
        else:
            schema.document(part, place)

    schema.mapping_of(_name, one)(value, where)


TRAINING = schema.record(
    {
        "state": schema.record(
            {
                "run": schema.text(most=200, pattern=r"[\w -]+"),
                "epoch": schema.whole(0, MOST_EPOCHS),
                "step": schema.whole(0, MOST_EPOCHS),
                "loss_sum": schema.number(),
                "loss": schema.nothing_or(schema.number()),
            }
        ),
        "config": schema.mapping_of(_name, schema.setting),
        "train_fingerprint": schema.text(most=200),
        "objective_state_dict": _state_of_objective,
        "optimizer_state_dict": schema.record(
            {
                "state": schema.mapping_of(
                    schema.whole(0, _MOST), schema.mapping_of(_name, schema.tensor)
                ),
                "param_groups": schema.list_of(
                    schema.record({"params": schema.list_of(schema.whole(0, _MOST))}, open=True)
                ),
            }
        ),
        "baseline_state_dict": schema.nothing_or(tensors),
        "training_state_dict": tensors,
        "scaler_state_dict": schema.mapping_of(_name, schema.number(at_least=0)),
        "chunk_size": schema.whole(1, 2**31),
        "sampler_state_dict": schema.mapping_of(_name, _count_or_word),
        "random_states": _random_states,
        "precision": schema.one_of("bf16", "fp16", "fp32"),
    },
    open=True,  # what a model is made of is checked where it is read
)
"""Of a checkpoint of this version's format."""


def misfit_of_optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """Returns how the saved state of AdamW differs from what the optimizer would have had: groups,
    their settings, and two means of each parameter's shape; None where it fits.
    """
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [one["params"] for one in own]:
        return "its groups hold other parameters"
    for group, mine in zip(saved["param_groups"], own, strict=True):
        for name, value in mine.items():
            # A release of PyTorch that does not know a setting yet had its default.
            is_same = name in (*_FOLLOWS_SCHEDULE, "params") or _same(group.get(name, value), value)
            if not is_same:
                return f"{name} is not {value}"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, state in saved["state"].items():
        if number >= len(parameters) or state.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            return f"the state of parameter {number} is not of AdamW"
        shapes = {"step": torch.Size(), "exp_avg": parameters[number].shape}
        for name, tensor in state.items():
            if tensor.shape != shapes.get(name, parameters[number].shape):
                return f"{name} of parameter {number} is of {list(tensor.shape)}"
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                return f"{name} of parameter {number} holds what is no finite number"
            if name != "exp_avg" and bool((tensor < 0).any()):
                return f"{name} of parameter {number} is negative"
    return None


def load_optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Puts a saved state that fits into an optimizer, whose own settings stay."""
    groups = optimizer.state_dict()["param_groups"]
    state = sharded_like({**saved, "param_groups": groups}, optimizer)
    optimizer.load_state_dict(state)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) in (int, float, bool, str, type(None)) and one == other
