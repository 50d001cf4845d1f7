"""Batches from the loader against images read and cut one by one."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data.images import Unreadable
from lookalike.data.reading.decode import probe_image, read_image
from lookalike.data.reading.loader import ImageLoader, chunks
from lookalike.data.reading.reader import Batch, Request
from lookalike.data.transforms import Augmentation, Preprocessing, augment, preprocess
from lookalike.runtime.device import Runtime

HOW = Preprocessing(16, 12, None, 3, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CHANGES = Augmentation("crop-flip", 0.3)
RUNTIME = Runtime(torch.device("cpu"), "fp32", 0)
LABELS = ["cat"] * 4 + ["dog"] * 4 + ["owl"] * 2


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Ten images of noise: four cats, four dogs, two owls."""
    return write_images(tmp_path)


def write_images(folder: Path) -> list[str]:
    for number in range(len(LABELS)):
        values = np.random.default_rng(number).integers(0, 256, (40, 48, 3))
        Image.fromarray(values.astype(np.uint8)).save(folder / f"{number}.jpg")
    return [str(folder / f"{number}.jpg") for number in range(len(LABELS))]


def truncate(*paths: str) -> None:
    """Cuts files so that the header is whole and the pixels are not."""
    for path in paths:
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        probe_image(path)


def loader(
    paths: Sequence[str],
    num_workers: int = 0,
    training: bool = True,
    augmentation: Augmentation | None = CHANGES,
    max_megapixels: float = 10,
) -> ImageLoader:
    return ImageLoader(
        paths,
        HOW,
        Runtime(torch.device("cpu"), "fp32", num_workers),
        max_megapixels=max_megapixels,
        augmentation=augmentation if training else None,
        labels=LABELS if training else None,
    )


def plain(path: str) -> torch.Tensor:
    return preprocess(read_image(path), HOW)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.pixels, other.pixels) and one[1:] == other[1:]


# Evaluation


def test_images_are_read_in_the_order_asked_for(paths: list[str]) -> None:
    requests = [Request([3, 1]), Request([9]), Request([0, 4, 8])]
    batches = list(loader(paths, training=False).read(requests))
    assert [batch.indices for batch in batches] == [[3, 1], [9], [0, 4, 8]]
    for batch in batches:
        assert batch.pixels.dtype == torch.uint8
        assert batch.unreadable == []
        assert batch.lost == []
        expected = torch.stack([plain(paths[index]) for index in batch.indices])
        assert torch.equal(batch.pixels, expected)


def test_chunks_cover_every_image_once_in_order() -> None:
    assert [list(request.indices) for request in chunks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(request.indices) for request in chunks(6, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert list(chunks(0, 3)) == []
    assert all(request.seed is None for request in chunks(7, 3))


def test_in_evaluation_an_unreadable_image_is_left_out_and_named(paths: list[str]) -> None:
    truncate(paths[1])
    Path(paths[2]).unlink()
    (batch,) = loader(paths, training=False).read([Request([0, 1, 2, 3])])
    assert batch.indices == [0, 3]
    assert torch.equal(batch.pixels, torch.stack([plain(paths[0]), plain(paths[3])]))
    assert [one.path for one in batch.unreadable] == [paths[1], paths[2]]
    assert "truncated" in batch.unreadable[0].reason
    assert batch.unreadable[1].reason == "No such file or directory"
    assert batch.lost == [1, 2]


def test_in_evaluation_a_batch_without_an_image_is_empty(paths: list[str]) -> None:
    truncate(paths[1], paths[2])
    empty, full = loader(paths, training=False).read([Request([1, 2]), Request([3])])
    assert empty.pixels.shape == (0, 3, 16, 12)
    assert (empty.indices, len(empty.unreadable)) == ([], 2)
    assert full.indices == [3]


def test_the_size_limit_holds_here_too(paths: list[str]) -> None:
    Image.new("RGB", (100, 100)).save(paths[1])
    (batch,) = loader(paths, training=False, max_megapixels=0.005).read([Request([0, 1])])
    assert batch.indices == [0]
    assert "above the limit of 0.005" in batch.unreadable[0].reason


# Augmentation


def test_augmentation_depends_on_the_seed_of_the_request_and_the_place_alone(
    paths: list[str],
) -> None:
    first = Request([5, 2, 7], seed=(1, 2, 3))
    others = [Request([0, 1], (9,)), Request([2, 2], (1, 2, 3))]
    (alone,) = loader(paths).read([first])
    *_, last = loader(paths).read([*others, first])
    assert torch.equal(alone.pixels, last.pixels)
    expected = [
        augment(read_image(paths[index]), HOW, CHANGES, np.random.default_rng((1, 2, 3, place)))
        for place, index in enumerate(first.indices)
    ]
    assert torch.equal(alone.pixels, torch.stack(expected))


def test_another_seed_or_another_place_changes_the_augmentation(paths: list[str]) -> None:
    requests = [Request([4, 4], (0, 0)), Request([4, 4], (0, 1)), Request([4, 4], (1, 0))]
    seen = {image.numpy().tobytes() for batch in loader(paths).read(requests) for image in batch[0]}
    assert len(seen) == 6


def test_without_augmentation_training_reads_the_plain_pixels(paths: list[str]) -> None:
    unchanged = Augmentation("none", 0.3)
    (batch,) = loader(paths, augmentation=unchanged).read([Request([6, 0], (1,))])
    assert torch.equal(batch.pixels, torch.stack([plain(paths[6]), plain(paths[0])]))


# Replacement


def test_a_truncated_image_is_replaced_by_another_of_its_class(paths: list[str]) -> None:
    truncate(paths[5])
    (batch,) = loader(paths).read([Request([0, 5, 8], (3,))])
    assert batch.pixels.shape == (3, 3, 16, 12)
    first, stand_in, last = batch.indices
    assert (first, last) == (0, 8)
    assert stand_in in {4, 6, 7}
    assert batch.unreadable == [Unreadable(paths[5], batch.unreadable[0].reason)]
    assert "truncated" in batch.unreadable[0].reason
    # The pixels are those of the image that `indices` names, changed as its place asks.
    expected = augment(read_image(paths[stand_in]), HOW, CHANGES, np.random.default_rng((3, 1)))
    assert torch.equal(batch.pixels[1], expected)


@pytest.mark.parametrize("request_", [[4, 5, 6], [5, 4, 6], [6, 4, 5], [4, 6, 5]])
def test_an_image_that_is_in_the_batch_already_is_no_stand_in(
    paths: list[str], request_: list[int]
) -> None:
    truncate(paths[5])
    (batch,) = loader(paths).read([Request(request_, (0,))])
    assert sorted(batch.indices) == [4, 6, 7]


def test_two_bad_images_of_a_class_get_different_stand_ins(paths: list[str]) -> None:
    truncate(paths[4], paths[5])
    (batch,) = loader(paths).read([Request([4, 5], (0,))])
    assert sorted(batch.indices) == [6, 7]
    assert sorted(one.path for one in batch.unreadable) == [paths[4], paths[5]]


def test_a_stand_in_may_be_in_the_batch_where_there_is_no_other(paths: list[str]) -> None:
    truncate(paths[8])
    (batch,) = loader(paths).read([Request([8, 9], (0,))])
    assert batch.indices == [9, 9]
    assert not torch.equal(batch.pixels[0], batch.pixels[1])  # changed in two ways at least


def test_two_parts_of_a_batch_are_read_as_the_whole(paths: list[str]) -> None:
    """As two processes read it: the same changes, and stand-ins that are in neither part."""
    truncate(paths[5])
    whole = [0, 5, 4, 6]
    requests = [
        Request(whole, (3,)),
        Request(whole[:2], (3,), 0, whole),
        Request(whole[2:], (3,), 2, whole),
    ]
    expected, first, second = loader(paths).read(requests)
    assert first.indices + second.indices == expected.indices == [0, 7, 4, 6]
    assert torch.equal(torch.cat([first.pixels, second.pixels]), expected.pixels)


def test_each_bad_file_is_named_once_a_batch(paths: list[str]) -> None:
    truncate(paths[5], paths[6])
    one, two = loader(paths).read([Request([5, 6, 5, 4], (0,)), Request([5, 4], (1,))])
    assert sorted(bad.path for bad in one.unreadable) == [paths[5], paths[6]]
    assert len(one.indices) == 4
    assert set(one.indices) == {4, 7}
    assert two.unreadable[0].path == paths[5]
    assert len({bad.path for bad in two.unreadable}) == len(two.unreadable)


def test_a_bad_stand_in_is_named_as_well(paths: list[str]) -> None:
    truncate(*paths[4:7])
    (batch,) = loader(paths).read([Request([4], (0,))])
    assert batch.indices == [7]
    assert sorted(one.path for one in batch.unreadable) == paths[4:7]


def test_a_class_without_an_image_that_can_be_decoded_is_lost_and_the_rest_is_kept(
    paths: list[str],
) -> None:
    truncate(*paths[8:])
    (batch,) = loader(paths).read([Request([0, 9, 4], (1,))])
    assert batch.indices == [0, 4]
    assert batch.lost == [9]
    assert sorted(one.path for one in batch.unreadable) == paths[8:]
    # What is kept is changed as its place in the request asks, not in the shorter batch.
    expected = augment(read_image(paths[4]), HOW, CHANGES, np.random.default_rng((1, 2)))
    assert torch.equal(batch.pixels[1], expected)


def test_a_batch_of_which_all_is_lost_is_empty(paths: list[str]) -> None:
    truncate(*paths[8:])
    (batch,) = loader(paths).read([Request([8, 9], (1,))])
    assert batch.pixels.shape == (0, 3, 16, 12)
    assert (batch.indices, batch.lost) == ([], [8, 9])
    assert len(batch.unreadable) == 2


@pytest.mark.parametrize("error", [MemoryError(), ValueError("no")])
def test_an_image_that_cannot_be_cut_counts_as_unreadable(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails_when_wide(image: Image.Image, how: Preprocessing) -> torch.Tensor:
        if image.width == 50:
            raise error
        return preprocess(image, how)

    Image.new("RGB", (50, 20)).save(paths[1])
    monkeypatch.setattr("lookalike.data.reading.reader.preprocess", fails_when_wide)
    (batch,) = loader(paths, training=False).read([Request([0, 1], (1,))])
    assert (batch.indices, batch.lost) == ([0], [1])
    assert batch.unreadable == [Unreadable(paths[1], "cannot be resized (50x20 px)")]


# Random numbers and repetition


def test_reading_never_moves_the_global_random_state(paths: list[str]) -> None:
    reader = loader(paths)
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), pickle.dumps(np.random.get_state())
    list(reader.read([Request([0, 5], (1,)), Request([3], (2,))]))
    list(loader(paths, training=False).read(chunks(10, 4)))
    assert torch.equal(torch.get_rng_state(), state)
    assert pickle.dumps(np.random.get_state()) == numpy_state


def test_the_global_random_state_does_not_change_what_is_read(paths: list[str]) -> None:
    request = Request([0, 5, 9], (7,))
    torch.manual_seed(1)
    (one,) = loader(paths).read([request])
    torch.manual_seed(2)
    (two,) = loader(paths).read([request])
    assert same(one, two)


def test_requests_may_come_from_a_generator_and_be_read_again(paths: list[str]) -> None:
    reader = loader(paths, training=False)
    assert reader.num_images == 10
    for batch_size in (3, 10, 4):
        read = [batch.indices for batch in reader.read(chunks(10, batch_size))]
        assert [index for indices in read for index in indices] == list(range(10))


# Parts of large batches


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_a_batch_that_is_read_in_parts_is_the_same_batch(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, training: bool, images: int
) -> None:
    truncate(paths[5], paths[6], *paths[8:])
    whole = [0, 1, 4, 5, 6, 8, 9, 2]
    requests = [Request(whole, (3,)), Request([1, 2], (4,)), Request(()), Request([6, 5], (5,))]
    requests += [Request(whole[2:5], (3,), 2, whole), Request([5, 0, 1, 7], (6,))]
    expected = list(loader(paths, training=training).read(requests))
    monkeypatch.setattr("lookalike.data.reading.loader._PART_BYTES", images * 3 * 16 * 12)
    read = list(loader(paths, training=training).read(requests))
    assert len(read) == len(expected)
    assert all(same(one, other) for one, other in zip(read, expected, strict=True))
    assert [batch.lost for batch in read] == [batch.lost for batch in expected]


def test_a_class_is_never_in_two_parts_since_its_stand_ins_must_differ(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.data.reading.loader._PART_BYTES", 3 * 3 * 16 * 12)
    whole = [0, 1, 4, 5, 6, 8, 9, 2]
    parts = loader(paths)._in_parts([Request(whole, (3,), 8)], deque())
    assert [(list(one.indices), one.first, one.seed) for one in parts] == [
        ([0, 1, 4, 5, 6], 8, (3,)),
        ([8, 9, 2], 13, (3,)),
    ]
    evaluated = loader(paths, training=False)._in_parts([Request(whole)], deque())
    assert [list(one.indices) for one in evaluated] == [[0, 1, 4], [5, 6, 8], [9, 2]]


@pytest.mark.parametrize("side", [16, 224, 336, 518, 896])
@pytest.mark.parametrize("num_workers", [1, 4, 16, 32])
def test_what_is_read_ahead_fits_into_a_gigabyte(side: int, num_workers: int) -> None:
    how = replace(HOW, height=side, width=side)
    runtime = Runtime(torch.device("cpu"), "fp32", num_workers)
    reader = ImageLoader([""], how, runtime, max_megapixels=1)
    parts = list(reader._in_parts([Request(range(4096))], deque()))
    assert [index for part in parts for index in part.indices] == list(range(4096))
    assert reader._pool is not None
    at_once = num_workers * reader._pool.ahead
    assert at_once * max(len(part.indices) for part in parts) * 3 * side * side <= 2**30
    assert at_once >= min(2 * num_workers, 32)


# Two worker processes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of which number 5 is truncated and owls cannot be decoded at all."""
    paths = write_images(tmp_path_factory.mktemp("shared"))
    truncate(paths[5], *paths[8:])
    return paths


@pytest.fixture(scope="module")
def two_workers(shared: list[str]) -> ImageLoader:
    """A loader whose workers stay alive from test to test; they take seconds to start."""
    return loader(shared, num_workers=2)


def test_two_workers_read_the_parts_of_a_batch_and_it_comes_whole(
    shared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request([0, 4, 5, 8, 9, 1], (number,)) for number in range(5)]
    expected = list(loader(shared).read(requests))
    monkeypatch.setattr("lookalike.data.reading.loader._PART_BYTES", 2 * 3 * 16 * 12)
    in_parts = loader(shared, num_workers=2)
    next(in_parts.read(requests))  # and broken off
    read = list(in_parts.read(requests))
    assert len(read) == len(expected)
    assert all(same(one, other) for one, other in zip(read, expected, strict=True))


def test_two_workers_give_the_batches_that_one_process_gives(
    shared: list[str], two_workers: ImageLoader
) -> None:
    requests = [Request([number % 8, (number * 3 + 1) % 8], (4, number)) for number in range(12)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with_workers = list(two_workers.read(requests))
    assert torch.equal(torch.get_rng_state(), state)
    alone = list(loader(shared).read(requests))
    assert len(with_workers) == len(alone) == 12
    assert all(same(one, other) for one, other in zip(with_workers, alone, strict=True))
    assert any(batch.unreadable for batch in with_workers)


def test_workers_stay_alive_from_one_reading_to_the_next(two_workers: ImageLoader) -> None:
    # Epochs are many; starting processes that import torch for each would take seconds.
    alive = []
    for index in range(2):
        assert len(list(two_workers.read([Request([index], (0,))]))) == 1
        alive.append({process.pid for process in multiprocessing.active_children()})
    assert len(alive[0]) >= 2
    assert alive[0] == alive[1]


def test_workers_can_be_asked_again_after_a_reading_was_broken_off(
    shared: list[str], two_workers: ImageLoader
) -> None:
    many = [Request([number % 4], (number,)) for number in range(30)]
    broken_off = two_workers.read(many)
    assert next(broken_off).indices == [0]
    del broken_off
    for _ in range(2):
        again = list(two_workers.read([Request([6, 7], (1,)), Request([1], (2,))]))
        assert [batch.indices for batch in again] == [[6, 7], [1]]


def test_workers_tell_of_a_lost_class_and_go_on(
    shared: list[str], two_workers: ImageLoader
) -> None:
    requests = [Request([0], (0,)), Request([1, 8], (1,)), Request([2], (2,))]
    batches = list(two_workers.read(requests))
    assert [batch.indices for batch in batches] == [[0], [1], [2]]
    assert [batch.lost for batch in batches] == [[], [8], []]
    assert [one.path for one in batches[1].unreadable] == [shared[8], shared[9]]


# How much is decoded


def test_large_jpeg_files_are_decoded_no_larger_than_they_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    across = np.linspace(0, 255, 800).astype(np.uint8)
    path = str(tmp_path / "large.jpg")
    Image.fromarray(np.broadcast_to(across[None, :, None], (600, 800, 3)).copy()).save(path)
    sizes: list[tuple[int, int]] = []

    def watched(*given: Any, **named: Any) -> Image.Image:
        image = read_image(*given, **named)
        sizes.append(image.size)
        return image

    monkeypatch.setattr("lookalike.data.reading.reader.read_image", watched)
    pixels = {}
    for exact in (True, False):
        reader = ImageLoader([path], replace(HOW, exact=exact), RUNTIME, max_megapixels=10)
        (batch,) = reader.read([Request([0])])
        pixels[exact] = batch.pixels.float()
    assert sizes == [(800, 600), (100, 75)]
    assert (pixels[True] - pixels[False]).abs().max() <= 2


def test_each_file_is_decoded_once_an_epoch(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def watched(path: str, *given: Any, **named: Any) -> Image.Image:
        read.append(path)
        return read_image(path, *given, **named)

    monkeypatch.setattr("lookalike.data.reading.reader.read_image", watched)
    for _ in loader(paths).read(chunks(len(paths), 4)):
        pass
    assert read == paths


def test_what_a_reader_is_sent_does_not_grow_with_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Child:
        DupFd = staticmethod(int)  # what stands for an open file in what is sent

        def duplicate_for_child(self, file: int) -> int:
            return file

    monkeypatch.setattr("multiprocessing.context.get_spawning_popen", Child)
    sizes = []
    for count in (10, 100_000):
        reader = ImageLoader(
            [f"class/{number}.jpg" for number in range(count)],
            HOW,
            RUNTIME,
            max_megapixels=1,
            augmentation=CHANGES,
            labels=[f"class {number % 5}" for number in range(count)],
        )
        sizes.append(len(ForkingPickler.dumps(reader._reader)))
    assert sizes[1] < sizes[0] + 100
