"""Classes kept from training: which they are, and that nobody is tested on what it has learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs import Settings, Told, document
from helpers.runs import evaluate as run

import lookalike
from lookalike.config import EvaluateConfig, TrainConfig
from lookalike.config.settings import config_from
from lookalike.data.images import held_out_classes
from lookalike.errors import ConfigError, DataError
from lookalike.model.pretrained import read_checkpoint
from lookalike.progress import SilentProgress

LABELS = [f"class{i}" for i in range(50)]


@pytest.mark.parametrize("share", ["0.1", "0.5", "0.9"])
def test_a_share_is_that_share_whatever_the_order_of_the_labels(share: str) -> None:
    chosen = held_out_classes(LABELS, share, seed=3)
    assert len(chosen) == round(50 * float(share))
    assert chosen == held_out_classes(reversed(LABELS * 2), share, seed=3)
    assert chosen != held_out_classes(LABELS, share, seed=4)


def test_each_class_is_in_one_fold() -> None:
    folds = [held_out_classes(LABELS, f"{fold}/7", seed=0) for fold in range(1, 8)]
    assert sorted(label for fold in folds for label in fold) == sorted(LABELS)
    assert {len(fold) for fold in folds} == {7, 8}


@pytest.mark.parametrize("rule", ["0", "1", "1.5", "0/3", "4/3", "1/1", "half", "-0.5", "nan"])
def test_what_is_neither_share_nor_fold_is_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="holdout_classes"):
        config_from(EvaluateConfig, {"holdout_classes": rule})


def test_one_rule_has_one_way_of_writing_it() -> None:
    written = [EvaluateConfig(holdout_classes=rule).holdout_classes
               for rule in ("0.50", ".5", "01/2", "1/2")]  # fmt: skip
    assert written == ["0.5", "0.5", "1/2", "1/2"]


def test_too_few_classes_on_a_side_are_refused() -> None:
    with pytest.raises(DataError, match="keeps 1 for the test and leaves 3"):
        held_out_classes("abcd", "0.25", seed=0)


def test_training_and_test_have_no_class_in_common(settings: Settings, photos: Path) -> None:
    options = settings(holdout_classes="0.5", n_classes_per_batch=3)
    lookalike.train(config_from(TrainConfig, options), progress=SilentProgress())
    checkpoint = read_checkpoint(photos / "out" / "weights" / "encoder_epoch_01.pth")
    metrics = json.loads((photos / "out" / "results" / "metrics_epoch_01.json").read_text())
    held_out = set(metrics["protocol"]["holdout"]["classes"])
    assert set(metrics["per_query"]["label"]) == held_out
    assert len(held_out) == 3
    assert not held_out & set(checkpoint["train_classes"])
    assert len(checkpoint["train_classes"]) == 3


def test_a_checkpoint_knows_its_held_out_classes_where_the_test_lacks_one(
    settings: Settings, photos: Path, tmp_path: Path
) -> None:
    options = settings(holdout_classes="0.5", n_classes_per_batch=3)
    lookalike.train(config_from(TrainConfig, options), progress=SilentProgress())
    weights = str(photos / "out" / "weights" / "encoder_epoch_01.pth")
    protocol = json.loads((photos / "out" / "results" / "metrics_epoch_01.json").read_text())
    held_out = protocol["protocol"]["holdout"]["classes"]
    shutil.rmtree(photos / "test" / held_out[0])
    again = {"model_name": weights, "out": str(tmp_path / "again")}
    result = run(settings(**again, holdout_classes="0.5"))
    assert set(document(result, 1)["per_query"]["label"]) == set(held_out[1:])
    with pytest.raises(DataError, match="has learned"):  # another seed, other classes
        run(settings(**again, holdout_classes="0.5", holdout_seed=1, overwrite=True))
    told = Told()
    run(settings(**again, overwrite=True), told)
    assert any("--holdout-classes 0.5 --holdout-seed 0" in warning for warning in told.warnings)


def test_a_source_without_a_held_out_class_says_so(
    settings: Settings, photos: Path, tmp_path: Path
) -> None:
    chosen = held_out_classes([f"class{c}" for c in "abcdef"], "0.5", seed=0)
    for label in chosen:
        shutil.rmtree(photos / "test" / label)
    config = config_from(TrainConfig, settings(holdout_classes="0.5", n_classes_per_batch=3))
    with pytest.raises(DataError, match="no image of the 3 held-out classes"):
        lookalike.train(config, progress=SilentProgress())


def test_a_model_that_has_learned_everything_is_not_tested_as_if_it_had_not(
    settings: Settings, photos: Path, tmp_path: Path
) -> None:
    lookalike.train(config_from(TrainConfig, settings()), progress=SilentProgress())
    all_learned = str(photos / "out" / "weights" / "encoder_epoch_01.pth")
    options = settings(model_name=all_learned, holdout_classes="0.5", n_classes_per_batch=3,
                     out=str(tmp_path / "second"))  # fmt: skip
    config = config_from(TrainConfig, options)
    with pytest.raises(DataError, match="has learned 3 of the 3 held-out classes"):
        lookalike.train(config, progress=SilentProgress())
    # Trained further on some classes, it has still learned the others.
    half = settings(model_name=all_learned, train=str(half_of(photos)), out=str(tmp_path / "third"),
                    n_classes_per_batch=3)  # fmt: skip
    lookalike.train(config_from(TrainConfig, half), progress=SilentProgress())
    checkpoint = read_checkpoint(tmp_path / "third" / "weights" / "encoder_epoch_01.pth")
    assert len(checkpoint["train_classes"]) == 6


def half_of(photos: Path) -> Path:
    """The training images of three classes."""
    for label in ("classa", "classb", "classc"):
        shutil.copytree(photos / "train" / label, photos / "half" / label)
    return photos / "half"
