"""Reports of made-up retrievals, and what a page of them says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lookalike.data.images import ImageSet
from lookalike.evaluation.interpolation import Mixture, TradeOff
from lookalike.evaluation.metrics import ranks_of
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import write_results
from lookalike.evaluation.retrieval import Retrieval, exclusions, retrieve
from lookalike.evaluation.scoring.scores import score_ranks
from lookalike.progress import SilentProgress
from lookalike.report.write import write_report


def image_set(names: list[str], labels: list[str] | None, root: Path = Path("gone")) -> ImageSet:
    return ImageSet(root, names, labels)


def leave_one_out(rows: torch.Tensor, side: ImageSet) -> tuple[Retrieval, Protocol]:
    """Images searched in each other, by embeddings that came from somewhere."""
    ids = list(range(len(side)))
    protocol = Protocol("leave-one-out", side, side, ids, ids, side.paths)
    exclude = exclusions(side, side, ids, ids)
    retrieval = retrieve(
        rows, rows, side, side, exclude=exclude, top_k_wanted=10, progress=SilentProgress()
    )
    return retrieval, protocol


def embeddings(of_class: torch.Tensor, *, noise: float, seed: int = 0) -> torch.Tensor:
    """The centre of each image's class, and noise; of length 1."""
    centres = torch.randn(int(of_class.max()) + 1, 16, generator=_generator(99))
    rows = centres[of_class] + noise * torch.randn(len(of_class), 16, generator=_generator(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def synthetic(
    num: int, num_classes: int, *, noise: float = 1.0, labelled: bool = True
) -> tuple[Retrieval, Protocol]:
    """Images that are not there, in classes of equal size."""
    of_class = torch.arange(num) % num_classes
    labels = [f"class {number}" for number in of_class.tolist()]
    side = image_set([f"{i:06}.jpg" for i in range(num)], labels if labelled else None)
    return leave_one_out(embeddings(of_class, noise=noise), side)


def large(num: int, num_classes: int) -> tuple[Retrieval, Protocol]:
    """A retrieval of any size whose results are drawn, not searched: half of them are right."""
    of_class = torch.arange(num) % num_classes
    side = image_set([f"{i:06}.jpg" for i in range(num)], [f"class {i}" for i in of_class.tolist()])
    ids = list(range(num))
    generator = _generator(0)
    steps = torch.randint(1, num // num_classes, (num, 10), generator=generator) * num_classes
    steps += torch.randint(0, 2, (num, 10), generator=generator)  # one further: the next class
    positions = (torch.arange(num)[:, None] + steps) % num
    ranks = ranks_of(of_class[positions] == of_class[:, None])
    counts = torch.full((num,), num // num_classes - 1)
    similarities = torch.rand(num, 10, generator=generator).sort(descending=True).values
    rows = embeddings(of_class, noise=1.5)
    return Retrieval(
        side, side, rows, rows, similarities, positions,
        score_ranks(side.labels or [], ranks, counts), [],
    ), Protocol("leave-one-out", side, side, ids, ids, side.paths)  # fmt: skip


def written(
    out: Path, epoch: int, made: tuple[Retrieval, Protocol], about: dict[str, Any] | None = None
) -> str:
    """The report of a synthetic epoch."""
    retrieval, protocol = made
    facts = {"run": "one", "loss": None, "config": {"model_name": "none"}} | (about or {})
    write_results(out, epoch, retrieval, protocol, about=facts)
    path = write_report(out, epoch, retrieval, protocol, progress=SilentProgress())
    return path.read_text(encoding="utf-8")


def told_of_text(mean: float) -> dict[str, Any]:
    """What a metrics file says of text search, made up around one mean average precision."""
    means = {
        "recall@1": 0.8 * mean,
        "recall@5": 0.5 + 0.5 * mean,
        "recall@10": 0.6 + 0.4 * mean,
        "mAP": mean,
    }
    return {
        "text_metrics": means,
        "text_intervals": {
            name: (max(value - 0.09, 0.0), min(value + 0.07, 1.0)) for name, value in means.items()
        },
    }


def told_of_drift(mean: float, low: float) -> dict[str, Any]:
    """What a metrics file says of drift."""
    return {"drift": {"mean_cosine": mean, "low_cosine": low, "num_images": 72}}


def mixtures(
    *rows: tuple[float, float, float | None], metric: str = "mAP@R", epoch: int = 1
) -> TradeOff:
    """Of rows (alpha, the metric of images, mAP of text search) the trade-off of run "one"."""
    made = tuple(
        Mixture(alpha, {metric: value}, None if text is None else {"mAP": text})
        for alpha, value, text in rows
    )
    return TradeOff("one", epoch, metric, "mAP", made)


def of_test(trade_off: TradeOff, made: tuple[Retrieval, Protocol]) -> TradeOff:
    """The same, measured on these images."""
    return replace(trade_off, fingerprint=made[1].facts()["fingerprint"])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def part(page: str, identity: str) -> Any:
    """A JSON block of a page."""
    found = re.search(rf'<script type="application/json" id="{identity}">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def text(page: str) -> str:
    """A page without scripts and styles, on one line."""
    bare = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", bare)
