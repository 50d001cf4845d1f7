"""One tool that embeds pictures from files, timed in a process of its own; see embedding.py.

Run by the Python of an environment that has the tool. Writes one JSON object to stdout.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

Embed = Callable[[], Any]  # a matrix with a row for each file
Tool = Callable[[str], Callable[[Sequence[str]], Embed]]  # a model, then files
BATCH = 32


def main() -> None:
    """Warms up on a few files, then takes the time of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("model", help="a Transformers folder; of open_clip the architecture")
    parser.add_argument("pictures")
    given = parser.parse_args()
    files = sorted(map(str, Path(given.pictures).iterdir()))
    tool = TOOLS[given.tool](given.model)
    tool(files[: min(8, len(files))])()
    embed = tool(files)
    start = time.perf_counter()
    rows = embed()
    seconds = time.perf_counter() - start
    assert len(rows) == len(files)
    print(json.dumps({"seconds": seconds, "pictures": len(files)}))


def transformers(model: str, dtype: str = "float32") -> Callable[[Sequence[str]], Embed]:
    """The loop of Transformers' documentation, in batches."""
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    encoder = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    processor = AutoProcessor.from_pretrained(model)

    def embed(files: Sequence[str]) -> Any:
        rows = []
        for start in range(0, len(files), BATCH):
            images = [Image.open(file).convert("RGB") for file in files[start : start + BATCH]]
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                found = encoder.get_image_features(pixel_values=pixels.to(encoder.dtype))
            rows.append(getattr(found, "pooler_output", found))
        return torch.nn.functional.normalize(torch.cat(rows).float(), dim=-1)

    return lambda files: partial(embed, files)


def sentence_transformers(model: str) -> Callable[[Sequence[str]], Embed]:
    """`encode` of a list of pictures."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")

    def embed(files: Sequence[str]) -> Any:
        images = [Image.open(file) for file in files]
        return encoder.encode(images, batch_size=BATCH, normalize_embeddings=True)

    return lambda files: partial(embed, files)


def open_clip(model: str) -> Callable[[Sequence[str]], Embed]:
    """`encode_image` of batches that its own transform has made."""
    import open_clip as tool
    import torch
    from PIL import Image

    encoder, _, preprocess = tool.create_model_and_transforms(model)
    encoder.eval()

    def embed(files: Sequence[str]) -> Any:
        rows = []
        for start in range(0, len(files), BATCH):
            images = [preprocess(Image.open(file)) for file in files[start : start + BATCH]]
            with torch.no_grad():
                rows.append(encoder.encode_image(torch.stack(images), normalize=True))
        return torch.cat(rows)

    return lambda files: partial(embed, files)


def lookalike(model: str, *, in_memory: bool = False) -> Callable[[Sequence[str]], Embed]:
    """What evaluation does; or only what the model takes of it, with pixels in memory."""
    import torch

    from lookalike.data.loader import ImageLoader, chunks
    from lookalike.embedding.embed import embed, inference_form
    from lookalike.model.encoder import CLIPEncoder
    from lookalike.progress import SilentProgress
    from lookalike.runtime import make_runtime

    runtime, size, silent = make_runtime("cpu"), 64, SilentProgress()
    encoder = CLIPEncoder(model)
    how = replace(encoder.preprocessing, exact=False)

    def make(files: Sequence[str]) -> Embed:
        loader = ImageLoader(files, how, runtime, max_megapixels=89)
        if not in_memory:
            list(loader.read(chunks(1, 1)))  # the readers are there
            return lambda: (
                embed(encoder, loader, runtime, batch_size=size, progress=silent).embeddings
            )
        batches = [batch.pixels for batch in loader.read(chunks(len(files), size))]

        @torch.no_grad()
        def model_alone() -> Any:
            embed_batch = inference_form(encoder, runtime)
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
}

if __name__ == "__main__":
    main()
