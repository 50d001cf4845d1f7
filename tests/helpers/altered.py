"""Copies of a document of dicts, lists, numbers, text and tensors, each with one entry altered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Place = tuple[Any, ...]
REMOVED = object()
_MOST_ALIKE = 2  # entries of a state, of which there may be hundreds


def entries(document: Any, path: Place = ()) -> Iterator[Place]:
    """Yields where all entries lie; of many tensors in one place, some."""
    if isinstance(document, dict):
        inner: list[Any] = list(document)
        alike = [key for key in inner if isinstance(document[key], (Tensor, dict))]
        if len(alike) > 12:
            inner = [key for key in inner if key not in alike[_MOST_ALIKE:]]
    elif isinstance(document, (list, tuple)):
        inner = list(range(min(len(document), _MOST_ALIKE)))
    else:
        return
    for key in inner:
        yield (*path, key)
        yield from entries(document[key], (*path, key))


def nested(depth: int) -> Any:
    document: Any = 0
    for _ in range(depth):
        document = {"a": [document]}
    return document


def alterations(value: Any) -> list[Any]:
    """Returns what may stand in the place of an entry, and should not."""
    # Few enough levels for `torch.save`.
    others = [REMOVED, None, "x", b"x", -1, 2**80, 1e300, float("nan"), [], {}, nested(60),
              "\x1b[31m\n../../x", torch.tensor([1.0, 2.0])]  # fmt: skip
    if isinstance(value, Tensor):
        others += [
            value.flatten()[:-1].clone() if value.numel() else value[None],
            torch.zeros(3, 5, 7),
            torch.full(value.shape, float("nan")),
            value.to(torch.int64) if value.is_floating_point() else value.double(),
            torch.zeros(1).expand(10**6, 10**6),
            value.clone().float().fill_(-1),
        ]
    if type(value) in (int, float):
        others += [-value - 1, value + 10**9, str(value), float(value) + 0.5, True]
    if isinstance(value, str):
        others += [value + "\n", "", "a" * 100_000]
    if isinstance(value, dict):
        others += [{**value, "more": 1}, {**value, 3: 1}, list(value.items())[:2]]
    if isinstance(value, (list, tuple)):
        others += [[*value, "more"], list(value)[:-1]]
    return others


def altered(document: Any, path: Place, other: Any) -> Any:
    """Returns a copy of a document with something else in one place."""
    key, *rest = path
    copied = dict(document) if isinstance(document, dict) else list(document)
    if rest:
        copied[key] = altered(document[key], tuple(rest), other)
    elif other is REMOVED:
        del copied[key]
    else:
        copied[key] = other
    return copied


def some(document: Any, count: int, seed: int) -> list[Any]:
    """Returns `count` altered copies, drawn at random, and what was altered in each."""
    paths = list(entries(document))
    rng, drawn = random.Random(seed), []
    for _ in range(count):
        path = rng.choice(paths)
        place = document
        for key in path:
            place = place[key]
        number = rng.randrange(len(alterations(place)))
        other = alterations(place)[number]
        drawn.append((f"{path} {number}", altered(document, path, other)))
    return drawn
