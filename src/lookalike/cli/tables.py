"""Printing for finished commands: the closing table, a look at three queries, the files."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lookalike.cli.output import emit, say
from lookalike.files import printable, shown
from lookalike.progress import counted, default_progress

if TYPE_CHECKING:
    from lookalike.data.images import Unreadable
    from lookalike.evaluation.drift import Drift
    from lookalike.evaluation.interpolation import TradeOff
    from lookalike.evaluation.retrieval import Retrieval
    from lookalike.evaluation.scoring.scores import QueryScores
    from lookalike.training.history import Best, EpochSummary

PREVIEW_RANKS = 3
UNREADABLE_SHOWN = 20
_WIDTH = 80
Row = tuple[str, Mapping[str, Any]]  # title; numbers, text or None by the name of the column
HARDLY_MOVED = 0.999  # mean cosine; what a learning rate far too small leaves


def print_history(history: Sequence[EpochSummary], best: Best | None) -> None:
    """Prints one row an epoch, the best marked, and the change from first to last."""
    from lookalike.evaluation.metrics import headline

    if not any(one.loss is not None or one.metrics for one in history):
        return
    first, last = history[0], history[-1]
    marked = best.epoch if best and len(history) > 1 else None
    rows: list[Row] = [
        (f"epoch {one.epoch}{' best' if one.epoch == marked else ''}",
         {**(one.metrics or {}), "loss": one.loss})
        for one in history
    ]  # fmt: skip
    if len(history) > 1 and first.metrics and last.metrics:
        is_plain = marked in (None, first.epoch, last.epoch)
        what = "change" if is_plain else "change to last"
        rows.append((what, _changes(first.metrics, last.metrics)))
    print_metrics(["loss", *(headline() if last.metrics else ())], rows)
    if best and marked is not None:
        _print_best(best, last.drift)
    _print_text_history(history)


def _print_best(best: Best, drift: Drift | None) -> None:
    """Says which epoch to take, and by what; a line's end may be a long path."""
    which = f"Best by {best.metric}: epoch {best.epoch} ({_number(best.value)})"
    if best.epoch == 0:
        say(f"{which}, the baseline: training did not help.")
        if drift and drift.mean_cosine > HARDLY_MOVED:
            say(
                f"It barely moved the embeddings (mean cosine {drift.mean_cosine:.4f}): raise "
                "--learning-rate, or use a recipe (lookalike recipes)."
            )
        say()
    elif best.checkpoint is None:
        say(f"{which}; its checkpoint is not in the run's folder.\n")
    else:
        say(f"{which}, {shown(best.checkpoint)}\n")


def _print_text_history(history: Sequence[EpochSummary]) -> None:
    """Prints the same for text search, and how far embeddings moved."""
    from lookalike.evaluation.metrics import text_headline

    if not any(one.drift for one in history[1:]):
        return
    first, last = history[0].text_metrics, history[-1].text_metrics
    rows: list[Row] = [
        (f"epoch {one.epoch}",
         {**(one.text_metrics or {}), "mean cosine": one.drift and one.drift.mean_cosine})
        for one in history
    ]  # fmt: skip
    if first and last:
        rows.append(("change", _changes(first, last)))
    if last:
        say("Images found by searching for their class names as text; and similarity to the")
        say("baseline's embeddings (mean cosine):")
    else:
        say("Similarity to the baseline's embeddings:")
    print_metrics([*(text_headline() if last else ()), "mean cosine"], rows)


def print_trade_off(trade_off: TradeOff) -> None:
    """Prints one row a mixture of two models' weights, the chosen one marked."""
    names = ("recall@1", trade_off.text_metric) if trade_off.end.text_metrics else ()
    what = ", and images found by text" if names else ""
    say("Mixtures of the baseline's weights (alpha 0) with those of the last epoch (alpha 1):")
    say(f"{trade_off.metric} of image search{what}.")
    rows: list[Row] = [
        (f"alpha {one.alpha:.3g}{' chosen' if one == trade_off.chosen else ''}",
         {trade_off.metric: one.metrics[trade_off.metric]}
         | {f"text {name}": value for name, value in (one.text_metrics or {}).items()})
        for one in trade_off.mixtures
    ]  # fmt: skip
    print_metrics([trade_off.metric, *(f"text {name}" for name in names)], rows)


def print_means(scores: QueryScores, names: Sequence[str]) -> None:
    """Prints the means of some metrics with their intervals."""
    low, high = ({name: scores.intervals[name][end] for name in names} for end in (0, 1))
    rows: list[Row] = [("", scores.micro()), ("95% from", low), ("to", high)]
    if scores.classes_are_few:  # what holds for other classes, too
        low, high = ({n: scores.intervals_by_class[n][end] for n in names} for end in (0, 1))
        rows += [("by class from", low), ("to", high)]
    print_metrics(names, rows)


def print_unanswered(scores: QueryScores) -> None:
    """Prints how many queries the numbers leave out."""
    if scores.num_without_answer:
        say(
            f"{scores.num_without_answer:,} of {len(scores.labels):,} queries have no image of "
            "their class in the gallery; the numbers above leave them out.\n"
        )


def print_preview(retrieval: Retrieval) -> None:
    """Prints three queries with their first few results, marked."""
    query, gallery, total = retrieval.query, retrieval.gallery, len(retrieval.query)
    chosen = sorted({total // 6, total // 2, total * 5 // 6})
    say(f"Retrieved for {len(chosen)} of {counted(total, 'query', 'queries')}:")
    for i in chosen:
        say(f"\n  {shown(query.names[i])}")
        row = zip(retrieval.positions[i].tolist(), retrieval.similarities[i].tolist(), strict=True)
        for rank, (position, similarity) in enumerate(list(row)[:PREVIEW_RANKS], start=1):
            if position < 0:
                break
            verdict = "     "
            if query.labels and gallery.labels:
                verdict = "right" if query.labels[i] == gallery.labels[position] else "wrong"
            name = shown(gallery.names[position])
            say(f"    {rank}  {verdict}  {similarity:.3f}  {name}")
    say()


def print_files(files: Sequence[Any]) -> None:
    """Prints what was written."""
    if files:
        say("Written:", *(shown(path) for path in files), sep="\n  ")


def tell_unreadable(unreadable: Sequence[Unreadable], listed_in: str) -> None:
    """Names files that could not be read; `listed_in` says where all of them are."""
    if not unreadable:
        return
    progress = default_progress()
    skipped = "was skipped" if len(unreadable) == 1 else "were skipped"
    progress.warn(f"{counted(len(unreadable), 'file')} could not be read and {skipped}:")
    for one in unreadable[:UNREADABLE_SHOWN]:
        progress.note(f"  {shown(one.path)}: {one.reason}")
    if len(unreadable) > UNREADABLE_SHOWN:
        left = len(unreadable) - UNREADABLE_SHOWN
        progress.note(f"  ... and {left:,} more, listed in full {listed_in}")


def print_metrics(names: Sequence[str], rows: Sequence[Row]) -> None:
    """Prints a table of metrics, a title and values by name a row; empty where one is missing."""
    cells = [[title, *(_number(values.get(name)) for name in names)] for title, values in rows]
    print_table(["", *names], cells)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; columns of numbers are set right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        cells = (Text(printable(cell)) for cell in row)  # not text in rich's own markup
        table.add_row(*cells, style="bold" if row[0].startswith("change") else None)
    drawn = io.StringIO()
    is_terminal = sys.stdout.isatty() or None  # None: rich asks the environment
    Console(file=drawn, highlight=False, force_terminal=is_terminal).print(table)
    emit(drawn.getvalue())


def _changes(first: Mapping[str, float], last: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{last[name] - value:+.4f}" for name, value in first.items() if name in last}


def _number(value: float | str | None) -> str:
    """Returns a metric as tables show it; text as it stands."""
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:.4f}"


def print_wrapped(text: str, first: str = "", rest: str = "") -> None:
    """Prints a paragraph within the width of a terminal."""
    say(textwrap.fill(shown(text), _WIDTH, initial_indent=first, subsequent_indent=rest,
                        break_long_words=False, break_on_hyphens=False))  # fmt: skip
