"""The environment of all tests, and the fixtures that many of them share."""

from __future__ import annotations

import gc
import os

gc.set_threshold(50_000, 10, 10)  # as a command does, see lookalike.cli.process
os.environ["HF_HUB_OFFLINE"] = "1"  # before Transformers is imported, which looks at it then

from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import pytest
import torch

pytest.register_assert_rewrite("helpers")  # before any of them is imported

from helpers.models import clip_with_tokenizer, copy_without_dropout
from helpers.photos import write_tree

# Models this small run fastest on one thread, also where other work shares the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of two layers, which no test changes."""
    return Path(clip_with_tokenizer(tmp_path_factory.mktemp("tiny_clip")))


@pytest.fixture
def without_dropout(tiny_clip: Path, tmp_path: Path) -> Path:
    """The tiny model, its attention dropout switched off."""
    return copy_without_dropout(tiny_clip, tmp_path)


@pytest.fixture
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        yield


@pytest.fixture(scope="session")
def drawn_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `photos` is a copy of: to draw it again for each test takes ten times as long."""
    folder = tmp_path_factory.mktemp("drawn_photos")
    names = [f"class{c}" for c in "abcdef"]
    write_tree(folder / "train", dict.fromkeys(names, 5))
    write_tree(folder / "test", dict.fromkeys(names, 3), first=10)
    write_tree(folder / "query", dict.fromkeys(names, 1), first=20)
    write_tree(folder / "gallery", dict.fromkeys(names, 2), first=30)
    return folder


@pytest.fixture
def photos(drawn_photos: Path, tmp_path: Path) -> Path:
    """`train`, `test`, `query` and `gallery` trees of the same six classes, to be changed."""
    copytree(drawn_photos, tmp_path, copy_function=copyfile, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def settings(photos: Path, tiny_clip: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a small run, which keyword arguments change."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "train": str(photos / "train"),
            "test": str(photos / "test"),
            "model_name": str(tiny_clip),
            "learning_rate": 1e-3,
            "num_workers": 0,
            "precision": "fp32",
            "device": "cpu",
            "report": False,  # 5 MB of page and a map to draw; tests of reports ask for them
            "out": str(photos / "out"),
        } | changes

    return make
