"""`lookalike export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lookalike.cli.output import say
from lookalike.cli.tables import print_files
from lookalike.cli.verb import Verb
from lookalike.config import ExportConfig
from lookalike.files import shown

if TYPE_CHECKING:
    from lookalike.commands.export import ExportResult


def _document(result: ExportResult) -> dict[str, Any]:
    return {
        "folder": shown(result.folder),
        "files": [shown(path) for path in result.files],
        "embedding": {"kind": result.kind, "dim": result.dim},
        "agreement": asdict(result.agreement),
        "unmeasured": result.unmeasured,
        "url": result.url,
    }


def print_export(result: ExportResult) -> None:
    """Prints what was exported, how sure that is, and where it lies."""
    say(f"Exported: {result.kind} embeddings of {result.dim:,} numbers.")
    say(f"Checked: {result.agreement.in_words()}.")
    if result.unmeasured:
        say(f"The model card has no measured numbers: {result.unmeasured}.")
    say()
    print_files(result.files)
    if result.url:
        say(f"\nOn the hub: {result.url}")


VERB = Verb(
    name="export",
    show=print_export,
    document=_document,
    help="write a fine-tuned encoder in a format that other software loads",
    usage="export MODEL [--to FORM] [--out FOLDER] [options]",
    description="""
        Writes a checkpoint, or any model, as a Transformers folder, as a sentence-transformers
        model, or as an ONNX graph. The result is loaded and must give the embeddings of the
        original before the folder appears. With it comes a model card (README.md) that carries
        the numbers the checkpoint's run measured.
    """,
    examples="""
        examples:
          lookalike export weights/encoder_epoch_03.pth --out shop-clip
          lookalike export weights/encoder_epoch_03.pth --to onnx --out shop-onnx
          lookalike export facebook/dinov2-small --to sentence-transformers --out dino-st
          lookalike export weights/encoder_epoch_03.pth --push-to-hub jane/shop-clip

        writes, in --out:
          README.md        the model card
          lookalike.json   embedding, preprocessing, origin, for programs
          model.onnx       or the files that from_pretrained or SentenceTransformer loads
    """,
    config=ExportConfig,
    positional=("model_name", "MODEL"),
)
