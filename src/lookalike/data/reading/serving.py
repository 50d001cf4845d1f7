"""The life of a process that reads images: requests in, batches out, as `workers` wants them."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import struct
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike.data.reading.reader import Batch, Reader
from lookalike.data.reading.shared import SharedBlock
from lookalike.errors import first_line

AT = struct.Struct("<qq")
"""At the start of the shared block: position of the image that is read, and how many were begun."""

SLOTS_START = 4096
"""Bytes of the shared block before the pixels."""


class Failed(NamedTuple):
    """What a reading process raised, which is for the one that asked, and where."""

    error: Exception
    text: str


def serve(
    connection: Connection, reader: Reader, block: SharedBlock, slots: tuple[int, int]
) -> None:
    """Reads what the other end of a connection asks for, until nobody does any more.

    Args:
        connection: requests in, batches out.
        reader: reads.
        block: where it says what it is at, and puts pixels.
        slots: how many batches it has room for, and the bytes of each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main one, to end its step
    torch.set_num_threads(1)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # A thread of its own takes requests, so that whoever asks never waits, and sees at once when
    # the main process is gone, even killed.
    threading.Thread(target=_take, args=(connection, requests), daemon=True).start()
    begun = 0

    def begins(index: int) -> None:
        nonlocal begun
        begun += index >= 0
        if block.content is not None:
            AT.pack_into(block.content, 0, index, begun)

    reader.begins = begins
    with suppress(OSError):  # of sending: nobody is there any more
        connection.send(None)
        while True:
            number, nth, request, given_up = requests.get()
            try:
                batch = reader.read(request, given_up)
            except Exception as error:
                connection.send((number, _failed(error), None, None))
                continue
            begins(-1)
            _send(connection, number, nth, batch, block, slots)


def _send(
    connection: Connection,
    number: int,
    nth: int,
    batch: Batch,
    block: SharedBlock,
    slots: tuple[int, int],
) -> None:
    """Sends a batch, its pixels in a slot if they fit: whoever asks takes them in turn."""
    pixels, (num_slots, slot_bytes) = batch.pixels, slots
    fits = num_slots and block.content is not None and pixels.numel() <= slot_bytes
    slot = nth % num_slots if fits else None
    rest = batch._replace(pixels=torch.empty(0))
    if slot is not None and pixels.numel():
        start = SLOTS_START + slot * slot_bytes
        there: Tensor = torch.frombuffer(
            block.content, dtype=torch.uint8, count=pixels.numel(), offset=start
        )
        there.copy_(pixels.reshape(-1))
    connection.send((number, rest, tuple(pixels.shape), slot))
    if slot is None:
        connection.send_bytes(pixels.contiguous().view(-1).numpy().data)


def _take(connection: Connection, requests: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _failed(error: Exception) -> Failed:
    """Returns an error as it can be sent, with where it happened."""
    text = f"in a process that reads images:\n{traceback.format_exc()}"
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:  # whatever a library puts into its errors
        return Failed(RuntimeError(first_line(error)), text)
    return Failed(error, text)
