"""Retrieval metrics as pure functions of ranked relevance.

`relevant[q, r]` says whether the picture at rank r + 1 of query q has the query's label;
`num_relevant[q]` is how many such pictures the whole gallery holds for it. All functions give
one number a query, in 0..1, and need `num_relevant >= 1`: a query without an answer in the
gallery has no score, and is counted apart by the caller.

All three are defined in Musgrave et al., "A Metric Learning Reality Check" (ECCV 2020),
sections 2.2 and 3.1, and in Manning et al., "Introduction to Information Retrieval", ch. 8.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor


def recall_at_k(relevant: Bool[Tensor, "queries ranks"], k: int) -> Float64[Tensor, " queries"]:
    """1 if any of the first k results is right, else 0 (also called hit rate, or Recall@k).

    >>> recall_at_k(torch.tensor([[False, True, True], [False, False, True]]), k=2)
    tensor([1., 0.], dtype=torch.float64)
    """
    return relevant[:, :k].any(dim=1).double()


def average_precision(
    relevant: Bool[Tensor, "queries ranks"], num_relevant: Int64[Tensor, " queries"]
) -> Float64[Tensor, " queries"]:
    """The precision at the rank of each right picture, summed, over the number of right pictures.

    Needs the ranking of the whole gallery; its mean over queries is mAP. Right pictures that
    were not retrieved count as zero: the denominator is what the gallery holds, not what was
    found. Below: right at ranks 1 and 3 of two right ones, (1/1 + 2/3) / 2.

    >>> average_precision(torch.tensor([[True, False, True, False]]), torch.tensor([2]))
    tensor([0.8333], dtype=torch.float64)
    """
    ranks = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64, device=relevant.device)
    precision = relevant.cumsum(dim=1).double() / ranks
    return (precision * relevant).sum(dim=1) / num_relevant


def average_precision_at_r(
    relevant: Bool[Tensor, "queries ranks"], num_relevant: Int64[Tensor, " queries"]
) -> Float64[Tensor, " queries"]:
    """Average precision over the first R ranks only, R being the number of right pictures.

    Its mean over queries is mAP@R: 1 only if all right pictures come before all wrong ones.
    Below R = 2: right at rank 1 and not at rank 2, (1/1 + 0) / 2.

    >>> average_precision_at_r(torch.tensor([[True, False, True, False]]), torch.tensor([2]))
    tensor([0.5000], dtype=torch.float64)
    """
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    return average_precision(relevant & (ranks <= num_relevant[:, None]), num_relevant)
