"""Rows of one matrix or of several shards, against a torch tensor that holds the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lookalike.search.rows import Rows

CUTS = {"one shard": [], "several": [3, 3, 8], "one row each": list(range(1, 12))}
ORDERS = {
    "as they are": None,
    "every other one backwards": np.arange(11, -1, -2),
    "one twice": np.array([4, 0, 11, 4]),
    "counted from the end": np.array([-1, 2, -12]),
}


def both(cuts: list[int], order: np.ndarray | None, *, as_array: bool) -> tuple[Rows, Tensor]:
    """Rows, and the tensor that they are said to be like."""
    whole = torch.arange(24.0).reshape(12, 2)
    shards = np.split(whole.numpy(), cuts)
    rows = Rows(shards if as_array else [torch.from_numpy(shard) for shard in shards], order)
    return rows, whole if order is None else whole[order]


def taken(of: Any, which: Any) -> Any:
    """What indexing gives, or that there is no such row."""
    try:
        return of[which].tolist()
    except IndexError:
        return IndexError


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cuts", CUTS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_indexing_gives_what_it_gives_of_a_tensor(
    cuts: str, order: str, as_array: bool, data: st.DataObject
) -> None:
    rows, tensor = both(CUTS[cuts], ORDERS[order], as_array=as_array)
    count = len(tensor)
    position = st.integers(-count - 1, count)
    sizes = st.sampled_from([count, count, count, count + 1])
    which = data.draw(
        st.one_of(
            position,
            position.map(torch.tensor),
            st.slices(count).filter(lambda one: one.step is None or one.step > 0),
            st.lists(position, max_size=5).map(lambda one: torch.tensor(one, dtype=torch.int64)),
            st.lists(st.lists(position, min_size=2, max_size=2), min_size=1, max_size=3).map(
                torch.tensor
            ),
            sizes.flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n)).map(
                torch.tensor
            ),
        )
    )
    assert taken(rows, which) == taken(tensor, which)
    inner = np.array([-1, 0])
    assert taken(Rows(rows, inner), which) == taken(tensor[inner], which)


def test_a_mask_over_several_shards_gives_the_rows_where_it_is_true() -> None:
    rows = Rows([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])])
    assert rows[torch.tensor([False, True, True])].tolist() == [[2.0], [3.0]]
    assert rows[torch.tensor([-1, 0])].tolist() == [[3.0], [1.0]]
    assert rows[-1].tolist() == [3.0]
    for outside in (3, -4, torch.tensor([0, 3]), torch.tensor([True])):
        with pytest.raises(IndexError):
            rows[outside]
