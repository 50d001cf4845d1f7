"""What similarity is, to the last bit, and how far quick ways of computing it may be off.

The similarity of two embeddings is the sum of the products of their entries, added up in
float64 in one fixed order, rounded to float32. A product of two float32 is exact in float64,
so whoever computes it gets the same 32 bits, on any device and with any number of threads. (The
last bits of a float32 matrix product depend on the shape of the blocks it is computed in.)

Matrix products are many times faster than that sum. They serve to rule out what is provably
too far away; what remains is computed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

from lookalike.errors import DataError
from lookalike.search.rows import Rows

Arithmetic = Literal["bf16", "fp32", "exact"]

_PAIRS_AT_A_TIME, _ROWS_AT_A_TIME = 1024, 64  # 512-d: 4 MB of products, which stay in the cache
_COLUMNS = 128  # of embeddings that are multiplied and added up at once in float32
_SHORTEST, _LONGEST = 1e-15, 1e15  # lengths whose squares float32 holds
_FLOAT32_ROUNDING, _FLOAT64_ROUNDING, _BF16_ROUNDING = 2.0**-24, 2.0**-53, 2.0**-8


def exact_similarities(
    query: Float32[Tensor, "queries dim"],
    gallery: Rows,
    positions: Int64[Tensor, "queries some"],
) -> Float32[Tensor, "queries some"]:
    """Returns the similarities of queries to the gallery images in their rows; -inf for -1."""
    result = query.new_full(positions.shape, float("-inf"))
    filled = (positions >= 0).sum(dim=1)
    order = filled.argsort()  # rows of like length together, so that little of a block is empty
    start = 0
    while start < len(order):
        rows = order[start : start + _ROWS_AT_A_TIME]
        rows = rows[: max(1, _PAIRS_AT_A_TIME // max(1, int(filled[rows[-1]])))]
        width = int(filled[rows[-1]])
        for left in range(0, width, _PAIRS_AT_A_TIME):
            some = slice(left, min(left + _PAIRS_AT_A_TIME, width))
            places = positions[rows, some]
            found = gallery.take(places.clamp(min=0).flatten()).to(query.device, torch.float64)
            block = found.view(*places.shape, -1).mul_(query[rows, None, :].double())
            sums = _sum_in_order(block.flatten(end_dim=1)).view(places.shape)
            result[rows, some] = torch.where(places >= 0, sums, float("-inf"))
        start += len(rows)
    return result


def _sum_in_order(products: Float64[Tensor, "n dim"]) -> Float32[Tensor, " n"]:
    """Adds up each row by folding its second half onto the first, again and again."""
    width = products.shape[1]
    while width > 1:
        half = width // 2
        # The last `half` entries onto the first; an odd one in the middle waits its turn.
        products[:, :half] += products[:, width - half : width]
        width -= half
    return products[:, 0].float() + 0.0  # which makes -0.0 the 0.0 that it equals


@dataclass(frozen=True)
class Operand:
    """Embeddings made ready for one kind of arithmetic."""

    arithmetic: Arithmetic
    entries: Tensor
    norms: Float32[Tensor, " n"]  # upper bounds of their lengths
    residues: Float32[Tensor, " n"]  # and of the lengths of what rounding took away

    def part(self, rows: slice) -> Operand:
        """Returns some of the rows."""
        return Operand(self.arithmetic, self.entries[rows], self.norms[rows], self.residues[rows])


def operand(
    embeddings: Float32[Tensor, "n dim"], arithmetic: Arithmetic, name: str, first: int = 0
) -> Operand:
    """Rounds embeddings as an arithmetic asks for, keeping account of what that loses.

    Raises:
        DataError: an embedding is not finite or far from length 1; `name` and `first` say which.
    """
    norms = _length(embeddings)
    for row in (~((norms > _SHORTEST) & (norms < _LONGEST))).nonzero()[:, 0].tolist():
        entries = embeddings[row].double()
        length = float(torch.linalg.vector_norm(entries))
        if not entries.isfinite().all():
            raise DataError(f"the embedding of {name} {first + row} is not finite; leave it out")
        if length and not _SHORTEST < length < _LONGEST:  # zero has similarity 0 to everything
            raise DataError(
                f"the embedding of {name} {first + row} has length {length:.1g}; expected about 1: "
                "divide each embedding by its length"
            )
    if arithmetic == "exact":
        return Operand(arithmetic, embeddings.double(), norms, torch.zeros_like(norms))
    if arithmetic == "fp32":
        return Operand(arithmetic, embeddings, norms, norms * _shortened_by())
    rounded = embeddings.bfloat16()
    return Operand(arithmetic, rounded, norms, _length(embeddings - rounded.float()))


def _shortened_by() -> float:
    """Returns the share of a float32 that torch may round off on its way into a product."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # told in the newer of two ways, of which this one does not know
        precision = "medium"
    return {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-8}[precision]


def _length(rows: Float32[Tensor, "n dim"]) -> Float32[Tensor, " n"]:
    """Returns lengths a little too long, so that rounding in here makes no bound too tight."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return length * (1 + rows.shape[1] * 2.0**-20)


def error_bound(query: Operand, gallery: Operand) -> Float32[Tensor, " queries"]:
    """Returns how far the product of two operands may be from the similarity, for each query.

    Entries: q.g - q'.g' = (q - q').g + q'.(g - g'), and Cauchy and Schwarz. Sum: any order of n
    additions is off by at most about n u |q| |g| (Higham, "Accuracy and Stability of Numerical
    Algorithms", 2nd ed., section 3.1), twice that in units for rounded entries, which may cut
    off where float32 rounds. What bf16 rounds off the result comes on top; see `lowered`.
    """
    if query.arithmetic == "exact":
        return torch.zeros_like(query.norms)
    longest, lost = float(gallery.norms.max()), float(gallery.residues.max())
    entries = query.residues * longest + (query.norms + query.residues) * lost
    dim = gallery.entries.shape[1]
    if query.arithmetic == "fp32":  # see `_products_by_columns`
        dim = min(dim, _COLUMNS) + -(-dim // _COLUMNS)
    adding = (dim + 8) * _FLOAT32_ROUNDING
    adding /= 1 - adding
    if lost:
        adding *= 2
    return (entries + adding * query.norms * longest) * (1 + 1e-5) + 1e-30


def lowered(
    scores: Float32[Tensor, " queries"], arithmetic: Arithmetic
) -> Float32[Tensor, " queries"]:
    """Returns the least that scores can have been before the arithmetic rounded its results."""
    return scores - scores.abs() * _BF16_ROUNDING if arithmetic == "bf16" else scores


def products(query: Operand, gallery: Operand) -> Tensor:
    """Returns all similarities, a row a query, within `error_bound` of the exact ones.

    With the arithmetic "exact" they are the exact ones: a float64 product is so close that it
    rounds to the same float32 in all but a few places, and those are computed one by one.
    """
    if query.arithmetic == "bf16":
        return query.entries @ gallery.entries.T
    if query.arithmetic == "fp32":
        return _products_by_columns(query.entries, gallery.entries)
    scores = query.entries @ gallery.entries.T
    off = (gallery.entries.shape[1] + 8) * 2 * _FLOAT64_ROUNDING
    off *= float(query.norms.max()) * float(gallery.norms.max())
    unknown = (scores - off).float() != (scores + off).float()
    zeros = scores == 0
    if zeros.any():  # certain where no entry of one meets an entry of the other
        meets = (query.entries != 0).float() @ (gallery.entries != 0).float().T
        unknown &= ~(zeros & (meets == 0))
    exact = scores.float() + 0.0
    for part in unknown.nonzero().split(_PAIRS_AT_A_TIME):
        rows, columns = part.unbind(dim=1)
        exact[rows, columns] = _sum_in_order(query.entries[rows] * gallery.entries[columns])
    return exact


def _products_by_columns(
    query: Float32[Tensor, "queries dim"], gallery: Float32[Tensor, "images dim"]
) -> Float32[Tensor, "queries images"]:
    """Multiplies some columns at a time: as fast as all at once, and the sums are shorter."""
    scores = query[:, :_COLUMNS] @ gallery[:, :_COLUMNS].T
    more = torch.empty_like(scores) if query.shape[1] > _COLUMNS else scores
    for left in range(_COLUMNS, query.shape[1], _COLUMNS):
        some = slice(left, left + _COLUMNS)
        scores += torch.mm(query[:, some], gallery[:, some].T, out=more)
    return scores


def order_keys(
    similarities: Float32[Tensor, "*shape"], positions: Int64[Tensor, "*shape"]
) -> Int64[Tensor, "*shape"]:
    """Returns numbers that are larger the earlier the rank: higher similarity, then lower position.

    The bits of a float32 rise with it, once those of negative numbers are flipped; positions
    take the lower half.
    """
    # Adding 0 makes -0.0 the 0.0 that it equals.
    keys = _flipped((similarities + 0.0).view(torch.int32)).long()
    keys *= 2**32
    keys += 2**32 - 1 - positions
    return keys


def from_order_keys(
    keys: Int64[Tensor, "*shape"],
) -> tuple[Float32[Tensor, "*shape"], Int64[Tensor, "*shape"]]:
    """Returns the similarities and positions that keys were made of."""
    similarities = _flipped((keys >> 32).int()).view(torch.float32)
    return similarities, 2**32 - 1 - (keys & (2**32 - 1))


def _flipped(bits: Int32[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Turns over all bits but the sign in negative numbers; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
