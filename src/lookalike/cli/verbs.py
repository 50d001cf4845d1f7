"""What each verb does: flags to a configuration, the call, and what is printed of it."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.cli.flags import paragraphs
from lookalike.config import BenchConfig, CheckConfig, EvaluateConfig, ExportConfig, TrainConfig
from lookalike.config.recipes import SHIPPED, find_recipe, read_recipe, shipped_text, summary
from lookalike.config.settings import config_from, format_recipe
from lookalike.files import shown

if TYPE_CHECKING:
    from lookalike.evaluation.interpolation import TradeOff
    from lookalike.training.history import Best

MUST_MEND = 1


def run_train(given: argparse.Namespace) -> None:
    """Trains, and prints the history."""
    options = _options_of(given)
    recipe = find_recipe(given.recipe) if given.recipe else {}
    saved: dict[str, Any] = {}
    resume: Path | None = None
    if given.resume is not None:
        from lookalike.model.pretrained import read_checkpoint
        from lookalike.training.checkpoints.checkpoint import check_can_go_on
        from lookalike.training.checkpoints.folder import newest_checkpoint

        out = Path(options.get("out", recipe.get("out", ".")))
        resume = Path(given.resume or out)
        if resume.is_dir():
            resume = newest_checkpoint(resume)
        checkpoint = read_checkpoint(resume)
        check_can_go_on(checkpoint, resume)  # before its settings, which may be those of its time
        saved = checkpoint["config"]
    config = config_from(TrainConfig, saved, recipe, options)
    if given.print_config:
        _print_utf8(format_recipe(config))
        return

    from lookalike.cli import tables
    from lookalike.commands.train import train
    from lookalike.progress import default_progress

    progress = default_progress()
    result = train(config, resume=resume, progress=progress)
    if given.json:
        _print_json(
            {
                "history": [asdict(one) for one in result.history],
                "best": _best(result.best),
                "interpolation": _mixtures(result.trade_off),
                "files": [shown(path) for path in result.files],
                "unreadable": [asdict(one) for one in result.unreadable],
            }
        )
    else:
        tables.print_history(result.history, result.best)
        if result.trade_off is not None:
            tables.print_trade_off(result.trade_off)
        if result.retrieval is not None:
            if result.retrieval.scores:
                tables.print_unanswered(result.retrieval.scores)
            tables.print_preview(result.retrieval)
        tables.print_files(result.files)
    tables.tell_unreadable(result.unreadable, progress)


def run_evaluate(given: argparse.Namespace) -> None:
    """Measures a model, or what another system made."""
    recipe = read_recipe(given.recipe) if given.recipe else {}
    config = config_from(EvaluateConfig, recipe, _options_of(given))
    if given.print_config:
        _print_utf8(format_recipe(config))
        return

    from lookalike.cli import tables
    from lookalike.commands.evaluate import evaluate
    from lookalike.progress import default_progress

    progress = default_progress()
    result = evaluate(config, progress=progress)
    if given.json:
        _print_json(
            {
                "metrics": _finite(result.metrics),
                "text_metrics": result.text_metrics,
                "files": [shown(path) for path in result.files],
                "unreadable": [asdict(one) for one in result.unreadable],
            }
        )
    else:
        if result.scores:
            tables.print_scores(result.scores)
        if result.text_scores:
            tables.print_text_scores(result.text_scores)
        if result.retrieval:
            tables.print_preview(result.retrieval)
        tables.print_files(result.files)
    tables.tell_unreadable(result.unreadable, progress)


def run_compare(given: argparse.Namespace) -> None:
    """Puts results beside each other."""
    from lookalike.cli import tables
    from lookalike.commands.compare import compare

    comparison = compare(
        given.results,
        different_protocols=given.different_protocols,
        by_class=given.by_class,
    )
    if not given.json:
        tables.print_comparison(comparison)
        return
    tests = [{name: asdict(test) for name, test in one.items()} for one in comparison.tests]
    _print_json(
        {
            "results": [
                {"name": one.name, "file": shown(one.path), "metrics": one.document["metrics"],
                 "intervals": one.document.get("intervals")}
                for one in comparison.results
            ],
            "tests_against_first": tests,
            "why_untested": comparison.why_untested,
            "folds": comparison.folds,
            "missing_metrics": comparison.missing,
        }
    )  # fmt: skip


def run_check(given: argparse.Namespace) -> int | None:
    """Checks images; the exit code says whether anything must be mended."""
    recipe = read_recipe(given.recipe) if given.recipe else {}
    config = config_from(CheckConfig, recipe, _options_of(given))
    if given.print_config:
        _print_utf8(format_recipe(config))
        return None

    from lookalike.cli.findings import print_findings
    from lookalike.commands.check import check
    from lookalike.progress import default_progress

    result = check(config, progress=default_progress())
    if given.json:
        _print_json(result.document())
    else:
        print_findings(result)
    return MUST_MEND if result.must_mend else 0


def run_bench(given: argparse.Namespace) -> None:
    """Measures how fast images become embeddings, and says what to change."""
    recipe = read_recipe(given.recipe) if given.recipe else {}
    config = config_from(BenchConfig, recipe, _options_of(given))
    if given.print_config:
        _print_utf8(format_recipe(config))
        return

    from lookalike.cli import tables
    from lookalike.commands.bench import bench
    from lookalike.progress import default_progress

    progress = default_progress()
    result = bench(config, progress=progress)
    if given.json:
        _print_json(result.document())
    else:
        tables.print_bench(result)
    tables.tell_unreadable(result.unreadable, progress, rest="of which --json tells all")


def run_export(given: argparse.Namespace) -> None:
    """Writes a model in another form."""
    recipe = read_recipe(given.recipe) if given.recipe else {}
    config = config_from(ExportConfig, recipe, _options_of(given))
    if given.print_config:
        _print_utf8(format_recipe(config))
        return

    from lookalike.cli import tables
    from lookalike.commands.export import export
    from lookalike.progress import default_progress

    result = export(config, progress=default_progress())
    if not given.json:
        tables.print_export(result)
        return
    _print_json(
        {
            "folder": shown(result.folder),
            "files": [shown(path) for path in result.files],
            "embedding": {"kind": result.kind, "dim": result.dim},
            "agreement": asdict(result.agreement),
            "unmeasured": result.unmeasured,
            "url": result.url,
        }
    )


def run_recipes(given: argparse.Namespace) -> None:
    """Lists the recipes that ship, or prints one as it stands in its file."""
    if given.json:
        names = [given.name] if given.name else SHIPPED
        recipes = {
            name: {"summary": summary(name), "settings": find_recipe(name)} for name in names
        }
        _print_json(recipes)
    elif given.name:
        _print_utf8(shipped_text(given.name))
    else:
        width = max(map(len, SHIPPED))
        lines = [f"{name:<{width}}  {summary(name)}" for name in SHIPPED]
        _print_utf8("\n".join(lines) + f"\n\n{paragraphs(_USE_A_RECIPE)}\n")


_USE_A_RECIPE = """
    to use:   lookalike train photos/train --test photos/test --recipe strong
    to read:  lookalike recipes strong
    to edit:  lookalike recipes strong > mine.yaml, and then --recipe mine.yaml
"""


def run_demo(given: argparse.Namespace) -> None:
    """Shows the main job on invented images."""
    from lookalike.cli import tables
    from lookalike.commands.demo import SHEET, demo
    from lookalike.evaluation.results import report_file
    from lookalike.progress import default_progress

    result = demo(Path(given.out), seed=given.seed, progress=default_progress())
    if given.json:
        _print_json({"history": [asdict(one) for one in result.history]})
        return
    tables.print_history(result.history, result.best)
    if result.retrieval is not None:
        tables.print_preview(result.retrieval)
        print(f"Six queries and what was found, as an image: {shown(Path(given.out) / SHEET)}")
        print(f"The whole report, to open in a browser: {shown(report_file(Path(given.out)))}\n")
    print(paragraphs(_YOUR_TURN))


_YOUR_TURN = """
    These images are invented and the encoder is a toy; the pipeline is the real one. On your
    own images, one folder per class:

      lookalike train photos/train --test photos/test
      lookalike train photos/train --query photos/test/query --gallery photos/test/gallery
"""


def _finite(metrics: dict[str, float] | None) -> dict[str, float | None] | None:
    """Metrics for JSON, which has no infinity: a median rank beyond what a run retrieved."""
    if metrics is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _mixtures(trade_off: TradeOff | None) -> dict[str, Any] | None:
    """The trade-off as JSON has it, with the mixture that was chosen."""
    return asdict(trade_off) | {"chosen": trade_off.chosen.alpha} if trade_off else None


def _best(best: Best | None) -> dict[str, Any] | None:
    """The best epoch for JSON."""
    if best is None:
        return None
    return asdict(best) | {"checkpoint": shown(best.checkpoint) if best.checkpoint else None}


def _options_of(given: argparse.Namespace) -> dict[str, Any]:
    """The flags that are options, out of all that were given."""
    others = {"verb", "parser", "recipe", "print_config", "json", "resume"}
    return {name: value for name, value in vars(given).items() if name not in others}


def _print_json(document: dict[str, Any]) -> None:
    _print_utf8(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def _print_utf8(text: str) -> None:
    """Prints what a program will read: in UTF-8, whatever the terminal or the pipe is set to."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"), end="")
