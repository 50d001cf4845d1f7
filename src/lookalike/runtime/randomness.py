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
    """The state of the generators of the CPU and of `device`, for `restore_random_state`."""
    state = {"cpu": torch.get_rng_state()}
    if device is not None and device.type != "cpu":
        module = torch.get_device_module(device)
        # mps, which has one device, takes no argument here
        state[device.type] = (
            module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
        )
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device | None = None) -> bool:
    """Puts the generators back; False if the state is of another kind of device than `device`."""
    torch.set_rng_state(state["cpu"].cpu())
    if device is None or device.type == "cpu":
        return True
    if device.type not in state:
        return False
    module, saved = torch.get_device_module(device), state[device.type].cpu()
    if device.type == "mps":
        module.set_rng_state(saved)
    else:
        module.set_rng_state(saved, device)
    return True
