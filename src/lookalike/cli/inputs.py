"""A look at what a command is to read, before torch is imported, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lookalike.config.settings import RESUME_ADVICE
from lookalike.errors import CheckpointError, DataError, ModelError
from lookalike.files import does_not_exist

_SOURCES = ("train", "data", "test", "query", "gallery")
_FILES = ("run", "qrels", "test_embeddings", "query_embeddings", "gallery_embeddings")


def look_at_inputs(config: Any) -> None:
    """Raises DataError or ModelError where a configuration names what does not exist.

    The command itself looks closer.
    """
    from lookalike.data.sources import kind_of  # numpy and Pillow, not needed to print help

    for source in _given(config, _SOURCES):
        kind_of(source)
    for file in _given(config, _FILES):
        if not os.path.exists(file):
            raise DataError(does_not_exist(Path(file)))
    for model in _given(config, ("model_name",)):
        if _is_path(model) and not os.path.exists(model):
            raise ModelError(f"{does_not_exist(Path(model))} Give a Transformers folder, a "
                             "Lookalike checkpoint (.pth), or a hub id")  # fmt: skip


def look_at_checkpoint(path: Path) -> None:
    """Raises CheckpointError where there is nothing to resume from."""
    if not os.path.exists(path):
        raise CheckpointError(f"{does_not_exist(path)} {RESUME_ADVICE}")


def _given(config: Any, names: tuple[str, ...]) -> list[str]:
    """Returns what a configuration names, of options that it may not have."""
    values = (getattr(config, name, None) for name in names)
    return [value for value in values if value is not None]


def _is_path(model: str) -> bool:
    """Returns True for a name that no model on the hub has."""
    return model.endswith(".pth") or model.startswith((".", "/", "~"))
