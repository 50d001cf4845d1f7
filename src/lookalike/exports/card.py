"""The model card: README.md, with the numbers that were measured and code that loads the model."""

from __future__ import annotations

import dataclasses
import json
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.config import ExportConfig, TrainConfig
from lookalike.config.settings import FREE_ON_RESUME
from lookalike.evaluation.documents import Document
from lookalike.evaluation.metrics import text_headline
from lookalike.evaluation.results import library_versions
from lookalike.exports.agreement import Agreement
from lookalike.exports.source import Source
from lookalike.files import shown, write_text
from lookalike.progress import counted
from lookalike.report.history import History

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from jinja2 import Environment

CARD, PREPARE = "README.md", "prepare.py"
# These have a sentence of their own, or mean something on the trainer's machine alone.
_NOT_LISTED = (FREE_ON_RESUME - {"precision"}) | {
    "model_name", "objective", "learning_rate", "n_classes_per_batch", "n_samples_per_class",
}  # fmt: skip


def write_card(folder: Path, source: Source, config: ExportConfig, agreement: Agreement) -> None:
    """Writes README.md into the folder of an export, and prepare.py, which reads images for it.

    The hub's front matter first, then for people: how well it retrieves (the table that the
    checkpoint's run measured, before and after, or why there is none), how to load it, how it
    was trained, versions. It names no folder of the machine it was made on.
    """
    prepare = _environment().get_template("prepare.py.j2").render()
    write_text(folder / PREPARE, f'"""How this model takes its images."""\n\n{prepare}\n')
    name = shown(config.push_to_hub or Path(config.out).resolve().name)
    body = (
        _environment()
        .get_template("card.md.j2")
        .render(
            name=name,
            config=config,
            source=source,
            encoder=source.encoder,
            checkpoint=source.checkpoint or {},
            table=results_table(source.history) if source.history else None,
            measured=source.history.current if source.history else None,
            settings=_changed_settings(source),
            loading=_loading(source),
            prepare=prepare,
            agreement=agreement.in_words(),
            versions=library_versions(),
        )
    )
    write_text(folder / CARD, f"---\n{front_matter(source, config)}\n---\n\n{body.strip()}\n")


def front_matter(source: Source, config: ExportConfig) -> str:
    """Returns the card's YAML, which the hub reads. What is not known is left out."""
    from huggingface_hub import ModelCardData

    of_form = ["sentence-transformers"] if config.to == "sentence-transformers" else []
    data = ModelCardData(
        library_name=config.to,
        pipeline_tag="image-feature-extraction",
        tags=["image-retrieval", "image-similarity", "lookalike", *of_form],
        license=config.license,
        base_model=source.base_model,
        base_model_relation="finetune" if source.base_model and source.checkpoint else None,
        metrics=source.history.headline if source.history else None,
        model_name=(config.push_to_hub or Path(config.out).resolve().name).rpartition("/")[2],
        eval_results=_eval_results(source.history) if source.history else None,
    )
    return str(data.to_yaml()).strip()


def _eval_results(history: History) -> list[EvalResult]:
    """Returns the numbers as the hub's model index holds them."""
    from huggingface_hub import EvalResult

    protocol = history.current["protocol"]
    facts = ("kind", "num_queries", "num_gallery", "fingerprint")
    return [
        EvalResult(
            task_type="image-retrieval",
            task_name="Image retrieval",
            dataset_type="own-images",
            dataset_name="The trainer's own test images",
            dataset_args={fact: protocol[fact] for fact in facts},
            metric_type=name,
            metric_name=name,
            metric_value=round(history.current["metrics"][name], 4),
        )
        for name in history.headline
    ]


def results_table(history: History) -> list[list[str]]:
    """Returns a heading and a row a metric: this epoch beside the one before training."""
    before, now = history.before, history.current
    mixed = f", mixed with the original, alpha {now['alpha']:g}" if "alpha" in now else ""
    heading = ["", f"this model (epoch {now['epoch']}{mixed})"]
    if before is not None:
        # Epoch 0 is the baseline; a run may have begun to be measured later.
        word = "before training" if before["epoch"] == 0 else "earlier"
        heading = ["", f"{word} (epoch {before['epoch']})", heading[1], "change"]
    texts = now.get("text_metrics") or {}
    rows = [_row(before, now, name, "") for name in history.headline]
    rows += [_row(before, now, name, "text_") for name in text_headline() if name in texts]
    return [heading, *rows]


def _row(before: Document | None, now: Document, name: str, kind: str) -> list[str]:
    """Returns one metric: of image search, or, as `kind` "text_" says, of text search."""
    title, value = f"{kind}{name}".replace("_", " "), _with_interval(now, name, kind)
    if before is None:
        return [title, value]
    earlier = (before.get(f"{kind}metrics") or {}).get(name)
    if earlier is None:
        return [title, "", f"**{value}**", ""]
    change = now[f"{kind}metrics"][name] - earlier
    return [title, _with_interval(before, name, kind), f"**{value}**", f"{change:+.4f}"]


def _with_interval(document: Document, name: str, kind: str) -> str:
    value, ends = (
        document[f"{kind}metrics"][name],
        (document.get(f"{kind}intervals") or {}).get(name),
    )
    return f"{value:.4f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def _changed_settings(source: Source) -> list[tuple[str, str, str]]:
    """Returns name, value and default of each option that shaped the training and was changed."""
    saved = (source.checkpoint or {}).get("config")
    if saved is None:
        return []
    return [
        (option.name, str(value), "" if option.default is None else str(option.default))
        for option in dataclasses.fields(TrainConfig)
        if option.name not in _NOT_LISTED
        and (value := saved.get(option.name, option.default)) != option.default
    ]


def _loading(source: Source) -> dict[str, Any]:
    """Returns the parts of the loading code that differ from model to model."""
    encoder, backbone = source.encoder, source.encoder.backbone
    two_towers = hasattr(backbone, "get_image_features")
    auto_class, call = "AutoModel", "model"
    if two_towers:
        call = f"model.{'get_image_features' if encoder.kind == 'projected' else 'vision_model'}"
        output = ".pooler_output"
    elif encoder.kind == "projected":
        auto_class, output = type(backbone).__name__, ".image_embeds"
    else:
        output = {
            "cls": ".last_hidden_state[:, 0]",
            "mean": ".last_hidden_state.mean(dim=1)",
            "pooler": ".pooler_output.flatten(1)",
        }[encoder.description()["pool"]]
    return {"auto_class": auto_class, "call": call, "output": output, "two_towers": two_towers}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown; what people wrote goes through `code`
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    quoted = partial(json.dumps, ensure_ascii=False)  # a string in Python as well
    environment.filters |= {"code": code, "counted": counted, "quoted": quoted}
    return environment


def code(text: str) -> str:
    """Returns any text as one piece of code that stands in a sentence or a table.

    >>> code("a `b` | c")
    "`a 'b' / c`"
    """
    return f"`{shown(' '.join(text.split())).replace('`', chr(39)).replace('|', '/')}`"
