"""`lookalike embed`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lookalike.cli.output import say
from lookalike.cli.verb import Verb
from lookalike.config import EmbedConfig
from lookalike.files import shown
from lookalike.progress import counted

if TYPE_CHECKING:
    from lookalike.commands.embed import EmbedResult


def print_embedded(result: EmbedResult) -> None:
    """Prints how many embeddings there are now, of which model, and where."""
    there, before = result.num_parts_before, ""
    if there:
        some = "1 was" if there == 1 else f"{there:,} were"
        before = f"; {'all were' if there == result.num_parts else some} there already"
    say(
        f"Embedded {result.num_rows:,} of {counted(result.num_images, 'image')}: {result.kind} "
        f"{result.dim}-d, in {counted(result.num_parts, 'part')}{before}.\n"
        f"Model {shown(result.model_name)}, fingerprint {result.fingerprint}.\n\n"
        f"Written: {shown(result.folder)}"
    )


def _document(result: EmbedResult) -> dict[str, Any]:
    return asdict(result) | {"folder": shown(result.folder), "num_rows": result.num_rows}


VERB = Verb(
    name="embed",
    show=print_embedded,
    document=_document,
    unreadable_in="by --json",
    shares_work=True,
    help="write the embeddings of any number of images to a folder",
    usage="embed IMAGES [--model-name NAME] [--out FOLDER] [options]",
    description="""
        Embeds all images of a source in parts, each of which is written when it is done. If it
        was stopped or killed, the same command continues with the missing parts. Processes
        started by torchrun share the parts. evaluate --test-embeddings reads the folder.
    """,
    examples="""
        examples:
          lookalike embed photos/ --model-name weights/encoder_epoch_03.pth
          lookalike embed "shards-{0000..0063}.tar" --out embeddings/catalogue
          torchrun --nproc-per-node 4 -m lookalike embed photos/ --out embeddings/photos

        writes, in --out:
          manifest.json    the model, the list of images and the settings
          images.csv       the images, in order
          part-00000.npy   embeddings, float32, one row per image that could be read
          part-00000.json  its checksum, and images that could not be read
    """,
    config=EmbedConfig,
    positional=("data", "IMAGES"),
)
