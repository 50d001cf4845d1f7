"""The nearest neighbours by cosine similarity: exact, at any size, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lookalike.errors import ConfigError
from lookalike.runtime.device import has_fast_bf16
from lookalike.search.exclusions import Exclude, check_ids, exclude_pairs, places_in_rows
from lookalike.search.rows import Embeddings, Rows, check_widths
from lookalike.search.similarity import (
    Arithmetic,
    Operand,
    error_bound,
    exact_similarities,
    from_order_keys,
    lowered,
    operand,
    order_keys,
    products,
)

MEMORY_BYTES = 2**30
"""What a search may use beside queries, gallery and its own result, unless told otherwise."""

_GROUP = 32  # gallery images whose best similarity is looked at before their own
_WORTH_BF16 = 10**8  # multiplications below which rounding costs more than it saves
_WORTH_BOUNDS = 20  # galleries smaller than so many k are computed exactly at once


def top_k(
    query: Embeddings,
    gallery: Embeddings,
    k: int,
    *,
    exclude: Exclude = (),
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[Float32[Tensor, "queries k"], Int64[Tensor, "queries k"]]:
    """Returns the k most similar gallery images of each query, best first.

    Exact, and the same to the last bit for any memory, device and number of threads:
    `search.similarity` says what similarity is, and equal ones are ordered by gallery position.
    Most of the gallery is ruled out in quicker arithmetic whose error is bounded; what lies
    within the bound is computed exactly.

    Args:
        query, gallery: L2-normalised embeddings: tensors, arrays, or lists of (memory-mapped)
            arrays below each other. The search runs on the device of the queries.
        k: neighbours wanted; capped at the gallery's size.
        exclude: pairs of id columns (one id a query, one a gallery image); a gallery image
            is no neighbour of a query if their ids are equal in any pair. Identity, group and
            junk are such columns, so "not itself" never depends on where an image stands.
        memory_bytes: working memory beside inputs and result. Less makes more passes over the
            gallery and changes nothing else.

    Returns:
        Similarities and gallery positions. Where fewer than k images remain for a query, its
        row ends in similarity -inf and position -1.

    Raises:
        DataError: an embedding is not finite or far from length 1, or the widths differ.
        ConfigError: k is below 1.
    """
    asked, rows = Rows(query), Rows(gallery)
    home = query.device if isinstance(query, Tensor) else torch.device("cpu")
    device = torch.device("cpu") if home.type == "mps" else home  # which has no float64
    columns = [(a.to(device), b.to(device)) for a, b in exclude]
    check_widths(asked, rows)
    check_ids(exclude, len(asked), len(rows))
    if k < 1:
        raise ConfigError(f"k is {k}; expected 1 or more")
    k = min(k, len(rows))
    similarities = torch.full((len(asked), k), float("-inf"), device=home)
    positions = torch.full((len(asked), k), -1, dtype=torch.int64, device=home)
    if not k:
        return similarities, positions
    # Half the memory is for queries: their candidates (copied when sifted) and operands.
    at_a_time = max(1, memory_bytes // 2 // (_num_candidates(k) * 64 + rows.dim * 16))
    for start in range(0, len(asked), at_a_time):
        part = slice(start, start + at_a_time)
        some = asked.part(start, start + at_a_time).to(device)
        banned = [(query_ids[part], gallery_ids) for query_ids, gallery_ids in columns]
        keys = _search(some, rows, k, banned, memory_bytes)
        found, places = from_order_keys(keys)
        real = keys != _NOTHING
        similarities[part] = torch.where(real, found, float("-inf")).to(home)
        positions[part] = torch.where(real, places, -1).to(home)
    return similarities, positions


def _num_candidates(k: int) -> int:
    """Returns room for twice k, since about k more pass whenever what has been seen doubles."""
    return 2 * k + 256


def _images_within(memory_bytes: int, num_queries: int, dim: int, arithmetic: Arithmetic) -> int:
    """Returns the images whose operand, scores and masks take a quarter of the memory."""
    score_bytes = {"bf16": 4, "fp32": 8, "exact": 48}[arithmetic]
    images = memory_bytes // 4 // (score_bytes * num_queries + 16 * dim)
    return max(_GROUP, min(images, 8192) // _GROUP * _GROUP)


_NOTHING = torch.iinfo(torch.int64).min


class _TooCloseError(Exception):
    """So many images lie within the rounding error of the k-th that better arithmetic pays."""


def _search(
    query: Float32[Tensor, "queries dim"],
    gallery: Rows,
    k: int,
    exclude: Exclude,
    memory_bytes: int,
) -> Int64[Tensor, "queries k"]:
    """Returns the order keys of the k best, in the quickest arithmetic that separates them."""
    work = query.numel() * len(gallery)
    ladder: list[Arithmetic] = ["fp32"] if len(gallery) > _WORTH_BOUNDS * k else []
    if ladder and query.device.type == "cpu" and work > _WORTH_BF16 and has_fast_bf16(query.device):
        ladder.insert(0, "bf16")
    for arithmetic in ladder:
        try:
            return _Search(query, gallery, k, exclude, memory_bytes, arithmetic).run()
        except _TooCloseError:
            continue
    # By the exact similarity of every pair: slower, and indifferent to ties.
    asked = operand(query, "exact", "query")
    best = torch.full((len(query), k), _NOTHING, device=query.device)
    images = _images_within(memory_bytes, len(query), gallery.dim, "exact")
    for start, stop in gallery.parts(images):
        part = gallery.part(start, stop).to(query.device)
        scores = products(asked, operand(part, "exact", "gallery image", start))
        exclude_pairs(scores, [(ids, others[start:stop]) for ids, others in exclude])
        keys = order_keys(scores, torch.arange(start, stop, device=query.device))
        keys.masked_fill_(scores == float("-inf"), _NOTHING)
        best = torch.cat([best, keys], dim=1).topk(k, dim=1).values
    return best


@dataclass
class _Search:
    """One pass over the gallery for some queries.

    Of each query the candidates seen so far are held, with scores that are at most `bound` off.
    With T the k-th best score, the k-th best similarity is at least T - bound, so whatever
    scores below T - 2 bound is out (`cut`), wherever in the gallery it lies.
    """

    query: Float32[Tensor, "queries dim"]
    gallery: Rows
    k: int
    exclude: Exclude
    memory_bytes: int
    arithmetic: Arithmetic

    def __post_init__(self) -> None:
        self.operand = operand(self.query, self.arithmetic, "query")
        n, device, room = len(self.query), self.query.device, _num_candidates(self.k)
        # A tenth is for looking into groups of images that may be among the best.
        self.groups = max(1, min(self.memory_bytes // 10 // (_GROUP * 64), 2**17))
        self.scores = torch.full((n, room), float("-inf"), device=device)
        self.places = torch.full((n, room), -1, dtype=torch.int64, device=device)
        self.counts = torch.zeros(n, dtype=torch.int64, device=device)
        self.bound = torch.zeros(n, device=device)
        self.cut = torch.full((n,), float("-inf"), device=device)
        self.seen = 0  # gallery images
        self.resolved = 0  # pairs whose similarity had to be computed to make room

    def run(self) -> Int64[Tensor, "queries k"]:
        sift_at, dim = 0, self.gallery.dim
        images = _images_within(self.memory_bytes, len(self.query), dim, self.arithmetic)
        for start, stop in self.gallery.parts(images):
            part = self.gallery.part(start, stop).to(self.query.device)
            self.seen += stop - start
            self.look_at(operand(part, self.arithmetic, "gallery image", start), start, stop)
            if self.seen >= sift_at:  # the more has been seen, the less a look changes
                self.sift()
                sift_at = self.seen * 5 // 4
        return self.best()

    def look_at(self, part: Operand, start: int, stop: int) -> None:
        """Takes in what may be among the k best of one part of the gallery."""
        bound = torch.maximum(self.bound, error_bound(self.operand, part))
        self.cut -= 2 * (bound - self.bound)  # made when less was known of how far off scores are
        self.bound = bound
        scores = products(part, self.operand)  # a row a gallery image: group maxima run along it
        exclude_pairs(scores, [(others[start:stop], ids) for ids, others in self.exclude])
        if not self.counts.any():
            self.cut = self.cut_of(scores.T)
        if len(scores) % _GROUP:
            missing = _GROUP - len(scores) % _GROUP
            scores = torch.cat([scores, scores.new_full((missing, len(self.cut)), float("-inf"))])
        grouped = scores.view(-1, _GROUP, len(self.cut))
        hopeful = (grouped.amax(dim=1) >= self.cut).T.nonzero()
        for some in hopeful.split(self.groups):
            rows, group = some.unbind(dim=1)
            inside = grouped[group, :, rows].float()
            passed = (inside >= self.cut[rows, None]) & (inside > float("-inf"))
            which, offset = passed.nonzero().unbind(dim=1)
            places = start + group[which] * _GROUP + offset
            self.insert(rows[which], places, inside[which, offset])

    def cut_of(self, scores: Tensor) -> Float32[Tensor, " queries"]:
        """Returns the score below which an image cannot be among the k best, going by these."""
        if scores.shape[1] < self.k:
            return torch.full_like(self.cut, float("-inf"))
        kth = scores.topk(self.k, dim=1, sorted=False).values.amin(dim=1).float()
        return lowered(lowered(kth, self.arithmetic) - 2 * self.bound, self.arithmetic)

    def insert(self, rows: Tensor, places: Tensor, scores: Tensor) -> None:
        """Adds candidates, `rows` rising; makes room where there is none left."""
        while len(rows):
            new = torch.bincount(rows, minlength=len(self.query))
            column = self.counts[rows] + places_in_rows(rows, new)
            fits = column < self.scores.shape[1]
            self.scores[rows[fits], column[fits]] = scores[fits]
            self.places[rows[fits], column[fits]] = places[fits]
            self.counts = (self.counts + new).clamp(max=self.scores.shape[1])
            if fits.all():
                return
            self.sift(make_room=True)
            rows, places, scores = rows[~fits], places[~fits], scores[~fits]
            still = scores >= self.cut[rows]
            rows, places, scores = rows[still], places[still], scores[still]

    def sift(self, *, make_room: bool = False) -> None:
        """Raises the cut to what the candidates allow, and drops those below it."""
        width = max(int(self.counts.max()), self.k)
        self.cut = torch.maximum(self.cut, self.cut_of(self.scores[:, :width]))
        kept = (self.scores[:, :width] >= self.cut[:, None]) & (self.places[:, :width] >= 0)
        self.counts = kept.sum(dim=1)
        rows, columns = kept.nonzero().unbind(dim=1)
        to = places_in_rows(rows, self.counts)
        scores, places = self.scores[rows, columns], self.places[rows, columns]
        self.scores[:, :width], self.places[:, :width] = float("-inf"), -1
        self.scores[rows, to], self.places[rows, to] = scores, places
        if make_room:
            full = (self.counts > self.scores.shape[1] * 3 // 4).nonzero()[:, 0]
            if len(full):
                self.resolve(full)

    def resolve(self, full: Int64[Tensor, " rows"]) -> None:
        """Keeps the k best so far of queries with too many candidates."""
        self.resolved += int(self.counts[full].sum())
        if self.resolved > 0.02 * self.seen * len(self.query) + 10**5:
            raise _TooCloseError
        best = self.exact_keys(full).topk(self.k, dim=1).values
        self.scores[full], self.places[full] = float("-inf"), -1
        to = full[:, None], torch.arange(self.k, device=full.device)
        self.scores[to], self.places[to] = from_order_keys(best)
        self.counts[full] = self.k

    def exact_keys(self, rows: Int64[Tensor, " rows"]) -> Int64[Tensor, "rows candidates"]:
        """Returns the order keys of the candidates of some queries."""
        places = self.places[rows, : int(self.counts[rows].max())]
        similarities = exact_similarities(self.query[rows], self.gallery, places)
        return torch.where(places >= 0, order_keys(similarities, places), _NOTHING)

    def best(self) -> Int64[Tensor, "queries k"]:
        """Returns the keys of the k best of each query, best first."""
        self.sift()
        keys = self.exact_keys(torch.arange(len(self.query), device=self.query.device))
        best = keys.topk(min(self.k, keys.shape[1]), dim=1).values
        missing = best.new_full((len(best), self.k - best.shape[1]), _NOTHING)
        return torch.cat([best, missing], dim=1)
