"""TREC runs and qrels: read as trec_eval reads them, written so that others count the same."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import lookalike
from helpers.limits import PEAK_BYTES, linux_only
from helpers.runs import Settings, Told, document
from helpers.runs import evaluate as run

from lookalike.errors import DataError
from lookalike.evaluation import trec_scoring
from lookalike.evaluation.results import hash_of
from lookalike.evaluation.trec_scoring import score_trec

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


def graded_by_hand(run_text: str, grades: dict[str, dict[str, int]], k: int = 10) -> list[float]:
    """nDCG@k as trec_eval has it: the gain of an image is its grade."""
    ranked: dict[str, list[tuple[float, str]]] = {}
    for line in run_text.splitlines():
        query, _, image, _, score, _ = line.split()
        ranked.setdefault(query, []).append((float(score), image))
    found = []
    for query, judged in grades.items():
        order = [image for _, image in sorted(ranked.get(query, []), reverse=True)]
        gained = best = 0.0
        for place, image in enumerate(order[:k]):
            gained += max(0, judged.get(image, 0)) / math.log2(place + 2)
        for place, grade in enumerate(sorted(judged.values(), reverse=True)[:k]):
            best += max(0, grade) / math.log2(place + 2)
        found.append(gained / best if best else math.nan)
    return found


def random_trec(seed: int) -> tuple[str, str, dict[str, dict[str, int]]]:
    generator = random.Random(seed)
    run_lines, grades = [], {}
    for q in range(40):
        images = [f"i{i}" for i in range(30)]
        judged = generator.sample(images, generator.randint(1, 25))
        grades[f"q{q}"] = {image: generator.choice([0, 0, 1, 1, 2, 3]) for image in judged}
        for image in generator.sample(images, generator.randint(1, 30)):
            run_lines.append(f"q{q} Q0 {image} 1 {generator.random():.9f} x")
    generator.shuffle(run_lines)
    qrels = [f"{q} 0 {i} {grade}" for q, judged in grades.items() for i, grade in judged.items()]
    return "\n".join(run_lines), "\n".join(qrels), grades


def test_grades_count_in_ndcg_as_by_hand_and_in_nothing_else(tmp_path: Path) -> None:
    run_text, qrels_text, grades = random_trec(0)
    (tmp_path / "run").write_text(run_text)
    (tmp_path / "qrels").write_text(qrels_text)
    (tmp_path / "binary").write_text(re.sub(r" [123]$", " 1", qrels_text, flags=re.MULTILINE))
    found = score_trec(tmp_path / "run", tmp_path / "qrels").scores.columns
    assert found["nDCG@10"].tolist() == pytest.approx(graded_by_hand(run_text, grades), nan_ok=True)
    binary = score_trec(tmp_path / "run", tmp_path / "binary").scores.columns
    for name, column in binary.items():
        same = np.array_equal(column, found[name], equal_nan=True)
        assert same == (name != "nDCG@10"), name


def test_tables_of_some_queries_at_a_time_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_text, qrels_text, _ = random_trec(1)
    (tmp_path / "run").write_text(run_text)
    (tmp_path / "qrels").write_text(qrels_text)
    whole = score_trec(tmp_path / "run", tmp_path / "qrels").scores
    for size in (1, 40, 200):
        monkeypatch.setattr(trec_scoring, "_AT_A_TIME", size)
        parts = score_trec(tmp_path / "run", tmp_path / "qrels").scores
        assert parts.labels == whole.labels
        for name, column in whole.columns.items():
            # sums of rows with more padding round otherwise
            assert parts.columns[name] == pytest.approx(column, rel=1e-12, nan_ok=True), name


def test_the_fingerprint_is_that_of_the_whole_qrels(files: tuple[Path, Path]) -> None:
    judged = {"q1": {"a": 1.0, "c": 2.0, "b": 0.0}, "q2": {"d": 1.0},
              "unanswered": {"a": 1.0}, "hopeless": {"b": 0.0}}  # fmt: skip
    assert score_trec(*files).fingerprint == hash_of(judged)


@pytest.mark.parametrize(
    ("run_text", "qrels_text"),
    [
        ("q" * 10**6 + " Q0 a 1 1 x\n", QRELS),
        ("q1 Q0 " + "a" * 10**6, QRELS),
        ("q1 Q0 a 1 " + "9" * 60_000 + "x x\n", QRELS),
        ("q1 " * 20_000, QRELS),
        ("\x1b]0;" + "z" * 5000 + "\x07 Q0 a 1 1 x\n", QRELS),
        ("q1 Q0 a 1 \x1b[31m x\n", QRELS),
        ("q1 Q0 \x1b[31m 1 1 x\nq1 Q0 \x1b[31m 1 1 x\n", QRELS),
        ("\0" * 10**6, QRELS),
        (RUN, "q1 0 " + "a" * 10**6 + " 1\n"),
        (RUN, "q1 0 a inf\n"),
        (RUN, "q1 0 a 1e300\n"),
        (RUN, "q1 0 a " + "1" * 400 + "\n"),
        (RUN, "q1 0 a 1\nq1 0 a 2\n"),
    ],
)
def test_lines_of_any_size_and_content_end_in_one_short_line(
    tmp_path: Path, run_text: str, qrels_text: str
) -> None:
    (tmp_path / "run").write_text(run_text)
    (tmp_path / "qrels").write_text(qrels_text)
    with pytest.raises(DataError) as refused:
        score_trec(tmp_path / "run", tmp_path / "qrels")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


def test_a_long_name_that_is_left_out_is_not_printed_whole(tmp_path: Path) -> None:
    (tmp_path / "run").write_text(RUN + "n" * 30_000 + " Q0 a 1 1 x\n")
    (tmp_path / "qrels").write_text(QRELS)
    done = lookalike("evaluate", "--run", tmp_path / "run", "--qrels", tmp_path / "qrels",
                     "--out", tmp_path / "o")  # fmt: skip
    assert done.code == 0, done.err
    assert len(done.err) < 3000


@linux_only
@pytest.mark.slow
def test_one_deep_ranking_among_many_takes_no_table_of_all(tmp_path: Path) -> None:
    with open(tmp_path / "run", "w") as run_file, open(tmp_path / "qrels", "w") as qrels:
        for q in range(20_000):
            run_file.write(f"q{q} Q0 i0 1 1 x\n")
            qrels.write(f"q{q} 0 i0 1\n")
        for i in range(1, 300_000):
            run_file.write(f"q7 Q0 i{i} {i + 1} {-i} x\n")
            qrels.write(f"q7 0 i{i} 1\n")
    code = (
        "from pathlib import Path; from lookalike.evaluation.trec_scoring import score_trec;"
        f"print(score_trec(Path({str(tmp_path / 'run')!r}), Path({str(tmp_path / 'qrels')!r}))"
        ".scores.micro()['mAP'], peak_bytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK_BYTES + code], capture_output=True, text=True, check=True
    )
    precision, most_bytes = done.stdout.split()
    assert float(precision) == pytest.approx(1)
    assert int(most_bytes) < 1.5 * 2**30  # a table of all would have 6 GB
