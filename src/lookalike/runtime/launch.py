"""What `torchrun` tells the processes that it starts; read without torch."""

from __future__ import annotations

import os

from lookalike.errors import ConfigError
from lookalike.files import briefly

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MOST_PROCESSES = 2**20


def started_together() -> bool:
    """Returns whether this process is one of several that `torchrun` started.

    Raises:
        ConfigError: the environment says so, but in words that cannot be.
    """
    if not all(os.environ.get(name) for name in _NEEDED):
        return False
    world_size = _number("WORLD_SIZE", 1, _MOST_PROCESSES)
    if world_size == 1:
        return False
    _number("MASTER_PORT", 1, 2**16 - 1)
    rank = _number("RANK", 0, world_size - 1)
    _number("LOCAL_WORLD_SIZE", 1, world_size, world_size)
    _number("LOCAL_RANK", 0, world_size - 1, rank)
    return True


def _number(name: str, least: int, most: int, default: int | None = None) -> int:
    """Returns a whole number of the environment; `default` where it is not there."""
    text = os.environ.get(name, "" if default is None else str(default))
    if text.strip().isdecimal() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    raise ConfigError(
        f"the environment variable {name} is '{briefly(text)}'; torchrun, which sets it, has "
        f"{least} to {most:,} there. Start with torchrun, or alone: unset WORLD_SIZE"
    )
