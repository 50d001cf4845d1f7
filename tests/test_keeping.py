"""Which epoch was best, when that ends a run, and which checkpoints stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.runs import Settings, Watch, assert_same_bits, load, press_ctrl_c, train
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lookalike.config import TrainConfig
from lookalike.config.settings import config_from
from lookalike.errors import ConfigError, Interrupted, OutputError
from lookalike.evaluation import retrieval as retrieval_module
from lookalike.evaluation.metrics import METRICS, first_rank, is_better
from lookalike.evaluation.scoring.scores import QueryScores, score_ranks
from lookalike.evaluation.text import text_metric_names
from lookalike.training import evaluator as measuring
from lookalike.training import make
from lookalike.training.checkpoints import saving
from lookalike.training.checkpoints.folder import RunFolder
from lookalike.training.checkpoints.saving import Autosave, bytes_of_checkpoint
from lookalike.training.history import Best, EpochSummary, best_epoch
from lookalike.training.step.step import TrainingStep

Pretend = Callable[[Sequence[float], str], None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Makes a metric of epochs 0, 1, .. come out as told, in files and results."""

    def measure(values: Sequence[float], metric: str) -> None:
        def evaluated(*args: Any, **options: Any) -> Any:
            epoch = int(options["title"].split()[-1])

            class Pretended(QueryScores):
                def micro(self) -> dict[str, float]:
                    return super().micro() | {metric: values[epoch]}

            retrieval = retrieval_module.evaluate_encoder(*args, **options)
            scores = retrieval.scores
            assert scores is not None
            own = {one.name: getattr(scores, one.name) for one in fields(scores)}
            return replace(retrieval, scores=Pretended(**own))

        monkeypatch.setattr(measuring, "evaluate_encoder", evaluated)

    return measure


def checkpoints(photos: Path) -> list[str]:
    return sorted(path.name for path in (photos / "out" / "weights").iterdir())


def epochs(*numbers: int) -> list[str]:
    return [f"encoder_epoch_{number:02}.pth" for number in numbers]


class Notes(Watch):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


# The best epoch


def history(metric: str, *values: float | None) -> list[EpochSummary]:
    return [
        EpochSummary(epoch, None, None if value is None else {metric: value})
        for epoch, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("mAP@R", [0.2, 0.5, 0.4], 1),
        ("mAP@R", [0.2, 0.5, 0.5], 1),
        ("mAP@R", [0.6, 0.5, 0.4], 0),
        ("mAP@R", [None, 0.1, 0.4], 2),
        ("mAP@R", [0.1, float("nan"), 0.05], 0),
        ("median rank", [9.0, 2.0, 3.0], 1),
        ("median rank", [float("inf"), 7.0, 7.0], 1),
        ("mAP@R", [None, None], None),
        ("mAP@R", [], None),
    ],
)
def test_the_best_epoch_is_the_first_of_those_with_the_best_number(
    metric: str, values: list[float | None], best: int | None
) -> None:
    found = best_epoch(history(metric, *values), metric)
    assert (found and found.epoch) == best
    if found and best is not None:
        assert found == Best(best, metric, values[best] or 0.0)
    assert best_epoch(history(metric, *values), "another") is None


def test_every_metric_is_known_by_name_and_only_ranks_are_better_low() -> None:
    ranks, counts = torch.tensor([[1, 3], [2, 5]]), torch.tensor([2, 2])
    scores = score_ranks(["a", "b"], ranks, counts)
    assert list(scores.micro()) == list(METRICS)
    better = score_ranks(["a", "b"], torch.tensor([[1, 2], [1, 2]]), counts).micro()
    for name, value in scores.micro().items():
        if better[name] != value:
            assert is_better(name, better[name], value), name
            assert not is_better(name, value, better[name]), name
    assert first_rank(ranks).tolist() == [1.0, 2.0]


def test_a_result_names_the_best_epoch_and_its_checkpoint(
    settings: Settings, photos: Path, pretend: Pretend
) -> None:
    pretend([0.1, 0.3, 0.7, 0.5], "mAP@R")
    result = train(settings(num_epochs=3))
    saved = photos / "out/weights/encoder_epoch_02.pth"
    assert result.best == Best(2, "mAP@R", 0.7, saved)
    assert result.checkpoint == photos / "out/weights/encoder_epoch_03.pth"


def test_a_model_that_training_made_worse_is_best_as_it_came(
    settings: Settings, pretend: Pretend
) -> None:
    pretend([4.0, 9.0], "median rank")
    result = train(settings(best_metric="median rank", keep=1))
    assert result.best == Best(0, "median rank", 4.0, None)


def test_without_test_images_there_is_no_best_and_all_epochs_are_trained(
    settings: Settings,
) -> None:
    result = train(settings(test=None, num_epochs=2, best_metric="whatever"))
    assert result.best is None
    assert result.history[-1].epoch == 2


def test_a_metric_that_is_not_measured_is_refused_before_training(
    settings: Settings, photos: Path
) -> None:
    with pytest.raises(ConfigError, match=r"best_metric is 'mAP@5'.*recall@1, .*mAP@R, .*MRR"):
        train(settings(best_metric="mAP@5"))
    assert not (photos / "out" / "results").exists()


def test_text_search_may_tell_the_best_epoch_and_end_a_run(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.2, 0.9, 0.4, 0.3, 0.95])

    def text_document(scores: QueryScores | None) -> dict[str, Any]:
        return {"text_metrics": {"recall@1": 0.5, "mAP": next(measured)}}

    monkeypatch.setattr(measuring, "text_document", text_document)
    result = train(settings(num_epochs=4, best_metric="text-mAP", patience=2))
    assert [one.epoch for one in result.history] == [0, 1, 2, 3]
    saved = photos / "out/weights/encoder_epoch_01.pth"
    assert result.best == Best(1, "text-mAP", 0.9, saved)


def test_all_metrics_hold_those_of_text_search_apart_and_every_name_can_be_asked_for(
    settings: Settings,
) -> None:
    last = train(settings(num_epochs=0)).history[-1]
    assert last.metrics is not None
    assert last.text_metrics is not None
    assert tuple(last.all_metrics) == (*METRICS, *text_metric_names())
    assert last.all_metrics["mAP"] == last.metrics["mAP"]
    assert last.all_metrics["text-mAP"] == last.text_metrics["mAP"]
    assert EpochSummary(0, None, None).all_metrics == {}


def test_text_search_cannot_tell_the_best_epoch_of_a_model_that_embeds_no_texts(
    settings: Settings, photos: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"best_metric is 'text-mAP', and .*pooled.*; choose from .*mAP@R"
    ):
        train(settings(best_metric="text-mAP", embedding="pooled"))
    assert not (photos / "out" / "results").exists()


# Patience


def test_a_run_ends_when_as_many_epochs_as_its_patience_brought_nothing(
    settings: Settings, pretend: Pretend
) -> None:
    pretend([0.1, 0.5, 0.4, 0.6, 0.6, 0.5, 0.9, 0.9], "mAP@R")
    told = Notes()
    result = train(settings(num_epochs=7, patience=2), watch=told)
    assert [one.epoch for one in result.history] == [0, 1, 2, 3, 4, 5]
    assert result.best is not None
    assert result.best.epoch == 3
    assert any(
        "stopped after epoch 5 of 7: 2 epochs in a row no better than epoch 3 (mAP@R 0.6000); "
        "to continue: --resume with --patience 3 or more" in note
        for note in told.notes
    )


def test_patience_may_end_a_run_that_only_makes_the_model_worse(
    settings: Settings, pretend: Pretend
) -> None:
    pretend([0.9, 0.1, 0.2, 0.3], "MRR")
    result = train(settings(num_epochs=3, patience=1, best_metric="MRR"))
    assert [one.epoch for one in result.history] == [0, 1]


def test_patience_counts_on_over_an_interruption(
    settings: Settings, photos: Path, pretend: Pretend
) -> None:
    pretend([0.1, 0.5, 0.4, 0.3, 0.9], "mAP@R")
    shared = settings(num_epochs=4, patience=2)
    with pytest.raises(Interrupted):
        train(shared, watch=Watch(12, press_ctrl_c))  # in the middle of epoch 3
    result = train(shared, resume=photos / "out/weights/interrupted.pth")
    assert [one.epoch for one in result.history] == [0, 1, 2, 3]
    assert result.best is not None
    assert result.best.epoch == 1
    again = train(shared, resume=result.checkpoint)  # stopped is stopped
    assert again.history == result.history
    longer = train({**shared, "patience": 3}, resume=result.checkpoint)
    assert longer.best is not None
    assert longer.best.epoch == 4


def test_less_patience_on_resume_still_finishes_the_epoch(
    settings: Settings, photos: Path, pretend: Pretend
) -> None:
    pretend([0.9, 0.5, 0.4, 0.3], "mAP@R")
    with pytest.raises(Interrupted):
        train(settings(num_epochs=3), watch=Watch(7, press_ctrl_c))
    result = train(settings(num_epochs=3, patience=1), photos / "out/weights/interrupted.pth")
    assert [one.epoch for one in result.history] == [0, 1, 2]
    assert load(result.checkpoint)["state"]["step"] == 0


@pytest.mark.parametrize("changes", [{"test": None}, {"test": "flat"}])
def test_patience_without_labelled_test_images_is_an_error(
    settings: Settings, photos: Path, changes: dict[str, Any]
) -> None:
    if changes["test"]:
        folder = photos / "flat"
        folder.mkdir()
        for path in (photos / "test").rglob("*.png"):
            (folder / path.name).write_bytes(path.read_bytes())
        changes = {"test": None, "query": str(folder), "gallery": str(folder)}
    with pytest.raises(ConfigError, match="patience is 3, but without labelled test images"):
        train(settings(patience=3, **changes))


# Checkpoints that stay


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, [2, 5]), (2, [2, 4, 5]), (4, [2, 3, 4, 5]), ("all", [1, 2, 3, 4, 5])]
)
def test_the_newest_checkpoints_and_the_best_one_stay(
    settings: Settings, photos: Path, pretend: Pretend, keep: Any, kept: list[int]
) -> None:
    pretend([0.1, 0.2, 0.7, 0.2, 0.7, 0.4], "mAP@R")
    result = train(settings(num_epochs=5, keep=keep))
    assert checkpoints(photos) == epochs(*kept)
    listed = [path.name for path in result.files if path.suffix == ".pth"]
    assert listed == epochs(*kept)
    assert result.best is not None
    assert result.best.checkpoint is not None
    assert result.best.checkpoint.name == "encoder_epoch_02.pth"


@pytest.mark.parametrize(
    "options",
    [{}, {"lora_rank": 2}, {"distillation_weight": 1.0}, {"frozen_layers": 2},
     {"cross_batch_memory": 999}, {"objective": "arcface"}],
    ids=lambda options: next(iter(options), "plain"),
)  # fmt: skip
def test_what_a_checkpoint_takes_on_the_disk_is_known_beforehand(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    known: list[int] = []

    def noting(learner: TrainingStep) -> int:
        known.append(bytes_of_checkpoint(learner))
        return known[-1]

    monkeypatch.setattr(make, "bytes_of_checkpoint", noting)
    saved = train(settings(**options)).checkpoint
    assert saved is not None
    content = load(saved)
    del content["random_states"]  # 5 kB, which is much beside a model this small
    tensors = [leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor)]
    assert known == [pytest.approx(sum(one.nbytes for one in tensors), rel=0.01)]


@pytest.mark.parametrize(
    ("keep", "num_epochs", "room_for", "told"),
    [("all", 4, 3.9, "of 4 epochs"), ("all", 4, 4.1, None), (1, 4, 2.9, "of 3 epochs"),
     (1, 4, 3.1, None), ("all", 2, 1.9, "of 2 epochs"), ("all", 0, 0, None)],
)  # fmt: skip
def test_a_disk_that_the_checkpoints_will_fill_is_warned_of_before_training(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    keep: Any,
    num_epochs: int,
    room_for: float,
    told: str | None,
) -> None:
    def disk_usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=room_for * 3e9)

    monkeypatch.setattr(make, "bytes_of_checkpoint", lambda learner: 3_000_000_000)
    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    watch = Watch(1, press_ctrl_c)
    with suppress(Interrupted):
        train(settings(num_epochs=num_epochs, keep=keep, test=None), watch=watch)
    warnings = [one for one in watch.warnings if "GB free" in one]
    assert len(warnings) == (told is not None)
    if told is not None:
        assert f"the checkpoints {told}" in warnings[0]
        assert f"has {room_for * 3:.1f} GB free" in warnings[0]
        assert ("--keep 1" in warnings[0]) is (keep == "all" and num_epochs > 3)


def test_without_a_measure_the_newest_stay(settings: Settings, photos: Path) -> None:
    train(settings(num_epochs=4, keep=2, test=None))
    assert checkpoints(photos) == epochs(3, 4)


def test_an_older_checkpoint_goes_only_when_the_newer_one_is_whole(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full_disk(content: Any, file: Any) -> None:
        if content["epoch"] == 3:
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        train(settings(num_epochs=3, keep=1, test=None))
    assert checkpoints(photos) == epochs(2)


def test_nothing_goes_before_there_is_a_newer_one_of_this_run(
    settings: Settings, photos: Path
) -> None:
    train(settings(num_epochs=2, test=None))
    resumed = photos / "out/weights/encoder_epoch_02.pth"
    folder = RunFolder(config_from(TrainConfig, settings()), resumed)
    assert folder.keep_newest(3, 1) == []  # the third is not there yet
    new_run = RunFolder(config_from(TrainConfig, settings(overwrite=True)), None)
    assert new_run.keep_newest(2, 1) == []  # all of these are another run's
    assert checkpoints(photos) == epochs(1, 2)
    assert folder.keep_newest(2, 1) == [photos / "out/weights/encoder_epoch_01.pth"]


def test_a_resumed_run_still_knows_its_best_checkpoint(
    settings: Settings, photos: Path, pretend: Pretend
) -> None:
    pretend([0.1, 0.8, 0.2, 0.3, 0.4], "mAP@R")
    first = train(settings(num_epochs=2, keep=1))
    assert checkpoints(photos) == epochs(1, 2)
    second = train(settings(num_epochs=4, keep=1), resume=first.checkpoint)
    assert checkpoints(photos) == epochs(1, 4)
    assert second.best == Best(1, "mAP@R", 0.8, photos / "out/weights/encoder_epoch_01.pth")


def test_a_run_resumed_from_an_earlier_epoch_leaves_the_later_ones(
    settings: Settings, photos: Path
) -> None:
    train(settings(num_epochs=4, test=None))
    train(settings(num_epochs=2, keep=1, test=None), photos / "out/weights/encoder_epoch_02.pth")
    assert checkpoints(photos) == epochs(2, 3, 4)


# Saving in the middle of an epoch


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_checkpoint_is_due_so_many_minutes_after_the_one_before() -> None:
    clock = Clock()
    autosave = Autosave(10, clock)
    assert not autosave.is_due()
    clock.now_s += 599
    assert not autosave.is_due()
    clock.now_s += 1
    assert autosave.is_due()
    assert autosave.is_due()  # until something is saved
    autosave.restart()
    assert not autosave.is_due()
    clock.now_s += 600
    assert autosave.is_due()


def test_without_minutes_nothing_is_ever_due() -> None:
    clock = Clock()
    autosave = Autosave(None, clock)
    clock.now_s += 1e9
    assert not autosave.is_due()


def autosaving(
    monkeypatch: pytest.MonkeyPatch, photos: Path, clock: Clock
) -> tuple[Watch, list[int]]:
    """A watch under which each step takes a minute, and the steps found saved as they are told."""
    steps: list[int] = []
    saved = photos / "out" / "weights" / "interrupted.pth"

    class Minutes(Watch):
        def advance(self, amount: int = 1, **stats: float) -> None:
            super().advance(amount, **stats)
            if "loss" not in stats:  # an evaluation
                return
            clock.now_s += 60
            steps.append(load(saved)["state"]["step"] if saved.exists() else 0)

    monkeypatch.setattr(saving, "Autosave", lambda minutes: Autosave(minutes, clock))
    return Minutes(), steps


def test_the_middle_of_an_epoch_is_saved_at_its_interval_and_changes_nothing(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = train(settings(num_epochs=2, autosave_minutes=None, out=str(photos / "off")))
    watch, steps = autosaving(monkeypatch, photos, Clock())
    result = train(settings(num_epochs=2, autosave_minutes=2), watch=watch)
    # Each number is read a step later: at the end of step 3 that of step 2 is there.
    assert steps == [0, 0, 2, 2, 4, 0, 0, 2, 2, 4]
    assert checkpoints(photos) == epochs(1, 2)
    assert_same_bits(
        {k: v for k, v in load(result.checkpoint).items() if k not in ("config", "state")},
        {k: v for k, v in load(off.checkpoint).items() if k not in ("config", "state")},
    )


def test_a_run_goes_on_from_the_middle_of_an_epoch_that_was_saved_before_it_was_killed(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(num_epochs=2, out=str(photos / "whole")))
    watch, _ = autosaving(monkeypatch, photos, Clock())
    killed = {"num_epochs": 2, "autosave_minutes": 3}

    class Killed(BaseException):
        """Ends everything at once, as SIGKILL does."""

    def kill() -> None:
        raise Killed

    watch._at_step, watch._act = 10, kill
    with pytest.raises(Killed):
        train(settings(**killed), watch=watch)
    saved = photos / "out/weights/interrupted.pth"
    assert (load(saved)["state"]["epoch"], load(saved)["state"]["step"]) == (1, 3)
    result = train(settings(**killed), resume=saved)
    assert_same_bits(load(result.checkpoint)["model_state_dict"],
                     load(whole.checkpoint)["model_state_dict"])  # fmt: skip


def test_a_disk_that_is_full_in_the_middle_of_an_epoch_is_told_and_ends_nothing(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full_disk(content: Any, file: Any) -> None:
        if content["state"]["step"] == 2:
            raise OSError(28, "No space left on device")
        save(content, file)

    watch, steps = autosaving(monkeypatch, photos, Clock())
    monkeypatch.setattr(torch, "save", full_disk)
    train(settings(autosave_minutes=2), watch=watch)
    assert steps == [0, 0, 0, 0, 4]
    assert checkpoints(photos) == epochs(1)
    (warning,) = watch.warnings
    assert "no checkpoint was saved within the epoch: cannot write" in warning
    assert "No space left on device" in warning
