"""What a measurement of speed is taken to mean, by numbers made up for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lookalike.benchmark.advice import (
    STAGES,
    Images,
    Machine,
    Speed,
    Stage,
    advice,
    better_workers,
    enough_workers,
    expected,
)

CPU = Machine("cpu", "fp32", fast_bf16=False, num_cores=8, num_threads=8, num_workers=4,
              batch_size=64)  # fmt: skip
GPU = Machine("cuda", "bf16", fast_bf16=True, num_cores=16, num_threads=16, num_workers=4,
              batch_size=64)  # fmt: skip
SMALL_JPEG = Images(1000, 256, {"JPEG": 256}, median_megapixels=0.1, median_kilobytes=16.0,
                      oversized={}, large=0, enough_px=280, exact=False)  # fmt: skip


def speed(
    machine: Machine,
    reading: float = 0.0,
    decoding: float = 0.0,
    preprocessing: float = 0.0,
    transfer: float = 0.0,
    model: float = 0.0,
    whole: float = 0.0,
    images: Images = SMALL_JPEG,
    gigaflops: float = 8.7,
) -> Speed:
    """A measurement in milliseconds an image, on one core each; the readers' go on in parallel."""
    taken = dict(zip(STAGES, (reading, decoding, preprocessing, transfer, model), strict=True))
    stages = tuple(
        Stage(name, ms, ms, 1 if name in ("transfer", "model") else max(1, machine.num_workers))
        for name, ms in taken.items()
    )
    return Speed(stages, whole, gigaflops, images, machine)


def said(*args: Any, **changes: Any) -> str:
    return "\n".join(advice(speed(*args, **changes)))


def test_costs_and_shares_count_what_goes_on_at_a_time() -> None:
    # 4 workers: 2/4 + 6/4 + 4/4 = 3 ms beside 1 + 6 ms on the device.
    one = speed(GPU, 2, 6, 4, transfer=1, model=6, whole=125)
    assert one.shares() == pytest.approx(
        {"reading": 0.05, "decoding": 0.15, "preprocessing": 0.1, "transfer": 0.1, "model": 0.6}
    )
    assert sum(one.shares().values()) == pytest.approx(1)
    assert one.stage("decoding").images_per_s == pytest.approx(4 / 0.006)
    assert one.model_alone == pytest.approx(1000 / 6)
    assert one.reached == pytest.approx(0.75)
    assert speed(CPU, model=5).stage("transfer").images_per_s is None


@pytest.mark.parametrize(
    ("limit", "taken"),
    [
        ("reading", {"reading": 30, "decoding": 5, "preprocessing": 5, "model": 1}),
        ("decoding", {"reading": 5, "decoding": 30, "preprocessing": 5, "model": 1}),
        ("preprocessing", {"reading": 5, "decoding": 5, "preprocessing": 30, "model": 1}),
        ("transfer", {"decoding": 4, "transfer": 5, "model": 1}),
        ("model", {"decoding": 20, "transfer": 1, "model": 5}),
        # The readers together cost 9 / 4 ms, though the model is slower than each of them.
        ("decoding", {"reading": 2, "decoding": 4, "preprocessing": 3, "model": 2}),
    ],
)
def test_the_side_that_costs_more_limits_by_its_dearest_stage(
    limit: str, taken: dict[str, Any]
) -> None:
    assert speed(GPU, **taken).limit == limit


def test_slow_readers_on_a_gpu_are_told_how_many_would_keep_up() -> None:
    # 10 ms an image on one core, 1 ms on the device: 10 workers.
    slow = speed(GPU, 1, 6, 3, transfer=0.1, model=0.9, whole=390)
    assert (enough_workers(slow), better_workers(slow)) == (10, 10)
    assert expected(slow, 4) == pytest.approx(400)
    assert expected(slow, 10) == pytest.approx(1000)
    assert expected(slow, 16) == pytest.approx(1000)
    assert "--num-workers 10 would make about 1,000 images/s instead of 390." in "\n".join(
        advice(slow)
    )
    few_cores = replace(slow, machine=replace(GPU, num_cores=6))
    text = "\n".join(advice(few_cores))
    assert "--num-workers 6 would make about 600 images/s" in text
    assert "would take 10; there are 6 cores." in text


def test_on_a_cpu_readers_and_model_share_the_cores() -> None:
    # 16 ms of one core to read, 4 ms of all 8 cores to compute: 48 core-ms an image, so at most
    # 8 / 0.048 = 167 images/s, which three readers (188/s) can feed and two (125/s) cannot.
    one = speed(replace(CPU, num_workers=2), 0, 14, 2, model=4, whole=120)
    assert expected(one, 2) == pytest.approx(125)
    assert expected(one, 3) == expected(one, 8) == pytest.approx(8000 / 48)
    assert better_workers(one) == 3
    assert enough_workers(one) == 4
    assert better_workers(replace(one, machine=replace(CPU, num_workers=3))) is None
    # Two are as good, where they come within 15% of what three promise.
    assert better_workers(replace(one, whole=146)) is None
    assert better_workers(replace(one, whole=144)) == 3


def test_reading_in_the_main_process_is_told_of() -> None:
    text = said(replace(CPU, num_workers=0), 0, 2, 1, model=10, whole=75)
    assert "what limits is the model." in text
    assert better_workers(speed(replace(CPU, num_workers=0), 0, 2, 1, model=10, whole=75)) == 1
    assert "Nothing is read while the model works: --num-workers 1 would" in text
    assert "about 96.4 images/s instead of 75." in text


def test_where_more_workers_would_not_help_none_are_advised() -> None:
    all_read = replace(GPU, num_workers=16)
    text = said(all_read, 0, 160, 0, model=1, whole=98)
    assert "what limits is decoding." in text
    assert "More workers would not help: keeping up with the model would take 160" in text
    assert "--num-workers" not in text
    disturbed = said(all_read, 0, 160, 0, model=1, whole=50)
    assert "Of 16 workers 100 images/s could be expected: something else takes" in disturbed


def test_files_that_are_decoded_in_full_are_counted_with_their_format() -> None:
    images = replace(SMALL_JPEG, formats={"PNG": 200, "JPEG": 56}, oversized={"PNG": 190})
    text = said(GPU, 1, 90, 3, model=1, whole=42, images=images)
    assert "190 of 256 images (190 PNG) are much larger than the model needs" in text
    assert "560 px on the shorter side" in text
    assert "large JPEG" not in text
    text = said(GPU, 1, 90, 3, model=1, whole=42, images=replace(SMALL_JPEG, large=200))
    assert "200 of 256 images are large JPEG files" in text
    assert "in full" not in text
    # Where reading is a small part of the time, files are nobody's business.
    assert "larger" not in said(GPU, 0, 4, 0, model=20, whole=50, images=images)


def test_a_slow_disk_is_named_with_what_a_file_takes() -> None:
    text = said(GPU, 42.5, 3, 1, model=1, whole=85)
    assert "what limits is reading." in text
    assert "A file takes 42.5 ms to come from the disk" in text


def test_exact_pixels_are_told_of_where_they_cost_time() -> None:
    exact = replace(SMALL_JPEG, exact=True, oversized={"JPEG": 256})
    text = said(GPU, 1, 90, 30, model=1, whole=33, images=exact)
    assert "--no-exact-pixels" in text
    assert "JPEG copies" not in text
    mixed = replace(exact, oversized={"JPEG": 200, "PNG": 56})
    assert "56 of 256 images (56 PNG)" in said(GPU, 1, 90, 30, model=1, whole=33, images=mixed)
    assert "exact" not in said(GPU, 0, 1, 1, model=20, whole=50, images=exact)


def test_precision_is_told_of_where_another_one_is_faster() -> None:
    fp32 = replace(GPU, precision="fp32")
    assert "This GPU is much faster in bf16" in said(fp32, 0, 1, 1, model=5, whole=200)
    assert "precision" not in said(GPU, 0, 1, 1, model=5, whole=200)
    has_units = replace(CPU, fast_bf16=True)
    assert "This processor is much faster in bf16" in said(has_units, 0, 1, model=50, whole=20)
    imitates = said(replace(CPU, precision="bf16"), 0, 1, 1, model=500, whole=2)
    assert "no units for bf16 and only imitates it: --precision auto" in imitates


def test_int8_is_told_of_where_the_processor_gains_by_it_and_does_not_use_it() -> None:
    gains = replace(CPU, fast_int8=True)
    text = said(gains, 0, 1, 1, model=500, whole=2)
    assert "--precision int8 (pip install 'lookalike[int8]')" in text
    for other in (CPU, replace(gains, precision="int8"), replace(gains, better_device="cuda")):
        assert "int8" not in said(other, 0, 1, 1, model=500, whole=2)


def test_on_a_cpu_a_smaller_model_is_named_with_how_much_less_it_computes() -> None:
    large = said(CPU, 0, 1, 1, model=900, whole=1.1, gigaflops=383)
    assert "A GPU would be many times as fast, or a processor with units for bf16." in large
    assert "openai/clip-vit-base-patch32 computes 44 times less" in large
    small = said(CPU, 0, 1, 1, model=20, whole=50, gigaflops=8.7)
    assert "openai" not in small
    unused = said(replace(CPU, better_device="cuda"), 0, 1, 1, model=900, whole=1.1)
    assert "This machine has a cuda device: --device auto takes it." in unused
    assert "A GPU would be" not in unused
    one_thread = said(replace(CPU, num_threads=1), 0, 1, 1, model=900, whole=1.1)
    assert "1 thread of 8 cores: leave OMP_NUM_THREADS unset" in one_thread


def test_small_batches_on_a_gpu_are_told_of() -> None:
    hasty = said(GPU, 0, 0.1, 0.1, model=0.1, whole=9000)
    assert "A batch of 64 takes 6 ms" in hasty
    assert "--eval-batch-size 256" in hasty
    busy = said(GPU, 0, 0.1, 0.1, model=2, whole=490)
    assert busy.splitlines() == [
        "The whole reaches 98% of what the model alone would; what limits is the model.",
        "The device is well used. A smaller model is faster, and so are more GPUs.",
    ]
    assert "--eval-batch-size" not in said(replace(GPU, batch_size=256), 0, 0.1, model=0.05,
                                           whole=9000)  # fmt: skip


def test_a_whole_that_is_faster_than_its_part_is_no_measurement() -> None:
    assert "That cannot be" in said(CPU, 0, 1, 1, model=100, whole=14)
    assert "That cannot be" not in said(CPU, 0, 1, 1, model=100, whole=11)
