"""What holds an encoder to the model it came from: in a step, and over a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import small_resnet
from helpers.photos import draw, write_tree
from helpers.runs import Settings, Watch, assert_same_bits, load, press_ctrl_c, train
from helpers.steps import LABELS, PIXELS, changed
from helpers.steps import anchored_learner as learner_of
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from lookalike.config import TrainConfig
from lookalike.data.images import ImageSet
from lookalike.errors import CheckpointError, ConfigError, Interrupted
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.lora import add_lora
from lookalike.progress import SilentProgress
from lookalike.runtime.device import make_runtime
from lookalike.training.losses.supcon import SupConLoss
from lookalike.training.optimization.averaging import WeightAverage
from lookalike.training.regularizers.anchors import UNLABELLED, Anchors
from lookalike.training.regularizers.captions import CaptionLoss, make_caption_loss
from lookalike.training.regularizers.original import OriginalWeights
from lookalike.training.regularizers.others import OtherImages, read_other_images
from lookalike.training.step.learner import Learner

ALL = {"caption_weight": 0.5, "distillation_weight": 1.0, "l2_sp": 10.0}


def named(learner: Learner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.encoder.trainable_parameters()}


# The original model


@pytest.mark.parametrize("lora", [False, True])
def test_the_original_embeds_as_the_model_that_came(
    tiny_clip: Path, seed: None, lora: bool
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    if lora:
        add_lora(encoder, rank=2, targets="auto")
    original = OriginalWeights(encoder)
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
    anchors = Anchors(OriginalWeights(start), distillation_weight=0.7)
    learner = learner_of(changed(start), anchors, chunk_size=chunk_size, lr=0.0)
    stepped = learner.step(PIXELS, LABELS)
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


def test_other_images_are_for_distillation_alone(without_dropout: Path, seed: None) -> None:
    start, frozen = (CLIPEncoder(str(without_dropout)) for _ in range(2))
    anchors = Anchors(OriginalWeights(start), distillation_weight=2.0, on_others=True)
    labels = torch.cat([LABELS[:8], torch.full((4,), UNLABELLED)])
    loss = learner_of(changed(start), anchors).step(PIXELS, labels).loss

    with torch.no_grad():
        embeddings, targets = changed_back(start, anchors)(PIXELS), frozen(PIXELS)
    cosines = (embeddings[8:] * targets[8:]).sum(dim=1)
    expected = SupConLoss()(embeddings[:8], LABELS[:8]) + 2 * (1 - cosines).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def changed_back(encoder: CLIPEncoder, anchors: Anchors) -> CLIPEncoder:
    """The encoder as it was before its one step: `changed` again, from the same numbers."""
    assert anchors.original is not None
    with torch.no_grad():
        for name, parameter in encoder.trainable_parameters():
            parameter.copy_(anchors.original.values[name])
    torch.manual_seed(5)
    return changed(encoder).eval()


def test_a_step_whose_other_images_are_all_unreadable_is_a_plain_one(
    without_dropout: Path, seed: None
) -> None:
    encoder = CLIPEncoder(str(without_dropout))
    anchors = Anchors(OriginalWeights(encoder), distillation_weight=2.0, on_others=True)
    plain = learner_of(CLIPEncoder(str(without_dropout))).step(PIXELS, LABELS)
    assert learner_of(encoder, anchors).step(PIXELS, LABELS) == plain


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
    loss = learner_of(encoder, Anchors(captions=captions, caption_weight=0.25), lr=0).step(
        PIXELS, LABELS
    )
    embeddings = encoder.eval()(PIXELS)
    expected = SupConLoss()(embeddings, LABELS) + 0.25 * captions(embeddings, LABELS)
    assert loss.loss == pytest.approx(expected.item(), rel=1e-5)
    assert captions.state_dict() == {}


# L2-SP


def test_l2_sp_draws_weights_back_by_the_learning_rate_of_their_group(
    without_dropout: Path, seed: None
) -> None:
    """Without a gradient all that is left is the pull: 1 - lr * strength of the way stays."""
    encoder = CLIPEncoder(str(without_dropout))
    original = OriginalWeights(encoder)
    parameters = [p for _, p in changed(encoder).trainable_parameters()]
    away = {n: p.detach() - original.values[n] for n, p in encoder.trainable_parameters()}
    stranger = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD(
        [{"params": parameters[:9], "lr": 0.0}, {"params": [*parameters[9:], stranger], "lr": 0.1}]
    )
    Anchors(original, l2_sp=2.0).pull(optimizer)
    assert stranger.tolist() == [1, 1, 1]
    for number, (name, parameter) in enumerate(encoder.trainable_parameters()):
        left = parameter.detach() - original.values[name]
        expected = away[name] * (1.0 if number < 9 else 0.8)
        assert torch.allclose(left, expected, atol=1e-6), name


def test_l2_sp_is_part_of_a_step(without_dropout: Path) -> None:
    pulled, plain = CLIPEncoder(str(without_dropout)), CLIPEncoder(str(without_dropout))
    original = OriginalWeights(pulled)
    held = learner_of(pulled, Anchors(original, l2_sp=4.0))
    free = learner_of(plain)
    for learner in (held, free):
        learner.step(PIXELS, LABELS)
    assert_same_bits(named(held), named(free))  # they had not moved yet
    weights = named(held)
    for learner in (held, free):
        learner.step(PIXELS, LABELS)
    for name, weight in named(held).items():
        pull = 0.05 * 4.0 * (weights[name] - original.values[name])
        assert torch.allclose(weight, named(free)[name] - pull, atol=1e-6), name


# Images without labels


def others_of(count: int, per_step: int, seed: int = 3) -> OtherImages:
    return OtherImages(ImageSet(Path(), [str(i) for i in range(count)]), [], per_step, seed)


def test_each_other_image_has_its_turn_before_any_comes_again() -> None:
    requests = list(others_of(7, 3).requests(0, 14, slice(0, 3)))
    seen = [index for request in requests for index in request.indices]
    assert len(seen) == 42
    passes = [seen[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 6
    assert seen != [i for r in others_of(7, 3, seed=4).requests(0, 14, slice(0, 3)) for i in r[0]]


def test_other_images_go_on_where_a_run_was_stopped_and_are_shared() -> None:
    whole = list(others_of(7, 4).requests(0, 9, slice(0, 4)))
    assert list(others_of(7, 4).requests(5, 4, slice(0, 4))) == whole[5:]
    halves = [list(others_of(7, 4).requests(0, 9, own)) for own in (slice(0, 2), slice(2, 4))]
    for request, first, second in zip(whole, *halves, strict=True):
        assert [*first.indices, *second.indices] == request.indices
        assert (first.first, second.first) == (0, 2)


# A whole run


@pytest.mark.parametrize("more", [{}, {"lora_rank": 2, "ema_decay": 0.9}])
def test_a_held_run_that_is_interrupted_ends_bit_for_bit_like_another(
    photos: Path, settings: Settings, more: dict[str, Any]
) -> None:
    write_tree(photos / "others" / "x", {"": 7}, first=50)
    shared = {**ALL, **more, "num_epochs": 2, "distillation_images": str(photos / "others" / "x"),
              "interpolation": 2}  # fmt: skip
    whole = load(train(settings(**shared, out=str(photos / "whole"))).checkpoint)
    stopped = settings(**shared, out=str(photos / "parts"))
    with pytest.raises(Interrupted):
        train(stopped, watch=Watch(at_step=6, act=press_ctrl_c))
    parts = load(train(stopped, resume=photos / "parts/weights/interrupted.pth").checkpoint)
    for key in ("model_state_dict", "training_state_dict", "original_state_dict", "loss"):
        assert_same_bits(parts[key], whole[key])
    for run in ("whole", "parts"):
        assert len(load(photos / run / "weights/encoder_interpolated.pth")["model_state_dict"]) > 50
    assert_same_bits(*(load(photos / run / "weights/encoder_interpolated.pth")["model_state_dict"]
                       for run in ("whole", "parts")))  # fmt: skip


def test_a_resumed_run_keeps_its_other_images(photos: Path, settings: Settings) -> None:
    others = write_tree(photos / "others" / "x", {"": 7}, first=50)
    shared = settings(distillation_weight=1.0, distillation_images=str(others))
    saved = train(shared).checkpoint
    assert saved is not None
    next(others.rglob("*.png")).unlink()
    with pytest.raises(CheckpointError, match="distillation_images are not those of"):
        train({**shared, "num_epochs": 2}, resume=saved)


def test_an_unreadable_other_image_is_named_and_left_out(photos: Path, settings: Settings) -> None:
    others = write_tree(photos / "others" / "x", {"": 3}, first=50)
    bad = sorted(others.rglob("*.png"))[1]
    bad.write_bytes(bad.read_bytes()[:300])
    watch = Watch()
    result = train(settings(distillation_weight=1.0, distillation_images=str(others)), watch=watch)
    assert sum(bad.name in warning for warning in watch.warnings) == 1
    assert [Path(one.path) for one in result.unreadable] == [bad]


# Bad input


@pytest.mark.parametrize("option", ["distillation_weight", "interpolation"])
def test_running_statistics_are_a_part_of_the_original_that_is_not_kept(
    tmp_path: Path, settings: Settings, option: str
) -> None:
    model = small_resnet(tmp_path / "resnet")
    with pytest.raises(ConfigError, match=rf"statistics as well \(BatchNorm\); set {option} to 0"):
        train(settings(model_name=model, **{option: 2}))


def other_images(settings: Settings, source: Path) -> ImageSet:
    config = TrainConfig(**settings(distillation_weight=1.0, distillation_images=str(source)))
    others = read_other_images(config, SilentProgress())
    assert others is not None
    return others.images


def test_other_images_lie_as_they_like_but_not_in_the_test(
    photos: Path, settings: Settings
) -> None:
    tree = write_tree(photos / "mixed", {"c": 2}, first=60)
    write_tree(tree / "a", {"b": 2}, first=60)
    draw(9, 9).save(tree / "loose.png")
    images = other_images(settings, tree)
    assert (len(images), images.labels) == (5, None)
    table = photos / "table.csv"
    rows = [
        f"{path.relative_to(photos).as_posix()},{split},x"
        for split in ("train", "test")
        for path in sorted((photos / split).rglob("*.png"))
    ]
    table.write_text("\n".join(["path,split,label", *rows]))
    images = other_images(settings, table)
    assert images.labels is None
    assert {name.partition("/")[0] for name in images.names} == {"train"}


def test_steps_that_gradient_scaling_skips_move_nothing(without_dropout: Path) -> None:
    encoder = CLIPEncoder(str(without_dropout))
    original = OriginalWeights(changed(encoder))
    changed(encoder)
    average = WeightAverage(encoder.trainable_parameters(), 0.5)
    optimizer = torch.optim.AdamW([p for _, p in encoder.trainable_parameters()], lr=1e-3)
    learner = Learner(
        encoder, SupConLoss(), optimizer, make_runtime("cpu", "fp16", 0), chunk_size=12,
        max_grad_norm=None, average=average, anchors=Anchors(original, l2_sp=500.0),
    )  # fmt: skip
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = named(learner)
    assert not math.isfinite(learner.step(PIXELS, LABELS).grad_norm)
    assert_same_bits(named(learner), before)
    assert average.num_updates == 0


@pytest.mark.parametrize(("names", "warned"), [(["001", "002", "mug"], 1), (["a1", "2", "b"], 0)])
def test_captions_of_numbers_are_warned_of(tiny_clip: Path, names: list[str], warned: int) -> None:
    watch = Watch()
    make_caption_loss(CLIPEncoder(str(tiny_clip)), names, "a {}", watch)
    assert len(watch.warnings) == warned
    assert all("'001'" in warning for warning in watch.warnings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"distillation_images": "x"}, "distillation is off; set distillation_weight"),
        ({"l2_sp": 1e9}, r"set l2_sp to 1000 or less"),
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
