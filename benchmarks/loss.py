"""Time and memory of SupConLoss, forward and backward, beside the matrix products it needs.

    python benchmarks/loss.py                      # up to 16,384 images
    python benchmarks/loss.py --batches 65536

A loss over B embeddings of D numbers needs two products of 2 B^2 D operations where it makes use of
the symmetry of similarities (half a product forwards, half of it again and a whole one backwards);
autograd takes three. Two such products alone, in slices of rows, are the measure. "Plain" is the
formula with the whole matrix, derived by autograd. Each size is a process of its own; best of three
(one, where it takes long); memory is the peak above what was there before the first call. Writes
Markdown to stdout.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lookalike.training.losses.supcon import SupConLoss

PLAIN_UP_TO = 8192


def main() -> None:
    """Measures each size in turn, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512, 4096, 16384])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(_row(given.batches[0], given.dim))
        return
    print(
        f"{date.today()}, {given.threads} threads of {platform.machine()}, torch "
        f"{version('torch')}, float32, D = {given.dim}.\n\n"
        "| batch | this | two products | this / products | plain | this: memory above inputs |\n"
        "|---|---|---|---|---|---|"
    )
    for batch in given.batches:
        command = [
            sys.executable, __file__, "--one", "--batches", str(batch), "--dim", str(given.dim),
            "--threads", str(given.threads),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        print(done.stdout.strip(), flush=True)


def _row(batch: int, dim: int) -> str:
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(batch, dim, generator=generator), dim=1).requires_grad_()
    labels = torch.arange(batch // 4).repeat_interleave(4)
    # What is made once, such as the libraries' own buffers, is not of this batch.
    SupConLoss()(embeddings[:8], labels[:8]).backward()
    before = _peak_bytes()
    ours = _seconds(lambda: _derive(SupConLoss()(embeddings, labels), embeddings))
    memory = _peak_bytes() - before
    products = _seconds(lambda: _two_products(embeddings.detach()))
    plain = "does not fit"
    if batch <= PLAIN_UP_TO:
        plain = f"{_seconds(lambda: _derive(_plain(embeddings, labels), embeddings)):.4g} s"
    return (
        f"| {batch:,} | {ours:.4g} s | {products:.4g} s | {ours / products:.2f} | {plain} "
        f"| {memory / 1e6:.0f} MB |"
    )


def _seconds(call: Callable[[], None]) -> float:
    """The best of three, or one of what takes long."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if best > 20:
            break
    return best


def _derive(loss: Tensor, embeddings: Tensor) -> None:
    embeddings.grad = None
    loss.backward()


def _two_products(embeddings: Tensor) -> None:
    for rows in embeddings.split(8192):
        similarities = rows @ embeddings.T
        similarities @ embeddings


def _plain(embeddings: Tensor, labels: Tensor) -> Tensor:
    itself = torch.eye(len(labels), dtype=torch.bool)
    positives = (labels[:, None] == labels) & ~itself
    logits = (embeddings @ embeddings.T / 0.07).masked_fill(itself, float("-inf"))
    log_prob = logits - logits.logsumexp(dim=1, keepdim=True)
    return -(torch.where(positives, log_prob, 0).sum(dim=1) / positives.sum(dim=1)).mean()


def _peak_bytes() -> int:
    """The most this process has held in memory; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
