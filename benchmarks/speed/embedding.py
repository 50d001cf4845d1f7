"""Images a second from JPEG files to embeddings: this package beside what people would take.

    python -m venv PEERS && PEERS/bin/pip install torch torchvision transformers \
        sentence-transformers open_clip_torch
    python benchmarks/speed/embedding.py --peers PEERS/bin/python
    python benchmarks/speed/embedding.py --device cuda --peers PEERS/bin/python

Random weights: speed does not depend on what they are. Each tool runs in a process of its own, in
turns; loading, starting and warming up are not timed; the median of the rounds is told. The model
alone is this package's with pixels on the device already; on a CPU in int8 as well, and fp32 is
what it does on one without units for bf16. On a GPU there are more images. Writes Markdown to
stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ceilings import ceiling
from machine import MODELS, describe, gigaflops, table, wait_for, write_clip, write_photos

Embed = Callable[[], Any]  # a matrix with a row for each file
Tool = Callable[..., Callable[[Sequence[str]], Embed]]  # a model and a device, then files
BATCH = 32
_MORE_IMAGES, _AT_LEAST = 16, 1024  # on a GPU
_ONLY_ON_A_CPU = ("lookalike-fp32", "lookalike-int8")


def main() -> None:
    """Makes models and images, runs every tool in turn, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", help="a Python that has the peers; none: without them")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--side", type=int, default=256, help="of the square images, in px")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_one(*given.one, device=given.device)))
        return
    machine = describe("torch", "transformers", device=given.device)
    print(f"{machine}; JPEG files of {given.side} px\n")
    tools = [tool for tool in TOOLS if given.peers or tool.startswith("lookalike")]
    if given.device != "cpu":
        tools = [tool for tool in tools if tool not in _ONLY_ON_A_CPU]
    others = [tool for tool in tools if tool not in ("lookalike", "lookalike-int8")]
    most = {kind: ceiling(kind, given.device) for kind in ("bf16", "fp32")}
    kind = "bf16" if most["bf16"] > most["fp32"] else "fp32"
    absolute, relative = [], []
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            rates = _rates(name, Path(folder), tools, given)
        ours = rates["lookalike"]
        share = ours * gigaflops(MODELS[name]) / 1e3 / most[kind]
        absolute.append([name, *(f"{rate:.3g}" for rate in rates.values())])
        relative.append([name, *(f"{ours / rates[tool]:.2f}" for tool in others), f"{share:.0%}"])
        if "lookalike-int8" in rates:
            relative[-1].append(f"{rates['lookalike-int8'] / rates['lookalike-model']:.2f}")
    print(f"Images a second:\n\n{table(['model', *tools], absolute)}\n")
    print("lookalike / the others, and how much of the ceiling its products reach "
          f"({most[kind]:.2f} TFLOP/s in {kind}):\n")  # fmt: skip
    last = ["int8 / model alone"] if "lookalike-int8" in tools else []
    print(table(["model", *others, "of the ceiling", *last], relative))


def _rates(
    name: str, folder: Path, tools: list[str], given: argparse.Namespace
) -> dict[str, float]:
    """Images a second of each tool."""
    shape = MODELS[name]
    write_clip(folder / "model", shape)
    usual = shape["images"]
    if given.device != "cpu":
        usual = max(_AT_LEAST, _MORE_IMAGES * usual)
    count = max(8, round(usual * given.share))
    write_photos(folder / "images", count, (given.side, given.side))
    rates: dict[str, list[float]] = {tool: [] for tool in tools}
    for number in range(given.rounds):
        for tool in tools:
            ours = tool.startswith("lookalike")
            model = shape["open_clip"] if tool == "open_clip" else str(folder / "model")
            done = subprocess.run(
                [sys.executable if ours else given.peers, __file__, "--device", given.device,
                 "--one", tool, model, str(folder / "images")],
                stdout=subprocess.PIPE,
                check=True,
                # As the command line sets it; the peers run as they come.
                env={**os.environ, **({"OMP_WAIT_POLICY": "PASSIVE"} if ours else {})},
            )  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1])
            rates[tool].append(found["images"] / found["seconds"])
            print(f"{name}, round {number + 1}: {tool} {rates[tool][-1]:.2f}", file=sys.stderr)
    return {tool: statistics.median(found) for tool, found in rates.items()}


def _one(name: str, model: str, images: str, *, device: str) -> dict[str, float]:
    """Warms a tool up on a few files, then takes the time of all."""
    files = sorted(map(str, Path(images).iterdir()))
    tool = TOOLS[name](model, device=device)
    tool(files[: min(8 if device == "cpu" else 64, len(files))])()
    embed = tool(files)
    start = time.perf_counter()
    rows = embed()
    wait_for(device)
    seconds = time.perf_counter() - start
    assert len(rows) == len(files)
    return {"seconds": seconds, "images": len(files)}


def transformers(
    model: str, *, dtype: str = "float32", device: str = "cpu"
) -> Callable[[Sequence[str]], Embed]:
    """The loop of Transformers' documentation, in batches."""
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    encoder = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval().to(device)
    processor = AutoProcessor.from_pretrained(model)

    def embed(files: Sequence[str]) -> Any:
        rows = []
        for start in range(0, len(files), BATCH):
            images = [Image.open(file).convert("RGB") for file in files[start : start + BATCH]]
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                found = encoder.get_image_features(pixel_values=pixels.to(device, encoder.dtype))
            rows.append(getattr(found, "pooler_output", found))
        return torch.nn.functional.normalize(torch.cat(rows).float(), dim=-1)

    return lambda files: partial(embed, files)


def sentence_transformers(model: str, *, device: str = "cpu") -> Callable[[Sequence[str]], Embed]:
    """`encode` of a list of images."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device=device)

    def embed(files: Sequence[str]) -> Any:
        images = [Image.open(file) for file in files]
        return encoder.encode(images, batch_size=BATCH, normalize_embeddings=True)

    return lambda files: partial(embed, files)


def open_clip(model: str, *, device: str = "cpu") -> Callable[[Sequence[str]], Embed]:
    """`encode_image` of batches that its own transform has made."""
    import open_clip as tool
    import torch
    from PIL import Image

    encoder, _, preprocess = tool.create_model_and_transforms(model, device=device)
    encoder.eval()

    def embed(files: Sequence[str]) -> Any:
        rows = []
        for start in range(0, len(files), BATCH):
            images = [preprocess(Image.open(file)) for file in files[start : start + BATCH]]
            pixels = torch.stack(images).to(device)
            with torch.no_grad():
                rows.append(encoder.encode_image(pixels, normalize=True))
        return torch.cat(rows)

    return lambda files: partial(embed, files)


def lookalike(
    model: str, *, precision: str = "auto", in_memory: bool = False, device: str = "cpu"
) -> Callable[[Sequence[str]], Embed]:
    """What evaluation does; or only what the model takes of it, with pixels in memory."""
    import torch

    from lookalike.data.reading.loader import ImageLoader, chunks
    from lookalike.data.reading.reader import Request
    from lookalike.embedding.embed import embed
    from lookalike.embedding.embedder import Embedder
    from lookalike.model.encoder import CLIPEncoder
    from lookalike.model.inference import inference_form
    from lookalike.model.layers import on_device
    from lookalike.runtime.device import make_runtime

    runtime, size = make_runtime(device, precision), 64
    encoder = on_device(CLIPEncoder(model), runtime)
    how = replace(encoder.preprocessing, exact=False)

    def make(files: Sequence[str]) -> Embed:
        loader = ImageLoader(files, how, runtime, max_megapixels=89)
        if not in_memory:
            list(loader.read([Request(())] * max(1, runtime.num_workers)))  # all are there
            return lambda: (
                embed(Embedder(encoder, runtime=runtime, batch_size=size), loader).embeddings
            )
        read = loader.read(chunks(len(files), size))
        batches = [batch.pixels.to(runtime.device) for batch in read]

        with torch.no_grad():
            embed_batch = inference_form(encoder, runtime)

        @torch.no_grad()
        def model_alone() -> Any:
            return torch.cat([embed_batch(pixels) for pixels in batches])

        return model_alone

    return make


TOOLS: dict[str, Tool] = {
    "transformers": transformers,
    "transformers-bf16": partial(transformers, dtype="bfloat16"),
    "sentence-transformers": sentence_transformers,
    "open_clip": open_clip,
    "lookalike": lookalike,
    "lookalike-model": partial(lookalike, in_memory=True),
    "lookalike-fp32": partial(lookalike, precision="fp32"),
    "lookalike-int8": partial(lookalike, precision="int8", in_memory=True),
}


if __name__ == "__main__":
    main()
