"""Torch's random number generators: seeded for a while, saved, put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside the block torch's own random numbers (dropout, new weights) start from `seed`.

    Afterwards the generators of the CPU and of `device` are where they were before.
    """
    before = random_state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        restore_random_state(before, device)


def random_state(device: torch.device | None = None) -> dict[str, Tensor]:
    """Returns the state of the generators of the CPU and of `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device is not None and device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(*_which(device))
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device | None = None) -> bool:
    """Puts the generators back; False if the state is of another kind of device than `device`."""
    torch.set_rng_state(state["cpu"].cpu())
    if device is None or device.type == "cpu":
        return True
    if device.type not in state:
        return False
    saved = state[device.type].cpu()
    torch.get_device_module(device).set_rng_state(saved, *_which(device))
    return True


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """Returns the argument that names a device to its module; mps, which has but one, has none."""
    return () if device.type == "mps" else (device,)
