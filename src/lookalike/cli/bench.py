"""`lookalike bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lookalike.cli import tables
from lookalike.cli.output import say
from lookalike.cli.verb import Verb
from lookalike.config import BenchConfig
from lookalike.progress import counted

if TYPE_CHECKING:
    from lookalike.commands.bench import BenchResult


def print_bench(result: BenchResult) -> None:
    """Prints one row a stage; what that means; how long many images would take."""
    speed, shares = result.speed, result.speed.shares()
    images, batch_size = speed.images, speed.machine.batch_size
    formats = ", ".join(f"{number:,} {name}" for name, number in images.formats.items())
    say(
        f"{images.num_measured:,} of {counted(images.num_found, 'image')}: {formats}; median "
        f"{images.median_megapixels:.2g} megapixels, {images.median_kilobytes:,.0f} kB"
    )
    rows = [
        [one.name, f"{one.median_ms:,.2f}", f"{one.mean_ms:,.2f}", str(one.at_a_time),
         f"{one.images_per_s:,.1f}", f"{shares[one.name]:.0%}"]
        if one.images_per_s
        else [one.name, *["-"] * 5]  # no transfer on a CPU
        for one in speed.stages
    ]  # fmt: skip
    tables.print_table(["", "median ms", "mean ms", "at a time", "images/s", "share"], rows)
    batch_ms = speed.stage("model").median_ms * batch_size
    lines = [
        ("model alone", f"{speed.model_alone:,.1f} images/s",
         f"a batch of {batch_size:,} takes {batch_ms:,.0f} ms"),
        ("all together", f"{speed.whole:,.1f} images/s", f"{speed.reached:.0%} of that"),
    ]  # fmt: skip
    if speed.machine.num_workers:
        workers = f"to start {counted(speed.machine.num_workers, 'worker')}"
        lines.append(("start-up", f"{result.workers_start_s:,.1f} seconds", workers))
    for what, value, note in lines:
        say(f"{what:<12}  {value:>22}   {note}")
    say()
    for sentence in result.advice:
        tables.print_wrapped(f"- {sentence}", rest="  ")
    times = [f"{n:,} images in {_duration(took)}" for n, took in result.seconds_for().items()]
    say()
    tables.print_wrapped(f"At this rate: {'; '.join(times)}.")


def _duration(seconds: float) -> str:
    """Returns a time as people say it."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} seconds"


VERB = Verb(
    name="bench",
    show=print_bench,
    unreadable_in="by --json",
    help="find what limits speed on your images and machine, and what to change",
    usage="bench IMAGES [--model-name NAME] [options]",
    description="""
        Measures each stage between files and embeddings by itself (reading, decoding,
        preprocessing, transfer to the device, model), then all of them together, as evaluate
        runs them. Names the bottleneck, and which options or files to change.

        Files that the system has read recently come from memory, not from the disk. Nothing is
        written.
    """,
    examples="""
        examples:
          lookalike bench photos/test
          lookalike bench photos/test --model-name openai/clip-vit-base-patch32
          lookalike bench photos/test --num-workers 8 --seconds 30 --json
    """,
    config=BenchConfig,
    positional=("data", "IMAGES"),
)
