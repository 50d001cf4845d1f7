"""The gradient-cached step, and how many images it takes at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Settings, assert_same_bits, load, train
from helpers.steps import LABELS, PIXELS, gradients_of, step_of
from torch import Tensor, nn

from lookalike.errors import ConfigError, NonFiniteError, TrainingError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import drop_patches
from lookalike.runtime import memory
from lookalike.runtime.device import Runtime, make_runtime
from lookalike.training.losses.arcface import ArcFaceLoss
from lookalike.training.losses.memory import CrossBatchMemory
from lookalike.training.losses.supcon import SupConLoss
from lookalike.training.step import batch_memory
from lookalike.training.step.batch_memory import bytes_per_image, find_chunk_size
from lookalike.training.step.step import TrainingStep


def plainly(learner: TrainingStep) -> dict[str, Tensor]:
    """The gradients of the same chunks with all of their activations kept: no caching."""
    learner.encoder.train()
    parts = []
    for chunk in PIXELS.split(learner.chunk_size):
        with learner.runtime.autocast():
            parts.append(learner.encoder(chunk))
    learner.objective(torch.cat(parts), LABELS).backward()
    return gradients_of(learner)


@pytest.mark.parametrize("chunk_size", [1, 5, 6, 11])
def test_chunks_give_the_gradients_of_the_whole_batch(
    without_dropout: Path, chunk_size: int
) -> None:
    whole = step_of(without_dropout, 12)
    in_chunks = step_of(without_dropout, chunk_size)
    stepped = [learner.take(PIXELS, LABELS) for learner in (whole, in_chunks)]
    assert stepped[0].loss == pytest.approx(stepped[1].loss, rel=1e-6)
    assert stepped[0].grad_norm == pytest.approx(stepped[1].grad_norm, rel=1e-5)
    expected, found = gradients_of(whole), gradients_of(in_chunks)
    assert expected.keys() == found.keys()
    assert len(expected) > 30
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("chunk_size", [1, 5, 12])
def test_dropout_drops_the_same_in_both_passes(
    tiny_clip: Path, chunk_size: int, precision: str
) -> None:
    state = torch.get_rng_state()
    plain = step_of(tiny_clip, chunk_size, precision=precision)
    expected = plainly(plain)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    learner = step_of(tiny_clip, chunk_size, precision=precision)
    learner.take(PIXELS, LABELS)
    for name, gradient in gradients_of(learner).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name
    assert torch.equal(torch.get_rng_state(), after)  # the next step draws what it would have


@pytest.mark.usefixtures("seed")
def test_the_same_patches_are_left_out_in_both_passes(tiny_clip: Path) -> None:
    plain, learner = step_of(tiny_clip, 5), step_of(tiny_clip, 5)
    for one in (plain, learner):
        drop_patches(one.encoder, 0.5)
    state = torch.get_rng_state()
    expected = plainly(plain)
    torch.set_rng_state(state)
    learner.take(PIXELS, LABELS)
    for name, gradient in gradients_of(learner).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name


def test_one_chunk_is_the_plain_step_to_the_last_bit(tiny_clip: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = plainly(step_of(tiny_clip, 12))
        torch.manual_seed(1)
        learner = step_of(tiny_clip, 12)
        learner.take(PIXELS, LABELS)
    assert_same_bits(gradients_of(learner), expected)


def test_scaled_gradients_go_through_chunks(without_dropout: Path) -> None:
    """In fp16 the loss is scaled before it is derived; what is clipped and applied is not."""
    whole = step_of(without_dropout, 12, precision="fp32")
    in_chunks = step_of(without_dropout, 5, precision="fp16")
    norms = [learner.take(PIXELS, LABELS).grad_norm for learner in (whole, in_chunks)]
    assert norms[1] == pytest.approx(norms[0], rel=0.01)
    expected, found = gradients_of(whole), gradients_of(in_chunks)
    overall = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.01 * overall, name


def test_the_objective_sees_the_whole_batch_once(tiny_clip: Path) -> None:
    seen: list[torch.Size] = []

    class Watching(SupConLoss):
        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            seen.append(embeddings.shape)
            return super().forward(embeddings, labels)

    step_of(tiny_clip, 5, objective=Watching()).take(PIXELS, LABELS)
    assert seen == [torch.Size([12, 24])]


def test_an_objective_may_have_parameters_of_its_own(tiny_clip: Path) -> None:
    class Weighted(SupConLoss):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            return self.weight * super().forward(embeddings, labels)

    objective = Weighted()
    loss = step_of(tiny_clip, 5, objective=objective).take(PIXELS, LABELS).loss
    assert objective.weight.grad is not None
    assert objective.weight.grad.item() == pytest.approx(loss / 2, rel=1e-5)


def test_small_chunks_take_less_memory(tiny_clip: Path) -> None:
    def peak(chunk_size: int) -> int:
        learner = step_of(tiny_clip, chunk_size)
        learner.take(PIXELS[:3], LABELS[:3])  # gradients are there from now on
        with batch_memory._Allocations() as allocations:
            learner.take(PIXELS, LABELS)
        return int(allocations.peak)

    assert peak(2) < 0.5 * peak(12)


def test_a_loss_that_is_not_finite_reaches_no_weight(tiny_clip: Path) -> None:
    class Failing(SupConLoss):
        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            return super().forward(embeddings, labels) * float("nan")

    learner = step_of(tiny_clip, 5, objective=Failing())
    with pytest.raises(NonFiniteError, match="the loss became nan"):
        learner.take(PIXELS, LABELS)
    assert learner.weights_are_whole
    assert gradients_of(learner) == {}


@pytest.mark.usefixtures("seed")
def test_a_step_that_fails_on_the_way_leaves_nothing_of_it_behind(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third chunk, whose gradient comes after the loss, finds no memory."""
    learner = step_of(tiny_clip, 5, objective=CrossBatchMemory(20, 24))
    learner.take(PIXELS, LABELS)
    remembered = {name: value.clone() for name, value in learner.objective.state_dict().items()}
    numbers, embed, calls = torch.get_rng_state(), learner._embed, 0

    def full(pixels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:  # after the loss, on the way back
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return embed(pixels)

    monkeypatch.setattr(learner, "_embed", full)
    with pytest.raises(TrainingError, match="too little memory"):
        learner.take(PIXELS, LABELS)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert_same_bits(learner.objective.state_dict(), remembered)
    learner.take(PIXELS, LABELS)
    assert int(learner.objective.get_buffer("num_batches")) == 2


def test_too_little_memory_says_which_chunk_to_try(tiny_clip: Path) -> None:
    class Full(SupConLoss):
        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(TrainingError, match=r"6 images at a time .*--batch-memory 3"):
        step_of(tiny_clip, 6, objective=Full()).take(PIXELS, LABELS)


def runtime() -> Runtime:
    return make_runtime("cpu", "fp32", 0)


def room_for(num_images: float, encoder: CLIPEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it look as if so many images fitted into the memory that is free."""
    needed = num_images * bytes_per_image(encoder, runtime())
    needed += 12 * sum(p.numel() for _, p in encoder.trainable_parameters())
    monkeypatch.setattr(batch_memory, "free_bytes", lambda device: needed / 0.7)


@pytest.mark.parametrize(
    ("fits", "saved", "chunk_size"),
    [(1000, None, 64), (64.5, None, 64), (63.5, None, 32), (31.5, None, 22), (1.5, None, 1),
     (63.5, 16, 16), (10.5, 16, 10)],
)  # fmt: skip
def test_as_many_as_fit_in_even_chunks(
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    fits: float,
    saved: int | None,
    chunk_size: int,
) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    room_for(fits, encoder, monkeypatch)
    assert find_chunk_size("auto", 64, encoder, runtime(), saved=saved) == chunk_size


@pytest.mark.parametrize(
    ("version", "stat", "left"),
    [
        (2, "anon 5\nfile 900\nactive_file 300\ninactive_file 500\nshmem 100\n", 1000 - 950 + 800),
        # The plain ones are of the group alone, and use and limit are of those below it, too.
        (1, "inactive_file 1\nactive_file 2\ntotal_inactive_file 500\ntotal_active_file 40\n", 590),
        (1, None, 50),
    ],
)
def test_files_that_a_container_has_cached_count_as_free_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    stat: str | None,
    left: int,
) -> None:
    folder = tmp_path / "cgroup"
    files = ("memory.max", "memory.current")
    if version == 1:
        files = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    for name, content in zip(files, ("1000\n", "950\n"), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    if stat is not None:
        (folder / files[0]).with_name("memory.stat").write_text(stat)
    monkeypatch.setattr(memory, "_CONTROL_GROUP", folder)
    assert memory.free_bytes(torch.device("cpu")) == left


def test_without_a_limit_a_container_has_the_memory_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    assert memory.free_bytes(torch.device("cpu")) > 1000


def test_not_even_one_image(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    room_for(0.5, encoder, monkeypatch)
    with pytest.raises(TrainingError, match=r"not one image fits .*--gradient-checkpointing"):
        find_chunk_size("auto", 64, encoder, runtime(), saved=None)


@pytest.mark.parametrize("free", [-5.0, 0.0, 1e9])
def test_too_little_memory_for_a_first_try_says_what_to_do(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, free: float
) -> None:
    encoder, tries = CLIPEncoder(str(tiny_clip)), 0

    def full(pixels: Tensor) -> Tensor:
        nonlocal tries
        tries += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(encoder, "forward", full)
    monkeypatch.setattr(batch_memory, "free_bytes", lambda device: free)
    with pytest.raises(TrainingError, match=r"not one image fits .*--gradient-checkpointing"):
        find_chunk_size("auto", 64, encoder, runtime(), saved=None)
    assert tries == (free > 0)


def test_a_number_or_none_is_taken_as_it_is(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    assert find_chunk_size(7, 64, encoder, runtime(), saved=3) == 7
    assert find_chunk_size(None, 64, encoder, runtime(), saved=3) == 64


def test_a_model_that_normalises_over_the_batch_is_not_cut_into_chunks(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    encoder.backbone.norm = nn.BatchNorm2d(3)
    assert find_chunk_size("auto", 64, encoder, runtime(), saved=None) == 64
    with pytest.raises(ConfigError, match="normalises over the whole batch"):
        find_chunk_size(8, 64, encoder, runtime(), saved=None)


@pytest.mark.usefixtures("seed")
def test_memory_is_measured_and_leaves_no_trace(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    before, weights = torch.get_rng_state(), [p.clone() for p in encoder.parameters()]
    measured = bytes_per_image(encoder, runtime())
    assert torch.equal(torch.get_rng_state(), before)
    assert not encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    assert all(map(torch.equal, weights, encoder.parameters()))
    # 17 tokens of 32 numbers in two layers: what an image keeps of these is a known minimum.
    assert 2 * 8 * 17 * 32 * 4 < measured < 2 * 60 * 17 * 32 * 4


def test_smaller_training_images_show_in_the_measure(tiny_clip: Path) -> None:
    encoder = CLIPEncoder(str(tiny_clip))
    own, small = (bytes_per_image(encoder, runtime(), side) for side in (None, 16))
    assert bytes_per_image(encoder, runtime(), 32) == own
    assert 4 / 16 * own < small < 6 / 16 * own  # 4 + 1 tokens in place of 16 + 1
    whole = find_chunk_size("auto", 64, encoder, runtime(), saved=None, side=16)
    assert whole == 64


def test_gradient_checkpointing_shows_in_the_measure(tiny_clip: Path) -> None:
    plain = CLIPEncoder(str(tiny_clip))
    recomputing = CLIPEncoder(str(tiny_clip), gradient_checkpointing=True)
    assert bytes_per_image(recomputing, runtime()) < 0.7 * bytes_per_image(plain, runtime())


def test_a_run_in_chunks_learns_what_a_run_at_once_does(settings: Settings, photos: Path) -> None:
    def weights(name: str, **changes: Any) -> dict[str, Any]:
        result = train(settings(out=str(photos / name), num_epochs=2, **changes))
        found: dict[str, Any] = load(result.checkpoint)
        return found

    at_once, in_chunks = weights("one", batch_memory="none"), weights("many", batch_memory=3)
    assert (at_once["chunk_size"], in_chunks["chunk_size"]) == (8, 3)
    for name, tensor in at_once["model_state_dict"].items():
        if tensor.is_floating_point():
            # Dropout draws otherwise in chunks, so this is no equality, but close to one.
            assert torch.allclose(in_chunks["model_state_dict"][name], tensor, atol=0.02), name


def test_a_batch_memory_beyond_the_batch_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"batch_memory is 9, but a batch has 8 images"):
        train(settings(batch_memory=9))


def test_patches_left_out_depend_on_the_image_alone(without_dropout: Path) -> None:
    """Not on how many go through at a time, nor on the random numbers of torch."""
    gradients = []
    for chunk_size in (12, 5, 1):
        learner = step_of(without_dropout, chunk_size)
        drop_patches(learner.encoder, 0.5)
        torch.rand(chunk_size)
        learner.take(PIXELS, LABELS, seed=(3, 1, 4))
        gradients.append(gradients_of(learner))
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert torch.allclose(other[name], gradient, rtol=1e-4, atol=1e-6), name
    losses = set()
    for seed in ((3, 1, 4), (3, 1, 5), (3, 2, 4), (4, 1, 4)):
        learner = step_of(without_dropout, 12)
        drop_patches(learner.encoder, 0.5)
        losses.add(learner.take(PIXELS, LABELS, seed=seed).loss)
    assert len(losses) == 4  # other ones in each step, epoch and run


@pytest.mark.parametrize("limit", [None, 0.01])
def test_the_gradient_of_all_that_is_trained_is_told_and_shortened(
    without_dropout: Path, limit: float | None
) -> None:
    encoder = CLIPEncoder(str(without_dropout))
    objective = ArcFaceLoss(4, encoder.dim)
    parameters = [*(p for _, p in encoder.trainable_parameters()), *objective.parameters()]
    learner = TrainingStep(
        encoder, objective, torch.optim.SGD(parameters, lr=0.0), make_runtime("cpu", "fp32", 0),
        chunk_size=12, max_grad_norm=limit,
    )  # fmt: skip
    norm = learner.take(PIXELS, LABELS).grad_norm
    whole = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
    assert all(p.grad is not None and p.grad.norm() > 1e-4 for p in objective.parameters())
    if limit is None:
        assert float(whole) == pytest.approx(norm, rel=1e-5)
    else:
        assert float(whole) == pytest.approx(limit, rel=1e-3)
        assert norm > limit
