"""The judges of labels, against loops written here and planted mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from lookalike.checks import labels
from lookalike.checks.labels import (
    Judgement,
    Whitening,
    class_numbers,
    judge_labels,
    learn_whitening,
)
from lookalike.search.topk import top_k


def world(
    num_classes: int, per_class: int, seed: int = 0, dim: int = 24
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings in which light and distance weigh far more than the class does."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator)
    centres[:, : dim // 6] = 0
    classes = torch.arange(num_classes).repeat_interleave(per_class)
    noise = 0.25 * torch.randn(len(classes), dim, generator=generator)
    noise[:, : dim // 6] *= 25
    return normalize(centres[classes] + noise, dim=1), classes


def judge(
    embeddings: torch.Tensor, classes: torch.Tensor, copies: torch.Tensor | None = None
) -> Judgement:
    each = torch.arange(len(classes)) if copies is None else copies
    return judge_labels(embeddings, classes, each, num_neighbors=15)


@pytest.mark.parametrize(("num_classes", "per_class"), [(8, 40), (8, 8), (20, 5)])
def test_planted_mistakes_are_found_and_nothing_else(num_classes: int, per_class: int) -> None:
    embeddings, right = world(num_classes, per_class)
    planted = list(range(0, len(right), len(right) // 4))[:4]
    classes = right.clone()
    classes[planted] = (right[planted] + 3) % num_classes
    found = judge(embeddings, classes)
    assert {one.position for one in found.suspects} == set(planted)
    for one in found.suspects:
        assert one.suggested == right[one.position]
        assert set(classes[one.nearest_suggested].tolist()) == {one.suggested}
        assert set(classes[one.nearest_own].tolist()) == {int(classes[one.position])}
        assert one.position not in one.nearest_suggested + one.nearest_own
    margins = [one.margin for one in found.suspects]
    assert margins == sorted(margins, reverse=True)
    assert found.num_judged == len(right)


def test_right_labels_are_left_alone() -> None:
    embeddings, classes = world(10, 12)
    raw = embeddings @ embeddings.T
    raw.fill_diagonal_(-1)
    assert (classes[raw.argmax(dim=1)] != classes).float().mean() > 0.3  # what makes it hard
    found = judge(embeddings, classes)
    assert found.suspects == []
    assert found.share_of_neighbors_disagreeing < 0.1


def test_the_best_rival_is_what_a_loop_over_all_classes_finds() -> None:
    embeddings, classes = world(6, 9, seed=3)
    classes = classes.clone()
    classes[[4, 40]] = torch.tensor([5, 0])
    white = normalize(embeddings - embeddings.mean(dim=0), dim=1)
    asked, rest = torch.arange(0, 54, 5), torch.tensor([i for i in range(54) if i % 5])
    similarities, places = top_k(white[asked], white[rest], 43)
    rivals, best = labels._best_rivals(similarities, classes[rest][places], classes[asked])
    for row, position in enumerate(asked.tolist()):
        means = {}
        for label in set(classes.tolist()) - {int(classes[position])}:
            mine = [float(white[position] @ white[i]) for i in rest.tolist() if classes[i] == label]
            means[label] = sum(sorted(mine)[-2:]) / 2
        winner = max(means, key=means.__getitem__)
        assert int(rivals[row]) == winner
        assert float(best[row]) == pytest.approx(means[winner], abs=1e-5)


def test_the_ridge_is_that_of_the_normal_equations() -> None:
    embeddings, classes = world(4, 10, seed=1)
    rest, asked = torch.arange(0, 36), torch.arange(36, 40)
    margins = labels._ridge_margins(
        embeddings[rest], classes[rest], embeddings[asked], classes[asked], 4
    )
    x = embeddings[rest].double().numpy()
    mean, y = x.mean(axis=0), np.eye(4)[classes[rest].numpy()]
    weights = 1 / np.sqrt(y.sum(axis=0)[classes[rest].numpy()])
    weights /= weights.mean()
    a = np.c_[x - mean, np.ones(len(x))]
    penalty = np.diag([1.0] * x.shape[1] + [1e-9])
    solved = np.linalg.lstsq(a.T @ np.diag(weights) @ a + penalty, a.T @ np.diag(weights) @ y)[0]
    for row, position in enumerate(asked.tolist()):
        scores = np.append(embeddings[position].double().numpy() - mean, 1) @ solved
        own = int(classes[position])
        expected = max(np.delete(scores, own)) - scores[own]
        assert float(margins[row]) == pytest.approx(expected, abs=1e-9)


def test_whitened_images_of_a_class_vary_alike_in_every_direction() -> None:
    embeddings, classes = world(5, 400)
    whitening = learn_whitening(embeddings, classes, 5)
    rows = torch.linalg.solve_triangular(
        whitening.root, (embeddings.double() - whitening.mean).T, upper=False
    ).T
    centres = torch.stack([rows[classes == label].mean(dim=0) for label in range(5)])
    within = torch.cov((rows - centres[classes]).T, correction=0)
    raw = torch.stack([embeddings[classes == label].double().mean(dim=0) for label in range(5)])
    before = torch.linalg.eigvalsh(torch.cov((embeddings.double() - raw[classes]).T))
    after = torch.linalg.eigvalsh(within)
    assert before.max() / before.min() > 100
    assert after.max() / after.min() < 3  # not 1, since the covariance is shrunk
    assert torch.allclose(whitening(embeddings), normalize(rows, dim=1).float(), atol=1e-6)


def test_shrinkage_is_that_of_scikit_learn() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    rows = world(1, 30, seed=5)[0]
    whitening = learn_whitening(rows, torch.zeros(30, dtype=torch.int64), 1)
    expected, _ = covariance.ledoit_wolf(rows.double().numpy())
    assert np.allclose(whitening.root @ whitening.root.T, expected, rtol=1e-4, atol=1e-7)


def test_classes_too_small_are_not_judged_and_counted() -> None:
    embeddings, classes = world(6, 6)
    keep = torch.tensor([i for i in range(36) if i >= 6 or i < 2])  # two of the first class
    found = judge(embeddings[keep], classes[keep])
    assert found.num_unjudged == 2
    assert found.num_judged == 30
    alone = judge(embeddings[:6], classes[:6])
    assert (alone.suspects, alone.num_judged, alone.num_unjudged) == ([], 0, 6)


def test_a_copy_has_no_say_about_a_copy() -> None:
    embeddings, right = world(8, 12)
    classes = torch.cat([right, torch.tensor([5, 5, 5])])
    # Three copies of the first image of class 0, filed under class 5: they agree with each
    # other, and must not vouch for each other.
    copied = torch.cat([embeddings, embeddings[:1].repeat(3, 1)])
    copies = torch.cat([torch.arange(len(right)), torch.tensor([0, 0, 0])])
    found = judge(copied, classes, copies)
    assert [one.position for one in found.suspects] == [len(right)]
    assert found.suspects[0].suggested == 0
    assert 0 not in found.suspects[0].nearest_suggested


def test_labels_become_numbers_and_back() -> None:
    numbers, names = class_numbers(["b", "a", "\udce9", "b"])
    assert [names[i] for i in numbers.tolist()] == ["b", "a", "\udce9", "b"]


def test_whitening_goes_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, classes = world(4, 10)
    whole = learn_whitening(embeddings, classes, 4)
    monkeypatch.setattr(labels, "_ROWS_AT_A_TIME", 7)
    parts = learn_whitening(embeddings, classes, 4)
    assert isinstance(parts, Whitening)
    assert torch.allclose(parts.root, whole.root)
    assert torch.allclose(parts(embeddings), whole(embeddings))
