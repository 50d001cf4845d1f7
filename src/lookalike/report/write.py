"""From an epoch's retrieval and its metrics files to `results/report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lookalike.evaluation.documents import Document
from lookalike.evaluation.interpolation import TradeOff, read_trade_off
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import interpolation_file, report_file
from lookalike.evaluation.retrieval import Retrieval
from lookalike.files import write_text
from lookalike.progress import Progress
from lookalike.report import queries
from lookalike.report.embedding_map import choose_points, draw_map
from lookalike.report.history import History, query_column, read_history
from lookalike.report.page import human_bytes, render_page
from lookalike.report.section import Context
from lookalike.report.sections import SECTIONS
from lookalike.report.sections.classes import MAX_CLASSES
from lookalike.report.thumbnails import Thumbnails

MAX_PAGE_BYTES = 25 * 10**6
"""No report is larger: 12 MB of thumbnails, 5 MB of Plotly, and lists of so many brief names."""


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
    Shows what mixtures of weights came to, where the run has tried some by then.

    Returns:
        The path.

    Raises:
        DataError: a metrics file is missing or broken, or the file of mixtures is.
        OutputError: the report cannot be written.
    """
    history = read_history(out, epoch, of_mixture=of_mixture)
    context = _context(history, retrieval, _trade_off_by(out, history.current), progress)
    page = render_page("report.html.j2", _facts(context, protocol))
    path = report_file(out)
    # Everything from outside is escaped, so this comment can only be the template's own.
    write_text(path, page.replace("<!--size-->", human_bytes(len(page.encode()))))
    return path


def _context(
    history: History, retrieval: Retrieval, trade_off: TradeOff | None, progress: Progress
) -> Context:
    """Chooses queries and images, maps and draws: all that takes its time."""
    earlier = query_column(history.previous, history.current, "recall@1")
    outcome = queries.outcome_of(retrieval, earlier)
    confusions = queries.find_confusions(retrieval, outcome)
    images = queries.Images(retrieval)
    chosen = queries.choose_queries(retrieval, outcome, confusions)
    strips = queries.strips(retrieval, outcome, chosen, images)
    first, later = queries.thumbnails_in_order(strips)
    points = choose_points(retrieval)
    mapped = [images.number(i, is_query=is_query) for is_query, i in points]
    refs, thumbnails = images.refs, Thumbnails()
    with progress.task("drawing the report", len(points) + len(refs), "images") as task:
        flat = draw_map(retrieval, points)
        task.advance(len(points))
        thumbnails.add((refs[n] for n in [*first, *mapped, *later]), on_progress=task.advance)
    return Context(
        history, retrieval, outcome, confusions, images, strips, flat, thumbnails, trade_off
    )


def _facts(context: Context, protocol: Protocol) -> dict[str, Any]:
    """All that the page's frame needs: its sections, and what they need of the script."""
    from plotly.offline import get_plotlyjs

    now = context.history.current
    sections = [made for make in SECTIONS if (made := make(context)) is not None]
    data = {key: value for section in sections for key, value in section.data.items()}
    data["images"] = context.images.columns(context.thumbnails.number_of)  # numbered by all above
    model = now.get("embeddings_of") or now["config"]["model_name"]
    return {
        "context": context,
        # Of a file or folder somewhere on this machine the last part; the foot has all of it.
        "model": Path(model).name if Path(model).is_absolute() else model,
        "test": protocol.describe(),
        "sections": sections,
        "bodies": [
            render_page(f"sections/{one.name}.html.j2", vars(context) | vars(one) | one.facts)
            for one in sections
        ],
        "plotly": get_plotlyjs(),
        "figures": {k: v for one in sections for k, v in one.figures.items() if v is not None},
        "data": data,
        "thumbnails": context.thumbnails.uris,
        "version": now["versions"]["lookalike"],
        "max_bytes": MAX_PAGE_BYTES,
        "max_classes": MAX_CLASSES,
    }


def _trade_off_by(out: Path, now: Document) -> TradeOff | None:
    """The run's mixtures of weights on this test, unless they are of a later epoch."""
    run, fingerprint = now.get("run"), now["protocol"]["fingerprint"]
    found = None if run is None else read_trade_off(interpolation_file(out), run)
    if found is None or found.fingerprint != fingerprint or found.epoch > now["epoch"]:
        return None
    return found
