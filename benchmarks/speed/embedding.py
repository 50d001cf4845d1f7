"""Pictures a second from JPEG files to embeddings: this package beside what people would take.

    python -m venv PEERS && PEERS/bin/pip install torch torchvision transformers \
        sentence-transformers open_clip_torch
    python benchmarks/speed/embedding.py --peers PEERS/bin/python

Random weights: speed does not depend on what they are. Each tool runs in a process of its own, in
turns; loading, starting and warming up are not timed; the median of the rounds is told. The model
alone is this package's with pixels in memory already. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, write_photos
from peers import TOOLS

MODELS: dict[str, dict[str, Any]] = {
    "B/32": {"open_clip": "ViT-B-32", "layers": 12, "width": 768, "heads": 12, "patch": 32,
             "side": 224, "dim": 512, "pictures": 256},
    "B/16": {"open_clip": "ViT-B-16", "layers": 12, "width": 768, "heads": 12, "patch": 16,
             "side": 224, "dim": 512, "pictures": 96},
    "L/14-336": {"open_clip": "ViT-L-14-336", "layers": 24, "width": 1024, "heads": 16,
                 "patch": 14, "side": 336, "dim": 768, "pictures": 16},
}  # fmt: skip


def main() -> None:
    """Makes models and pictures, runs every tool in turn, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--side", type=int, default=256, help="of the square pictures, in px")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual pictures")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"{describe('torch', 'transformers')}; JPEG files of {given.side} px\n")
    print("| model | " + " | ".join(given.tools) + " |\n|---|" + "---|" * len(given.tools))
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            rates = _rates(name, Path(folder), given)
        cells = [f"{rates[tool]:.1f}" for tool in given.tools]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _rates(name: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Pictures a second of each tool."""
    shape = MODELS[name]
    write_clip(folder / "model", shape)
    count = max(8, round(shape["pictures"] * given.share))
    write_photos(folder / "pictures", count, (given.side, given.side))
    rates: dict[str, list[float]] = {tool: [] for tool in given.tools}
    for number in range(given.rounds):
        for tool in given.tools:
            ours = tool.startswith("lookalike")
            model = shape["open_clip"] if tool == "open_clip" else str(folder / "model")
            done = subprocess.run(
                [sys.executable if ours else given.peers, str(Path(__file__).with_name("peers.py")),
                 tool, model, str(folder / "pictures")],
                stdout=subprocess.PIPE,
                check=True,
                # As the command line sets it; the peers run as they come.
                env={**os.environ, **({"OMP_WAIT_POLICY": "PASSIVE"} if ours else {})},
            )  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1])
            rates[tool].append(found["pictures"] / found["seconds"])
            print(f"{name}, round {number + 1}: {tool} {rates[tool][-1]:.2f}", file=sys.stderr)
    return {tool: statistics.median(found) for tool, found in rates.items()}


def write_clip(folder: Path, shape: dict[str, Any]) -> None:
    """A CLIP with random weights, its tokenizer and processor, as a Transformers folder."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    side = {"height": shape["side"], "width": shape["side"]}
    processor = CLIPImageProcessorPil(size={"shortest_edge": shape["side"]}, crop_size=side)
    CLIPProcessor(processor, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={
            "hidden_size": shape["width"], "intermediate_size": 4 * shape["width"],
            "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
            "image_size": shape["side"], "patch_size": shape["patch"],
        },
        text_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "vocab_size": len(words), "bos_token_id": 0,
                     "eos_token_id": 1, "pad_token_id": 1},
        projection_dim=shape["dim"],
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
