"""What holds an encoder to the model it came from: in a step, and over a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import small_resnet
from helpers.runs import Settings, Watch, assert_same_bits, load, press_ctrl_c, train
from helpers.steps import LABELS, PIXELS, changed
from helpers.steps import held_step as step_of
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from lookalike.config import TrainConfig
from lookalike.errors import ConfigError, Interrupted
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.lora import add_lora
from lookalike.progress import SilentProgress
from lookalike.runtime.device import make_runtime
from lookalike.training.losses.supcon import SupConLoss
from lookalike.training.regularizers import (
    BaselineWeights,
    CaptionLoss,
    Regularizers,
    make_caption_loss,
)
from lookalike.training.step.step import TrainingStep

ALL = {"caption_weight": 0.5, "distillation_weight": 1.0}


def named(learner: TrainingStep) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.encoder.trainable_parameters()}


# The original model


@pytest.mark.parametrize("lora", [False, True])
def test_the_original_embeds_as_the_model_that_came(
    tiny_clip: Path, seed: None, lora: bool
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    if lora:
        add_lora(encoder, rank=2)
    original = BaselineWeights(encoder)
    changed(encoder).train()
    fresh = CLIPEncoder(str(tiny_clip))
    with torch.no_grad():
        assert not torch.allclose(encoder(PIXELS), fresh(PIXELS), atol=1e-3)
        expected = fresh(PIXELS)
    assert torch.allclose(original.embed(PIXELS), expected, atol=1e-6)
    assert lora or torch.equal(original.embed(PIXELS), expected)
    assert encoder.training


# Distillation


@pytest.mark.parametrize("chunk_size", [5, 12])
def test_distillation_has_the_gradient_of_cosines_to_a_second_model(
    without_dropout: Path, seed: None, chunk_size: int
) -> None:
    start, frozen = (CLIPEncoder(str(without_dropout)) for _ in range(2))
    held = Regularizers(baseline=BaselineWeights(start), distillation_weight=0.7)
    learner = step_of(changed(start), held, chunk_size=chunk_size, lr=0.0)
    stepped = learner.take(PIXELS, LABELS)
    found = {n: p.grad for n, p in start.trainable_parameters() if p.grad is not None}

    start.zero_grad()
    embeddings = start(PIXELS)
    with torch.no_grad():
        targets = frozen(PIXELS)
    cosines = [a @ b for a, b in zip(embeddings, targets, strict=True)]
    loss = SupConLoss()(embeddings, LABELS) + 0.7 * sum(1 - cosine for cosine in cosines) / 12
    loss.backward()
    assert stepped.loss == pytest.approx(loss.item(), rel=1e-5)
    assert len(found) > 30
    for name, parameter in start.trainable_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-6), name


# Captions


def test_captions_are_the_cross_entropy_of_the_models_own_texts(tiny_clip: Path) -> None:
    names = ["red_mug", "apple", "red-mug"]  # the first and the last are one caption
    encoder = CLIPEncoder(str(tiny_clip))
    loss = make_caption_loss(encoder, names, "a {}", SilentProgress())

    model, tokenizer = (
        CLIPModel.from_pretrained(tiny_clip),
        AutoTokenizer.from_pretrained(tiny_clip),
    )
    inputs = tokenizer(["a red mug", "a apple"], padding=True, return_tensors="pt")
    with torch.no_grad():
        texts = normalize(model.get_text_features(**inputs).pooler_output, dim=-1).double()
        images = encoder(PIXELS[:4]).double()
    scale = math.exp(model.logit_scale.item())
    terms = []
    for image, own in zip(images, (0, 1, 0, 0), strict=True):
        logits = [scale * float(image @ text) for text in texts]
        terms.append(math.log(sum(map(math.exp, logits))) - logits[own])
    found = loss(encoder(PIXELS[:4]), torch.tensor([0, 1, 2, 0]))
    assert found.item() == pytest.approx(sum(terms) / 4, rel=1e-4)


def test_captions_join_the_objective_by_their_weight(without_dropout: Path) -> None:
    encoder = CLIPEncoder(str(without_dropout))
    texts = normalize(torch.randn(4, encoder.dim), dim=1)
    captions = CaptionLoss(texts, [0, 1, 2, 3], scale=10.0)
    loss = step_of(encoder, Regularizers(captions=captions, caption_weight=0.25), lr=0).take(
        PIXELS, LABELS
    )
    embeddings = encoder.eval()(PIXELS)
    expected = SupConLoss()(embeddings, LABELS) + 0.25 * captions(embeddings, LABELS)
    assert loss.loss == pytest.approx(expected.item(), rel=1e-5)
    assert captions.state_dict() == {}


# L2-SP


# Images without labels


# A whole run


@pytest.mark.parametrize("more", [{}, {"lora_rank": 2}])
def test_a_held_run_that_is_interrupted_ends_bit_for_bit_like_another(
    photos: Path, settings: Settings, more: dict[str, Any]
) -> None:
    shared = {**ALL, **more, "num_epochs": 2, "interpolation": 2}
    whole = load(train(settings(**shared, out=str(photos / "whole"))).checkpoint)
    stopped = settings(**shared, out=str(photos / "parts"))
    with pytest.raises(Interrupted):
        train(stopped, watch=Watch(at_step=6, act=press_ctrl_c))
    parts = load(train(stopped, resume=photos / "parts/weights/interrupted.pth").checkpoint)
    for key in ("model_state_dict", "training_state_dict", "baseline_state_dict", "loss"):
        assert_same_bits(parts[key], whole[key])
    for run in ("whole", "parts"):
        assert len(load(photos / run / "weights/encoder_interpolated.pth")["model_state_dict"]) > 50
    assert_same_bits(*(load(photos / run / "weights/encoder_interpolated.pth")["model_state_dict"]
                       for run in ("whole", "parts")))  # fmt: skip


# Bad input


def test_running_statistics_are_a_part_of_the_baseline_that_is_not_kept(
    tmp_path: Path, settings: Settings
) -> None:
    model = small_resnet(tmp_path / "resnet")
    with pytest.raises(ConfigError, match=r"also has running statistics \(BatchNorm\); set distil"):
        train(settings(model_name=model, distillation_weight=2))


def test_steps_that_gradient_scaling_skips_move_nothing(without_dropout: Path) -> None:
    encoder = CLIPEncoder(str(without_dropout))
    optimizer = torch.optim.AdamW([p for _, p in encoder.trainable_parameters()], lr=1e-3)
    learner = TrainingStep(
        encoder, SupConLoss(), optimizer, make_runtime("cpu", "fp16", 0), chunk_size=12,
        max_grad_norm=None,
    )  # fmt: skip
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = named(learner)
    assert not math.isfinite(learner.take(PIXELS, LABELS).grad_norm)
    assert_same_bits(named(learner), before)


@pytest.mark.parametrize(("names", "warned"), [(["001", "002", "mug"], 1), (["a1", "2", "b"], 0)])
def test_captions_of_numbers_are_warned_of(tiny_clip: Path, names: list[str], warned: int) -> None:
    watch = Watch()
    make_caption_loss(CLIPEncoder(str(tiny_clip)), names, "a {}", watch)
    assert len(watch.warnings) == warned
    assert all("'001'" in warning for warning in watch.warnings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sharding": "full", "distillation_weight": 1.0}, "set --sharding none"),
    ],
)
def test_what_cannot_hold_is_refused_at_once(
    settings: Settings, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{**settings(), **given})


def test_captions_need_texts_that_differ(tiny_clip: Path, settings: Settings) -> None:
    message = r"caption_weight needs texts, and pooled embeddings.*set caption_weight to 0"
    with pytest.raises(ConfigError, match=message):
        train(settings(caption_weight=1.0, embedding="pooled"))
    with pytest.raises(ConfigError, match="all classes have the caption 'a b'"):
        make_caption_loss(CLIPEncoder(str(tiny_clip)), ["b", "b"], "a {}", SilentProgress())
