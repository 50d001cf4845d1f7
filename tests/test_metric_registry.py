"""The registry of metrics: its numbers, a metric from outside, and files that lack a newer one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers.reports import part, synthetic, text, told_of_text, written
from helpers.runs import Settings, evaluate, train

from lookalike.cli.main import main
from lookalike.commands.compare import compare
from lookalike.errors import ConfigError, DataError
from lookalike.evaluation import metrics as m
from lookalike.evaluation.results import result_files
from lookalike.evaluation.scoring.scores import score_ranks
from lookalike.exports.card import front_matter, results_table
from lookalike.report import sections
from lookalike.report.history import read_history

AT_5 = m.Metric(
    "mAP@5",
    lambda ranks, counts: m.average_precision_at_k(ranks, counts, 5, over="min(k,R)"),
    "how far up the right ones of the first 5 stand",
    "how far up its images among the first 5 stand",
    headline=True,
)
MEAN_RANK = m.Metric(
    "mean rank",
    lambda ranks, _: m.first_rank(ranks),
    "how far down the first right result is",
    headline=True,
    higher_is_better=False,
    is_share=False,
)


@pytest.fixture
def from_outside() -> Iterator[None]:
    for metric in (AT_5, MEAN_RANK):
        m.register(metric)
    yield
    for metric in (AT_5, MEAN_RANK):
        del m.METRICS[metric.name]


# Of two queries, with pencil and paper: right at ranks 1 and 3 of R = 2, and at rank 7 of R = 1.
TABLE = {
    "recall@1": (1, 0),
    "recall@5": (1, 0),
    "recall@10": (1, 1),
    "mAP": ((1 + 2 / 3) / 2, 1 / 7),
    "mAP@R": (1 / 2, 0),
    "mAP@10/min(10,R)": ((1 + 2 / 3) / 2, 1 / 7),
    "R-precision": (1 / 2, 0),
    "precision@10": (2 / 10, 1 / 10),
    "nDCG@10": ((1 + 1 / 2) / (1 + 1 / math.log2(3)), 1 / 3),
    "MRR": (1, 1 / 7),
    "median rank": (1, 7),
}


def test_every_metric_of_the_registry_is_what_pencil_and_paper_say() -> None:
    ranks, counts = torch.tensor([[1, 3], [7, 0], [0, 0]]), torch.tensor([2, 1, 0])
    scores = score_ranks(["a", "b", "c"], ranks, counts)
    assert list(scores.columns) == list(m.METRICS) == list(TABLE)
    for name, (first, second) in TABLE.items():
        assert scores.columns[name][:2] == pytest.approx([first, second], rel=1e-12), name
        assert math.isnan(scores.columns[name][2])  # no answer, no score
        assert scores.micro()[name] == pytest.approx((first + second) / 2), name
    assert set(scores.intervals) == set(scores.macro()) == set(TABLE) - {"median rank"}


def test_headlines_directions_and_meanings_are_read_off_the_registry() -> None:
    assert m.headline() == ("recall@1", "recall@5", "recall@10", "mAP", "mAP@R")
    assert m.text_headline() == ("recall@1", "recall@5", "recall@10", "mAP")
    assert [name for name, one in m.METRICS.items() if not one.higher_is_better] == ["median rank"]
    assert all(one.meaning for one in m.METRICS.values())


def loop(ranking: list[bool], num_relevant: int, k: int = 5) -> float:
    """Average precision at k over min(k, R)."""
    found = [rank for rank, right in enumerate(ranking[:k], start=1) if right]
    precisions = [hits / rank for hits, rank in enumerate(found, start=1)]
    return sum(precisions) / min(k, num_relevant)


def test_a_metric_from_outside_is_written_compared_shown_and_chosen_by(
    settings: Settings, photos: Path, from_outside: None, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(settings(report=True, best_metric="mAP@5", top_k=10))
    out = photos / "out"
    document = json.loads(result_files(out, 1)[1].read_text())
    retrieved = json.loads(result_files(out, 1)[0].read_text())
    for row, (query, found) in enumerate(retrieved.items()):
        ranking = [name.partition("_")[0] == query.partition("_")[0] for name in found]
        expected = loop(ranking, document["per_query"]["num_relevant"][row])
        assert document["per_query"]["mAP@5"][row] == pytest.approx(expected, abs=1e-6)
    for key in ("metrics", "macro_metrics", "intervals", "intervals_by_class", "text_metrics"):
        assert "mAP@5" in document[key], key
    assert "mAP@5" in document["per_class"]["classa"]
    assert "mean rank" not in document["text_metrics"]  # it has no meaning there
    assert result.best is not None
    assert (result.best.metric, result.history[0].all_metrics["text-mAP@5"]) == (
        "mAP@5", json.loads(result_files(out, 0)[1].read_text())["text_metrics"]["mAP@5"],
    )  # fmt: skip

    page = (out / "results" / "report.html").read_text(encoding="utf-8")
    assert "how far up the right ones of the first 5 stand" in text(page)
    assert "how far up its images among the first 5 stand" in text(page)
    rank = document["metrics"]["mean rank"]
    assert f'<p class="now">{rank:g}</p>' in page  # a rank is no share
    curves = {trace["name"] for trace in part(page, "figures")["curves"]["data"]}
    assert "mAP@5" in curves
    assert "mean rank" not in curves

    comparison = compare([out])
    assert {"mAP@5", "mean rank"} <= set(comparison.tests[0])
    first = json.loads(result_files(out, 0)[1].read_text())["metrics"]
    difference = document["metrics"]["mAP@5"] - first["mAP@5"]
    assert comparison.tests[0]["mAP@5"].difference == pytest.approx(difference, abs=1e-5)
    assert main(["compare", str(out)]) == 0
    assert "mAP@5" in capsys.readouterr().out


def test_a_lower_mean_rank_is_a_change_for_the_better(tmp_path: Path, from_outside: None) -> None:
    written(tmp_path, 0, synthetic(60, 6, noise=2.5))
    page = written(tmp_path, 1, synthetic(60, 6, noise=0.6))
    then, now = (
        json.loads(result_files(tmp_path, epoch)[1].read_text())["metrics"]["mean rank"]
        for epoch in (0, 1)
    )
    assert now < then
    assert f'before {then:g}</span> <span class="right">{now - then:+g}</span>' in text(page)
    assert m.is_better("mean rank", now, then)


def test_a_name_that_files_know_already_is_refused(from_outside: None) -> None:
    for name in ("mAP", "mAP@5", "first rank", "label", "text-mAP"):
        with pytest.raises(ConfigError, match=f"{name}.*another name"):
            m.register(m.Metric(name, lambda ranks, counts: counts.double(), ""))


def test_a_metric_that_gives_no_number_a_query_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, counts = torch.tensor([[1], [2]]), torch.tensor([1, 1])
    for returned, words in (
        (torch.tensor(0.5), r"'odd' returned a tensor of shape \(\) for 2 queries"),
        (torch.tensor([0.5, float("nan")]), "'odd' returned a number that is not finite"),
    ):
        monkeypatch.setitem(m.METRICS, "odd", m.Metric("odd", lambda *_, r=returned: r, ""))
        with pytest.raises(ConfigError, match=words):
            score_ranks(["a", "b"], ranks, counts)


# --- Files that lack a newer metric ------------------------------------------------------------


def age(path: Path, *names: str) -> None:
    """Makes a metrics file that of a version that did not know these metrics."""
    document = json.loads(path.read_text())
    for key in ("metrics", "intervals", "per_query", "text_metrics", "text_intervals"):
        for name in names:
            (document.get(key) or {}).pop(name, None)
    path.write_text(json.dumps(document))


def test_older_files_are_compared_by_what_all_have(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [evaluate(settings(out=str(tmp_path / name))).files[1] for name in ("old", "new")]
    age(paths[0], "mAP@R", "recall@10")
    comparison = compare(paths)
    assert comparison.metrics == list(comparison.tests[0]) == ["recall@1", "recall@5", "mAP"]
    assert comparison.missing == {"recall@10": ["old/epoch_00"], "mAP@R": ["old/epoch_00"]}
    assert main(["compare", *map(str, paths)]) == 0
    told = "Left out, because not all results have them: recall@10 (not in old/epoch_00); mAP@R "
    assert told in capsys.readouterr().out
    age(paths[1], "recall@1", "recall@5", "mAP")
    with pytest.raises(DataError, match=r"no metric in common \(old/epoch_00 has recall@1, rec"):
        compare(paths)
    age(paths[1], *m.headline())
    with pytest.raises(DataError, match=r"new/results/metrics_epoch_00\.json holds none of"):
        compare(paths)


def test_a_report_and_a_card_show_a_newer_metric_without_its_past(tmp_path: Path) -> None:
    made = synthetic(60, 6, noise=1.5)
    for epoch in (0, 1):
        page = written(tmp_path, epoch, made, told_of_text(0.5))
        if epoch == 0:
            age(result_files(tmp_path, 0)[1], "mAP@R", "mAP")
    curves = {trace["name"]: trace for trace in part(page, "figures")["curves"]["data"]}
    assert curves["mAP@R"]["x"] == [1]
    assert curves["recall@1"]["x"] == [0, 1]
    assert page.count("before 50.0%") == 0  # mAP of text search, which epoch 0 lacks too
    rows = {row[0]: row for row in results_table(read_history(tmp_path, 1))}
    assert rows["mAP@R"][1::2] == rows["text mAP"][1::2] == ["", ""]
    assert rows["recall@1"][3] == "+0.0000"


def test_a_card_of_an_older_run_has_the_metrics_that_it_was_measured_by(tmp_path: Path) -> None:
    written(tmp_path, 0, synthetic(60, 6))
    age(result_files(tmp_path, 0)[1], "mAP@R")
    encoder = SimpleNamespace(trained_on=frozenset())
    source = cast(
        Any,
        SimpleNamespace(
            encoder=encoder, history=read_history(tmp_path, 0), base_model=None, checkpoint=None
        ),
    )
    names = [row[0] for row in results_table(source.history)[1:]]
    assert names == ["recall@1", "recall@5", "recall@10", "mAP"]
    config = SimpleNamespace(to="transformers", license=None, push_to_hub=None, out="x")
    assert "mAP@R" not in front_matter(source, cast(Any, config))


def test_a_section_is_a_module_a_fragment_and_a_line_in_the_list() -> None:
    folder = Path(sections.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    fragments = folder.parent / "templates" / "sections"
    assert {path.name for path in fragments.iterdir()} == {f"{name}.html.j2" for name in modules}
    assert {make.__module__.rpartition(".")[2] for make in sections.SECTIONS} == modules
