"""Classes that are kept from training, so that a test shows what the model does with new ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from lookalike.config import holdout_bounds
from lookalike.errors import DataError


def held_out_classes(labels: Iterable[str], holdout: str, seed: int) -> set[str]:
    """Returns the classes of `labels` that a holdout keeps from training.

    Classes are put into an order that depends on seed and names alone. A share takes the first of
    them; of n folds each takes a part, and every class is in exactly one.

    >>> sorted(held_out_classes("abcdef", "0.5", seed=0))
    ['a', 'd', 'f']
    >>> [sorted(held_out_classes("abcdef", f"{fold}/3", seed=0)) for fold in (1, 2, 3)]
    [['d', 'f'], ['a', 'c'], ['b', 'e']]

    Args:
        labels: of all images, of training and test.
        holdout: a share between 0 and 1, such as "0.5", or a fold, such as "2/5".
        seed: another seed, another order.

    Raises:
        ConfigError: `holdout` is neither.
        DataError: fewer than two classes would be left on either side.
    """
    order = sorted(set(labels), key=lambda label: (_digest(seed, label), label))
    low, high = holdout_bounds(holdout)
    first, last = (math.floor(edge * len(order) + 0.5) for edge in (low, high))
    chosen = order[first:last]
    if len(chosen) < 2 or len(order) - len(chosen) < 2:
        raise DataError(
            f"holdout_classes {holdout} of {len(order)} classes keeps {len(chosen)} for the test "
            f"and leaves {len(order) - len(chosen)} to learn from; both need two at least"
        )
    return set(chosen)


def _digest(seed: int, label: str) -> str:
    return hashlib.sha256(f"{seed}:{label}".encode("utf-8", "surrogateescape")).hexdigest()
