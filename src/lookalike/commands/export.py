"""`lookalike.export`: a checkpoint, or any model, in a form that other software loads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lookalike.config import ExportConfig
from lookalike.errors import OutputError
from lookalike.evaluation.results import library_versions
from lookalike.exports.agreement import Agreement, Form, check_agreement
from lookalike.exports.card import write_card
from lookalike.exports.formats.onnx_graph import ONNX
from lookalike.exports.formats.sentence_transformers_folder import SENTENCE_TRANSFORMERS
from lookalike.exports.formats.transformers_folder import TRANSFORMERS
from lookalike.exports.hub import log_in, push
from lookalike.exports.source import Source, read_source
from lookalike.files import names_in, shown, write_folder_whole, write_json
from lookalike.locking import sole_writer_of_whole
from lookalike.progress import Progress, default_progress

MANIFEST = "lookalike.json"

_FORMS = {
    "transformers": TRANSFORMERS,
    "sentence-transformers": SENTENCE_TRANSFORMERS,
    "onnx": ONNX,
}


@dataclass(frozen=True)
class ExportResult:
    """An export, and how near its embeddings are to those of the model it was made from.

    `unmeasured` says why the model card has no table of measured numbers, where it has none.
    `url` is where the hub shows it, if it was pushed there.
    """

    folder: Path
    files: list[Path]
    kind: str
    dim: int
    agreement: Agreement
    unmeasured: str | None
    url: str | None


def export(config: ExportConfig, *, progress: Progress | None = None) -> ExportResult:
    """Writes a model in another form, checked against the original, with a model card.

    The folder appears whole or not at all, and only after what was written gives the embeddings
    of the original. Beside the model it holds README.md, the card with the numbers that the
    checkpoint's run measured, and lookalike.json, the facts for programs.

    Raises:
        ConfigError: no model is named; or there is no way to push, which is checked first.
        MissingExtraError: the form needs a package that is not installed.
        ModelError, CheckpointError: the model cannot be loaded, or not be put into this form.
        OutputError: the folder is taken, cannot be written, or cannot be uploaded.
    """
    progress = progress or default_progress()
    form, out = _FORMS[config.to], Path(config.out)
    form.require()
    with sole_writer_of_whole(out):
        return _export(form, out, config, progress)


def _export(form: Form, out: Path, config: ExportConfig, progress: Progress) -> ExportResult:
    """Exports to a folder that nobody else writes to."""
    _check_free(out, config)
    hub = log_in(config.push_to_hub) if config.push_to_hub is not None else None
    source = read_source(config)
    encoder = source.encoder
    progress.note(f"model    {source.title} · {encoder.kind} {encoder.dim}-d")
    found: list[Agreement] = []

    def write(folder: Path) -> None:
        progress.note(f"writing  {config.to}")
        form.write(encoder, folder)
        progress.note("checking that it gives the embeddings of the original")
        found.append(check_agreement(folder, form, encoder))
        write_card(folder, source, config, found[0])
        write_json(folder / MANIFEST, _facts(source, config, found[0]))
        _check_free(out, config)  # minutes have passed

    write_folder_whole(out, write)
    url = None
    if hub and config.push_to_hub:
        progress.note(f"upload   to {config.push_to_hub}")
        message = f"Export of {source.name} by Lookalike"
        url = push(hub, config.push_to_hub, out, private=config.private, message=message)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return ExportResult(
        out, files, encoder.kind, encoder.dim, found[0], unmeasured=source.unmeasured, url=url
    )


def _check_free(out: Path, config: ExportConfig) -> None:
    """Raises where the folder holds something that an export may not replace."""
    names = names_in(out)
    if not names:
        return
    if MANIFEST not in names:
        raise OutputError(
            f"{shown(out)} already exists and is not a Lookalike export, so it was left alone; "
            "choose a new folder with --out"
        )
    if not config.overwrite:
        raise OutputError(
            f"{shown(out)} already holds an export; choose another folder with --out, or replace "
            "it with --overwrite"
        )
    model = Path(config.model_name) if config.model_name else None
    if model and model.exists() and model.resolve().is_relative_to(out.resolve()):
        raise OutputError(
            f"--overwrite would remove {shown(model)}, which is to be exported; choose another "
            "folder with --out"
        )


def _facts(source: Source, config: ExportConfig, agreement: Agreement) -> dict[str, Any]:
    """Returns the facts of an export for programs."""
    encoder, in_model = source.encoder, config.to == "onnx"
    preparation = encoder.preprocessing.facts()
    return {
        "format": "lookalike-export-1",
        "to": config.to,
        "embedding": {"kind": encoder.kind, "dim": encoder.dim, "normalized": True},
        "preparation": preparation | {"scale_and_normalize_are_in_the_model": in_model},
        "made_from": source.origin(),
        "agreement": asdict(agreement),
        "versions": library_versions(),
    }
