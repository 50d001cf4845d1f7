"""A learned centre for each class, with a margin around it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from lookalike.training.losses.supcon import check_batch, check_temperature, in_full_precision


class ArcFaceLoss(nn.Module):
    r"""Additive angular margin loss of Deng et al., CVPR 2019, equation 3.

    With theta_ij the angle between embedding i and the centre of class j:

        L_i = -log( exp(cos(theta_iy + m) / T) / (the same + sum_{j != y} exp(cos(theta_ij) / T)) )

    for y the class of i, averaged over the batch. Without a margin it is the normalised softmax
    (Zhai and Wu, BMVC 2019). Where theta + m would pass pi, at which the cosine turns back, the
    target falls on in a straight line instead: cos(theta) - m sin(m), as the authors' code does.
    Computed in float32 (float64 for float64 input) whatever autocast does.

    The centres are parameters, normalised when they are used; they begin as random directions.
    An optimiser must be given them.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> loss = ArcFaceLoss(num_classes=2, dim=2, temperature=0.5, margin=0.0)
    >>> with torch.no_grad():
    ...     _ = loss.centers.copy_(embeddings)
    >>> round(loss(embeddings, torch.tensor([0, 1])).item(), 4)  # log(1 + 1 / e^2)
    0.1269

    Args:
        num_classes: labels are 0 to num_classes - 1.
        dim: numbers in an embedding.
        temperature: T above 0; the scale s of the paper is 1 / T.
        margin: m in radians, 0 to pi / 2.
    """

    def __init__(
        self, num_classes: int, dim: int, temperature: float = 0.07, margin: float = 0.3
    ) -> None:
        super().__init__()
        if not 0 <= margin <= math.pi / 2:
            raise ValueError(f"margin is {margin}; it must be between 0 and pi / 2")
        self.temperature, self.margin = check_temperature(temperature), margin
        self.centers = nn.Parameter(functional.normalize(torch.randn(num_classes, dim), dim=1))

    def forward(
        self, embeddings: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Returns the loss of one batch of L2-normalised embeddings.

        Raises:
            ValueError: shapes that do not belong together, or a label without a centre.
        """
        check_batch(embeddings, labels)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.centers):
            raise ValueError(
                f"labels from {int(labels.min())} to {int(labels.max())}; there are "
                f"{len(self.centers)} centres, for labels 0 to {len(self.centers) - 1}"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, labels = in_full_precision(embeddings), labels.long()
            centers = functional.normalize(self.centers.to(embeddings.dtype), dim=1)
            cosines, own = embeddings @ centers.T, labels[:, None]
            cosines = cosines.scatter(1, own, self._with_margin(cosines.gather(1, own)))
            return functional.cross_entropy(cosines / self.temperature, labels)

    def _with_margin(self, cosine: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch 1"]:
        """Returns cos(theta + m) of cos(theta)."""
        if self.margin == 0:
            return cosine
        # The sine has no finite slope at 0, where an embedding has met its centre.
        sine = (1 - cosine.square()).clamp(min=1e-7).sqrt()
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine - self.margin * math.sin(self.margin)
        return torch.where(cosine > math.cos(math.pi - self.margin), turned, beyond)
