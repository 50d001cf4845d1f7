"""Exact search and evaluation over random unit embeddings, beside faiss IndexFlatIP.

    python benchmarks/top_k.py                          # 1,000,000 x 512, 10,000 queries, top 100
    python benchmarks/top_k.py --num-gallery 100000 --num-queries 1000

Each contender runs in a process of its own, in turn, on the same files and with the same number
of threads; the median of its runs is quoted, and memory is the peak of the whole process less
what the libraries take once loaded. Needs faiss-cpu. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

CONTENDERS = {
    "faiss": "faiss IndexFlatIP",
    "top_k": "lookalike top_k",
    "top_k_mapped": "lookalike top_k, gallery memory-mapped in 8 shards",
    "evaluate": "lookalike evaluation: top 100, and the rank of each right image",
}
SHARDS = 8


def main() -> None:
    """Makes the embeddings, runs the contenders in turn, prints the table."""
    given = _arguments()
    if given.contender:
        print(json.dumps(_run(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        given.folder = folder
        for seed, (name, rows) in enumerate(
            (("gallery", given.num_gallery), ("query", given.num_queries))
        ):
            np.save(Path(folder) / f"{name}.npy", _unit(rows, given.dim, seed))
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        for number in range(given.runs):
            for name in CONTENDERS:
                runs[name].append(_in_own_process(name, given))
                print(f"run {number + 1} of {given.runs}: {name} {runs[name][-1]}", file=sys.stderr)
    print(_table(runs, given))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-gallery", type=int, default=1_000_000)
    parser.add_argument("--num-queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--num-classes", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _unit(rows: int, dim: int, seed: int) -> np.ndarray:
    embeddings = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings


def _in_own_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in vars(given).items()
             if key not in ("contender", "runs")]  # fmt: skip
    command = [sys.executable, __file__, f"--contender={name}", *flags]
    # Passive waiting as our command sets it, for all alike.
    threads = {"OMP_NUM_THREADS": str(given.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command, env={**os.environ, **threads}, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _run(given: argparse.Namespace) -> dict[str, Any]:
    """One contender: seconds of the search alone, peak memory, and what it found."""
    search = _faiss(given) if given.contender == "faiss" else _ours(given)
    before = _memory_bytes("VmRSS")
    start = time.perf_counter()
    positions = search()
    seconds = time.perf_counter() - start
    np.save(Path(given.folder) / f"found_{given.contender}.npy", positions)
    reference = Path(given.folder) / "found_top_k.npy"
    same = float((np.load(reference) == positions).mean()) if reference.exists() else None
    return {"seconds": seconds, "above": _memory_bytes("VmHWM") - before, "same": same}


def _faiss(given: argparse.Namespace) -> Any:
    import faiss

    faiss.omp_set_num_threads(given.threads)
    index = faiss.IndexFlatIP(given.dim)
    index.add(np.load(Path(given.folder) / "gallery.npy"))
    query = np.load(Path(given.folder) / "query.npy")
    return lambda: index.search(query, given.k)[1]


def _ours(given: argparse.Namespace) -> Any:
    import torch

    from lookalike.data.images import ImageSet
    from lookalike.evaluation.retrieval import retrieve
    from lookalike.progress import SilentProgress
    from lookalike.search.topk import top_k

    torch.set_num_threads(given.threads)
    folder = Path(given.folder)
    query = torch.from_numpy(np.load(folder / "query.npy"))
    if given.contender == "top_k_mapped":
        mapped = np.load(folder / "gallery.npy", mmap_mode="r")
        shards = np.array_split(mapped, SHARDS)
        return lambda: top_k(query, shards, given.k)[1].numpy()
    gallery = torch.from_numpy(np.load(folder / "gallery.npy"))
    if given.contender == "top_k":
        return lambda: top_k(query, gallery, given.k)[1].numpy()

    def images(rows: int) -> ImageSet:
        names = [f"{i}.jpg" for i in range(rows)]
        return ImageSet(Path("images"), names, [str(i % given.num_classes) for i in range(rows)])

    asked, searched = images(len(query)), images(len(gallery))
    return lambda: (
        retrieve(query, gallery, asked, searched, exclude=[], top_k_wanted=given.k,
                 progress=SilentProgress()).positions.numpy()
    )  # fmt: skip


def _memory_bytes(field: str) -> int:
    """What Linux says of this process: VmRSS now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def _table(runs: dict[str, list[dict[str, Any]]], given: argparse.Namespace) -> str:
    reference = statistics.median(run["seconds"] for run in runs["faiss"])
    lines = [
        f"# Exact search, {given.num_gallery:,} x {given.dim} gallery, "
        f"{given.num_queries:,} queries, top {given.k}",
        "",
        f"{date.today()}, {_processor()}, {given.threads} threads; Python "
        f"{platform.python_version()}, torch {version('torch')}, faiss-cpu {version('faiss-cpu')}, "
        f"numpy {version('numpy')}. Median of {given.runs} runs in turn (lowest to highest). "
        f"The gallery itself takes {given.num_gallery * given.dim * 4 / 1e9:.2f} GB.",
        "",
        "| | seconds | faiss / this | peak memory above the inputs | same positions as top_k |",
        "|---|---|---|---|---|",
    ]
    for name, label in CONTENDERS.items():
        seconds = sorted(run["seconds"] for run in runs[name])
        middle = statistics.median(seconds)
        above = max(run["above"] for run in runs[name]) / 1e9
        same = runs[name][-1]["same"]
        lines.append(
            f"| {label} | {middle:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f}) | "
            f"{reference / middle:.2f} | {above:.2f} GB | "
            f"{'' if same is None or name == 'top_k' else f'{same:.4%}'} |"
        )
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
