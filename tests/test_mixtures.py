"""Mixtures of what a run learned with the model it came from: how they are made, chosen, kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import small_resnet
from helpers.runs import Settings, Watch, assert_same_bits, load, train
from helpers.steps import changed

import lookalike
from lookalike.commands.export import export
from lookalike.config import EvaluateConfig, ExportConfig
from lookalike.config.recipes import find_recipe, shipped_text
from lookalike.errors import CheckpointError, ConfigError, Interrupted
from lookalike.evaluation import retrieval
from lookalike.evaluation.results import find_results
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import SilentProgress
from lookalike.training import evaluator as measuring
from lookalike.training import interpolation
from lookalike.training.interpolation import alphas, set_mixture


def test_mixtures_lie_on_the_line_between_two_models(tiny_clip: Path, seed: None) -> None:
    encoder, fresh = (CLIPEncoder(str(tiny_clip)) for _ in range(2))
    began = fresh.state_dict()
    ended = {name: tensor.clone() for name, tensor in changed(encoder).state_dict().items()}
    for alpha in (0.5, 1.0, 0.0, 0.25):
        set_mixture(encoder, began, ended, alpha)
        for name, tensor in encoder.state_dict().items():
            expected = (1 - alpha) * began[name] + alpha * ended[name]
            assert torch.allclose(tensor, expected, atol=1e-6), name
            if alpha in (0, 1):
                assert torch.equal(tensor, expected), name


def test_running_statistics_are_mixed_as_weights_are(tmp_path: Path, seed: None) -> None:
    encoder, fresh = (CLIPEncoder(small_resnet(tmp_path / "resnet")) for _ in range(2))
    encoder.train()(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    ended = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    set_mixture(encoder, fresh.state_dict(), ended, 0.5)
    means = [name for name in ended if name.endswith("running_mean")]
    assert means
    for name in means:
        expected = (fresh.state_dict()[name] + ended[name]) / 2
        assert torch.allclose(encoder.state_dict()[name], expected, atol=1e-6)
        assert not torch.equal(ended[name], fresh.state_dict()[name])


def test_with_lora_the_merged_weights_are_mixed(
    photos: Path, settings: Settings, tiny_clip: Path
) -> None:
    result = train(settings(lora_rank=2, learning_rate=1e-2, interpolation=2))
    mixture = load(photos / "out/weights/encoder_interpolated.pth")
    began, ended = CLIPEncoder(str(tiny_clip)).state_dict(), load(result.checkpoint)
    alpha = mixture["interpolation"]["alpha"]
    assert mixture["model_state_dict"].keys() == began.keys()
    for name, weight in mixture["model_state_dict"].items():
        expected = (1 - alpha) * began[name] + alpha * ended["model_state_dict"][name]
        assert torch.allclose(weight, expected, atol=1e-6), name
    assert_same_bits(dict(result.encoder.state_dict()), mixture["model_state_dict"])


@pytest.fixture
def mixed(photos: Path, settings: Settings) -> tuple[dict[str, Any], Any]:
    shared = settings(num_epochs=2, interpolation=4, out=str(photos / "out"))
    return shared, train(shared)


def test_a_run_ends_with_the_best_mixture(
    photos: Path, mixed: tuple[dict[str, Any], Any], tiny_clip: Path
) -> None:
    _, result = mixed
    out, trade_off = photos / "out", result.trade_off
    assert [one.alpha for one in trade_off.mixtures] == alphas(4)
    ends = [(one.metrics, one.text_metrics) for one in (trade_off.original, trade_off.end)]
    assert ends == [
        (one.metrics, one.text_metrics) for one in (result.history[0], result.history[-1])
    ]
    written = json.loads((out / "results/interpolation.json").read_text())
    assert written["chosen"] == trade_off.chosen.alpha
    assert {"interpolation.json", "metrics_interpolated.json",
            "retrieval_results_interpolated.json"} <= {p.name for p in result.files}  # fmt: skip

    saved = load(out / "weights/encoder_interpolated.pth")
    last, first = load(result.checkpoint), CLIPEncoder(str(tiny_clip)).state_dict()
    alpha = trade_off.chosen.alpha
    for name, weight in saved["model_state_dict"].items():
        expected = (1 - alpha) * first[name] + alpha * last["model_state_dict"][name]
        assert torch.allclose(weight, expected, atol=1e-6), name
    assert_same_bits(dict(result.encoder.state_dict()), saved["model_state_dict"])

    measured = lookalike.evaluate(
        EvaluateConfig(model_name=str(out / "weights/encoder_interpolated.pth"), num_workers=0,
                       test=str(photos / "test"), out=str(photos / "again"), device="cpu",
                       precision="fp32"),
        progress=SilentProgress(),
    )  # fmt: skip
    assert measured.scores is not None
    assert measured.scores.micro() == pytest.approx(trade_off.chosen.metrics)
    document = json.loads((out / "results/metrics_interpolated.json").read_text())
    assert document["alpha"] == alpha
    assert document["metrics"] == pytest.approx(trade_off.chosen.metrics)


def test_keep_text_says_how_many_evaluations_follow_its_last_epoch(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    evaluate = retrieval.evaluate_encoder

    def noting(*args: Any, **options: Any) -> Any:
        titles.append(options["title"])
        return evaluate(*args, **options)

    monkeypatch.setattr(measuring, "evaluate_encoder", noting)
    train(settings(interpolation=find_recipe("keep-text")["interpolation"]))
    assert titles[:2] == ["evaluating epoch 0", "evaluating epoch 1"]
    assert len(titles[2:]) == 10
    assert "ten evaluations come after the last epoch" in shipped_text("keep-text")


def test_a_mixture_is_no_state_of_training(photos: Path, mixed: tuple[dict[str, Any], Any]) -> None:
    message = r"mixture of weights.*resume from .*encoder_epoch_02\.pth.*--model-name"
    with pytest.raises(CheckpointError, match=message):
        train(mixed[0], resume=photos / "out/weights/encoder_interpolated.pth")


def test_a_finished_run_does_not_measure_its_mixtures_again(
    photos: Path, mixed: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, result = mixed
    path = photos / "out/results/interpolation.json"
    before = path.read_bytes(), path.stat().st_mtime_ns
    again = train(shared, resume=result.checkpoint)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert again.trade_off == result.trade_off
    assert_same_bits(dict(again.encoder.state_dict()), dict(result.encoder.state_dict()))
    finer = train({**shared, "interpolation": 2}, resume=result.checkpoint).trade_off
    assert finer is not None
    assert finer.mixtures == result.trade_off.mixtures[::2]


def test_a_new_run_replaces_the_mixture_of_an_earlier_one(
    photos: Path, mixed: tuple[dict[str, Any], Any]
) -> None:
    train({**mixed[0], "interpolation": 0, "overwrite": True})
    left = {path.name for path in (photos / "out").rglob("*interpol*")}
    assert left == set()


def test_the_card_of_a_mixture_has_its_own_numbers(
    photos: Path, mixed: tuple[dict[str, Any], Any]
) -> None:
    chosen = mixed[1].trade_off.chosen
    export(
        ExportConfig(model_name=str(photos / "out/weights/encoder_interpolated.pth"),
                     out=str(photos / "exported")),
        progress=SilentProgress(),
    )  # fmt: skip
    card = (photos / "exported/README.md").read_text()
    assert f"epoch 2, mixed with the original, alpha {chosen.alpha:g}" in card
    assert f"**{chosen.metrics['mAP@R']:.4f} (" in card
    assert f"**{chosen.text_metrics['mAP']:.4f} (" in card


def test_a_finished_run_may_be_mixed_later(photos: Path, settings: Settings) -> None:
    """As one that set out to be: a mixture is a function of two models."""
    whole = train(settings(interpolation=2, out=str(photos / "whole")))
    first = train(settings())
    assert first.trade_off is None
    later = train(settings(interpolation=2), resume=first.checkpoint)
    assert later.trade_off is not None
    assert later.trade_off.mixtures == whole.trade_off.mixtures  # type: ignore[union-attr]
    assert_same_bits(dict(later.encoder.state_dict()), dict(whole.encoder.state_dict()))


@pytest.mark.parametrize("what", ["gone", "another"])
def test_a_baseline_out_of_reach_costs_the_mixtures_and_nothing_else(
    photos: Path, settings: Settings, tiny_clip: Path, what: str
) -> None:
    model = photos / "model"
    shutil.copytree(tiny_clip, model)
    shared = settings(model_name=str(model))
    saved = train(shared).checkpoint
    shutil.rmtree(model)
    if what == "another":
        small_resnet(model)
    watch = Watch()
    result = train({**shared, "interpolation": 2}, resume=saved, watch=watch)
    (told,) = [one for one in watch.warnings if "mixtures of weights were skipped" in one]
    assert ("cannot be loaded" if what == "gone" else "other names or sizes") in told
    assert result.trade_off is None
    assert [one.epoch for one in result.history] == [0, 1]
    assert_same_bits(dict(result.encoder.state_dict()), load(saved)["model_state_dict"])


def test_ctrl_c_among_mixtures_says_how_to_go_on(
    photos: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interpolation, "set_mixture", stop)
    with pytest.raises(Interrupted, match=r"end of epoch 1, saved .*--resume \S*encoder_epoch_01"):
        train(settings(interpolation=2))
    monkeypatch.undo()
    resumed = train(settings(interpolation=2), resume=photos / "out/weights/encoder_epoch_01.pth")
    assert resumed.trade_off is not None


def test_another_test_makes_another_trade_off(
    photos: Path, mixed: tuple[dict[str, Any], Any]
) -> None:
    shared, result = mixed
    other = {**shared, "test": str(photos / "gallery")}
    again = train(other, resume=result.checkpoint).trade_off
    assert again is not None
    assert again.fingerprint != result.trade_off.fingerprint
    found = [
        json.loads((photos / "out/results" / name).read_text())["protocol"]["fingerprint"]
        for name in ("metrics_epoch_02.json", "metrics_interpolated.json")
    ]
    assert found == [again.fingerprint] * 2


def test_no_numbers_lie_beside_the_weights_of_another_mixture(
    photos: Path, mixed: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a run right after it has saved the mixture."""
    shared, result = mixed

    def killed(*_: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(measuring, "write_results", killed)
    with pytest.raises(MemoryError):
        train({**shared, "interpolation": 3}, resume=result.checkpoint)
    left = {path.name for path in (photos / "out").rglob("*interpol*")}
    assert left == {"encoder_interpolated.pth"}
    monkeypatch.undo()
    assert train(shared, resume=result.checkpoint).trade_off == result.trade_off


def test_export_does_not_take_the_numbers_of_another_mixture(
    photos: Path, mixed: tuple[dict[str, Any], Any]
) -> None:
    path = photos / "out/results/metrics_interpolated.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha": 0.123}))
    mixture = str(photos / "out/weights/encoder_interpolated.pth")
    result = export(
        ExportConfig(model_name=mixture, out=str(photos / "exported")), progress=SilentProgress()
    )
    assert result.unmeasured == "the results beside it are those of another mixture"


def test_a_mixture_is_evaluated_under_its_own_name(
    photos: Path, mixed: tuple[dict[str, Any], Any]
) -> None:
    result = lookalike.evaluate(
        EvaluateConfig(model_name=str(photos / "out/weights/encoder_interpolated.pth"),
                       test=str(photos / "test"), out=str(photos / "again"), num_workers=0,
                       trec=True),
        progress=SilentProgress(),
    )  # fmt: skip
    assert sorted(path.name for path in result.files) == [
        "metrics_interpolated.json", "qrels_interpolated.trec", "report.html",
        "retrieval_results_interpolated.json", "run_interpolated.trec"
    ]  # fmt: skip
    document = json.loads((photos / "again/results/metrics_interpolated.json").read_text())
    assert document["alpha"] == mixed[1].trade_off.chosen.alpha


def test_epochs_come_before_the_mixture_of_the_last(
    photos: Path, mixed: tuple[dict[str, Any], Any]
) -> None:
    names = [path.name for path in find_results(photos / "out") if "metrics" in path.name]
    assert names == [f"metrics_{which}.json"
                     for which in ("epoch_00", "epoch_01", "epoch_02", "interpolated")]  # fmt: skip


def test_mixtures_need_something_to_choose_by(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="interpolation is 4, but without labelled test images"):
        train(settings(interpolation=4, test=None))
