"""What two processes find out together, for `test_processes.py`: `torchrun` runs this file.

Each process saves what it found as `rank<r>.pt` in the folder it is given; or, alone, as the
single process to compare with. What words follow are a command line, run by them after that.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike.cli.main import main as command_line
from lookalike.data.reading.loader import ImageLoader
from lookalike.embedding.embed import embed
from lookalike.embedding.embedder import Embedder
from lookalike.errors import ConfigError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import drop_patches
from lookalike.model.text import embed_texts
from lookalike.progress import SilentProgress
from lookalike.runtime.device import Runtime, make_runtime
from lookalike.runtime.world import World, joined
from lookalike.training.losses.arcface import ArcFaceLoss
from lookalike.training.losses.supcon import SupConLoss
from lookalike.training.regularizers import BaselineWeights, CaptionLoss, Regularizers
from lookalike.training.sharding import shard, whole_tensors
from lookalike.training.step.step import TrainingStep

LABELS = torch.arange(4).repeat_interleave(3)
PIXELS = torch.randint(
    0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
# Images of each process, and how many go through its encoder at a time. In the last two, one
# process has read fewer: of seven, and of none but one.
CASES = {"whole": (6, 6), "chunks": (6, 4), "uneven": (7, 2), "hardly any": (11, 3)}


def main(model: str, images: str, out: Path, *command: str) -> int:
    """Does it all, in a few seconds, and returns the exit code of the command, or 0."""
    torch.set_num_threads(1)
    with joined() as world:
        runtime = make_runtime("cpu", "fp32", 0, world)
        torch.set_num_threads(1)
        found: dict[str, Any] = {
            "embedded": embedded(model, images, runtime),
            **{name: stepped(model, runtime, *case) for name, case in CASES.items()},
            "arcface": stepped(model, runtime, 6, 4, arcface=True),
            "sharded": stepped(model, runtime, 7, 2, sharded=world.size > 1),
            "sharded arcface": stepped(model, runtime, 6, 4, arcface=True, sharded=world.size > 1),
            "held": stepped(model, runtime, 7, 2, held=True),
            "patches": stepped(model, runtime, 7, 2, patch_dropout=0.5),
        }
        if world.size > 1:
            found["gathered"] = gathered(world)
        torch.save(found, out / f"rank{world.rank if world.size > 1 else '-alone'}.pt")
        return command_line(command) if command else 0


def embedded(model: str, images: str, runtime: Runtime) -> dict[str, Any]:
    """Embeddings of a folder, a few images at a time."""
    paths = sorted(str(path) for path in Path(images).rglob("*.png"))
    encoder = CLIPEncoder(model)
    loader = ImageLoader(paths, encoder.preprocessing, runtime, max_megapixels=1)
    result = embed(Embedder(encoder, runtime=runtime, batch_size=4), loader)
    return {
        "embeddings": result.embeddings,
        "positions": result.positions.tolist(),
        "unreadable": [one.path for one in result.unreadable],
    }


def stepped(
    model: str,
    runtime: Runtime,
    num_first: int,
    chunk_size: int,
    *,
    arcface: bool = False,
    sharded: bool = False,
    held: bool = False,
    patch_dropout: float = 0.0,
) -> dict[str, Any]:
    """Two steps on the same twelve images; before the second one, weights have changed."""
    world = runtime.world
    encoder = CLIPEncoder(model)
    if patch_dropout:
        drop_patches(encoder, patch_dropout)
    if sharded:
        shard(encoder, runtime)
        texts = embed_texts(encoder, ["one", "two"], progress=SilentProgress())
    dim = encoder.dim  # found by embedding, which must leave no trace
    own = slice(0, 12)
    if world.size > 1:
        own = slice(0, num_first) if world.is_main else slice(num_first, 12)
    torch.manual_seed(7)
    objective = ArcFaceLoss(4, dim) if arcface else SupConLoss()
    parameters = [p for _, p in encoder.trainable_parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": parameters}, {"params": list(objective.parameters())}][: 1 + arcface], lr=1e-3
    )
    regularizers = Regularizers()
    if held:
        texts = torch.nn.functional.normalize(torch.randn(4, dim), dim=1)
        captions = CaptionLoss(texts, [0, 1, 2, 3], 10.0)
        regularizers = Regularizers(captions, 0.5, BaselineWeights(encoder), 2.0)
    learner = TrainingStep(
        encoder, objective, optimizer, runtime, chunk_size=chunk_size, max_grad_norm=0.5,
        regularizers=regularizers,
    )  # fmt: skip
    steps, gradients = [], list[dict[str, Tensor]]()
    for number in range(2):
        steps.append(learner.take(PIXELS[own], LABELS[own], seed=(1, 0, number)))
        named = [*encoder.trainable_parameters(), *objective.named_parameters()]
        of_step = {name: p.grad.clone() for name, p in named if p.grad is not None}
        gradients.append(whole_tensors(of_step, world))
    return {
        "losses": [one.loss for one in steps],
        "norms": [one.grad_norm for one in steps],
        "gradients": gradients,
        "weights": whole_tensors(encoder.state_dict(), world),
        "optimizer": whole_tensors(optimizer.state_dict(), world),
        "texts": texts if sharded else None,
    }


def gathered(world: World) -> dict[str, Any]:
    """What the methods of `World` give."""
    rank = world.rank
    rows = torch.arange(6).view(3, 2)[: 3 * rank] + 10 * rank  # none, and three
    found, own = world.all_gather_rows(rows)

    def fail() -> None:
        raise ConfigError("no good")

    raised = ""
    try:
        world.on_main(fail)
    except ConfigError as error:
        raised = str(error)
    return {
        "rows": found,
        "own": [own.start, own.stop],
        "objects": world.all_gather_objects({"rank": rank}),
        "any": [world.any_of(False), world.any_of(rank == 1)],
        "on_main": world.on_main(lambda: f"of {rank}"),
        "raised": raised,
        "said": world.is_first_to_say("once"),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
