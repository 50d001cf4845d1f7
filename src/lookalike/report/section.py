"""A section of the report, and the context that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lookalike.evaluation.interpolation import TradeOff
from lookalike.evaluation.retrieval import Retrieval
from lookalike.report.embedding_map import EmbeddingMap
from lookalike.report.figures import Figure
from lookalike.report.history import History
from lookalike.report.queries import Confusion, Images, Outcome
from lookalike.report.thumbnails import Thumbnails


@dataclass(frozen=True)
class Context:
    """All that sections are made of.

    `strips` are the rows of the queries shown (see `queries.strips`), `trade_off` is None where
    the run has tried no mixtures of weights.
    """

    history: History
    retrieval: Retrieval
    outcome: Outcome
    confusions: list[Confusion]
    images: Images
    strips: list[list[Any]]
    flat: EmbeddingMap
    thumbnails: Thumbnails
    trade_off: TradeOff | None


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Args:
        name: that of its fragment, `templates/sections/NAME.html.j2`.
        anchor, title: the id of its element and how the page's menu names it, if it does.
        facts: what the fragment needs beside the context's fields and `figures`, which it sees too.
        figures: plots, by the names that the fragment has for their places; None for no plot.
        data: what the page's script needs, under keys that no other section uses.
    """

    name: str
    anchor: str = ""
    title: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure | None] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
