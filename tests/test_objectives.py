"""The objectives beside the plain loss: tiles, cross-batch memory, ArcFace."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.embeddings import random_batch
from helpers.runs import Settings, Watch, assert_same_bits, load, press_ctrl_c, train
from torch import Tensor, nn
from torch.nn.functional import normalize

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError, Interrupted
from lookalike.training.losses import supcon
from lookalike.training.losses.arcface import ArcFaceLoss
from lookalike.training.losses.memory import CrossBatchMemory
from lookalike.training.losses.registry import make_objective
from lookalike.training.losses.supcon import SupConLoss


def plain_supcon(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Equation 2 with the whole matrix in memory, derived by autograd."""
    itself = torch.eye(len(labels), dtype=torch.bool)
    positives = (labels[:, None] == labels) & ~itself
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, -math.inf)
    log_prob = (logits - logits.logsumexp(dim=1, keepdim=True)).masked_fill(~positives, 0)
    anchors = positives.any(dim=1)
    return -(log_prob.sum(dim=1)[anchors] / positives.sum(dim=1)[anchors]).mean()


@pytest.mark.parametrize("tile_bytes", [8 * 8, 17**2 * 8, 2**20])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_tiles_of_any_size_give_the_loss_and_gradient_of_the_whole_matrix(
    tile_bytes: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supcon, "CPU_TILE_BYTES", tile_bytes)
    labels = torch.randint(0, 12, (61,), generator=torch.Generator().manual_seed(3))
    results = []
    for loss_of in (SupConLoss(temperature), lambda z, y: plain_supcon(z, y, temperature)):
        embeddings = random_batch(61, dtype=torch.float64).requires_grad_()
        loss = loss_of(embeddings, labels)
        (3 * loss).backward()
        results.append((loss.detach(), embeddings.grad))
    for found, expected in zip(*results, strict=True):
        assert found is not None
        assert expected is not None
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_float32_is_as_close_to_the_truth_as_the_whole_matrix_is() -> None:
    labels = torch.arange(256).repeat_interleave(4)
    truth = random_batch(1024, dim=64, dtype=torch.float64).requires_grad_()
    plain_supcon(truth, labels, 0.07).backward()
    errors = []
    for loss_of in (SupConLoss(0.07), lambda z, y: plain_supcon(z, y, 0.07)):
        embeddings = random_batch(1024, dim=64, dtype=torch.float64).float().requires_grad_()
        loss_of(embeddings, labels).backward()
        assert embeddings.grad is not None
        assert truth.grad is not None
        errors.append((embeddings.grad - truth.grad).norm() / truth.grad.norm())
    assert errors[0] < 2 * errors[1] + 1e-6


def test_a_memory_stands_beside_the_batch_as_candidates() -> None:
    memory = CrossBatchMemory(10, 8, temperature=0.1).double()
    batches = [random_batch(4, seed=seed, dtype=torch.float64) for seed in range(5)]
    labels = torch.tensor([0, 0, 1, 2])
    for number, batch in enumerate(batches):
        loss = memory(batch, labels)
        earlier = batches[:number]
        kept = torch.cat([*earlier, batch])[-14:]  # the batch, and ten before it
        kept_labels = labels.repeat(number + 1)[-14:].tolist()
        assert loss.item() == pytest.approx(
            naive_of_last(kept, kept_labels, num_anchors=4, temperature=0.1), rel=1e-10
        )


def naive_of_last(
    embeddings: Tensor, labels: list[int], *, num_anchors: int, temperature: float
) -> float:
    """Equation 2 for the last images only, term by term, over all of them."""
    similarity: list[list[float]] = (embeddings @ embeddings.T / temperature).tolist()
    n, losses = len(labels), list[float]()
    for i in range(n - num_anchors, n):
        positives = [p for p in range(n) if p != i and labels[p] == labels[i]]
        if positives:
            total = math.log(sum(math.exp(similarity[i][a]) for a in range(n) if a != i))
            losses.append(sum(total - similarity[i][p] for p in positives) / len(positives))
    return sum(losses) / len(losses)


def test_nothing_is_remembered_of_the_warm_up() -> None:
    config = TrainConfig(cross_batch_memory=8)
    objective = make_objective(config, num_classes=2, dim=8, warmup_steps=5)
    assert isinstance(objective, CrossBatchMemory)
    assert objective.warmup_batches == 5


def test_what_is_remembered_gets_no_gradient_and_is_begun_after_the_warm_up() -> None:
    memory = CrossBatchMemory(8, 8, warmup_batches=2)
    labels = torch.tensor([0, 0, 1, 1])
    for seed in range(2):
        batch = random_batch(4, seed=seed)
        assert memory(batch, labels).item() == pytest.approx(SupConLoss()(batch, labels).item())
        assert int(memory.num_written) == 0
    first = random_batch(4, seed=7).requires_grad_()
    memory(first, labels)
    assert torch.equal(memory.embeddings[:4], first.detach())
    assert not memory.embeddings.requires_grad
    with_memory = random_batch(4, seed=8).requires_grad_()
    memory(with_memory, labels).backward()
    assert first.grad is None
    assert torch.autograd.gradcheck(
        lambda z: supcon.supcon(
            z, labels, random_batch(4, seed=7, dtype=torch.float64), labels, temperature=0.5
        ),
        random_batch(4, seed=8, dtype=torch.float64).requires_grad_(),
    )


def test_a_batch_that_is_not_finite_is_not_remembered() -> None:
    memory = CrossBatchMemory(16, 8)
    labels = torch.tensor([0, 0, 1, 1])
    memory(random_batch(4, seed=1), labels)
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    assert memory(torch.full((4, 8), math.nan), labels).isnan()
    assert_same_bits(memory.state_dict(), before)
    assert memory(random_batch(4, seed=2), labels).isfinite()


def test_a_batch_larger_than_the_memory_leaves_its_end() -> None:
    memory = CrossBatchMemory(3, 8)
    batch, labels = random_batch(8), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    memory(batch, labels)
    assert sorted(memory.labels.tolist()) == [2, 3, 3]
    assert {tuple(row.tolist()) for row in memory.embeddings} == {
        tuple(row.tolist()) for row in batch[-3:]
    }


def naive_arcface(
    embeddings: Tensor, labels: list[int], centers: Tensor, temperature: float, margin: float
) -> float:
    """Equation 3 of the paper, term by term, by the angles themselves."""
    losses: list[float] = []
    for row, own in zip(embeddings.tolist(), labels, strict=True):
        logits = []
        for j, center in enumerate(centers.tolist()):
            length = math.sqrt(sum(c * c for c in center))
            cosine = sum(a * c for a, c in zip(row, center, strict=True)) / length
            angle = math.acos(max(-1.0, min(1.0, cosine)))
            if j == own and angle + margin < math.pi:
                cosine = math.cos(angle + margin)
            elif j == own:
                cosine -= margin * math.sin(margin)
            logits.append(cosine / temperature)
        losses.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[own])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.2])
def test_arcface_is_equation_3(margin: float) -> None:
    objective = ArcFaceLoss(5, 8, temperature=0.2, margin=margin).double()
    labels = [0, 1, 2, 3, 4, 0, 1, 2]
    embeddings = random_batch(8, dtype=torch.float64)
    with torch.no_grad():
        objective.centers[0] = -3 * embeddings[0]  # an angle of pi: beyond any margin
    found = objective(embeddings, torch.tensor(labels)).item()
    expected = naive_arcface(embeddings, labels, objective.centers.detach(), 0.2, margin)
    assert found == pytest.approx(expected, rel=1e-6)


def test_arcface_agrees_with_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.losses import ArcFaceLoss as Theirs

    ours = ArcFaceLoss(5, 8, temperature=1 / 64, margin=0.5)
    theirs = Theirs(5, 8, margin=math.degrees(0.5), scale=64)
    with torch.no_grad():
        theirs.W.copy_(ours.centers.T)
    embeddings, labels = random_batch(8), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    assert ours(embeddings, labels).item() == pytest.approx(
        theirs(embeddings, labels).item(), rel=1e-4
    )


def test_arcface_has_a_finite_gradient_where_an_embedding_meets_its_centre() -> None:
    objective = ArcFaceLoss(2, 8)
    embeddings = normalize(objective.centers.detach().clone(), dim=1).requires_grad_()
    objective(embeddings, torch.tensor([0, 1])).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert objective.centers.grad is not None
    assert objective.centers.grad.isfinite().all()


def test_arcface_refuses_labels_without_a_centre() -> None:
    with pytest.raises(ValueError, match="labels from 0 to 2; there are 2 centres"):
        ArcFaceLoss(2, 8)(random_batch(3), torch.tensor([0, 1, 2]))


OBJECTIVES: list[dict[str, Any]] = [
    {"cross_batch_memory": 20, "warmup_steps": 2},
    {"objective": "arcface"},
]


@pytest.mark.parametrize("changes", OBJECTIVES)
def test_a_run_with_it_learns_and_is_resumed_bit_for_bit(
    settings: Settings, photos: Path, changes: dict[str, Any]
) -> None:
    watch = Watch()
    whole = train(settings(num_epochs=3, out=str(photos / "whole"), **changes), watch=watch)
    if "cross_batch_memory" not in changes:  # more candidates make a loss larger
        assert sum(watch.losses[-5:]) < sum(watch.losses[:5])
    with pytest.raises(Interrupted):
        train(settings(num_epochs=3, **changes), watch=Watch(7, press_ctrl_c))
    resumed = train(
        settings(num_epochs=3, **changes), resume=photos / "out" / "weights" / "interrupted.pth"
    )
    found, expected = load(resumed.checkpoint), load(whole.checkpoint)
    for part in ("model_state_dict", "objective_state_dict", "optimizer_state_dict"):
        assert_same_bits(found[part], expected[part])


def test_a_memory_without_supcon_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="cross_batch_memory works with the objective supcon"):
        train(settings(objective="arcface", cross_batch_memory=10))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
@pytest.mark.parametrize(
    "objective",
    [SupConLoss(), CrossBatchMemory(20, 8), ArcFaceLoss(3, 8)],
    ids=lambda one: type(one).__name__,
)
def test_labels_may_be_any_whole_numbers(objective: nn.Module, dtype: torch.dtype) -> None:
    embeddings, labels = random_batch(6), torch.tensor([0, 0, 1, 1, 2, 2])
    alike = copy.deepcopy(objective)
    for _ in range(2):
        assert torch.equal(objective(embeddings, labels.to(dtype)), alike(embeddings, labels))
