"""Peak memory of one contrastive training step of CLIP ViT-L/14-336, random weights, on the CPU.

    python benchmarks/step_memory.py                       # batch 64, chunks of 4 and 2, bf16
    python benchmarks/step_memory.py --batch 8 --chunks 8 --precision fp32    # the plain step
    python benchmarks/step_memory.py --chunks 4 --lora-rank 16 --gradient-checkpointing

Each case is a process of its own: model, loss, AdamW and two whole steps, as `lookalike train`
takes them: the first makes AdamW's moments, the second is timed. Memory is the peak of the whole
process, libraries and weights of both towers included; loss and gradient are the first step's.
Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

_GB = 1e9


def main() -> None:
    """Makes the model's folder, runs each case in turn, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--chunks", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model:
        print(json.dumps(_step(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        given.model = folder
        _in_own_process(given, 0)
        rows = []
        for chunk_size in given.chunks:
            rows.append(_in_own_process(given, chunk_size))
            print(f"chunks of {chunk_size}: {rows[-1]}", file=sys.stderr)
    print(_table(rows, given))


def _in_own_process(given: argparse.Namespace, chunk_size: int) -> dict[str, Any]:
    """One case; chunk size 0 writes the model."""
    command = [
        sys.executable, __file__, "--model", given.model, "--batch", str(given.batch),
        "--precision", given.precision, "--threads", str(given.threads),
        "--chunks", str(chunk_size), "--lora-rank", str(given.lora_rank),
        *(["--gradient-checkpointing"] if given.gradient_checkpointing else []),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as the command line sets it
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _write_model(folder: Path) -> None:
    """CLIP ViT-L/14-336 with random weights and its preprocessing."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
              "num_attention_heads": 16, "image_size": 336, "patch_size": 14}  # fmt: skip
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12}  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 336, "width": 336}
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=size).save_pretrained(folder)


def _step(given: argparse.Namespace) -> dict[str, Any]:
    import torch

    from lookalike.config import TrainConfig
    from lookalike.runtime.device import make_runtime
    from lookalike.training.losses.supcon import SupConLoss
    from lookalike.training.make import make_encoder
    from lookalike.training.optimization.optimizer import make_optimizer
    from lookalike.training.step.step import TrainingStep

    torch.set_num_threads(given.threads)
    chunk_size = given.chunks[0]
    if not chunk_size:
        _write_model(Path(given.model))
        return {}
    config = TrainConfig(
        model_name=given.model,
        gradient_checkpointing=given.gradient_checkpointing,
        lora_rank=given.lora_rank or None,
    )
    runtime = make_runtime("cpu", given.precision, 0)
    encoder = make_encoder(config, runtime, None)
    step = TrainingStep(
        encoder, SupConLoss(), make_optimizer(encoder, config), runtime,
        chunk_size=chunk_size, max_grad_norm=1.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    shape = (given.batch, 3, 336, 336)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(given.batch // 2).repeat_interleave(2)
    loaded = _peak_bytes()
    stepped = step.take(pixels, labels)
    start = time.perf_counter()
    step.take(pixels, labels)
    seconds = time.perf_counter() - start
    return {
        "chunk_size": chunk_size,
        "seconds": seconds,
        "loaded_bytes": loaded,
        "peak_bytes": _peak_bytes(),
        "loss": stepped.loss,
        "grad_norm": stepped.grad_norm,
    }


def _peak_bytes() -> int:
    """The most this process has held in memory; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _table(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    how = given.precision + (", gradient checkpointing" if given.gradient_checkpointing else "")
    how += f", LoRA of rank {given.lora_rank}" if given.lora_rank else ""
    lines = [
        f"Batch {given.batch}, {how}; {given.threads} threads of "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; torch "
        f"{version('torch')}, transformers {version('transformers')}; {date.today()}.",
        "",
        "| images at a time | peak memory | of it before the step | one step | loss | gradient |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['chunk_size']} | {row['peak_bytes'] / _GB:.2f} GB "
        f"| {row['loaded_bytes'] / _GB:.2f} GB | {row['seconds']:.0f} s "
        f"| {row['loss']:.6f} | {row['grad_norm']:.5f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
