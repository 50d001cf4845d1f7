"""Which mixture of two models is chosen, by tables that a person can check, and the file of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lookalike.errors import DataError
from lookalike.evaluation.interpolation import (
    Mixture,
    TradeOff,
    read_trade_off,
    write_trade_off,
)
from lookalike.evaluation.results import (
    find_results,
    interpolation_file,
    remove_mixture_results,
)

Table = list[tuple[float, float, float | None]]


def trade_off(table: Table, metric: str = "mAP@R") -> TradeOff:
    """Of rows (alpha, the image metric, mAP of text search)."""
    mixtures = tuple(
        Mixture(alpha, {metric: value}, None if text is None else {"mAP": text})
        for alpha, value, text in table
    )
    return TradeOff("a run", 3, metric, "mAP", mixtures)


# --- Which one is chosen ---------------------------------------------------------------------


def test_most_of_the_gain_for_least_of_the_loss_is_chosen() -> None:
    # Gain kept 0, 50%, 90%, 100%; loss 0, 10%, 40%, 100%: differences 0, 40, 50 and 0 points.
    table: Table = [(0.0, 0.2, 0.8), (0.3, 0.4, 0.75), (0.6, 0.56, 0.6), (1.0, 0.6, 0.3)]
    assert trade_off(table).chosen.alpha == 0.6
    assert trade_off(table).loses_text


def test_shares_count_and_not_points() -> None:
    # Images gain 60 points and text loses 2: 30 for 1.6 are 50% for 80%, 15 for 0.2 25% for 10%.
    table: Table = [(0.0, 0.2, 0.80), (0.2, 0.35, 0.798), (0.5, 0.5, 0.784), (1.0, 0.8, 0.78)]
    assert trade_off(table).chosen.alpha == 0.2


def test_where_no_mixture_is_worth_it_what_was_trained_is_kept() -> None:
    assert trade_off([(0.0, 0.2, 0.8), (0.5, 0.5, 0.4), (1.0, 0.8, 0.4)]).chosen.alpha == 1.0


def test_a_mixture_that_finds_more_by_text_than_the_original_has_gained() -> None:
    # 80% kept and nothing lost, or 70% kept and 40% gained beyond what there was.
    table: Table = [(0.0, 0.0, 0.5), (0.4, 0.7, 0.6), (0.7, 0.8, 0.5), (1.0, 1.0, 0.25)]
    assert trade_off(table).chosen.alpha == 0.4


def test_where_text_lost_nothing_the_best_on_images_is_chosen() -> None:
    assert trade_off([(0.0, 0.2, 0.5), (0.5, 0.9, 0.1), (1.0, 0.6, 0.5)]).chosen.alpha == 0.5
    assert trade_off([(0.0, 0.2, 0.5), (0.5, 0.4, 0.9), (1.0, 0.6, 0.7)]).chosen.alpha == 1.0


def test_without_texts_the_best_on_images_is_chosen() -> None:
    assert trade_off([(0.0, 0.2, None), (0.5, 0.7, None), (1.0, 0.6, None)]).chosen.alpha == 0.5


def test_where_images_gained_nothing_the_best_on_images_is_chosen() -> None:
    worse = trade_off([(0.0, 0.6, 0.9), (0.5, 0.7, 0.5), (1.0, 0.4, 0.1)])
    assert (worse.chosen.alpha, worse.loses_text) == (0.5, False)
    assert trade_off([(0.0, 0.6, 0.9), (0.5, 0.5, 0.8), (1.0, 0.6, 0.1)]).chosen.alpha == 0.0


@pytest.mark.parametrize("text", [None, 0.5])
def test_of_equals_on_images_the_one_nearer_to_the_original_is_chosen(text: float | None) -> None:
    table: Table = [(0.0, 0.2, text), (0.25, 0.7, text), (0.5, 0.7, text), (1.0, 0.7, text)]
    assert trade_off(table).chosen.alpha == 0.25


def test_of_equal_trades_the_one_nearer_to_the_end_is_chosen() -> None:
    # 25% kept for 0%, 50% for 25% and 75% for 50%; in numbers that binary fractions hold exactly.
    table: Table = [(0.0, 0.0, 1.0), (0.3, 0.25, 1.0), (0.5, 0.5, 0.75), (0.7, 0.75, 0.5),
                    (1.0, 1.0, 0.0)]  # fmt: skip
    assert trade_off(table).chosen.alpha == 0.7


def test_a_smaller_median_rank_is_a_gain() -> None:
    # Gain kept 0, 80%, 100% of 10 ranks; loss 0, 25%, 100%.
    traded = trade_off([(0.0, 12.0, 0.8), (0.5, 4.0, 0.7), (1.0, 2.0, 0.4)], "median rank")
    assert (traded.chosen.alpha, traded.loses_text) == (0.5, True)
    alone = trade_off([(0.0, 12.0, None), (0.5, 1.0, None), (1.0, 2.0, None)], "median rank")
    assert alone.chosen.alpha == 0.5
    worse = trade_off([(0.0, 2.0, 0.8), (0.5, 4.0, 0.7), (1.0, 12.0, 0.4)], "median rank")
    assert (worse.chosen.alpha, worse.loses_text) == (0.0, False)


# --- The file --------------------------------------------------------------------------------


def test_a_trade_off_comes_back_as_it_was_and_only_for_its_run(tmp_path: Path) -> None:
    path = interpolation_file(tmp_path)
    assert read_trade_off(path, "a run") is None
    for text in (0.5, None):
        made = trade_off([(0.0, 0.2, text), (0.5, 0.7, text), (1.0, 0.6, text)])
        write_trade_off(path, made)
        assert read_trade_off(path, "a run") == made
        assert read_trade_off(path, "another") is None
        assert json.loads(path.read_text())["chosen"] == 0.5
    assert find_results(tmp_path) == [path]
    on_request = ["run_interpolated.trec", "embeddings_interpolated_query.npy"]
    others = ["run_mine.trec", "embeddings_interpolated_mine.npy"]
    for name in ["embeddings_epoch_01_test.csv", *on_request, *others]:
        (path.parent / name).touch()
    found = [one.name for one in find_results(tmp_path)]
    assert found == [path.name, "embeddings_epoch_01_test.csv", *sorted(on_request)]
    remove_mixture_results(tmp_path)
    assert {one.name for one in path.parent.iterdir()} == {
        "embeddings_epoch_01_test.csv",
        *others,
    }


@pytest.mark.parametrize("content", ["cut o", "[]", '{"run": "a run", "mixtures": [{"beta": 1}]}'])
def test_a_file_that_is_none_of_ours_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "interpolation.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"interpolation\.json .*remove it"):
        read_trade_off(path, "a run")
