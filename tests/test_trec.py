"""TREC runs and qrels: read as trec_eval reads them, written so that others count the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import lookalike
from helpers.runs import Settings, Told, document
from helpers.runs import evaluate as run

from lookalike.errors import DataError
from lookalike.evaluation.trec import score_trec

RUN = """\
q1 Q0 b 1 0.9 x
q1 Q0 a 2 0.8 x
q1 Q0 c 3 0.7 x
q2 Q0 a 1 0.5 x
stranger Q0 a 1 0.5 x
"""
QRELS = "q1 0 a 1\nq1 0 c 2\nq1 0 b 0\nq2 0 d 1\nunanswered 0 a 1\nhopeless 0 b 0\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "other.trec", tmp_path / "qrels.trec"
    for path, text in zip(paths, (RUN, QRELS), strict=True):
        path.write_text(text)
    return paths


def test_a_run_scores_as_it_does_by_hand(files: tuple[Path, Path]) -> None:
    found = score_trec(*files)
    assert found.names == ["q1", "q2", "unanswered", "hopeless"]
    assert found.scores.columns["mAP"].tolist()[:3] == pytest.approx([(1 / 2 + 2 / 3) / 2, 0, 0])
    assert found.scores.columns["MRR"].tolist()[:3] == pytest.approx([1 / 2, 0, 0])
    assert found.scores.num_without_answer == 1  # its qrels name no right image
    assert (found.not_in_run, found.not_in_qrels) == (["unanswered", "hopeless"], ["stranger"])


def test_scores_decide_the_order_then_ranks_then_lines(tmp_path: Path) -> None:
    run_file, qrels = tmp_path / "run", tmp_path / "qrels"
    run_file.write_text("\ufeffq Q0 a 3 1 x\nq Q0 b 2 1 x\nq Q0 c 1 2 x\nq Q0 d 2 1 x\n")
    qrels.write_text("q 0 b 1\nq 0 a 1\n")
    assert score_trec(run_file, qrels).scores.columns["mAP"][0] == pytest.approx(
        (1 / 2 + 2 / 4) / 2
    )


def test_junk_is_not_ranked_at_all(tmp_path: Path) -> None:
    run_file, qrels = tmp_path / "run", tmp_path / "qrels"
    run_file.write_text("q Q0 junk 1 3 x\nq Q0 right 2 2 x\n")
    qrels.write_text("q 0 junk -1\nq 0 right 1\n")
    assert score_trec(run_file, qrels).scores.columns["recall@1"][0] == 1


@pytest.mark.parametrize(
    ("run_text", "qrels_text", "words"),
    [
        ("q Q0 a 1 0.5\n", QRELS, "line 1 of .* has 5 fields; expected 6"),
        ("q1 Q0 a 1 nan x\n", QRELS, "score 'nan'"),
        ("q1 Q0 a 1 1 x\nq1 Q0 a 2 1 x\n", QRELS, "line 2 .* a second time"),
        ("", QRELS, "is empty"),
        ("z Q0 a 1 1 x\n", QRELS, "no query in common"),
        (RUN, "q1 0 a 0\n", "no right image"),
        (RUN, "q1 0 a\n", "3 fields; expected 4"),
    ],
)
def test_files_that_are_none_or_disagree_are_named(
    tmp_path: Path, run_text: str, qrels_text: str, words: str
) -> None:
    (tmp_path / "run").write_text(run_text)
    (tmp_path / "qrels").write_text(qrels_text)
    with pytest.raises(DataError, match=words):
        score_trec(tmp_path / "run", tmp_path / "qrels")


def test_the_command_scores_a_run(files: tuple[Path, Path], tmp_path: Path) -> None:
    done = lookalike(
        "evaluate", "--run", files[0], "--qrels", files[1], "--out", tmp_path / "o", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2 / 3)
    assert "not in the run: 2 queries of the qrels" in done.err
    assert "not in the qrels, and left out: 1 query of the run" in done.err
    found = json.loads((tmp_path / "o" / "results" / "metrics_other.json").read_text())
    assert found["protocol"]["kind"] == "run-qrels"


def test_what_we_write_scores_the_same_elsewhere(settings: Settings, tmp_path: Path) -> None:
    # As deep as the gallery, so that nothing is cut off; read by our own reader and by hand.
    result = run(settings(out=str(tmp_path / "o"), trec=True, top_k=100))
    run_file, qrels = (path for path in result.files if path.suffix == ".trec")
    found = score_trec(run_file, qrels).scores.micro()
    assert result.metrics is not None
    assert found == pytest.approx(result.metrics)
    rights: dict[str, set[str]] = {}
    for line in qrels.read_text().splitlines():
        query, _, image, _ = line.split()
        rights.setdefault(query, set()).add(image)
    precisions: dict[str, list[float]] = {query: [] for query in rights}
    last: dict[str, float] = {}
    for line in run_file.read_text().splitlines():
        query, _, image, rank, score, _ = line.split()
        assert float(score) < last.get(query, 2)  # strictly falling: no tie is left to others
        last[query] = float(score)
        if image in rights[query]:
            precisions[query].append((len(precisions[query]) + 1) / int(rank))
    mean = sum(sum(p) / len(rights[q]) for q, p in precisions.items()) / len(rights)
    assert mean == pytest.approx(result.metrics["mAP"])


def test_a_group_pattern_that_finds_nothing_says_so(settings: Settings, tmp_path: Path) -> None:
    told = Told()
    plain = run(settings(out=str(tmp_path / "a")))
    result = run(settings(out=str(tmp_path / "b"), group_pattern="nothing"), told)
    assert any("'nothing' matches no name" in warning for warning in told.warnings)
    protocols = [document(one, 1)["protocol"] for one in (plain, result)]
    assert protocols[0] == protocols[1]  # and the numbers compare
