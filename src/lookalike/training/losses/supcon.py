"""The supervised contrastive loss, of batches of any size in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lookalike.errors import NoPositivesError

# Similarities that are in memory at once; at most six such tiles are, beside the gradient.
TILE_BYTES = 2**27
CPU_TILE_BYTES = 2**22  # the same on a CPU, whose caches should hold it


class SupConLoss(nn.Module):
    r"""Supervised contrastive loss of Khosla et al., NeurIPS 2020, equation 2 (L_out).

    For each anchor i with embedding z_i, over all other images A(i) of the batch and those
    of its class P(i):

        L_i = -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p / T) / sum_{a in A(i)} exp(z_i.z_a / T) )

    The loss is the mean of L_i over the anchors that have a positive; the others still serve as
    negatives. It is computed in float32 (float64 for float64 input) whatever autocast does, and
    no matrix of batch x batch is ever held (`TILE_BYTES`). It can be derived once, not twice.

    >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> loss = SupConLoss(temperature=0.5)
    >>> round(loss(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)  # log(1 + 2 / e^2)
    0.2395
    >>> round(loss(embeddings, torch.tensor([0, 1, 0, 1])).item(), 4)  # classes torn apart
    2.2395

    Args:
        temperature: T above 0; the smaller, the more the hardest negatives count.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self,
        embeddings: Float[Tensor, "batch dim"] | Float[Tensor, "batch views dim"],
        labels: Int64[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Returns the loss of one batch.

        Args:
            embeddings: L2-normalised. With a `views` axis, several views of each image: the
                views of one image are positives of each other.
            labels: the class of each image, whole numbers of any size.

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
        nothing = embeddings[:0].detach()
        return supcon(embeddings, labels, nothing, labels[:0], temperature=self.temperature)


def check_batch(embeddings: Float[Tensor, "batch dim"], labels: Int64[Tensor, " batch"]) -> None:
    """Raises ValueError for shapes that do not belong together."""
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings of shape {tuple(embeddings.shape)} and labels of shape "
            f"{tuple(labels.shape)}; expected (batch, dim) and (batch,)"
        )


def check_temperature(temperature: float) -> float:
    """Returns the temperature; raises ValueError where it is not above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return temperature


def in_full_precision(embeddings: Tensor) -> Tensor:
    """Returns float32, or float64 as it is: losses are differences of close numbers."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def supcon(
    embeddings: Float[Tensor, "batch dim"],
    labels: Int64[Tensor, " batch"],
    others: Float[Tensor, "others dim"],
    other_labels: Int64[Tensor, " others"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Returns the loss of `SupConLoss`, with `others` as further candidates: in A(i), and in P(i)
    where they are of the class of i. They are no anchors, and no gradient goes to them.

    Raises:
        ValueError: shapes that do not belong together.
        NoPositivesError: no anchor has a positive.
    """
    check_batch(embeddings, labels)
    check_batch(others, other_labels)
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = in_full_precision(embeddings)
        others = others.to(embeddings.dtype)
        loss: Tensor = _SupCon.apply(embeddings, labels, others, other_labels, temperature)
        return loss


class _SupCon(torch.autograd.Function):
    """Computes the gradient together with the loss: there is nothing else to keep of it."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        pairs = _Pairs(*inputs)
        loss, log_denominators = _loss(pairs)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_gradient(pairs, log_denominators))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None, None


class _Tile(NamedTuple):
    """The similarities of some of the batch with some candidates."""

    rows: slice
    columns: slice | None  # of the batch; None for others
    candidates: Float[Tensor, "columns dim"]
    logits: Float[Tensor, "rows columns"]  # log2(exp(similarity / T)); -inf for an image itself
    same: Bool[Tensor, "rows columns"]  # of one class, and not one image


class _Pairs:
    """A batch with its candidates, compared tile by tile, made anew unless there is only one."""

    # The similarities of a batch with itself are symmetric, so only tiles on and above the
    # diagonal are made.

    def __init__(
        self,
        embeddings: Float[Tensor, "batch dim"],
        labels: Int64[Tensor, " batch"],
        others: Float[Tensor, "others dim"],
        other_labels: Int64[Tensor, " others"],
        temperature: float,
    ) -> None:
        self.embeddings, self.others, self.temperature = embeddings, others, temperature
        _, numbers, counts = torch.cat([labels, other_labels]).unique(
            return_inverse=True, return_counts=True
        )
        self._classes, self._other_classes = numbers[: len(labels)], numbers[len(labels) :]
        self.num_positives: Int64[Tensor, " batch"] = counts[self._classes] - 1
        self.is_anchor = self.num_positives > 0
        if not self.is_anchor.any():
            raise NoPositivesError(
                f"none of the {len(labels)} images of the batch has another of its class; "
                "draw at least 2 of each class (n_samples_per_class)"
            )
        self._row_blocks = _blocks(len(embeddings), embeddings)
        self._other_blocks = _blocks(len(others), embeddings)
        self._only_tile: _Tile | None = None

    def __iter__(self) -> Iterator[_Tile]:
        if self._only_tile is not None:
            yield self._only_tile
            return
        for number, rows in enumerate(self._row_blocks):
            for columns in self._row_blocks[number:]:
                tile = self._tile(rows, columns, self.embeddings[columns], self._classes[columns])
                if rows == columns:
                    tile.logits.fill_diagonal_(float("-inf"))
                    tile.same.fill_diagonal_(False)
                if len(self._row_blocks) == 1 and not self._other_blocks:
                    self._only_tile = tile
                yield tile
            for some in self._other_blocks:
                yield self._tile(rows, None, self.others[some], self._other_classes[some])

    def _tile(
        self, rows: slice, columns: slice | None, candidates: Tensor, classes: Tensor
    ) -> _Tile:
        some = self.embeddings[rows]
        scale = math.log2(math.e) / self.temperature
        logits = torch.addmm(some.new_zeros(()), some, candidates.T, beta=0, alpha=scale)
        return _Tile(rows, columns, candidates, logits, self._classes[rows, None] == classes)


def _blocks(count: int, like: Tensor) -> list[slice]:
    """Returns rows or columns of tiles: as many as the memory allows, as even as can be."""
    if not count:
        return []
    tile_bytes = CPU_TILE_BYTES if like.device.type == "cpu" else TILE_BYTES
    num_blocks = math.ceil(count / math.isqrt(tile_bytes // like.element_size()))
    size = math.ceil(count / num_blocks)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _loss(pairs: _Pairs) -> tuple[Float[Tensor, ""], Float[Tensor, " batch"]]:
    """Returns the loss, and log2 of each anchor's denominator: exp is quicker in base 2."""
    like = pairs.embeddings[:, 0]
    # A denominator is total * 2 ** largest, so that it neither overflows nor vanishes.
    largest = torch.full_like(like, torch.finfo(like.dtype).min)
    total, positives = torch.zeros_like(like), torch.zeros_like(like)

    def take_up(anchors: slice, logits: Tensor, same: Tensor) -> None:
        before = largest[anchors]
        now = torch.maximum(before, logits.amax(dim=1))
        added = (logits - now[:, None]).exp2_().sum(dim=1)
        total[anchors] = total[anchors] * (before - now).exp2_() + added
        largest[anchors] = now
        positives[anchors] += torch.where(same, logits, 0).sum(dim=1)

    for tile in pairs:
        take_up(tile.rows, tile.logits, tile.same)
        if tile.columns not in (None, tile.rows):
            take_up(tile.columns, tile.logits.T, tile.same.T)
    # The two large numbers first: their difference is exact where they are close.
    losses = (largest - positives / pairs.num_positives) + total.log2()
    return losses[pairs.is_anchor].mean() * math.log(2), largest + total.log2()


def _gradient(
    pairs: _Pairs, log_denominators: Float[Tensor, " batch"]
) -> Float[Tensor, "batch dim"]:
    """Returns the gradient of the loss by the embeddings."""
    # The loss depends on the logit of i and j by i's softmax and by j's: both go into one weight,
    # which is symmetric.
    gradient = torch.zeros_like(pairs.embeddings)
    # An infinite denominator takes the softmax of those that are no anchors out.
    normalizers = torch.where(pairs.is_anchor, log_denominators, float("inf"))
    num_positives = pairs.num_positives.to(gradient.dtype)
    per_positive = torch.where(pairs.is_anchor, 1 / num_positives, 0)
    for tile in pairs:
        rows, columns = tile.rows, tile.columns
        weights = (tile.logits - normalizers[rows, None]).exp2_()
        expected = per_positive[rows, None]
        if columns is not None:
            weights += (tile.logits - normalizers[columns]).exp2_()
            expected = 2 * expected
        weights -= torch.where(tile.same, expected, 0)
        gradient[rows].addmm_(weights, tile.candidates)
        if columns not in (None, rows):
            gradient[columns].addmm_(weights.T, pairs.embeddings[rows])
    return gradient.div_(int(pairs.is_anchor.sum()) * pairs.temperature)
