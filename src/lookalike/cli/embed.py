"""`lookalike embed`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lookalike.cli import tables
from lookalike.cli.verb import Verb, configured, print_json
from lookalike.config import EmbedConfig
from lookalike.files import shown
from lookalike.progress import counted, default_progress


def _run(given: argparse.Namespace) -> None:
    config = configured(given, EmbedConfig)
    if config is None:
        return
    from lookalike.commands.embed import embed

    progress = default_progress()
    result = embed(config, progress=progress)
    if given.json:
        print_json(asdict(result) | {"folder": shown(result.folder), "num_rows": result.num_rows})
    else:
        before = f", {result.num_parts_before:,} of them before" if result.num_parts_before else ""
        print(
            f"Embedded {result.num_rows:,} of {counted(result.num_images, 'image')}: {result.kind} "
            f"{result.dim}-d, in {counted(result.num_parts, 'part')}{before}.\n"
            f"Model {shown(result.model_name)}, fingerprint {result.fingerprint}.\n\n"
            f"Written: {shown(result.folder)}"
        )
    tables.tell_unreadable(result.unreadable, progress, rest="listed in full by --json")


VERB = Verb(
    name="embed",
    run=_run,
    shares_work=True,
    help="write the embeddings of any number of images to a folder",
    usage="embed IMAGES [--model-name NAME] [--out FOLDER] [options]",
    description="""
        Embeds all images of a source in parts, each of which is written when it is done. The same
        command, after it was stopped or killed, goes on with the parts that are missing; processes
        that torchrun started share the parts. evaluate --test-embeddings reads the folder.
    """,
    examples="""
        examples:
          lookalike embed photos/ --model-name weights/encoder_epoch_03.pth
          lookalike embed "shards-{0000..0063}.tar" --out embeddings/catalogue
          torchrun --nproc-per-node 4 -m lookalike embed photos/ --out embeddings/photos

        writes, in --out:
          manifest.json    the model, the list of images and the settings
          images.csv       the images, in order
          part-00000.npy   embeddings, float32, one row an image that could be read
          part-00000.json  its checksum, and images that could not be read
    """,
    config=EmbedConfig,
    positional=("data", "IMAGES", "images to embed: a folder, however deep, a table, or shards"),
)
