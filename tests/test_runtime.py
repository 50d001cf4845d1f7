"""Device, precision, seed: one object handed down."""

from __future__ import annotations

import platform
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from lookalike.errors import ConfigError, ModelError
from lookalike.runtime.device import Runtime, make_runtime
from lookalike.runtime.memory import give_back_freed_memory
from lookalike.runtime.randomness import random_state, restore_random_state, seeded
from lookalike.runtime.world import ALONE, World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def product_under(runtime: Runtime) -> torch.dtype:
    """The dtype that a product of two float32 matrices has."""
    ones = torch.ones(8, 8, device=runtime.device)
    with runtime.autocast():
        return (ones @ ones).dtype


def test_auto_takes_the_best_device_there_is() -> None:
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
        "cpu": True,
    }
    best = next(name for name, is_there in present.items() if is_there)
    runtime = make_runtime()
    assert runtime.device.type == best
    assert runtime.num_workers >= 1
    assert product_under(runtime) == DTYPES[runtime.precision]


@pytest.mark.parametrize(
    ("device", "chosen"),
    [("cuda", "cuda"), ("mps", "mps"), ("xpu", "xpu"), (None, "cpu")],
)
def test_auto_prefers_cuda_then_mps_then_xpu(
    monkeypatch: pytest.MonkeyPatch, device: str | None, chosen: str
) -> None:
    order = ["cuda", "mps", "xpu"]
    there = order[order.index(device) :] if device else []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: "xpu" in there)
    assert make_runtime(precision="fp32").device.type == chosen


@pytest.mark.parametrize("has_units", [True, False])
def test_a_cpu_computes_in_bf16_only_where_it_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, has_units: bool
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_units, raising=False)
    assert make_runtime("cpu").precision == ("bf16" if has_units else "fp32")


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "tpu", "cuda:99", "cpu0", "meta", "vulkan", "xla", "hip", "hpu", "mtia",
     "privateuseone"],
)  # fmt: skip
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--device auto") as told:
        make_runtime(name)
    assert f"device {name!r}" in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["fp64", "half", "", "BF16"])
def test_an_unknown_precision_names_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, bf16, fp16, fp32 or int8") as told:
        make_runtime("cpu", name)
    assert repr(name) in str(told.value)


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> None:
        raise RuntimeError("not here")

    monkeypatch.setattr(torch, "autocast", refused)
    with pytest.raises(ConfigError, match=r"cpu cannot compute in fp16; use --precision auto"):
        make_runtime("cpu", "fp16")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_autocast_gives_the_precision_that_was_asked_for(precision: str) -> None:
    runtime = make_runtime("cpu", precision)
    assert runtime.precision == precision
    assert product_under(runtime) == DTYPES[precision]
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32  # outside again


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_are_scaled_in_fp16_alone(precision: str) -> None:
    scaler = make_runtime("cpu", precision).grad_scaler()
    assert scaler.is_enabled() is (precision == "fp16")
    scaled = scaler.scale(torch.tensor(1.0))
    assert isinstance(scaled, Tensor)
    assert (scaled.item() > 1) is (precision == "fp16")


def test_workers_are_as_asked_for() -> None:
    assert make_runtime("cpu", "fp32", 0).num_workers == 0
    assert make_runtime("cpu", "fp32", 7).num_workers == 7


def test_a_runtime_describes_itself_in_a_line() -> None:
    text = make_runtime("cpu", "fp32", 3).describe()
    assert text.startswith("cpu")
    assert text.endswith("fp32 · 3 workers")
    assert make_runtime("cpu", "fp32", 1).describe().endswith("fp32 · 1 worker")


def test_seeding_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draws = []
    for seed in (3, 3, 4):
        with seeded(seed):
            draws.append(torch.rand(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_seeding_leaves_the_global_generator_alone_after_an_error_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(3):
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


def test_random_numbers_go_on_where_they_were_saved() -> None:
    with seeded(1):
        torch.rand(3)
        state = random_state()
        expected = torch.rand(5)
        torch.rand(100)
        restore_random_state(state)
        assert torch.equal(torch.rand(5), expected)


def test_a_saved_state_of_another_kind_of_device_is_passed_over_and_said_so() -> None:
    with seeded(1):
        state = random_state(torch.device("cpu"))
        expected = torch.rand(5)
        assert restore_random_state(state, torch.device("cpu")) is True
        assert torch.equal(torch.rand(5), expected)
        assert restore_random_state(state, torch.device("cuda")) is False
        assert torch.equal(torch.rand(5), expected)


def test_several_processes_scale_gradients_by_what_one_does_together() -> None:
    """Each goes backward with its part times their count: fp16 overflows where one's would."""
    alone, one_of_four = (
        Runtime(torch.device("cpu"), "fp16", 0, world).grad_scaler().get_scale()
        for world in (ALONE, World(1, 4))
    )
    assert alone == 4 * one_of_four == 2**16


def test_a_model_that_does_not_fit_on_its_device_says_what_to_do() -> None:
    class Large(torch.nn.Module):
        def to(self, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    runtime = make_runtime("cpu", "fp32", 0)
    with pytest.raises(ModelError) as told:
        runtime.place(Large())
    assert str(told.value) == (
        "cpu has too little memory for the model (CUDA out of memory); "
        "use a smaller one, free some memory, or set --device cpu"
    )
    module = torch.nn.Linear(1, 1)
    assert runtime.place(module) is module


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory")
def test_a_large_tensor_takes_the_memory_that_one_before_it_has_freed() -> None:
    import resource  # Unix has it

    make_runtime("cpu")
    for _ in range(10):  # blocks of 64 MiB, until there is one that fits
        torch.ones(2**24).sum()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24).sum()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert faults < 100  # of 16,384 pages each, or 320 large ones in all


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory")
def test_memory_that_is_kept_can_be_given_back() -> None:
    make_runtime("cpu")
    torch.ones(2**27).sum()  # 512 MiB
    resident = psutil.Process().memory_info().rss
    give_back_freed_memory()
    assert psutil.Process().memory_info().rss < resident - 2**28


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_more_readers_than_the_cores_could_serve_are_refused_with_the_bound(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    most = max(32, 8 * cores)
    assert make_runtime("cpu", "fp32", most).num_workers == most
    for many in (most + 1, 1_000_000, 10**40):
        with pytest.raises(
            ConfigError, match=f"num_workers is {many}; at most {most} .*{cores} core"
        ):
            make_runtime("cpu", "fp32", many)
