"""Our metrics beside ranx and pytorch-metric-learning: the same where these are right.

Where they are not, or mean something else by the word, a test says so; whoever brings numbers
from there learns why ours differ.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.embeddings import unit
from torch import Tensor

from lookalike.evaluation import metrics as m
from lookalike.evaluation.scoring.scores import QueryScores, score_ranks
from lookalike.evaluation.trec_scoring import score_trec
from lookalike.search.ranks import ranks_of_relevant

# Their dependencies warn about numba's casts, faiss' clusters and SciPy's deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def scored(relevant: Tensor, num_relevant: list[int] | None = None) -> QueryScores:
    counts = relevant.sum(dim=1) if num_relevant is None else torch.tensor(num_relevant)
    return score_ranks([""] * len(relevant), m.ranks_of(relevant), counts)


def ask_ranx(relevant: Tensor, num_relevant: list[int], names: list[str]) -> dict[str, Any]:
    ranx = pytest.importorskip("ranx")
    qrels, run = {}, {}
    for q, row in enumerate(relevant.tolist()):
        judged = {f"d{i}": int(right) for i, right in enumerate(row)}
        unseen = num_relevant[q] - sum(row)
        qrels[f"q{q:03}"] = judged | {f"unseen{i}": 1 for i in range(unseen)}
        run[f"q{q:03}"] = {f"d{i}": float(-i) for i in range(len(row))}  # scores below zero
    found = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), names, return_mean=False)
    return dict(found)


@pytest.mark.slow  # numba compiles it first
def test_ranx_agrees_wherever_a_query_has_an_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    relevant = torch.rand(40, 60, generator=generator) < 0.15
    relevant[:, 30] |= ~relevant.any(dim=1)
    counts = (relevant.sum(dim=1) + torch.arange(40) % 3).tolist()
    theirs = ask_ranx(
        relevant, counts,
        ["hit_rate@1", "hit_rate@5", "hit_rate@10", "map", "r-precision", "precision@10",
         "ndcg@10", "mrr", "map@10"],
    )  # fmt: skip
    ours = scored(relevant, counts).columns
    names = {"hit_rate@1": "recall@1", "hit_rate@5": "recall@5", "hit_rate@10": "recall@10",
             "map": "mAP", "r-precision": "R-precision", "precision@10": "precision@10",
             "ndcg@10": "nDCG@10", "mrr": "MRR"}  # fmt: skip
    for name, own in names.items():
        assert ours[own] == pytest.approx(theirs[name], abs=1e-12), name
    over_r = m.average_precision_at_k(m.ranks_of(relevant), torch.tensor(counts), 10, over="R")
    assert over_r.numpy() == pytest.approx(theirs["map@10"], abs=1e-12)


@pytest.mark.slow  # numba compiles it first
def test_ranx_agrees_on_graded_relevance(tmp_path: Path) -> None:
    ranx = pytest.importorskip("ranx")
    generator = random.Random(0)
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for q in (f"q{q:02}" for q in range(30)):
        images = [f"i{i:02}" for i in range(40)]
        qrels[q] = {image: generator.choice([0, 1, 2, 3]) for image in generator.sample(images, 20)}
        qrels[q]["best"] = 3  # each has an answer
        run[q] = {image: generator.random() for image in generator.sample(images, 25)}
    (tmp_path / "qrels").write_text(
        "".join(f"{q} 0 {i} {grade}\n" for q, row in qrels.items() for i, grade in row.items())
    )
    (tmp_path / "run").write_text(
        "".join(f"{q} Q0 {i} 1 {score!r} x\n" for q, row in run.items() for i, score in row.items())
    )
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), ["ndcg@10", "map"], return_mean=False)
    ours = score_trec(tmp_path / "run", tmp_path / "qrels").scores.columns
    assert ours["nDCG@10"] == pytest.approx(theirs["ndcg@10"], abs=1e-12)
    assert ours["mAP"] == pytest.approx(theirs["map"], abs=1e-12)


@pytest.mark.slow  # numba compiles it first
def test_ranx_scores_a_query_without_an_answer_zero_where_we_count_it_apart() -> None:
    relevant = torch.tensor([[True, False], [False, False]])
    theirs = ask_ranx(relevant, [1, 0], ["map", "mrr"])
    assert theirs["map"].tolist() == [1, 0]  # a mean of 0.5 on the one query that can be answered
    ours = scored(relevant)
    assert ours.num_without_answer == 1
    assert ours.micro()["mAP"] == 1


@pytest.mark.slow  # numba compiles it first
def test_ranx_breaks_ties_by_the_order_of_its_input() -> None:
    ranx = pytest.importorskip("ranx")
    qrels = ranx.Qrels({"q": {"right": 1}})
    ranks = [
        ranx.evaluate(qrels, ranx.Run({"q": dict.fromkeys(names, 0.5)}), "mrr")
        for names in (["right", "wrong"], ["wrong", "right"])
    ]
    assert ranks == [1, 0.5]  # one system, two scores; ours order ties by gallery position


def ask_pml(embeddings: Tensor, labels: Tensor, k: int | str | None) -> dict[str, float]:
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    names = ("mean_average_precision", "mean_average_precision_at_r", "r_precision",
             "precision_at_1", "mean_reciprocal_rank")  # fmt: skip
    accuracy = calculator.AccuracyCalculator(include=names, k=k, device=torch.device("cpu"))
    found: dict[str, float] = accuracy.get_accuracy(
        embeddings, labels, embeddings, labels, ref_includes_query=True
    )
    return found


def leave_one_out(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    ids = torch.arange(len(labels))
    parts = ranks_of_relevant(embeddings, embeddings, labels, labels, exclude=[(ids, ids)])
    (part,) = parts
    return score_ranks([""] * len(labels), part.ranks, part.num_relevant).micro()


def test_pytorch_metric_learning_agrees_when_it_looks_at_the_whole_gallery() -> None:
    embeddings, labels = unit(120, 16, 0), torch.arange(120) % 7
    labels[:3] = torch.tensor([100, 101, 102])  # without an answer: left out there as well
    theirs, ours = ask_pml(embeddings, labels, None), leave_one_out(embeddings, labels)
    names = {"mean_average_precision": "mAP", "mean_average_precision_at_r": "mAP@R",
             "r_precision": "R-precision", "precision_at_1": "recall@1",
             "mean_reciprocal_rank": "MRR"}  # fmt: skip
    for name, own in names.items():
        assert ours[own] == pytest.approx(theirs[name], abs=1e-6), name


def test_pytorch_metric_learning_cuts_average_precision_where_it_stops_looking() -> None:
    # k="max_bin_count" is the setting its documentation gives for mAP@R; "mean_average_precision"
    # is then no longer mAP, and says so nowhere.
    embeddings, labels = unit(120, 16, 0), torch.arange(120) % 7
    theirs, ours = ask_pml(embeddings, labels, "max_bin_count"), leave_one_out(embeddings, labels)
    assert theirs["mean_average_precision_at_r"] == pytest.approx(ours["mAP@R"], abs=1e-6)
    assert theirs["mean_average_precision"] < ours["mAP"] - 0.05
