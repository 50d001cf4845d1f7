"""What this machine can do at most: matrix products, memory, JPEG decoding.

    python benchmarks/speed/ceilings.py
    python benchmarks/speed/ceilings.py --device cuda

Products are of a shape that a vision transformer has (rows of a batch x width, times a layer) and
of large squares; the better one is the ceiling. All cores work on a product and on the copy, or the
GPU does, for which the shapes have more rows; files are decoded by one core. Writes Markdown to
stdout.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from functools import partial

import torch
from machine import describe, in_turns, photo
from PIL import Image

SHAPES = {"ViT-B": (3200, 768, 3072), "ViT-L": (4616, 1024, 4096), "square": (4096, 4096, 4096)}
_MORE_ROWS = 8  # on a GPU
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
          "int8": torch.int8}  # fmt: skip
PHOTOS = {"256x256": (256, 256), "640x480": (640, 480), "4000x3000": (4000, 3000)}


def main() -> None:
    """Measures everything, prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="numbers instead of tables")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    kinds = [kind for kind in DTYPES if given.device == "cpu" or kind != "int8"]
    rates, copied = products(kinds, given.device), copying(given.device)
    decoded = decoding()
    if given.json:
        print(json.dumps({"products": rates, "copy": copied, "decode": decoded}))
        return
    print(
        f"{describe('torch', 'pillow', device=given.device)}; {torch.get_num_threads()} threads\n"
    )
    print(f"| products, TFLOP/s | {' | '.join(SHAPES)} |\n|---|" + "---|" * len(SHAPES))
    for name, by_shape in rates.items():
        print(f"| {name} | " + " | ".join(f"{by_shape[shape]:.2f}" for shape in SHAPES) + " |")
    print(f"\nMemory copied: {copied:.1f} GB/s (read and written: twice that moves).\n")
    print("| decode, one core | ms | megapixels/s |\n|---|---|---|")
    for name, seconds in decoded.items():
        width, height = PHOTOS[name]
        print(f"| {name} | {seconds * 1e3:.2f} | {width * height / seconds / 1e6:.0f} |")


def ceiling(kind: str, device: str = "cpu") -> float:
    """The most TFLOP/s that products of a kind reach."""
    return max(products([kind], device)[kind].values())


def products(
    kinds: Sequence[str] = tuple(DTYPES), device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """TFLOP/s (for int8: 10^12 operations/s) of x @ w.T, as a linear layer has it."""
    found: dict[str, dict[str, float]] = {}
    for name in kinds:
        dtype = DTYPES[name]
        print(f"products in {name}", file=sys.stderr)
        found[name] = {}
        for shape, (rows, inner, columns) in SHAPES.items():
            rows *= 1 if device == "cpu" else _MORE_ROWS
            x, w = ((30 * torch.randn(n, inner)).to(device, dtype) for n in (rows, columns))
            product = partial(torch.nn.functional.linear, x, w)
            if name == "int8":  # sums of 32 bits, which linear has no name for
                product = partial(torch._int_mm, x, w.T)
            seconds = in_turns({"": product}, 5, device)[""]
            found[name][shape] = 2 * rows * inner * columns / seconds / 1e12
    return found


def copying(device: str = "cpu", size: int = 2**29) -> float:
    """GB/s that are copied from memory to memory, both of the device."""
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return size / in_turns({"": lambda: target.copy_(source)}, 5, device)[""] / 1e9


def decoding() -> dict[str, float]:
    """Seconds that Pillow takes for a JPEG file in memory."""
    found = {}
    for name, size in PHOTOS.items():
        file = io.BytesIO()
        photo(size, 0).save(file, "JPEG", quality=90)
        times = max(1, 2_000_000 // (size[0] * size[1]))

        def decode(file: io.BytesIO = file, times: int = times) -> None:
            for _ in range(times):
                Image.open(file).load()

        found[name] = in_turns({"": decode}, 5)[""] / times
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
