"""What only a GPU shows: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.runs import Settings, Watch, load, train
from helpers.steps import LABELS, PIXELS, gradients_of
from torch.nn.functional import cosine_similarity

from lookalike.config import TrainConfig
from lookalike.data.reading.loader import ImageLoader, chunks
from lookalike.embedding.embed import embed
from lookalike.embedding.embedder import Embedder
from lookalike.errors import ConfigError, ModelError, TrainingError
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import drop_patches
from lookalike.progress import SilentProgress
from lookalike.runtime.device import Runtime, make_runtime
from lookalike.training.losses.supcon import SupConLoss
from lookalike.training.step import batch_memory
from lookalike.training.step.batch_memory import bytes_per_image, find_chunk_size
from lookalike.training.step.compiling import compile_layers
from lookalike.training.step.step import TrainingStep

pytestmark = pytest.mark.gpu

LOWEST_COSINE = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.9999}


def runtime(precision: str = "fp32", num_workers: int = 0) -> Runtime:
    return make_runtime("cuda", precision, num_workers)


def on_gpu(model: Path) -> CLIPEncoder:
    return CLIPEncoder(str(model)).to("cuda")


def test_a_gpu_is_found_and_computes_in_bf16() -> None:
    found = make_runtime()
    assert found.device.type == "cuda"
    assert found.precision == ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16")
    assert found.num_workers > 1
    with pytest.raises(ConfigError, match="int8 is for a CPU"):
        make_runtime("cuda", "int8")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_embeddings_are_those_of_the_cpu(
    tiny_clip: Path, photos: Path, precision: str, batch_size: int
) -> None:
    paths = sorted(map(str, (photos / "train").rglob("*.png")))
    rows = {}
    for name, here in (("cpu", make_runtime("cpu", "fp32", 0)), ("cuda", runtime(precision, 2))):
        encoder = CLIPEncoder(str(tiny_clip)).to(here.device)
        loader = ImageLoader(paths, encoder.preprocessing, here, max_megapixels=89)
        found = embed(Embedder(encoder, runtime=here, batch_size=batch_size), loader)
        assert found.positions.tolist() == list(range(len(paths)))
        rows[name] = found.embeddings
    assert rows["cuda"].device.type == "cpu"
    assert cosine_similarity(rows["cuda"], rows["cpu"]).min() > LOWEST_COSINE[precision]


def test_what_is_read_lies_in_pinned_memory(
    tiny_clip: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = CLIPEncoder(str(tiny_clip)).preprocessing
    paths = sorted(map(str, (photos / "train").rglob("*.png")))
    whole = next(iter(ImageLoader(paths, how, runtime(), max_megapixels=89).read(chunks(30, 30))))
    monkeypatch.setattr("lookalike.data.reading.loader._PART_BYTES", 7 * 3 * 32 * 32)
    in_parts = ImageLoader(paths, how, runtime(num_workers=2), max_megapixels=89)
    (joined,) = in_parts.read(chunks(30, 30))
    assert whole.pixels.is_pinned()
    assert joined.pixels.is_pinned()
    assert torch.equal(joined.pixels, whole.pixels)


def step_of(model: Path, chunk_size: int, precision: str) -> TrainingStep:
    encoder = on_gpu(model)
    optimizer = torch.optim.SGD([p for _, p in encoder.trainable_parameters()], lr=0.0)
    return TrainingStep(
        encoder, SupConLoss(), optimizer, runtime(precision), chunk_size=chunk_size,
        max_grad_norm=None,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("chunk_size", [1, 5, 11])
def test_dropout_drops_the_same_in_both_passes(
    tiny_clip: Path, chunk_size: int, precision: str
) -> None:
    pixels, labels = PIXELS.cuda(), LABELS.cuda()
    torch.manual_seed(5)
    plain = step_of(tiny_clip, chunk_size, precision)
    plain.encoder.train()
    parts = []
    for chunk in pixels.split(chunk_size):
        with plain.runtime.autocast():
            parts.append(plain.encoder(chunk))
    plain.scaler.scale(plain.objective(torch.cat(parts), labels)).backward()
    plain.scaler.unscale_(plain.optimizer)
    after = torch.cuda.get_rng_state()
    torch.manual_seed(5)
    learner = step_of(tiny_clip, chunk_size, precision)
    learner.take(pixels, labels)
    assert torch.equal(torch.cuda.get_rng_state(), after)
    expected = gradients_of(plain)
    for name, gradient in gradients_of(learner).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-2, atol=1e-4), name


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_training_lowers_the_loss(settings: Settings, precision: str) -> None:
    watch = Watch()
    train(
        settings(
            device="cuda", precision=precision, num_epochs=6, augmentation="none", num_workers=2
        ),
        watch=watch,
    )
    third = len(watch.losses) // 3
    assert sum(watch.losses[-third:]) < 0.8 * sum(watch.losses[:third])


def test_an_interrupted_run_goes_on_here_and_elsewhere(settings: Settings, photos: Path) -> None:
    first = train(settings(device="cuda", precision="fp16", out=str(photos / "a")))
    saved = load(first.checkpoint)
    assert saved["precision"] == "fp16"
    for device, precision in (("cuda", "auto"), ("cpu", "fp32")):
        again = train(
            settings(device=device, precision=precision, num_epochs=2, out=str(photos / device)),
            resume=first.checkpoint,
        )
        assert load(again.checkpoint)["epoch"] == 2


def test_the_measure_of_memory_is_what_a_step_takes(tiny_clip: Path) -> None:
    encoder, before = on_gpu(tiny_clip), torch.cuda.get_rng_state()
    each = bytes_per_image(encoder, runtime())
    assert torch.equal(torch.cuda.get_rng_state(), before)
    learner = step_of(tiny_clip, 512, "fp32")
    pixels = torch.zeros(512, 3, 32, 32, dtype=torch.uint8, device="cuda")
    labels = torch.arange(256).repeat_interleave(2).cuda()
    learner.take(pixels, labels)  # kernels have their own room from now on
    torch.cuda.reset_peak_memory_stats()
    there = torch.cuda.memory_allocated()
    learner.take(pixels, labels)
    assert 0.7 * 512 * each < torch.cuda.max_memory_allocated() - there < 1.3 * 512 * each


def test_little_memory_makes_chunks(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = on_gpu(tiny_clip)
    assert find_chunk_size("auto", 512, encoder, runtime(), saved=None) == 512
    little = 3 * 4 * sum(p.numel() for _, p in encoder.trainable_parameters())
    little += 100 * bytes_per_image(encoder, runtime())
    monkeypatch.setattr(batch_memory, "free_bytes", lambda _: little / 0.7)
    assert 80 <= find_chunk_size("auto", 512, encoder, runtime(), saved=None) <= 100


def test_too_large_a_batch_says_what_to_do_and_changes_nothing(tiny_clip: Path) -> None:
    learner = step_of(tiny_clip, 10**6, "fp32")
    before = {name: p.clone() for name, p in learner.encoder.named_parameters()}
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    try:
        pixels = torch.zeros(20_000, 3, 32, 32, dtype=torch.uint8, device="cuda")
        labels = torch.arange(10_000).repeat_interleave(2).cuda()
        with pytest.raises(TrainingError, match=r"too little memory .*--batch-memory 500000"):
            learner.take(pixels, labels)
        with pytest.raises(ModelError, match="too little memory for the model"):
            runtime().place(torch.nn.Linear(2**14, 2**14))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    for name, parameter in learner.encoder.named_parameters():
        assert torch.equal(parameter, before[name])


def test_the_same_run_twice_is_nearly_the_same(settings: Settings, photos: Path) -> None:
    found = [
        load(train(settings(device="cuda", out=str(photos / name))).checkpoint)["model_state_dict"]
        for name in "ab"
    ]
    for name, tensor in found[0].items():
        if tensor.is_floating_point():
            assert torch.allclose(found[1][name], tensor, atol=1e-4), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_have_the_gradients_of_plain_ones(tiny_clip: Path, precision: str) -> None:
    """With dropout, with patches that are left out, with a last chunk of another size."""
    gradients = []
    for how in ("off", "on"):
        torch.manual_seed(5)
        learner = step_of(tiny_clip, 5, precision)
        drop_patches(learner.encoder, 0.25)
        compile_layers(
            TrainConfig(compile=how), learner.encoder, learner.runtime, SilentProgress(),
            chunk_size=5, part_size=12, steps_left=1,
        )  # fmt: skip
        compiled_layers = [m for m in learner.encoder.modules() if m._compiled_call_impl]
        assert len(compiled_layers) == (1 if how == "on" else 0)  # patch dropout has the other
        learner.take(PIXELS.cuda(), LABELS.cuda())
        gradients.append(gradients_of(learner))
    plain, compiled = gradients
    for name, gradient in plain.items():
        assert cosine_similarity(compiled[name].flatten(), gradient.flatten(), dim=0) > 0.99 or (
            gradient.norm() < 1e-3 * max(g.norm() for g in plain.values())
        ), name


def test_a_long_run_compiles_by_itself(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.training.step.compiling._PAYS_S", 0)
    watch = Watch()
    train(settings(device="cuda", num_epochs=2), watch=watch)
    assert any("compiling the model's layers" in line for line in watch.notes)
    assert not watch.warnings
