"""Numbers on the embeddings themselves, each with what it means."""

from __future__ import annotations

from lookalike.report.page import count
from lookalike.report.section import Context, Section


def make(context: Context) -> Section:
    """Returns the table of the health of the embeddings."""
    health = context.history.current["health"]
    told = f"Similarities and health are of a random sample of pairs ({count(health['num_pairs'])}"
    left_out = [f"{told} of each kind)."] if health["pairs"] == "drawn" else []
    return Section("health", "embeddings", "Embeddings", left_out=left_out)
