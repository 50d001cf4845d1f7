"""The whole way: train, save, stop, resume, and the ways it can go wrong."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.photos import draw, write_tree
from helpers.runs import Settings, Told, Watch, assert_same_bits, load, press_ctrl_c, train
from torch import Tensor

import lookalike
from lookalike.cli.main import main
from lookalike.config import EvaluateConfig, ExportConfig, TrainConfig
from lookalike.config.settings import config_from
from lookalike.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    NonFiniteError,
    OutputError,
    TrainingError,
)
from lookalike.evaluation import retrieval
from lookalike.progress import SilentProgress
from lookalike.training import evaluator as measuring
from lookalike.training import make
from lookalike.training.losses import registry as choose


def test_a_run_leaves_the_files_of_the_mission(settings: Settings, photos: Path) -> None:
    result = train(settings(num_epochs=2))
    out = photos / "out"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        "results/metrics_epoch_00.json",
        "results/metrics_epoch_01.json",
        "results/metrics_epoch_02.json",
        "results/original_embeddings.safetensors",
        "results/retrieval_results_epoch_00.json",
        "results/retrieval_results_epoch_01.json",
        "results/retrieval_results_epoch_02.json",
        "weights/encoder_epoch_01.pth",
        "weights/encoder_epoch_02.pth",
    ]
    saved = load(result.checkpoint)
    assert saved["epoch"] == 2
    assert {"model_state_dict", "optimizer_state_dict", "loss"} <= saved.keys()
    assert saved["config"]["learning_rate"] == 1e-3
    assert saved["versions"]["torch"] == torch.__version__
    assert [one.epoch for one in result.history] == [0, 1, 2]
    assert result.history[0].loss is None
    assert saved["loss"] == result.history[-1].loss
    metrics = json.loads((out / "results/metrics_epoch_02.json").read_text())
    assert metrics["metrics"] == result.history[-1].metrics
    assert metrics["config"]["num_epochs"] == 2


def test_training_lowers_the_loss_and_changes_only_the_vision_side(settings: Settings) -> None:
    watch = Watch()
    result = train(settings(num_epochs=6, augmentation="none"), watch=watch)
    third = len(watch.losses) // 3
    assert sum(watch.losses[-third:]) < 0.7 * sum(watch.losses[:third])
    before = lookalike.CLIPEncoder(settings()["model_name"]).state_dict()
    for name, tensor in result.encoder.state_dict().items():
        frozen = "text" in name or "logit_scale" in name
        assert torch.equal(tensor, before[name]) is frozen, name


def test_the_same_run_twice_is_the_same_to_the_last_bit(settings: Settings, photos: Path) -> None:
    one = load(train(settings(out=str(photos / "one"))).checkpoint)
    other = load(train(settings(out=str(photos / "two"))).checkpoint)
    assert_same_bits(one["model_state_dict"], other["model_state_dict"])
    third = load(train(settings(out=str(photos / "three"), seed=1)).checkpoint)
    with pytest.raises(AssertionError):
        assert_same_bits(one["model_state_dict"], third["model_state_dict"])


@pytest.mark.parametrize(
    ("at_step", "precision"), [(3, "fp32"), (5, "fp32"), (7, "fp32"), (3, "bf16"), (7, "fp16")]
)
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    settings: Settings, photos: Path, at_step: int, precision: str
) -> None:
    # Steps 3 and 7 lie inside an epoch of five, 5 at its end; the model has dropout.
    shared = {"num_epochs": 2, "precision": precision, "schedule": "cosine", "warmup_steps": 2}
    whole = load(train(settings(out=str(photos / "whole"), **shared)).checkpoint)
    with pytest.raises(Interrupted, match=r"lookalike train --resume \S*interrupted\.pth") as told:
        train(settings(**shared), watch=Watch(at_step, press_ctrl_c))
    assert f"step {(at_step - 1) % 5 + 1} of 5" in str(told.value)
    saved = photos / "out" / "weights" / "interrupted.pth"
    result = train(settings(**shared), resume=saved)
    parts = load(result.checkpoint)
    for key in ("model_state_dict", "optimizer_state_dict", "scaler_state_dict", "loss",
                "random_states", "sampler_state_dict"):  # fmt: skip
        assert_same_bits(parts[key], whole[key])
    assert not saved.exists()
    assert [one.epoch for one in result.history] == [0, 1, 2]


@pytest.mark.parametrize(
    "option",
    [{"train_size": 16}, {"color_jitter": 0.3}, {"patch_dropout": 0.5}, {"class_balance": "equal"}],
    ids=lambda option: next(iter(option)),
)
def test_an_option_of_the_data_changes_what_is_learned_and_survives_an_interruption(
    settings: Settings, photos: Path, option: dict[str, Any]
) -> None:
    for copy in range(100, 110):  # one class is larger than the others
        draw(0, copy).save(photos / "train" / "classa" / f"classa_{copy}.png")
    plain = load(train(settings(out=str(photos / "plain"))).checkpoint)
    whole = load(train(settings(out=str(photos / "whole"), **option)).checkpoint)
    with pytest.raises(Interrupted):
        train(settings(**option), watch=Watch(3, press_ctrl_c))
    result = train(settings(**option), resume=photos / "out" / "weights" / "interrupted.pth")
    assert_same_bits(load(result.checkpoint)["model_state_dict"], whole["model_state_dict"])
    assert not torch.equal(
        whole["model_state_dict"]["backbone.visual_projection.weight"],
        plain["model_state_dict"]["backbone.visual_projection.weight"],
    )


@pytest.mark.parametrize("train_size", [24, 0.7])
def test_only_training_images_have_the_size_for_training(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, train_size: float
) -> None:
    sizes: dict[bool, set[tuple[int, ...]]] = {False: set(), True: set()}
    forward = lookalike.CLIPEncoder.forward

    def noting(encoder: lookalike.CLIPEncoder, pixels: Tensor) -> Tensor:
        if len(pixels) > 2:  # not those that only find out what the model can do
            sizes[encoder.training].add(tuple(pixels.shape[2:]))
        return forward(encoder, pixels)

    monkeypatch.setattr(lookalike.CLIPEncoder, "forward", noting)
    told = Watch()
    result = train(settings(train_size=train_size), watch=told)
    assert sizes == {False: {(32, 32)}, True: {(24, 24)}}
    assert result.encoder.preprocessing.height == 32
    assert "32x32 px, trained at 24 ·" in told.notes[0]


def test_a_size_for_training_that_does_not_fit_is_refused_before_anything_is_written(
    settings: Settings, photos: Path
) -> None:
    with pytest.raises(ConfigError, match=r"train_size is 20 px.*set it to 16 or 24"):
        train(settings(train_size=20))
    assert not list((photos / "out").iterdir())


def test_workers_change_nothing(settings: Settings, photos: Path) -> None:
    one = load(train(settings(out=str(photos / "one"))).checkpoint)
    other = load(train(settings(out=str(photos / "two"), num_workers=2)).checkpoint)
    assert_same_bits(one["model_state_dict"], other["model_state_dict"])


def test_a_finished_run_goes_on_with_more_epochs(settings: Settings, photos: Path) -> None:
    whole = load(train(settings(num_epochs=2, out=str(photos / "whole"))).checkpoint)
    first = train(settings(num_epochs=1))
    second = train(settings(num_epochs=2), resume=first.checkpoint)
    assert_same_bits(load(second.checkpoint)["model_state_dict"], whole["model_state_dict"])
    assert [one.epoch for one in second.history] == [0, 1, 2]
    assert second.history[:2] == first.history


def test_ctrl_c_during_evaluation_points_at_the_epoch_just_saved(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    real = retrieval.evaluate_encoder
    monkeypatch.setattr(measuring, "evaluate_encoder", interrupted)
    with pytest.raises(Interrupted, match=r"end of epoch 1.*--resume \S*encoder_epoch_01\.pth"):
        train(settings())
    monkeypatch.setattr(measuring, "evaluate_encoder", real)
    result = train(settings(), resume=photos / "out" / "weights" / "encoder_epoch_01.pth")
    assert [one.epoch for one in result.history] == [0, 1]


def test_resuming_with_other_settings_names_them(settings: Settings) -> None:
    first = train(settings())
    with pytest.raises(ConfigError, match=r"temperature.*learning_rate: 0\.001 -> 0\.01") as told:
        train(settings(learning_rate=1e-2, temperature=0.1, num_epochs=2), resume=first.checkpoint)
    assert "may change autosave_minutes, batch_memory, best_metric" in str(told.value)


def test_resuming_with_other_images_is_refused_and_moved_ones_are_fine(
    settings: Settings, photos: Path
) -> None:
    first = train(settings())
    (photos / "train").rename(photos / "moved")
    moved = settings(train=str(photos / "moved"), num_epochs=2)
    (photos / "moved" / "classa" / "new.png").write_bytes(
        (photos / "moved" / "classa" / "classa_000.png").read_bytes()
    )
    with pytest.raises(CheckpointError, match="training images are not those"):
        train(moved, resume=first.checkpoint)
    (photos / "moved" / "classa" / "new.png").unlink()
    assert train(moved, resume=first.checkpoint).history[-1].epoch == 2


def test_a_checkpoint_is_a_model_everywhere(settings: Settings, photos: Path) -> None:
    result = train(settings())
    known = {k: v for k, v in settings().items() if k not in ("train", "learning_rate")}
    config = config_from(
        EvaluateConfig,
        known,
        {"model_name": str(result.checkpoint), "out": str(photos / "evaluated")},
    )
    evaluated = lookalike.evaluate(config, progress=Watch())
    assert evaluated.epoch == 1
    assert evaluated.metrics == result.history[-1].metrics
    again = train(settings(model_name=str(result.checkpoint), out=str(photos / "again")))
    assert again.history[0].metrics == result.history[-1].metrics


def test_a_checkpoint_is_measured_and_trained_on_with_the_embedding_it_was_trained_for(
    settings: Settings, photos: Path
) -> None:
    result = train(settings(embedding="pooled"))
    known = {k: v for k, v in settings().items() if k not in ("train", "learning_rate")}
    known |= {"model_name": str(result.checkpoint), "overwrite": True}
    evaluated = lookalike.evaluate(config_from(EvaluateConfig, known), progress=Watch())
    assert evaluated.retrieval is not None
    assert evaluated.retrieval.query_embeddings.shape[1] == 32  # not the 24 of the projection
    assert evaluated.metrics == result.history[-1].metrics
    written = json.loads((photos / "out/results/metrics_epoch_01.json").read_text())
    assert written["config"]["embedding"] == "pooled"
    told = config_from(EvaluateConfig, known, {"embedding": "projected"})
    other = lookalike.evaluate(told, progress=Watch()).retrieval
    assert other is not None
    assert other.query_embeddings.shape[1] == 24
    on = train(settings(model_name=str(result.checkpoint), out=str(photos / "on")))
    assert on.encoder.embedding == "pooled"
    assert on.history[0].metrics == result.history[-1].metrics


@pytest.mark.parametrize(("begun", "goes_on"), [("pooled", "auto"), ("auto", "projected")])
def test_a_resumed_run_has_the_embedding_it_began_with_however_that_is_said(
    settings: Settings, photos: Path, begun: str, goes_on: str
) -> None:
    first = train(settings(embedding=begun))
    second = train(settings(num_epochs=2, embedding=goes_on), resume=first.checkpoint)
    assert second.encoder.embedding == first.encoder.embedding
    kept = second.encoder.embedding
    other = "projected" if kept == "pooled" else "pooled"
    with pytest.raises(ConfigError, match=f"embedding: {kept} -> {other}"):
        train(settings(num_epochs=3, embedding=other), resume=second.checkpoint)


# What a checkpoint of the first format has in any case.
FIRST_FORMAT = (
    "epoch", "loss", "model_state_dict", "optimizer_state_dict", "scaler_state_dict",
    "sampler_state_dict", "state", "model", "config", "train_fingerprint",
    "versions",
)  # fmt: skip


@pytest.fixture
def earlier(settings: Settings, photos: Path) -> Path:
    """A checkpoint as an earlier version of Lookalike wrote it."""
    content = load(train(settings(out=str(photos / "earlier"), embedding="pooled")).checkpoint)
    content = {key: content[key] for key in FIRST_FORMAT} | {
        "format": "lookalike-checkpoint-1",
        "random_state": torch.get_rng_state(),
    }
    content["config"]["forgotten_option"] = 1
    del content["model"]["hub_id"], content["config"]["embedding"], content["config"]["objective"]
    path = photos / "earlier" / "weights" / "encoder_epoch_01.pth"
    torch.save(content, path)
    return path


def test_a_checkpoint_of_an_earlier_version_is_a_model_everywhere(
    settings: Settings, photos: Path, earlier: Path
) -> None:
    known = {k: v for k, v in settings().items() if k not in ("train", "learning_rate")}
    evaluated = lookalike.evaluate(
        config_from(EvaluateConfig, known, {"model_name": str(earlier)}), progress=Watch()
    )
    measured = json.loads((photos / "earlier/results/metrics_epoch_01.json").read_text())
    assert evaluated.metrics == measured["metrics"]
    again = train(settings(model_name=str(earlier), out=str(photos / "again"), num_epochs=0))
    assert again.history[0].metrics == measured["metrics"]
    exported = lookalike.export(
        ExportConfig(model_name=str(earlier), out=str(photos / "exported")), progress=Watch()
    )
    assert (exported.kind, exported.dim) == ("pooled", 32)


def test_a_run_of_an_earlier_version_is_not_gone_on_with_and_says_what_to_do(
    settings: Settings, photos: Path, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = r"encoder_epoch_01\.pth was written by an earlier version.*--model-name \S*earlier/"
    with pytest.raises(CheckpointError, match=expected):
        train(settings(num_epochs=2), resume=earlier)
    assert main(["train", "--resume", str(earlier)]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not (photos / "out").exists()


def test_a_checkpoint_of_a_format_to_come_is_refused(earlier: Path) -> None:
    torch.save(load(earlier) | {"format": "lookalike-checkpoint-99"}, earlier)
    with pytest.raises(CheckpointError, match=r"format 'lookalike-checkpoint-99', expected"):
        lookalike.CLIPEncoder(str(earlier))


def test_weights_of_another_shape_are_refused(settings: Settings, photos: Path) -> None:
    result = train(settings())
    content = load(result.checkpoint)
    content["model_state_dict"]["backbone.visual_projection.weight"] = torch.zeros(3, 3)
    other = photos / "other.pth"
    torch.save(content, other)
    with pytest.raises(CheckpointError, match=r"do not fit.*visual_projection"):
        lookalike.CLIPEncoder(str(other))


def test_a_checkpoint_cut_short_is_refused(settings: Settings, photos: Path) -> None:
    result = train(settings())
    assert result.checkpoint is not None
    whole = result.checkpoint.read_bytes()
    short = photos / "short.pth"
    short.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="incomplete"):
        train(settings(num_epochs=2), resume=short)


def test_a_new_run_does_not_replace_an_old_one(settings: Settings, photos: Path) -> None:
    train(settings(num_epochs=2))
    with pytest.raises(OutputError, match=r"--resume.*--out.*--overwrite"):
        train(settings())
    mine = photos / "out" / "results" / "notes_epoch_1.json"
    mine.write_text("{}")
    old = photos / "out" / "weights" / "encoder_epoch_02.pth"
    with pytest.raises(DataError, match="did you mean"):  # nothing is removed for a run that fails
        train(settings(overwrite=True, train=str(photos / "trian")))
    with pytest.raises(OutputError, match="this run starts from"):
        train(settings(overwrite=True, model_name=str(old)))
    assert old.exists()
    train(settings(overwrite=True))
    assert not old.exists()
    assert not (photos / "out" / "results" / "metrics_epoch_02.json").exists()
    assert mine.exists()


def test_a_run_is_not_resumed_into_the_folder_of_another(settings: Settings, photos: Path) -> None:
    one = train(settings(out=str(photos / "one")))
    train(settings(out=str(photos / "two")))
    with pytest.raises(OutputError, match="already holds"):
        train(settings(out=str(photos / "two"), num_epochs=2), resume=one.checkpoint)
    replacing = settings(out=str(photos / "two"), num_epochs=2, overwrite=True, test=None)
    train(replacing, resume=one.checkpoint)
    weights = sorted(path.name for path in (photos / "two" / "weights").iterdir())
    assert weights == ["encoder_epoch_02.pth"]  # and not another run's epoch 1 beside it


@pytest.fixture
def fails_in_step_3(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(lookalike.SupConLoss):
        count = 0

        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            type(self).count += 1
            return super().forward(embeddings, labels) * (float("nan") if self.count == 3 else 1)

    monkeypatch.setattr(choose, "SupConLoss", Failing)


@pytest.mark.usefixtures("fails_in_step_3")
def test_a_loss_that_is_not_a_number_names_step_and_images(
    settings: Settings, photos: Path
) -> None:
    watch = Watch()
    with pytest.raises(NonFiniteError, match=r"loss became nan in step 3 of epoch 1") as told:
        train(settings(), watch=watch)
    assert str(told.value).count(".png") == 8
    # The same batch comes to the same again, so a resumed run is no way out.
    (saved,) = [one for one in watch.warnings if "the 2 steps done" in one]
    assert "--resume" not in saved + str(told.value)
    assert "a new run with a lower --learning-rate" in str(told.value)
    words = shlex.split(saved[saved.index("--model-name") :])
    train(settings(model_name=words[1], learning_rate=1e-4, out=str(photos / "on")))


@pytest.mark.usefixtures("fails_in_step_3")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_loss_that_is_not_a_number_in_less_than_fp32_goes_on_in_fp32(
    settings: Settings, photos: Path, precision: str
) -> None:
    watch = Watch()
    with pytest.raises(NonFiniteError, match="Try --precision fp32, in a resumed run as well"):
        train(settings(precision=precision), watch=watch)
    (saved,) = [one for one in watch.warnings if "the 2 steps done" in one]
    *_, resume, checkpoint, flag, other = shlex.split(saved)
    assert (resume, flag, other) == ("--resume", "--precision", "fp32")
    result = train(settings(precision=other, num_epochs=2), resume=Path(checkpoint))
    assert load(result.checkpoint)["precision"] == "fp32"
    assert [one.epoch for one in result.history] == [0, 1, 2]


@pytest.mark.parametrize("part", ["make_regularizers", "make_optimizer"])
def test_too_little_memory_for_what_trains_a_model_says_what_to_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(make, part, full)
    with pytest.raises(TrainingError, match=r"^cpu has too little memory .*--lora-rank 8"):
        train(settings())


def test_an_error_on_the_way_loses_no_step(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(train(settings(out=str(photos / "whole"))).checkpoint)

    def fail() -> None:
        raise RuntimeError("the machine caught fire")

    with pytest.raises(RuntimeError, match="caught fire"):
        train(settings(), watch=Watch(3, fail))
    result = train(settings(), resume=photos / "out" / "weights" / "interrupted.pth")
    assert_same_bits(load(result.checkpoint)["model_state_dict"], whole["model_state_dict"])


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(lookalike.SupConLoss):
        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            loss = super().forward(embeddings, labels)
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss

    monkeypatch.setattr(choose, "SupConLoss", Failing)
    with pytest.raises(NonFiniteError, match="gradient became"):
        train(settings())


def test_fp16_trains_with_scaled_gradients_as_fp32_does_without(
    settings: Settings, photos: Path
) -> None:
    # One plain step of each: from then on Adam, which divides by them, magnifies rounding.
    losses = {}
    for precision in ("fp32", "fp16"):
        watch = Watch()
        out = str(photos / precision)
        saved = load(train(settings(precision=precision, out=out), watch=watch).checkpoint)
        assert (saved["scaler_state_dict"].get("scale", 0) > 1) is (precision == "fp16")
        losses[precision] = watch.losses
    assert losses["fp16"] == pytest.approx(losses["fp32"], abs=0.05)
    assert losses["fp16"] != losses["fp32"]


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(settings: Settings) -> None:
    watch = Watch()
    train(settings(num_epochs=2, schedule="cosine", warmup_steps=2), watch=watch)
    # Ten steps: two of warm-up, then half a cosine over eight, of which four are half of the way.
    assert watch.rates[:3] == pytest.approx([0.5e-3, 1e-3, 1e-3])
    assert watch.rates[6] == pytest.approx(0.5e-3)
    assert watch.rates[2:] == sorted(watch.rates[2:], reverse=True)
    assert 0 < watch.rates[-1] < 0.1e-3


def test_weight_decay_spares_biases_and_norms(settings: Settings) -> None:
    groups = load(train(settings(weight_decay=0.3)).checkpoint)["optimizer_state_dict"]
    decays = [group["weight_decay"] for group in groups["param_groups"]]
    assert decays == [0.3, 0.0]
    sizes = {
        i: state["exp_avg"].ndim
        for i, state in groups["state"].items()
    }  # fmt: skip
    assert all(sizes[i] >= 2 for i in groups["param_groups"][0]["params"])
    others = [sizes[i] for i in groups["param_groups"][1]["params"]]
    assert sorted(others) == [1] * (len(others) - 1) + [2]  # the positions' embeddings


def test_a_truncated_training_image_is_named_and_the_run_goes_on(
    settings: Settings, photos: Path
) -> None:
    broken = photos / "train" / "classb" / "classb_002.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    (photos / "train" / "classb" / "notes.txt").write_text("not an image")
    watch = Watch()
    result = train(settings(num_epochs=2), watch=watch)
    assert {Path(one.path).name for one in result.unreadable} == {"classb_002.png", "notes.txt"}
    assert sum("classb_002.png" in warning for warning in watch.warnings) == 1


def test_a_class_without_a_readable_image_is_named_and_the_run_goes_on(
    settings: Settings, photos: Path
) -> None:
    for broken in (photos / "train" / "classb").iterdir():
        whole = broken.read_bytes()
        broken.write_bytes(whole[: len(whole) // 2])
    watch = Watch()
    result = train(settings(num_epochs=2), watch=watch)
    assert sum("no image of class classb" in warning for warning in watch.warnings) == 1
    assert len(result.unreadable) == 5
    listed = json.loads((photos / "out" / "results" / "unreadable.json").read_text())
    assert {Path(one["path"]).parent.name for one in listed} == {"classb"}


@pytest.mark.parametrize(
    ("counts", "changes", "message"),
    [
        ({"a": 5}, {}, "at least two classes"),
        ({"a": 5, "b": 5}, {}, "--n-classes-per-batch 2"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, {}, "--singletons repeat"),
    ],
)
def test_too_few_classes_say_what_to_set(
    settings: Settings, tmp_path: Path, counts: dict[str, int], changes: Any, message: str
) -> None:
    folder = write_tree(tmp_path / "few", counts)
    with pytest.raises(DataError, match=message):
        train(settings(train=str(folder), **changes))


def test_training_without_test_images_works_and_says_so(settings: Settings) -> None:
    watch = Watch()
    result = train(settings(test=None), watch=watch)
    assert any("nothing is measured" in warning for warning in watch.warnings)
    assert result.retrieval is None
    assert result.checkpoint is not None


def test_a_table_brings_its_own_test_rows(settings: Settings, photos: Path) -> None:
    rows = ["path,label,split"]
    for split in ("train", "test"):
        for path in sorted((photos / split).rglob("*.png")):
            rows.append(f"{path.relative_to(photos).as_posix()},{path.parent.name},{split}")
    (photos / "all.csv").write_text("\n".join(rows))
    from_table = train(settings(train=str(photos / "all.csv"), test=None))
    from_folders = train(settings(out=str(photos / "folders")))
    assert from_table.history == from_folders.history


def test_a_run_too_short_for_its_warm_up_is_told_so(settings: Settings) -> None:
    watch = Watch()
    train(settings(warmup_steps=5), watch=watch)
    assert any("warmup_steps is 5 and the whole run has 5 steps" in one for one in watch.warnings)
    watch = Watch()
    train(settings(warmup_steps=0.8, overwrite=True), watch=watch)
    assert not any("warmup_steps" in one for one in watch.warnings)


def test_a_memory_that_holds_all_training_images_is_warned_of(settings: Settings) -> None:
    for size, is_told in ((31, True), (30, False)):  # there are 30
        watch = Watch()
        train(settings(cross_batch_memory=size, overwrite=True), watch=watch)
        told = "cross_batch_memory is 31 and there are 30 training images"
        assert any(told in warning for warning in watch.warnings) is is_told


@pytest.mark.parametrize("learning_rate_follows", [{"schedule": "cosine"}, {"warmup_steps": 0.2}])
def test_the_length_of_a_run_stays_where_its_learning_rate_follows_it(
    settings: Settings, learning_rate_follows: dict[str, Any]
) -> None:
    first = train(settings(**learning_rate_follows))
    with pytest.raises(ConfigError, match="num_epochs: 1 -> 2"):
        train(settings(num_epochs=2, **learning_rate_follows), resume=first.checkpoint)


def test_a_finished_run_says_how_to_train_on_and_that_works(
    settings: Settings, photos: Path
) -> None:
    followed = {"schedule": "cosine", "num_epochs": 1}
    told, first = Watch(), train(settings(**followed))
    train(settings(**followed), resume=first.checkpoint, watch=told)
    (advice,) = [note for note in told.notes if "this run is finished" in note]
    assert "--resume" not in advice
    words = shlex.split(re.search(r"lookalike (train .*)", advice)[1])  # type: ignore[index]
    assert words == ["train", "...", "--model-name", str(first.checkpoint), "--out", "FOLDER"]
    train(settings(model_name=words[3], out=str(photos / "on"), **followed))

    told, first = Watch(), train(settings(overwrite=True))
    train(settings(), resume=first.checkpoint, watch=told)
    says = "this run is finished; continue it with --num-epochs 2"
    assert any(says in note for note in told.notes)


def test_a_run_does_not_end_in_the_middle_of_an_epoch(settings: Settings, photos: Path) -> None:
    with pytest.raises(Interrupted):
        train(settings(num_epochs=3), watch=Watch(7, press_ctrl_c))
    saved = photos / "out" / "weights" / "interrupted.pth"
    with pytest.raises(ConfigError, match=r"trained for 1 epoch and 2 steps.* --num-epochs 2 or"):
        train(settings(num_epochs=1), resume=saved)
    assert train(settings(num_epochs=2), resume=saved).history[-1].epoch == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"protocol": 3}'])
def test_a_damaged_metrics_file_of_an_earlier_epoch_is_named(
    settings: Settings, photos: Path, content: str
) -> None:
    first = train(settings())
    path = photos / "out" / "results" / "metrics_epoch_00.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"metrics_epoch_00\.json is .*; remove it"):
        train(settings(num_epochs=2), resume=first.checkpoint)
    path.unlink()
    result = train(settings(num_epochs=2), resume=first.checkpoint)
    assert [one.epoch for one in result.history] == [1, 2]


def test_files_that_a_killed_run_left_half_written_go(settings: Settings, photos: Path) -> None:
    first = train(settings())
    left = [
        photos / "out" / name
        for name in ("results/.metrics_interpolated.json.ae.lookalike-tmp",
                     "weights/.interrupted.pth.a.lookalike-tmp")
    ]  # fmt: skip
    for path in left:
        path.touch()
    train(settings(num_epochs=2), resume=first.checkpoint)
    assert not any(path.exists() for path in left)


def test_flat_training_images_are_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    draw(0, 0).save(tmp_path / "flat" / "one.png")
    with pytest.raises(DataError, match="no labels to learn from"):
        train(settings(train=str(tmp_path / "flat")))


def test_a_failed_save_leaves_the_last_checkpoint(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(content: Any, file: Any) -> None:
        file.write(b"some of it")
        raise OSError(28, "No space left on device")

    first = train(settings())
    assert first.checkpoint is not None
    before = first.checkpoint.read_bytes()
    monkeypatch.setattr(torch, "save", no_room)
    with pytest.raises(OutputError, match="No space left on device"):
        train(settings(num_epochs=2), resume=first.checkpoint)
    assert first.checkpoint.read_bytes() == before
    assert sorted(p.name for p in first.checkpoint.parent.iterdir()) == ["encoder_epoch_01.pth"]


def test_a_test_on_what_is_learned_is_warned_of(settings: Settings, photos: Path) -> None:
    told = Told()
    options = config_from(TrainConfig, settings(test=str(photos / "train")))
    lookalike.train(options, progress=told)
    assert any("30 of the 30 test images are trained on" in one for one in told.warnings)


def test_a_finished_run_that_is_resumed_leaves_the_list_of_unreadable_files(
    settings: Settings, photos: Path
) -> None:
    (photos / "test" / "classa" / "bad.png").write_bytes(b"no image")
    broken = photos / "test" / "classb" / "classb_010.png"  # as only who decodes it will find
    broken.write_bytes(broken.read_bytes()[:-60])
    options = config_from(TrainConfig, settings())
    lookalike.train(options, progress=SilentProgress())
    listed = photos / "out" / "results" / "unreadable.json"
    assert len(json.loads(listed.read_text())) == 2
    lookalike.train(options, resume=photos / "out/weights/encoder_epoch_01.pth",
                    progress=SilentProgress())  # fmt: skip
    assert len(json.loads(listed.read_text())) == 2
