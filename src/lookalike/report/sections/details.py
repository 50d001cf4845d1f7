"""All numbers epoch by epoch, the protocol, the configuration and versions."""

from __future__ import annotations

import json
from typing import Any

from lookalike.evaluation.metrics import text_headline
from lookalike.report.section import Context, Section

_CELL = 400


def make(context: Context) -> Section:
    """Returns what a reader opens who wants to know exactly."""
    texts = context.history.current.get("text_metrics") or {}
    names = [name for name in text_headline() if name in texts]
    facts = {"text_headline": names, "in_a_cell": _in_a_cell}
    return Section("details", "details", "Details", facts)


def _in_a_cell(value: Any) -> str:
    """A setting or fact as text; of a long one, such as all held-out classes, the start."""
    text = value if isinstance(value, str) else json.dumps(value)
    more = f"{text[:_CELL]}… (the metrics file has all of it)"
    return text if len(text) <= _CELL else more
