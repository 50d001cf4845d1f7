"""Embeddings of earlier batches, to compare with as well."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lookalike.training.losses.supcon import check_temperature, supcon


class CrossBatchMemory(nn.Module):
    """`SupConLoss` over a batch and the embeddings of the batches before it.

    Cross-batch memory (XBM; Wang et al., CVPR 2020): a queue of the last `size` embeddings, which
    stand beside the batch as positives and negatives. They are no anchors and get no gradient;
    that they are of slightly older weights matters little once training has calmed down, so the
    first `warmup_batches` are remembered by nobody. The queue is in the state_dict: what is
    loaded goes on as it was.

    >>> loss = CrossBatchMemory(size=1024, dim=2, temperature=0.5)
    >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> loss(embeddings, torch.tensor([0, 0])).item()  # nothing to confuse them with
    0.0
    >>> round(loss(-embeddings, torch.tensor([1, 1])).item(), 4)  # log(1 + 2 / e^4)
    0.036

    Args:
        size: embeddings that are remembered, at least 1.
        dim: numbers in an embedding.
        temperature: T above 0, as in `SupConLoss`.
        warmup_batches: batches before the first that is remembered.
    """

    def __init__(
        self, size: int, dim: int, temperature: float = 0.07, *, warmup_batches: int = 0
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}; a memory holds at least 1 embedding")
        self.temperature = check_temperature(temperature)
        self.warmup_batches = warmup_batches
        self.embeddings = nn.Buffer(torch.zeros(size, dim))
        self.labels = nn.Buffer(torch.zeros(size, dtype=torch.int64))
        self.num_batches: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.num_written: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def forward(
        self, embeddings: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Returns the loss of one batch, which is remembered then.

        Raises:
            ValueError: shapes that do not belong together.
            NoPositivesError: no anchor has a positive, in the batch or in the memory.
        """
        filled = min(int(self.num_written), len(self.labels))
        others, their_labels = self.embeddings[:filled], self.labels[:filled]
        loss = supcon(embeddings, labels, others, their_labels, temperature=self.temperature)
        if loss.isfinite():  # what is not would spoil all losses after it
            if int(self.num_batches) >= self.warmup_batches:
                self._remember(embeddings.detach(), labels)
            self.num_batches += 1
        return loss

    def _remember(self, embeddings: Tensor, labels: Tensor) -> None:
        """Writes a batch over the oldest entries; of one larger than the memory its end."""
        size = len(self.labels)
        first = int(self.num_written) + max(0, len(labels) - size)
        places = torch.arange(first, int(self.num_written) + len(labels), device=labels.device)
        self.embeddings[places % size] = embeddings[-size:].to(self.embeddings.dtype)
        self.labels[places % size] = labels[-size:].long()
        self.num_written += len(labels)
