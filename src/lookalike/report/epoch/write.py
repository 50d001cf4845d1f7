"""From an epoch's retrieval and its metrics files to `results/report.html`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.evaluation.interpolation import TradeOff, read_trade_off
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import interpolation_file, report_file
from lookalike.evaluation.retrieval import Retrieval
from lookalike.evaluation.scoring.scores import HEADLINE
from lookalike.evaluation.text import TEXT_HEADLINE
from lookalike.files import write_text
from lookalike.progress import Progress
from lookalike.report.epoch import charts
from lookalike.report.epoch.embedding_map import (
    EmbeddingMap,
    choose_points,
    draw_map,
    has_tsne,
    num_mappable,
)
from lookalike.report.epoch.history import Document, History, query_column, read_history
from lookalike.report.epoch.queries import (
    CONFUSIONS,
    Confusion,
    Images,
    Outcome,
    choose_queries,
    find_confusions,
    outcome_of,
    strips,
    thumbnails_in_order,
)
from lookalike.report.epoch.summary import (
    MAX_CLASSES,
    cards_of,
    class_rows,
    health_rows,
    mixture_rows,
    percent,
    points,
    text_cards_of,
    trade_in_words,
    verdict_on,
)
from lookalike.report.page import count, human_bytes, render_page
from lookalike.report.thumbnails import MAX_BYTES, Thumbnails

MAX_PAGE_BYTES = 25 * 10**6
"""No report is larger: 12 MB of thumbnails, 5 MB of Plotly, and lists of so many brief names."""
_CELL = 400


@dataclass(frozen=True)
class _Shown:
    """The images of a report: in strips, on the map, and as thumbnails."""

    rows: list[list[Any]]
    flat: EmbeddingMap
    figure: charts.Figure
    images: Images
    thumbnails: Thumbnails


def write_report(
    out: Path,
    epoch: int,
    retrieval: Retrieval,
    protocol: Protocol,
    *,
    progress: Progress,
    of_mixture: bool = False,
) -> Path:
    """Writes `results/report.html`: one file that opens from disk, without network.

    Reads the epoch's metrics file, which must be there, and those of the epochs before it that
    are of the same run and protocol; with `of_mixture` that of a mixture with the epoch's weights.
    Shows what mixtures of weights came to, where the run has
    tried some by then.

    Returns:
        The path.

    Raises:
        DataError: a metrics file is missing or broken, or the file of mixtures is.
        OutputError: the report cannot be written.
    """
    history = read_history(out, epoch, of_mixture=of_mixture)
    outcome = outcome_of(retrieval, _previous_recall(history))
    confusions = find_confusions(retrieval, outcome)
    shown = _choose_images(retrieval, outcome, confusions, progress)
    facts = _facts(history, retrieval, protocol, outcome, confusions, shown)
    trade_off = _trade_off_by(out, history.current)
    facts |= _text_facts(history, retrieval, trade_off)
    facts["figures"] = _figures(history, shown, trade_off)
    path = report_file(out)
    page = render_page("report.html.j2", facts)
    # Everything from outside is escaped, so this comment can only be the template's own.
    write_text(path, page.replace("<!--size-->", human_bytes(len(page.encode()))))
    return path


def _choose_images(
    retrieval: Retrieval, outcome: Outcome, confusions: list[Confusion], progress: Progress
) -> _Shown:
    """Chooses, maps and draws: all that takes its time."""
    images = Images(retrieval)
    rows = strips(retrieval, outcome, choose_queries(retrieval, outcome, confusions), images)
    first, later = thumbnails_in_order(rows)
    points = choose_points(retrieval)
    mapped = [images.number(i, is_query=is_query) for is_query, i in points]
    refs, thumbnails = images.refs, Thumbnails()
    with progress.task("drawing the report", len(points) + len(refs), "images") as task:
        flat = draw_map(retrieval, points)
        task.advance(len(points))
        thumbnails.add((refs[n] for n in [*first, *mapped, *later]), on_progress=task.advance)
    figure = charts.map_figure(flat, images, outcome if retrieval.scores is not None else None)
    return _Shown(rows, flat, figure, images, thumbnails)


def _facts(
    history: History,
    retrieval: Retrieval,
    protocol: Protocol,
    outcome: Outcome,
    confusions: list[Confusion],
    shown: _Shown,
) -> dict[str, Any]:
    """All that the template needs."""
    from plotly.offline import get_plotlyjs

    now, cards, totals = history.current, cards_of(history), _totals(outcome)
    classes = class_rows(now, history.before, confusions)
    listed = {shown.images.class_number(row.label): row for row in classes[:MAX_CLASSES]}
    return {
        "epoch": now["epoch"],
        "which": _which(now),
        "model": _short(now.get("embeddings_of") or now["config"]["model_name"]),
        "test": protocol.describe(),
        "epochs": history.epochs,
        "headline": HEADLINE,
        "cards": cards,
        "verdict": verdict_on(cards[0], now["epoch"], history.epochs[0]["epoch"])
        if cards
        else None,
        # "before" is the first epoch everywhere else on the page.
        "since_epoch": f" (against epoch {history.epochs[-2]['epoch']})"
        if len(history.epochs) > 2
        else "",
        "totals": totals,
        "num_without_answer": retrieval.num_without_answer,
        "compared": _previous_recall(history) is not None,
        "confusions": confusions[:CONFUSIONS],
        "classes": listed,
        "num_classes": len(classes),
        "health": health_rows(history),
        "method": shown.flat.method,
        "clearer_map": not has_tsne(),
        "num_mapped": len(shown.flat.points),
        "num_mappable": num_mappable(retrieval),
        "plotly": get_plotlyjs(),
        "data": _data(shown, confusions, history)
        | {
            "class_totals": {number: row.num_queries for number, row in listed.items()},
            "totals": totals,
        },
        "thumbnails": shown.thumbnails.uris,
        "left_out": _left_out(shown, retrieval, len(classes), now["health"]),
        "protocol": now["protocol"],
        "config": now["config"],
        "versions": now["versions"],
        "num_unreadable": len(now["unreadable"]),
        "max_bytes": MAX_PAGE_BYTES,
        "num_queries": len(retrieval.query),
        "num_queries_shown": len(shown.rows),
        "percent": percent,
        "points": points,
        "in_a_cell": _in_a_cell,
    }


def _trade_off_by(out: Path, now: Document) -> TradeOff | None:
    """The run's mixtures of weights, unless they are of a later epoch than the report."""
    if now.get("run") is None:
        return None
    found = read_trade_off(interpolation_file(out), now["run"])
    same_test = found is not None and found.fingerprint == now["protocol"]["fingerprint"]
    return found if found and same_test and found.epoch <= now["epoch"] else None


def _text_facts(
    history: History, retrieval: Retrieval, trade_off: TradeOff | None
) -> dict[str, Any]:
    """What the template needs of text search, drift, and mixtures of weights."""
    return {
        "text_headline": TEXT_HEADLINE,
        "text_cards": text_cards_of(history),
        "num_captions": len(set(retrieval.gallery.labels or ())),
        "drift": history.current.get("drift"),
        "trade_off": trade_off,
        "mixtures": mixture_rows(trade_off) if trade_off else [],
        "trade": trade_in_words(trade_off) if trade_off else None,
    }


def _figures(
    history: History, shown: _Shown, trade_off: TradeOff | None
) -> dict[str, charts.Figure | None]:
    """The plots by the names that the template has for their places."""
    return {
        "curves": charts.metric_curves(history.epochs),
        "similarity": charts.similarity_histogram(history.current, history.before),
        "map": shown.figure,
        "text": charts.text_curves(history.epochs),
        "drift": charts.drift_curve(history.epochs),
        "trade": charts.trade_off_figure(trade_off) if trade_off else None,
    }


def _which(now: Document) -> str:
    """Which epoch a report is of, for its title; nothing for a model as it came."""
    if now["epoch"]:
        return f" · epoch {now['epoch']}"
    return "" if now.get("run") is None else " · before training"


def _short(model_name: str) -> str:
    """A model's name for the headline: of a file or folder somewhere on this machine the last part.

    The configuration at the foot has all of it.
    """
    return Path(model_name).name if Path(model_name).is_absolute() else model_name


def _in_a_cell(value: Any) -> str:
    """A setting or fact as text; of a long one, such as all held-out classes, the start."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= _CELL:
        return text
    return f"{text[:_CELL]}… (the metrics file has all of it)"


def _previous_recall(history: History) -> np.ndarray | None:
    """Each query's recall@1 an epoch ago, where there was one with the same queries."""
    return query_column(history.previous, history.current, "recall@1")


def _data(shown: _Shown, confusions: list[Confusion], history: History) -> dict[str, Any]:
    """What the page's script shows strips from."""
    images = shown.images
    return {
        "queries": shown.rows,
        "confusions": [
            [images.class_number(one.label), images.class_number(one.taken_for), one.count]
            for one in confusions[:CONFUSIONS]
        ],
        "labelled": history.measured,
        "images": images.columns(shown.thumbnails.number_of),
    }


def _totals(outcome: Outcome) -> dict[str, int]:
    """How many queries there are of each kind that the page can list, whether or not it does."""
    answerable = int(outcome.answerable.sum())
    return {
        "all": len(outcome.first),
        "worst": answerable,
        "wrong": int((outcome.answerable & ~outcome.right).sum()),
        "fixed": int((outcome.change == 1).sum()),
        "broken": int((outcome.change == -1).sum()),
        "unanswerable": len(outcome.first) - answerable,
    }


def _left_out(
    shown: _Shown, retrieval: Retrieval, num_classes: int, health: dict[str, Any]
) -> list[str]:
    """What a page of bounded size does not hold, each in a sentence."""
    told = []
    num_queries, num_points = len(retrieval.query), len(shown.flat.points)
    if len(shown.rows) < num_queries:
        told.append(
            f"{count(len(shown.rows))} of {count(num_queries)} queries are shown: the worst, some "
            "that this epoch fixed or broke, examples of the most frequent confusions, and a "
            "random sample. Numbers and charts are of all queries."
        )
    if num_classes > MAX_CLASSES:
        told.append(f"The table holds the {count(MAX_CLASSES)} worst of {count(num_classes)} "
                    "classes.")  # fmt: skip
    if shown.thumbnails.num_left_out:
        told.append(
            f"{count(shown.thumbnails.num_left_out)} images are named only: thumbnails of one "
            f"page may take {human_bytes(MAX_BYTES)}."
        )
    if num_points < num_mappable(retrieval):
        told.append(
            f"The map shows {count(num_points)} of {count(num_mappable(retrieval))} images, "
            "evenly from all classes."
        )
    if health["pairs"] == "drawn":
        told.append("Similarities and health are of a random sample of pairs "
                    f"({count(health['num_pairs'])} of each kind).")  # fmt: skip
    return told
