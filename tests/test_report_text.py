"""What the report tells of text search, drift and mixtures of weights, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.reports import (
    mixtures,
    of_test,
    part,
    synthetic,
    text,
    told_of_drift,
    told_of_text,
    written,
)
from helpers.runs import Settings, Told, train

import lookalike
from lookalike.config import EvaluateConfig
from lookalike.errors import DataError
from lookalike.evaluation.interpolation import write_trade_off
from lookalike.evaluation.results import interpolation_file, result_files
from lookalike.report.sections.mixtures import trade_in_words, trade_off_figure


def section(page: str, identity: str) -> str:
    """One section of a page as one line of text without tags; empty where there is none."""
    found = re.search(rf'<section id="{identity}".*?</section>', page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text(found[0]))) if found else ""


def traces(figure: Any) -> dict[str, Any]:
    return {trace["name"]: trace for trace in figure["data"]}


# --- Text search and drift -------------------------------------------------------------------


def test_a_run_of_a_model_with_texts_shows_text_search_and_drift_of_every_epoch(
    settings: Settings, photos: Path
) -> None:
    train(settings(report=True, num_epochs=2))
    out = photos / "out"
    page = (out / "results" / "report.html").read_text(encoding="utf-8")
    documents = [json.loads(result_files(out, epoch)[1].read_text()) for epoch in range(3)]
    figures = part(page, "figures")
    for name, trace in traces(figures["text"]).items():
        assert trace["x"] == [0, 1, 2]
        assert trace["y"] == [one["text_metrics"][name] for one in documents]
        low, high = documents[1]["text_intervals"][name]
        assert trace["error_y"]["array"][1] == pytest.approx(high - trace["y"][1])
        assert trace["error_y"]["arrayminus"][1] == pytest.approx(trace["y"][1] - low)
    assert set(traces(figures["text"])) == set(documents[0]["text_metrics"])
    mean, low = figures["drift"]["data"]
    assert mean["y"] == [one["drift"]["mean_cosine"] for one in documents]
    assert low["y"] == [one["drift"]["low_cosine"] for one in documents]
    assert "Means over 6 classes" in section(page, "text")
    assert "( a photo of a {}. )" in section(page, "text")


def test_text_search_stands_beside_what_it_was_before(tmp_path: Path) -> None:
    made = synthetic(40, 4)
    written(tmp_path, 0, made, told_of_text(0.75) | told_of_drift(1.0, 1.0))
    page = written(tmp_path, 1, made, told_of_text(0.5) | told_of_drift(0.9, 0.8125))
    words = section(page, "text")
    assert "Text search and drift" in words
    assert "mAP how far up all its images stand 50.0% before 75.0% -25.0" in words
    assert "recall@1 the first image is of the class 40.0% before 60.0% -20.0" in words
    assert "41.0% to 57.0%" in words  # the interval of mAP
    assert "Now 0.900 on average, and below 0.812 for one image in a hundred" in words
    assert "-25.0 in text search (mAP 50.0%, before 75.0%)" in section(page, "overview")
    details = section(page, "details")
    assert "1 40.0% 75.0% 80.0% 50.0% 0.900 0.812" in details
    assert "0 60.0% 87.5% 90.0% 75.0% 1.000 1.000" in details


def test_without_texts_there_is_drift_alone_and_without_either_nothing(tmp_path: Path) -> None:
    made = synthetic(40, 4)
    for epoch, mean in enumerate((1.0, 0.9)):
        about = told_of_drift(mean, mean) | {"text_metrics": None}
        page = written(tmp_path / "drift", epoch, made, about)
    assert section(page, "text").startswith(" Drift ")
    assert "gallery" not in section(page, "text")
    assert "text" not in part(page, "figures")
    assert '<a href="#text">Drift</a>' in page
    for epoch in (0, 1):
        page = written(tmp_path / "neither", epoch, made)
    assert section(page, "text") == section(page, "mixtures") == ""
    assert 'href="#text"' not in page


def test_images_without_labels_have_their_drift_in_a_table(tmp_path: Path) -> None:
    for epoch, mean in enumerate((1.0, 0.9)):
        about = told_of_drift(mean, mean)
        page = written(tmp_path, epoch, synthetic(40, 4, labelled=False), about)
    assert "1 0.900 0.900" in section(page, "details")


def test_evaluate_shows_text_search_without_curves(settings: Settings, photos: Path) -> None:
    config = EvaluateConfig(
        test=str(photos / "test"), model_name=settings()["model_name"], out=str(photos / "out"),
        precision="fp32", device="cpu", num_workers=0,
    )  # fmt: skip
    result = lookalike.evaluate(config, progress=Told())
    page = (photos / "out" / "results" / "report.html").read_text(encoding="utf-8")
    assert result.text_metrics is not None
    for name, value in result.text_metrics.items():
        assert re.search(rf"{name} [^%]* {100 * value:.1f}%", section(page, "text"))
    assert "Drift" not in section(page, "text")
    assert not {"text", "drift"} & set(part(page, "figures"))


# --- Mixtures --------------------------------------------------------------------------------

TRADED = mixtures((0.0, 0.2, 0.8), (0.25, 0.4, 0.75), (0.5, 0.56, 0.6), (1.0, 0.6, 0.3))


def test_mixtures_of_the_run_are_shown_once_they_are_there(tmp_path: Path) -> None:
    made = synthetic(40, 4)
    assert section(written(tmp_path, 0, made), "mixtures") == ""
    path = interpolation_file(tmp_path)
    write_trade_off(path, of_test(TRADED, made))
    assert section(written(tmp_path, 0, made), "mixtures") == ""  # it is of epoch 1
    words = section(written(tmp_path, 1, made), "mixtures")
    kept = "Alpha 0.5 keeps 90% of what training gained on images (mAP@R 56.0%), for 40% of"
    assert f"{kept} what it lost on text (mAP 60.0%)." in words
    assert "0 20.0% 80.0% before training 0.25 40.0% 75.0% 0.5 56.0% 60.0% chosen" in words
    assert "1 60.0% 30.0% after training" in words
    assert section(written(tmp_path, 2, made), "mixtures") == words  # still of epoch 1
    assert section(written(tmp_path, 3, made, {"run": "another"}), "mixtures") == ""
    assert section(written(tmp_path, 3, synthetic(44, 4)), "mixtures") == ""  # another test
    path.write_text("{}")
    with pytest.raises(DataError, match=r"interpolation\.json"):
        written(tmp_path, 2, made)


def test_a_run_that_mixes_weights_shows_what_they_came_to(settings: Settings, photos: Path) -> None:
    result = train(settings(report=True, interpolation=2))
    out = photos / "out"
    page = (out / "results" / "report.html").read_text(encoding="utf-8")
    line = traces(part(page, "figures")["trade"])["mixtures"]
    assert line["text"] == ["0", "0.5", "1"]
    first, last = result.history[0], result.history[-1]
    assert first.metrics is not None
    assert last.text_metrics is not None
    assert line["y"][0] == first.metrics["mAP@R"]
    assert line["x"][-1] == last.text_metrics["mAP"]
    assert " chosen " in section(page, "mixtures")


def test_the_curve_goes_right_by_text_and_up_by_images_with_three_points_marked() -> None:
    found = traces(trade_off_figure(TRADED))
    line = found["mixtures"]
    assert line["x"] == [0.8, 0.75, 0.6, 0.3]
    assert line["y"] == [0.2, 0.4, 0.56, 0.6]
    assert line["text"] == ["0", "0.25", "0.5", "1"]
    points = {name: (trace["x"], trace["y"]) for name, trace in found.items()}
    assert points["before training"] == ([0.8], [0.2])
    assert points["after training"] == ([0.3], [0.6])
    assert points["chosen"] == ([0.6], [0.56])


def test_without_texts_the_curve_goes_by_alpha(tmp_path: Path) -> None:
    alone = mixtures((0.0, 0.2, None), (0.5, 0.7, None), (1.0, 0.6, None))
    found = traces(trade_off_figure(alone))
    assert found["mixtures"]["x"] == [0.0, 0.5, 1.0]
    assert (found["chosen"]["x"], found["chosen"]["y"]) == ([0.5], [0.7])
    made = synthetic(40, 4)
    write_trade_off(interpolation_file(tmp_path), of_test(alone, made))
    words = section(written(tmp_path, 1, made), "mixtures")
    assert "Alpha 0.5 finds images best: mAP@R 70.0%." in words
    assert "text" not in words
    assert "0.5 70.0% chosen 1 60.0% after training" in words


def test_a_median_rank_is_a_number_and_the_best_is_on_top(tmp_path: Path) -> None:
    ranks = mixtures((0.0, 12.0, 0.8), (0.5, 4.0, 0.7), (1.0, 2.0, 0.4), metric="median rank")
    assert trade_off_figure(ranks)["layout"]["yaxis"]["autorange"] == "reversed"
    made = synthetic(40, 4)
    write_trade_off(interpolation_file(tmp_path), of_test(ranks, made))
    words = section(written(tmp_path, 1, made), "mixtures")
    assert "0 12 80.0% before training 0.5 4 70.0% chosen 1 2 40.0% after training" in words
    assert "(median rank 4)" in trade_in_words(ranks)


def test_words_say_so_where_a_mixture_beats_both_ends_and_where_none_is_worth_it() -> None:
    gained = mixtures((0.0, 0.2, 0.5), (0.5, 0.5, 0.6), (1.0, 0.6, 0.4))
    assert trade_in_words(gained) == (
        "Alpha 0.5 weighs best: on images mAP@R 50.0% (before training 20.0%, after it 60.0%), "
        "on text mAP 60.0% (before 50.0%, after 40.0%)."
    )
    more = mixtures((0.0, 0.2, 0.5), (0.5, 0.7, 0.45), (1.0, 0.6, 0.4))
    assert trade_in_words(more).startswith("Alpha 0.5 weighs best: on images mAP@R 70.0%")
    nothing = mixtures((0.0, 0.2, 0.5), (0.5, 0.3, 0.2), (1.0, 0.6, 0.1))
    assert trade_in_words(nothing).startswith("No mixture keeps a larger share")
