"""All numbers epoch by epoch, the protocol, the configuration and versions."""

from __future__ import annotations

import json
from typing import Any

from lookalike.evaluation.metrics import text_headline
from lookalike.report.cards import in_units
from lookalike.report.section import Context, Section

_CELL = 400


def make(context: Context) -> Section:
    """Returns what a reader opens who wants to know exactly."""
    history, now = context.history, context.history.current
    texts = now.get("text_metrics") or {}
    has_drift = any(one.get("drift") for one in history.epochs[1:])
    titles = ["Text search"] * bool(texts) + ["drift"] * has_drift
    facts = {
        "epochs": history.epochs,
        "headline": history.headline,
        "text_title": " and ".join(titles).capitalize(),
        "text_headline": [name for name in text_headline() if name in texts],
        "drift": now.get("drift") is not None,
        "protocol": now["protocol"],
        "config": now["config"],
        "versions": now["versions"],
        "num_unreadable": len(now["unreadable"]),
        "in_a_cell": _in_a_cell,
        "in_units": in_units,
    }
    return Section("details", facts, "details", "Details")


def _in_a_cell(value: Any) -> str:
    """A setting or fact as text; of a long one, such as all held-out classes, the start."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= _CELL:
        return text
    return f"{text[:_CELL]}… (the metrics file has all of it)"
