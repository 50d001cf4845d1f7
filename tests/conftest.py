"""Small models and images made on the spot; nothing is fetched."""

from __future__ import annotations

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before Transformers is imported, which looks at it then

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

# Models this small run fastest on one thread, also where other work shares the cores.
torch.set_num_threads(1)

SIZE_PX = 32


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of two layers, with its text tower, tokenizer and processor, as a folder."""
    folder = tmp_path_factory.mktemp("tiny_clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "attention_dropout": 0.1}  # fmt: skip
    config = CLIPConfig(
        vision_config={**tower, "image_size": SIZE_PX, "patch_size": 8},
        text_config={**tower, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1,
                     "pad_token_id": 1, "max_position_embeddings": 16},
        projection_dim=24,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    size = {"height": SIZE_PX, "width": SIZE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE_PX}, crop_size=size).save_pretrained(folder)
    return folder


def draw(label: int, copy: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """An image of a class: a colour and a stripe pattern of its own, with noise."""
    rng = np.random.default_rng([label, copy])
    base = np.random.default_rng(label).integers(40, 216, 3)
    width, height = size
    stripes = 30 * np.sign(np.sin(np.arange(width) * (label + 2) / 6))
    pixels = base + stripes[None, :, None] + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_tree(root: Path, counts: dict[str, int], first: int = 0) -> Path:
    """A class-per-folder tree with so many images of each class."""
    for label, (name, count) in enumerate(sorted(counts.items())):
        folder = root / name
        folder.mkdir(parents=True)
        for copy in range(first, first + count):
            draw(label, copy).save(folder / f"{name}_{copy:03}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """`train`, `test`, `query` and `gallery` trees of the same six classes."""
    names = [f"class{c}" for c in "abcdef"]
    write_tree(tmp_path / "train", dict.fromkeys(names, 5))
    write_tree(tmp_path / "test", dict.fromkeys(names, 3), first=10)
    write_tree(tmp_path / "query", dict.fromkeys(names, 1), first=20)
    write_tree(tmp_path / "gallery", dict.fromkeys(names, 2), first=30)
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
