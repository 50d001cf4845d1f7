"""The evaluation report, without a browser: what it says agrees with the result files."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.photos import draw
from helpers.reports import (
    embeddings,
    image_set,
    large,
    leave_one_out,
    part,
    synthetic,
    text,
    written,
)
from helpers.runs import Settings, Told, train

import lookalike
from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.config.settings import config_from
from lookalike.errors import DataError, OutputError
from lookalike.evaluation.results import report_file, result_files, write_results
from lookalike.evaluation.retrieval import Retrieval
from lookalike.evaluation.scoring.statistics import PairedTest
from lookalike.progress import SilentProgress
from lookalike.report import embedding_map, queries, write
from lookalike.report.cards import cards_of
from lookalike.report.history import read_history
from lookalike.report.page import percent, points
from lookalike.report.queries import Confusion, choose_queries, find_confusions, outcome_of
from lookalike.report.sections import classes, verdict
from lookalike.report.thumbnails import Thumbnails
from lookalike.training import evaluator as measuring

# --- What a run leaves -----------------------------------------------------------------------


def test_a_run_writes_one_report_and_each_epoch_replaces_it(
    settings: Settings, photos: Path
) -> None:
    result = train(settings(report=True, num_epochs=2))
    out = photos / "out"
    assert [path.name for path in result.files].count("report.html") == 1
    page = (out / "results" / "report.html").read_text(encoding="utf-8")
    documents = [json.loads(result_files(out, epoch)[1].read_text()) for epoch in range(3)]
    curves = {trace["name"]: trace for trace in part(page, "figures")["curves"]["data"]}
    assert curves["recall@1"]["x"] == [0, 1, 2]
    for name, trace in curves.items():
        assert trace["y"] == [document["metrics"][name] for document in documents]
    data = part(page, "data")
    names, thumbs = data["images"]["names"], data["images"]["thumbs"]
    retrieved = json.loads(result_files(out, 2)[0].read_text())
    assert len(data["queries"]) == len(retrieved) == 18
    assert sorted(thumbs) == list(range(18))
    before, now = (document["per_query"]["recall@1"] for document in documents[1:])
    for row, was, is_now, rank in zip(
        data["queries"], before, now, documents[2]["per_query"]["first rank"], strict=True
    ):
        image, first_rank, _, relevant, change, results = row
        found = [names[number].rpartition("/")[2] for number in results[0::2]]
        assert found == retrieved[names[image].rpartition("/")[2]]
        assert results[1::2] == pytest.approx(
            documents[2]["scores"][names[image].rpartition("/")[2]], abs=6e-4
        )
        assert (first_rank, relevant, change) == (rank, 2, is_now - was)


def test_a_resumed_run_shows_the_epochs_before_it(settings: Settings, photos: Path) -> None:
    first = train(settings(report=True))
    train(settings(report=True, num_epochs=2), resume=first.checkpoint)
    page = (photos / "out" / "results" / "report.html").read_text(encoding="utf-8")
    assert part(page, "figures")["curves"]["data"][0]["x"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "words"), [(OutputError("no room"), "no room"), (ValueError("x"), "ValueError: x")]
)
def test_a_report_that_cannot_be_written_costs_no_epoch(
    error: Exception, words: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Path:
        raise error

    monkeypatch.setattr(measuring, "write_report", fail)
    told = Told()
    result = lookalike.train(config_from(TrainConfig, settings(report=True)), progress=told)
    assert [one.epoch for one in result.history] == [0, 1]
    assert told.warnings == [f"no report of epoch {epoch}: {words}" for epoch in (0, 1)]
    assert "report.html" not in {path.name for path in result.files}


def test_ctrl_c_while_the_report_is_drawn_points_at_the_epoch_just_saved(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = write.write_report

    def interrupted(out: Path, epoch: int, *args: Any, **options: Any) -> Path:
        if epoch == 1:
            raise KeyboardInterrupt
        return real(out, epoch, *args, **options)

    monkeypatch.setattr(measuring, "write_report", interrupted)
    with pytest.raises(lookalike.errors.Interrupted, match=r"--resume \S*encoder_epoch_01\.pth"):
        train(settings(report=True))
    assert result_files(photos / "out", 1)[1].exists()
    monkeypatch.setattr(measuring, "write_report", real)
    metrics = result_files(photos / "out", 1)[1].read_text()
    options = config_from(TrainConfig, settings(report=True))
    resumed = lookalike.train(options, resume=photos / "out/weights/encoder_epoch_01.pth",
                              progress=Told())  # fmt: skip
    assert [one.epoch for one in resumed.history] == [0, 1]
    assert result_files(photos / "out", 1)[1].read_text() == metrics
    assert "Retrieval report · epoch 1" in report_file(photos / "out").read_text()


def test_a_name_of_emoji_takes_no_more_room_than_it_must(tmp_path: Path) -> None:
    sizes = {}
    for letter in ("x", "\N{GRINNING FACE}"):
        side = image_set([f"{letter * 90}{i}.jpg" for i in range(60)], list("abcdef") * 10)
        made = leave_one_out(embeddings(torch.arange(60) % 6, noise=1.0), side)
        sizes[letter] = len(written(tmp_path / letter, 0, made).encode())
    plain, emoji = sizes.values()
    assert 60 * 90 * 2 < emoji - plain < 60 * 90 * 4


def test_a_report_changes_nothing_that_is_learned(settings: Settings, photos: Path) -> None:
    with_it = train(settings(report=True, out=str(photos / "with")))
    without = train(settings(out=str(photos / "without")))
    assert with_it.history == without.history
    for one, other in zip(
        with_it.encoder.state_dict().values(), without.encoder.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_embeddings_without_their_images_make_a_report_of_names(tmp_path: Path) -> None:
    names = [f"{label}/{i}.jpg" for label in "ab" for i in range(3)]
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{name},{name[0]}\n" for name in names)
    )
    np.save(tmp_path / "made.npy", np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    (tmp_path / "made.csv").write_text("path\n" + "\n".join(names))
    config = EvaluateConfig(
        test=str(tmp_path / "list.csv"),
        test_embeddings=str(tmp_path / "made.npy"),
        out=str(tmp_path / "out"),
    )
    result = lookalike.evaluate(config, progress=Told())
    page = result.files[-1].read_text(encoding="utf-8")
    images = part(page, "data")["images"]
    assert set(images["thumbs"]) == {-1}
    assert set(images["names"]) == set(names)
    with pytest.raises(OutputError, match="already exists"):
        lookalike.evaluate(config, progress=Told())


def test_unlabelled_images_make_a_report_of_strips_and_a_map(tmp_path: Path) -> None:
    page = written(tmp_path, 0, synthetic(20, 4, labelled=False))
    data, figures = part(page, "data"), part(page, "figures")
    assert not data["labelled"]
    assert data["queries"][0][1:4] == [None, None, 0]
    assert len(data["queries"][0][5]) == 20  # ten results, each with its similarity
    assert list(figures) == ["map"]
    assert [trace["name"] for trace in figures["map"]["data"]] == ["queries"]
    assert 'id="overview"' not in page
    assert 'id="classes"' not in page


# --- Which epochs belong together ---------------------------------------------------------------


def test_only_epochs_of_the_same_run_and_protocol_count(tmp_path: Path) -> None:
    small, other_test = synthetic(40, 4), synthetic(44, 4)
    written(tmp_path, 0, small, {"run": "another"})
    written(tmp_path, 1, other_test)
    written(tmp_path, 2, small)
    written(tmp_path, 3, small)
    written(tmp_path, 4, small)
    history = read_history(tmp_path, 3)
    assert [one["epoch"] for one in history.epochs] == [2, 3]  # and not what comes after it
    assert history.before is history.previous
    assert history.before is not None
    assert history.before["epoch"] == 2
    whole = read_history(tmp_path, 4)
    assert whole.before is not None
    assert whole.previous is not None
    assert (whole.before["epoch"], whole.previous["epoch"]) == (2, 3)


def test_files_without_a_run_stand_alone(tmp_path: Path) -> None:
    for epoch in (0, 1):
        page = written(tmp_path, epoch, synthetic(40, 4), {"run": None})
    assert [one["epoch"] for one in read_history(tmp_path, 1).epochs] == [1]
    assert "before training" not in text(page)


def test_a_broken_metrics_file_is_named(tmp_path: Path) -> None:
    written(tmp_path, 0, synthetic(40, 4))
    result_files(tmp_path, 0)[1].write_text("{")
    with pytest.raises(DataError, match=r"metrics_epoch_00\.json.*evaluate anew"):
        read_history(tmp_path, 0)


def test_fixed_and_broken_are_told_against_the_epoch_before_and_not_the_first(
    tmp_path: Path,
) -> None:
    for epoch, noise in enumerate((2.5, 0.5, 1.2)):
        page = written(tmp_path, epoch, synthetic(200, 10, noise=noise))
    was, now = (
        json.loads(result_files(tmp_path, epoch)[1].read_text())["per_query"]["recall@1"]
        for epoch in (1, 2)
    )
    changes = [row[4] for row in part(page, "data")["queries"]]
    assert changes == [b - a for a, b in zip(was, now, strict=True)]
    assert changes.count(-1) > 20
    assert f'<strong class="wrong">{changes.count(-1)}</strong> that epoch 2 broke' in text(page)


# --- Which queries -------------------------------------------------------------------------------


def test_confusions_count_first_results_and_leave_out_queries_without_an_answer() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.95, 0.05]])
    labels = ["a", "b", "a", "b", "alone"]
    retrieval, _ = leave_one_out(rows, image_set([f"{i}.jpg" for i in range(5)], labels))
    # By hand: 0 finds 4 first; 1 finds 0 (dot 0.9) before 4 (0.86); 2 finds 3; 3 finds 2; 4: none.
    outcome = outcome_of(retrieval, np.array([1.0, 0.0, 0.0, 0.0, np.nan]))
    assert outcome.answerable.tolist() == [True, True, True, True, False]
    assert find_confusions(retrieval, outcome) == [
        Confusion("b", "a", 2), Confusion("a", "alone", 1), Confusion("a", "b", 1)
    ]  # fmt: skip
    assert outcome.change.tolist() == [-1, 0, 0, 0, 0]
    assert 4 not in queries.worst_first(outcome)


def test_too_many_queries_are_represented_by_those_worth_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retrieval, _ = synthetic(3000, 30, noise=1.5)
    right = np.random.default_rng(1).random(3000) < 0.5
    outcome = outcome_of(retrieval, right.astype(float))
    confusions = find_confusions(retrieval, outcome)
    assert choose_queries(retrieval, outcome, confusions) == list(range(3000))
    monkeypatch.setattr(queries, "MAX_IMAGES", 2999)
    chosen = choose_queries(retrieval, outcome, confusions)
    assert chosen == sorted(set(chosen))
    assert 450 < len(chosen) <= 650
    assert set(queries.worst_first(outcome)[:150]) <= set(chosen)
    assert (outcome.change[chosen] == 1).sum() >= 100
    assert (outcome.change[chosen] == -1).sum() >= 100
    labels = retrieval.query.labels or []
    shown = {(labels[i], labels[outcome.first[i]]) for i in chosen}
    assert {(one.label, one.taken_for) for one in confusions[:50]} <= shown
    assert chosen == choose_queries(retrieval, outcome, confusions)
    assert chosen != choose_queries(retrieval, outcome, confusions, seed=1)


def test_worst_is_a_late_first_right_result_and_then_low_precision() -> None:
    retrieval, _ = synthetic(200, 10, noise=2.0)
    assert retrieval.scores is not None
    order = queries.worst_first(outcome_of(retrieval, None)).tolist()
    keys = [(-retrieval.scores.first_rank[i], retrieval.scores.columns["mAP"][i]) for i in order]
    assert keys == sorted(keys)


def test_a_file_under_two_labels_is_right_for_both() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    side = image_set(["one.jpg", "two.jpg", "one.jpg", "three.jpg"], ["a", "a", "b", "b"])
    retrieval, _ = leave_one_out(rows, side)
    images = queries.Images(retrieval)
    shown = queries.strips(retrieval, outcome_of(retrieval, None), [1, 3], images)
    columns = images.columns({str(Path("gone") / "one.jpg"): 7})
    for row, label in zip(shown, ("a", "b"), strict=True):
        first = row[5][0]
        assert columns["classes"][columns["labels"][first]] == label
        assert columns["thumbs"][first] == 7


def test_queries_and_first_results_get_their_thumbnails_before_later_ones() -> None:
    rows = [[q, 1, 1.0, 1, 0, [10 * q + rank + 5, 0.5, 10 * q + 6, 0.4]] for q in (1, 2)
            for rank in (0,)]  # fmt: skip
    first, later = queries.thumbnails_in_order(rows)
    assert first == [1, 2, 15, 25, 16, 26]
    assert set(later) == {15, 25, 16, 26}


# --- Numbers and words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_value", "words"),
    [
        (0.0001, "in at most 1 of 10,000 cases"),
        (0.002, "in at most 20 of 10,000 cases"),
        (0.034, "in about 3 of 100 cases"),
        (1.0, "nearly always"),
    ],
)
def test_a_p_value_is_said_in_words(p_value: float, words: str) -> None:
    told = verdict.in_words(PairedTest(0.1, 0.05, 0.15, p_value), "+10.0")
    assert "A change of +10.0 points, between +5.0 and +15.0 with 95% confidence" in told
    assert told.endswith(f"as large {words}.")


@pytest.mark.parametrize(
    ("before", "after", "kind"), [(2.5, 0.6, "better"), (0.6, 2.5, "worse"), (1.0, 1.0, "unclear")]
)
def test_the_verdict_says_better_worse_or_that_nobody_knows(
    tmp_path: Path, before: float, after: float, kind: str
) -> None:
    written(tmp_path, 0, synthetic(200, 10, noise=before))
    page = written(tmp_path, 1, synthetic(200, 10, noise=after))
    history = read_history(tmp_path, 1)
    cards = cards_of(history, history.headline, verdict.tests_of(history, by_class=False))
    assert [card.metric for card in cards] == ["recall@1", "recall@5", "recall@10", "mAP", "mAP@R"]
    told = verdict.verdict_on(cards[0], 1)
    assert told.kind == kind
    assert told.sentence in text(page)
    assert percent(history.current["metrics"]["recall@1"]) in told.sentence


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.8125, "81.3%"), (0.1185, "11.9%"), (0.00049, "0.0%"), (1.0, "100.0%"), (2 / 3, "66.7%"),
     (0.3 - 0.1 - 0.1, "10.0%"), (0.12345 + 1e-15, "12.3%")],
)  # fmt: skip
def test_shares_are_rounded_half_up_whatever_arithmetic_left_behind(
    share: float, shown: str
) -> None:
    assert percent(share) == shown
    assert points(share) == f"+{shown[:-1]}"
    assert points(-share) == (f"-{shown[:-1]}" if shown != "0.0%" else "+0.0")


def test_sentence_and_card_tell_one_change(tmp_path: Path) -> None:
    """16 queries: changes of a sixteenth are ties of the first decimal."""
    for noise in (0.8, 1.2, 1.6, 2.0):
        folder = tmp_path / str(noise)
        written(folder, 0, synthetic(16, 8, noise=2 * noise))
        written(folder, 1, synthetic(16, 8, noise=noise))
        history = read_history(folder, 1)
        card = cards_of(history, history.headline, verdict.tests_of(history, by_class=False))[0]
        told = verdict.verdict_on(card, 1)
        assert told.how_sure is not None
        assert f"A change of {card.change} points" in told.how_sure


def test_few_classes_are_told_by_class_and_many_are_not(tmp_path: Path) -> None:
    for num_classes in (10, 60):
        folder = tmp_path / str(num_classes)
        written(folder, 0, synthetic(200, num_classes, noise=2.0))
        page = text(written(folder, 1, synthetic(200, num_classes, noise=1.0)))
        current = read_history(folder, 1).current
        low, high = current["intervals_by_class"]["recall@1"]
        few = num_classes == 10
        assert (f"by class {percent(low)} to {percent(high)}" in page) == few
        assert (
            f"The queries are of only {num_classes} classes: by class the change" in page
        ) == few


def test_classes_stand_worst_first_with_what_they_are_taken_for(tmp_path: Path) -> None:
    written(tmp_path, 0, synthetic(200, 10, noise=2.5))
    made = synthetic(200, 10, noise=1.2)
    page = written(tmp_path, 1, made)
    history = read_history(tmp_path, 1)
    confusions = find_confusions(made[0], outcome_of(made[0], None))
    table = history.current["per_class"]
    labels = classes.worst_first(table)
    assert len(labels) == 10
    recalls = [table[label]["recall@1"] for label in labels]
    assert recalls == sorted(recalls)
    of_it = next(one for one in confusions if one.label == labels[0])
    assert history.before is not None
    before = history.before["per_class"][labels[0]]["recall@1"]
    shown = re.search(r'<section id="classes".*?</section>', text(page))
    assert shown is not None
    words = re.sub(r"<[^>]+>", "", shown[0])
    told = (percent(recalls[0]), percent(before), points(recalls[0] - before),
            percent(table[labels[0]]["mAP"]), of_it.taken_for,
            f"{of_it.count}\N{MULTIPLICATION SIGN}")  # fmt: skip
    assert f"{labels[0]} 20 {' '.join(told)} {labels[1]} " in re.sub(r" +", " ", words)


def test_a_single_epoch_has_no_curves_and_makes_no_promises(tmp_path: Path) -> None:
    page = written(tmp_path, 0, synthetic(60, 6))
    assert "curves" not in part(page, "figures")
    assert "confidence. If training" not in text(page)
    assert "The first result is right for" in text(page)
    assert "<h1>Retrieval report · before training</h1>" in page
    alone = written(tmp_path, 0, synthetic(60, 6), {"run": None})
    assert "<h1>Retrieval report</h1>" in alone


# --- The map -------------------------------------------------------------------------------------


def drawn_map(retrieval: Retrieval) -> embedding_map.EmbeddingMap:
    return embedding_map.draw_map(retrieval, embedding_map.choose_points(retrieval))


def test_a_sample_for_the_map_is_even_over_classes() -> None:
    labels = ["big"] * 900 + ["small"] * 30 + ["tiny"] * 5
    chosen = embedding_map.sample_evenly(image_set(["x"] * 935, labels), 60, seed=0)
    counts = {name: sum(labels[i] == name for i in chosen) for name in ("big", "small", "tiny")}
    assert counts == {"big": 28, "small": 27, "tiny": 5}
    assert chosen == embedding_map.sample_evenly(image_set(["x"] * 935, labels), 60, seed=0)
    assert chosen != embedding_map.sample_evenly(image_set(["x"] * 935, labels), 60, seed=1)


def test_the_map_keeps_neighbours_together_and_repeats_itself() -> None:
    retrieval, _ = synthetic(120, 4, noise=0.2)
    flat = drawn_map(retrieval)
    assert flat.method == "t-SNE"
    assert np.array_equal(flat.places, drawn_map(retrieval).places)
    labels = np.arange(120) % 4
    distance = np.linalg.norm(flat.places[:, None] - flat.places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()


def test_without_scikit_learn_the_map_is_a_pca_and_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_map, "find_spec", lambda name: None)
    made = synthetic(60, 3, noise=0.3)
    page = written(tmp_path, 0, made)
    assert "pip install &#39;lookalike[map]&#39;" in page or "lookalike[map]" in text(page)
    rows = torch.nn.functional.normalize(made[0].query_embeddings[:], dim=1).double().numpy()
    centred = rows - rows.mean(axis=0)
    expected = np.abs(np.linalg.svd(centred, full_matrices=False)[0][:, :2] *
                      np.linalg.svd(centred, full_matrices=False)[1][:2])  # fmt: skip
    places = drawn_map(made[0]).places
    assert np.allclose(np.abs(places), expected, atol=1e-6)


def test_a_map_of_one_image_or_of_equal_ones_is_still_a_map() -> None:
    assert embedding_map.project(torch.ones(1, 4), seed=0)[0].shape == (1, 2)
    places, _ = embedding_map.project(torch.ones(30, 4), seed=0)
    assert np.isfinite(places).all()


def test_few_classes_are_coloured_and_many_are_right_or_wrong(tmp_path: Path) -> None:
    few = part(written(tmp_path / "few", 0, synthetic(40, 4)), "figures")["map"]["data"]
    assert [trace["name"] for trace in few] == [f"class {i}" for i in range(4)]
    many = part(written(tmp_path / "many", 0, synthetic(60, 30)), "figures")["map"]["data"]
    assert {trace["name"] for trace in many} <= {"first result right", "first result wrong"}
    assert sum(len(trace["x"]) for trace in many) == 60


def test_a_long_fact_is_cut_and_says_so(tmp_path: Path) -> None:
    page = written(tmp_path, 0, synthetic(40, 4), {"config": {"model_name": "m", "x": "y" * 9999}})
    assert "y" * 400 + "… (the metrics file has all of it)" in page


# --- Names and sizes -----------------------------------------------------------------------------


def test_whatever_a_name_holds_is_text(tmp_path: Path) -> None:
    evil = ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(2)>',
            "line\nbreak", "\udcff\udcfe", "\u202egpj.exe", "<!--size-->"]  # fmt: skip
    folder = tmp_path / "images"
    folder.mkdir()
    names, labels = [], []
    for number, label in enumerate(evil):
        for copy in range(3):
            name = f"{number}_{copy}.png"
            draw(number, copy).save(folder / name)
            names.append(name)
            labels.append(label)
    rows = torch.randn(len(names), 8, generator=torch.Generator().manual_seed(0))
    made = leave_one_out(rows, image_set(names, labels, folder))
    page = written(tmp_path, 0, made, {"config": {"model_name": evil[0]}})
    for raw in evil:
        assert raw not in page
    assert set(part(page, "data")["images"]["classes"]) == {
        evil[0], evil[1], "line\\nbreak", "\\udcff\\udcfe", "\\u202egpj.exe", evil[5]
    }  # fmt: skip
    assert page.encode("utf-8").decode("utf-8") == page


def bounded(tmp_path: Path, num: int, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The report of a large test, all of whose images have thumbnails of 8 kB."""
    made = large(num, num_classes)
    monkeypatch.setattr(Thumbnails, "_uri", lambda self, path: "data:," + path.rjust(8000, "x"))
    return written(tmp_path, 0, made)


def test_a_large_report_stays_within_its_bound_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_map, "find_spec", lambda name: None)  # a PCA is quicker
    page = bounded(tmp_path, 6000, 2500, monkeypatch)
    assert len(page.encode()) < write.MAX_PAGE_BYTES
    assert len(part(page, "data")["queries"]) < 700
    for sentence in (
        "of 6,000 queries are shown",
        "the 2,000 worst of 2,500 classes",
        "The map shows 1,500 of 6,000 images",
        "Similarities and health are of a random sample of pairs",
        "images are named only: thumbnails of one page may take 12.0 MB",
    ):
        assert sentence in text(page)
    size = re.search(r"asks nothing of the network: ([\d.]+) MB", text(page))
    assert size is not None
    assert float(size[1]) == pytest.approx(len(page.encode()) / 1e6, abs=0.06)


@pytest.mark.slow
def test_a_report_of_100_000_queries_is_within_its_bound_in_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrieval, protocol = large(100_000, 2000)
    facts = {"run": "one", "loss": None, "config": {"model_name": "none"}}
    for epoch in (0, 1):
        write_results(tmp_path, epoch, retrieval, protocol, about=facts)
    monkeypatch.setattr(Thumbnails, "_uri", lambda self, path: "data:," + path.rjust(8000, "x"))
    started = time.monotonic()
    path = write.write_report(tmp_path, 1, retrieval, protocol, progress=SilentProgress())
    assert time.monotonic() - started < 60
    assert path.stat().st_size < write.MAX_PAGE_BYTES
    assert "of 100,000 queries are shown" in text(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("epoch", "1"), ("metrics", {"mAP": [1]}), ("intervals", {"mAP": None}), ("health", {}),
        ("health", {"histogram": {"low": 0, "high": 1, "positives": [1], "negatives": [2]}}),
        ("drift", {"mean_cosine": "x"}), ("per_class", {"a": {"mAP": None}}), ("per_query", []),
        ("text_metrics", 3), ("config", None), ("versions", {"torch": 2}),
    ],
)  # fmt: skip
def test_an_earlier_epochs_file_that_somebody_changed_is_named(
    tmp_path: Path, part: str, value: Any
) -> None:
    written(tmp_path, 0, synthetic(12, 3))
    written(tmp_path, 1, synthetic(12, 3))
    path = result_files(tmp_path, 0)[1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    with pytest.raises(DataError, match=rf"epoch_00\.json is damaged \('{part}' .*evaluate anew"):
        read_history(tmp_path, 1)
