"""Average precision itself, made smooth."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lookalike.training.losses.batch import (
    check_batch,
    check_temperature,
    in_full_precision,
    no_positives,
)

COMPARED_BYTES = 2**26
"""Comparisons of one block of anchors in memory at once, beside the batch."""


class SmoothAPLoss(nn.Module):
    r"""1 - Smooth-AP of Brown et al., ECCV 2020, equation 8, for classes of any size.

    Each image of the batch searches in all the others. The rank of a positive p of anchor i,
    among all or among positives alone, is made smooth by a sigmoid of similarity differences:

        rank(p) = 1 + sum_{a != p} sigmoid((z_i.z_a - z_i.z_p) / T)
        AP_i = 1/|P(i)| sum_{p in P(i)} rank among P(i) / rank among all

    The loss is the mean of 1 - AP_i over the anchors that have a positive. As T goes to 0 it is
    the exact mean average precision of the batch. Computed in float32 (float64 for float64 input)
    whatever autocast does, in blocks of anchors that are computed anew in the backward pass.
    Time grows with batch^2 x positives.

    >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round(SmoothAPLoss()(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.0
    >>> round(SmoothAPLoss()(embeddings, torch.tensor([0, 1, 0, 1])).item(), 4)  # a tie: rank 2.5
    0.6

    Args:
        temperature: T above 0; the paper's is 0.01.
    """

    def __init__(self, temperature: float = 0.01) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self, embeddings: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The loss of one batch of L2-normalised embeddings.

        Raises:
            ValueError: shapes that do not belong together.
            NoPositivesError: no anchor has a positive.
        """
        check_batch(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = in_full_precision(embeddings)
            same = labels[:, None] == labels
            same.fill_diagonal_(False)
            most = int(same.sum(dim=1).max()) if len(labels) else 0
            if not most:
                raise no_positives(len(labels))
            anchors = same.any(dim=1).nonzero()[:, 0]
            bytes_each = most * len(labels) * embeddings.element_size()
            parts = [
                checkpoint(self._sum, embeddings, same, block, use_reentrant=False)
                for block in anchors.split(max(1, COMPARED_BYTES // bytes_each))
            ]
            precision: Tensor = torch.stack(parts).sum() / len(anchors)
            return 1 - precision

    def _sum(
        self,
        embeddings: Float[Tensor, "batch dim"],
        same: Bool[Tensor, "batch batch"],
        anchors: Int64[Tensor, " block"],
    ) -> Float[Tensor, ""]:
        """The sum of some anchors' smooth average precisions."""
        similarities = embeddings[anchors] @ embeddings.T
        positive = same[anchors]
        others = torch.ones_like(positive)
        others[torch.arange(len(anchors)), anchors] = False
        row, column = positive.nonzero(as_tuple=True)  # a line for each anchor and positive of it
        ahead = (similarities[row] - similarities[row, column, None]) / self.temperature
        ahead = torch.sigmoid(ahead)
        # A positive is ahead of itself by a half, which is not to count: the ranks begin at 1.
        among_all = 0.5 + (ahead * others[row]).sum(dim=1)
        among_positives = 0.5 + (ahead * positive[row]).sum(dim=1)
        each = among_positives / among_all / positive.sum(dim=1)[row]
        return each.sum()
