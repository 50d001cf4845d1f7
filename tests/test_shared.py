"""What reading processes share, seen from a process that was started with it."""

from __future__ import annotations

import multiprocessing
import pickle
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil
import pytest

from lookalike.data.reading.shared import SharedArray, SharedList

NAMES = ["cats/1.jpg", "", "Ünï/ 猫.png", "with\nnewline", "byte \udcff", "last"]


def answer(texts: SharedList[str], array: SharedArray, pipe: Connection) -> None:
    before = psutil.Process().memory_full_info().uss
    middle = texts[len(texts) // 2]
    total = int(array.values.sum())  # every page is looked at
    grown = psutil.Process().memory_full_info().uss - before
    pipe.send((list(texts[:6]), middle, total, grown))


@pytest.mark.parametrize("method", sorted({*multiprocessing.get_all_start_methods()} - {"fork"}))
def test_a_process_sees_the_same_without_a_copy(method: str) -> None:
    texts = SharedList(NAMES + ["x" * 90] * 200_000)
    array = SharedArray(np.arange(2_500_000))
    assert array.values.sum() > 0  # what another process has looked at as well is shared
    ours, theirs = multiprocessing.Pipe()
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=answer, args=(texts, array, theirs))
    process.start()
    try:
        first, middle, total, grown = ours.recv()
    finally:
        process.join()
    assert first == NAMES
    assert middle == "x" * 90
    assert total == 2_500_000 * 2_499_999 // 2
    assert grown < 5e6  # of 38 MB


def test_texts_are_a_sequence_of_what_was_put_in() -> None:
    texts = SharedList(NAMES)
    assert list(texts) == NAMES
    assert texts[-1] == "last"
    assert texts[1:3] == NAMES[1:3]
    assert texts[::-1] == NAMES[::-1]
    assert "Ünï/ 猫.png" in texts
    for beyond in (6, -7):
        with pytest.raises(IndexError):
            texts[beyond]
    assert list(SharedList([])) == []


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), ()])
def test_arrays_keep_their_shape_and_kind_and_can_be_pickled(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    for array in (SharedArray(values), pickle.loads(pickle.dumps(SharedArray(values)))):
        assert array.values.dtype == np.int32
        assert np.array_equal(array.values, values)


def test_what_is_shared_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        SharedArray(np.arange(3)).values[0] = 1


def test_without_room_for_temporary_files_an_array_is_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    array = SharedArray(np.arange(5))
    assert np.array_equal(array.values, np.arange(5))
    assert np.array_equal(pickle.loads(pickle.dumps(array)).values, np.arange(5))
