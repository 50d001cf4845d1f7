"""The supervised contrastive loss."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lookalike.errors import NoPositivesError


class SupConLoss(nn.Module):
    r"""Supervised contrastive loss of Khosla et al., NeurIPS 2020, equation 2 (L_out).

    For each anchor i with embedding z_i, over all other pictures A(i) of the batch and those
    of its class P(i):

        L_i = -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p / T) / sum_{a in A(i)} exp(z_i.z_a / T) )

    The loss is the mean of L_i over the anchors that have a positive; the others still serve as
    negatives. It is computed in float32 (float64 for float64 input) whatever autocast does.

    Args:
        temperature: T above 0; the smaller, the more the hardest negatives count.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.temperature = temperature

    def forward(
        self,
        embeddings: Float[Tensor, "batch dim"] | Float[Tensor, "batch views dim"],
        labels: Int64[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """The loss of one batch.

        Args:
            embeddings: L2-normalised. With a `views` axis, several views of each picture: the
                views of one picture are positives of each other.
            labels: the class of each picture, whole numbers of any size.

        Raises:
            ValueError: shapes that do not belong together.
            NoPositivesError: no anchor has a positive.
        """
        if embeddings.ndim not in (2, 3) or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"embeddings of shape {tuple(embeddings.shape)} and labels of shape "
                f"{tuple(labels.shape)}; expected (batch, dim) or (batch, views, dim), and (batch,)"
            )
        if embeddings.ndim == 3:
            labels = labels.repeat_interleave(embeddings.shape[1])
            embeddings = embeddings.flatten(0, 1)
        with torch.autocast(embeddings.device.type, enabled=False):
            if embeddings.dtype != torch.float64:
                embeddings = embeddings.float()
            return _supcon(embeddings, labels, self.temperature)


def _supcon(
    embeddings: Float[Tensor, "n dim"], labels: Int64[Tensor, " n"], temperature: float
) -> Float[Tensor, ""]:
    same: Bool[Tensor, "n n"] = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positives = same & ~itself
    num_positives = positives.sum(dim=1)
    is_anchor = num_positives > 0
    if not is_anchor.any():
        raise NoPositivesError(
            f"none of the {len(labels)} pictures of the batch has another of its class; "
            "draw at least 2 of each class (n_samples_per_class)"
        )
    logits = embeddings @ embeddings.T / temperature
    # The self-similarity, always the largest, must not reach max or log-sum-exp.
    logits = logits.masked_fill(itself, float("-inf"))
    log_prob = logits - logits.logsumexp(dim=1, keepdim=True)
    # where, not a product: the masked diagonal is -inf, and -inf times 0 is not a number.
    summed = torch.where(positives, log_prob, 0).sum(dim=1)
    return -(summed[is_anchor] / num_positives[is_anchor]).mean()
