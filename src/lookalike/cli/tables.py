"""What a finished command prints: the closing table, a look at three queries, the files."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lookalike.evaluation.metrics import headline, text_headline
from lookalike.files import shown
from lookalike.progress import counted

if TYPE_CHECKING:
    from lookalike.commands.bench import BenchResult
    from lookalike.commands.compare import Comparison
    from lookalike.commands.export import ExportResult
    from lookalike.data.sources import Unreadable
    from lookalike.evaluation.drift import Drift
    from lookalike.evaluation.interpolation import TradeOff
    from lookalike.evaluation.retrieval import Retrieval
    from lookalike.evaluation.scoring.scores import QueryScores
    from lookalike.progress import Progress
    from lookalike.training.history import Best, EpochSummary

PREVIEW_RANKS = 3
UNREADABLE_SHOWN = 20
_WIDTH = 80
HARDLY_MOVED = 0.999  # mean cosine; what a learning rate far too small leaves


def print_history(history: Sequence[EpochSummary], best: Best | None) -> None:
    """One row an epoch, the best marked; the last row is the change from first to last."""
    if not any(one.loss is not None or one.metrics for one in history):
        return
    names = headline() if history[-1].metrics else ()
    marked = best.epoch if best and len(history) > 1 else None
    rows = [
        [
            f"epoch {one.epoch}{' best' if one.epoch == marked else ''}",
            _number(one.loss),
            *_numbers(one.metrics, names),
        ]
        for one in history
    ]
    if len(history) > 1 and history[0].metrics and history[-1].metrics:
        ends = (None, history[0].epoch, history[-1].epoch)
        what = "change" if marked in ends else "change to last"
        rows.append([what, "", *_changes(history[0].metrics, history[-1].metrics, names)])
    _print_table(["", "loss", *names], rows)
    if best and marked is not None:
        _print_best(best, history[-1].drift)
    _print_text_history(history)


def _print_best(best: Best, drift: Drift | None = None) -> None:
    """Which epoch to take, and by what; a line's end may be a long path."""
    which = f"Best by {best.metric}: epoch {best.epoch} ({_number(best.value)})"
    if best.epoch == 0:
        print(f"{which}, the model as it came: training did not help.")
        if drift and drift.mean_cosine > HARDLY_MOVED:
            print(
                f"It hardly moved embeddings (mean cosine {drift.mean_cosine:.4f}): raise "
                "--learning-rate, or take a recipe (lookalike recipes)."
            )
        print()
    elif best.checkpoint is None:
        print(f"{which}; its checkpoint is not in the run's folder.\n")
    else:
        print(f"{which}, {shown(best.checkpoint)}\n")


def _print_text_history(history: Sequence[EpochSummary]) -> None:
    """The same of what training does to text search, and how far embeddings moved."""
    if not any(one.drift for one in history[1:]):
        return
    names = text_headline() if history[-1].text_metrics else ()
    rows = []
    for one in history:
        cosine = one.drift.mean_cosine if one.drift else None
        row = [f"epoch {one.epoch}", *_numbers(one.text_metrics, names), _number(cosine)]
        rows.append(row)
    if history[0].text_metrics and history[-1].text_metrics:
        changes = _changes(history[0].text_metrics, history[-1].text_metrics, names)
        rows.append(["change", *changes, ""])
    if names:
        print("Images found by the names of their classes, as texts; and how alike embeddings")
        print("are to those of the model before training (mean cosine):")
    else:
        print("How alike embeddings are to those of the model before training:")
    _print_table(["", *names, "mean cosine"], rows)


def print_trade_off(trade_off: TradeOff) -> None:
    """One row a mixture of two models' weights, the chosen one marked."""
    names = ("recall@1", trade_off.text_metric) if trade_off.end.text_metrics else ()
    what = ", and images found by texts" if names else ""
    print("Mixtures of the weights that came (alpha 0) with those of the last epoch (alpha 1):")
    print(f"{trade_off.metric} of image search{what}.")
    rows = [
        [
            f"alpha {one.alpha:.3g}{' chosen' if one == trade_off.chosen else ''}",
            _number(one.metrics[trade_off.metric]),
            *_numbers(one.text_metrics, names),
        ]
        for one in trade_off.mixtures
    ]
    _print_table(["", trade_off.metric, *(f"text {name}" for name in names)], rows)


def print_scores(scores: QueryScores) -> None:
    """The headline metrics with their intervals, and how many queries they leave out."""
    _print_means(scores, headline())
    print_unanswered(scores)


def print_text_scores(scores: QueryScores) -> None:
    """The same of text search."""
    print("Images found by the names of their classes, as texts:")
    _print_means(scores, text_headline())


def _print_means(scores: QueryScores, names: Sequence[str]) -> None:
    metrics, intervals = scores.micro(), scores.intervals
    rows = [["", *_numbers(metrics, names)]]
    for word, end in (("95% from", 0), ("to", 1)):
        ends = {name: interval[end] for name, interval in intervals.items()}
        rows.append([word, *_numbers(ends, names)])
    _print_table(["", *names], rows)


def print_unanswered(scores: QueryScores) -> None:
    """How many queries the numbers leave out."""
    if scores.num_without_answer:
        print(
            f"{scores.num_without_answer:,} of {len(scores.labels):,} queries have no image of "
            "their class in the gallery; the numbers above are of the others.\n"
        )


def print_comparison(comparison: Comparison) -> None:
    """One row a result, then one block a test against the first."""
    rows, names = [], comparison.metrics
    for one in comparison.results:
        rows.append([shown(one.name), *_numbers(one.document["metrics"], names)])
    if comparison.folds:
        for word, which in (("mean", 0), ("std. dev.", 1)):
            values = [_number(comparison.folds[name][which]) for name in names]
            rows.append([f"{word} over folds", *values])
    _print_table(["", *names], rows)
    if comparison.missing:
        lacking = (f"{name} (not in {', '.join(map(shown, files))})"
                   for name, files in comparison.missing.items())  # fmt: skip
        print(f"Left out, for not all have them: {'; '.join(lacking)}.\n")
    first = shown(comparison.results[0].name)
    for one, tests in zip(comparison.results[1:], comparison.tests, strict=False):
        print(f"{shown(one.name)} against {first}, on the same queries:")
        rows = [
            [metric, f"{test.difference:+.4f}", f"{test.low:+.4f} .. {test.high:+.4f}",
             f"{test.p_value:.4f}"]
            for metric, test in tests.items()
        ]  # fmt: skip
        _print_table(["", "difference", "95% interval", "p"], rows)
    if comparison.tests and not comparison.by_class:
        print("Queries are taken as independent of each other. Those of one class seldom are:\n"
              "--by-class allows for that, and is slower to call a difference real.\n")  # fmt: skip
    if comparison.why_untested:
        print(f"The differences are not tested: {comparison.why_untested}.\n")


def print_preview(retrieval: Retrieval) -> None:
    """Three queries with their first few results, marked."""
    total = len(retrieval.query)
    chosen = sorted({total // 6, total // 2, total * 5 // 6})
    query_labels, gallery_labels = retrieval.query.labels, retrieval.gallery.labels
    print(f"Retrieved for {len(chosen)} of {counted(total, 'query', 'queries')}:")
    for i in chosen:
        print(f"\n  {shown(retrieval.query.names[i])}")
        row = zip(retrieval.positions[i].tolist(), retrieval.similarities[i].tolist(), strict=True)
        for rank, (position, similarity) in enumerate(list(row)[:PREVIEW_RANKS], start=1):
            if position < 0:
                break
            verdict = "     "
            if query_labels and gallery_labels:
                verdict = "right" if query_labels[i] == gallery_labels[position] else "wrong"
            name = shown(retrieval.gallery.names[position])
            print(f"    {rank}  {verdict}  {similarity:.3f}  {name}")
    print()


def print_export(result: ExportResult) -> None:
    """What was exported, how sure that is, and where it lies."""
    print(f"Exported: {result.kind} embeddings of {result.dim:,} numbers.")
    print(f"Checked: {result.agreement.in_words()}.")
    if result.unmeasured:
        print(f"The model card has no measured numbers: {result.unmeasured}.")
    print()
    print_files(result.files)
    if result.url:
        print(f"\nOn the hub: {result.url}")


def print_bench(result: BenchResult) -> None:
    """What was measured, one row a stage; what it means; how long many images would take."""
    speed, shares = result.speed, result.speed.shares()
    images, batch_size = speed.images, speed.machine.batch_size
    formats = ", ".join(f"{number:,} {name}" for name, number in images.formats.items())
    print(
        f"{images.num_measured:,} of {counted(images.num_found, 'image')}: {formats}; median "
        f"{images.median_megapixels:.2g} megapixels, {images.median_kilobytes:,.0f} kB"
    )
    rows = [
        [
            one.name,
            f"{one.median_ms:,.2f}",
            f"{one.mean_ms:,.2f}",
            str(one.at_a_time),
            f"{one.images_per_s:,.1f}",
            f"{shares[one.name]:.0%}",
        ]
        if one.images_per_s
        else [one.name, *["-"] * 5]  # no transfer on a CPU
        for one in speed.stages
    ]
    header = ["", "median ms", "mean ms", "at a time", "images/s", "share"]
    _print_table(header, rows)
    batch_ms = speed.stage("model").median_ms * batch_size
    lines = [
        ("model alone", f"{speed.model_alone:,.1f} images/s",
         f"a batch of {batch_size:,} takes {batch_ms:,.0f} ms"),
        ("all together", f"{speed.whole:,.1f} images/s", f"{speed.reached:.0%} of that"),
    ]  # fmt: skip
    if speed.machine.num_workers:
        workers = counted(speed.machine.num_workers, "worker")
        lines.append(
            ("before that", f"{result.workers_start_s:,.1f} seconds", f"to start {workers}")
        )
    for what, value, note in lines:
        print(f"{what:<12}  {value:>22}   {note}")
    print()
    for sentence in result.advice:
        _print_wrapped(f"- {sentence}", rest="  ")
    times = [f"{n:,} in {_duration(took)}" for n, took in result.seconds_for().items()]
    print()
    _print_wrapped(f"Images at this rate: {'; '.join(times)}.")


def _print_wrapped(text: str, rest: str = "") -> None:
    print(textwrap.fill(text, _WIDTH, subsequent_indent=rest, break_long_words=False,
                        break_on_hyphens=False))  # fmt: skip


def _duration(seconds: float) -> str:
    """How long that is, as people say it."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} seconds"


def print_files(files: Sequence[Any]) -> None:
    """What was written."""
    if not files:
        return
    print("Written:")
    for path in files:
        print(f"  {shown(path)}")


def tell_unreadable(
    unreadable: Sequence[Unreadable],
    progress: Progress,
    rest: str = "listed in full below results/",
) -> None:
    """The files that could not be read, at the very end, where they are seen.

    `rest` says where those are told that are left out here.
    """
    if not unreadable:
        return
    progress.warn(f"{counted(len(unreadable), 'file')} could not be read and took no part:")
    for one in unreadable[:UNREADABLE_SHOWN]:
        progress.note(f"  {shown(one.path)}: {one.reason}")
    if len(unreadable) > UNREADABLE_SHOWN:
        progress.note(f"  ... and {len(unreadable) - UNREADABLE_SHOWN:,} more, {rest}")


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith("change") else None)
    Console(file=sys.stdout, highlight=False).print(table)


def _numbers(metrics: Mapping[str, float] | None, names: Sequence[str]) -> list[str]:
    return [_number((metrics or {}).get(name)) for name in names]


def _changes(
    first: Mapping[str, float], last: Mapping[str, float], names: Sequence[str]
) -> list[str]:
    pairs = [(first.get(name), last.get(name)) for name in names]
    return ["" if a is None or b is None else f"{b - a:+.4f}" for a, b in pairs]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
