"""Numbers on the embeddings themselves, each with what it means."""

from __future__ import annotations

from dataclasses import dataclass

from lookalike.report.history import History
from lookalike.report.page import count
from lookalike.report.section import Context, Section


@dataclass(frozen=True)
class HealthRow:
    """One number on the embeddings, and what it means to somebody who never heard of it."""

    name: str
    before: float | None
    now: float | None
    digits: int
    meaning: str


def make(context: Context) -> Section:
    """Returns the table of the health of the embeddings."""
    history, health = context.history, context.history.current["health"]
    facts = {
        "rows": health_rows(history),
        "first_epoch": history.epochs[0]["epoch"] if history.before else None,
        "epoch": history.current["epoch"],
    }
    left_out = (
        "Similarities and health are of a random sample of pairs "
        f"({count(health['num_pairs'])} of each kind)."
    )
    return Section(
        "health",
        facts,
        "embeddings",
        "Embeddings",
        left_out=[left_out] if health["pairs"] == "drawn" else [],
    )


def health_rows(history: History) -> list[HealthRow]:
    """Returns the health of the embeddings, now and before, each with what it means."""
    now, before = history.current["health"], (history.before or {}).get("health") or {}
    rows = [
        HealthRow(
            "Separation",
            before.get("separation"),
            now["separation"],
            3,
            "How often two images of one class are more alike to the model than two of "
            "different classes. 1 is always; 0.5 is chance.",
        ),
        HealthRow(
            "Alignment",
            before.get("alignment"),
            now["alignment"],
            3,
            "How far apart two images of one class lie, on average (squared distance). Lower is "
            "tighter: 0 if they coincide, 2 if they have nothing in common. It may rise while "
            "everything spreads out, which the next line shows.",
        ),
        HealthRow(
            "Uniformity",
            before.get("uniformity"),
            now["uniformity"],
            3,
            "How evenly all images spread out. Lower is more even, with more room to tell things "
            "apart; 0 if everything falls on one point.",
        ),
        HealthRow(
            "Effective rank",
            before.get("effective_rank"),
            now["effective_rank"],
            1,
            f"How many of the {now['dim']:,} dimensions are really used. It should not collapse: "
            "near 1, everything looks the same to the model.",
        ),
    ]
    return [row for row in rows if row.now is not None]
