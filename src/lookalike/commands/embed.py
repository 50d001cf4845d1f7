"""`lookalike.embed`: the embeddings of any number of images, as a folder that can go on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lookalike.config import EmbedConfig
from lookalike.data.images import Unreadable, list_unreadable
from lookalike.data.placement import keep_out_of_images
from lookalike.data.sources import load_unlabelled
from lookalike.embedding.embedder import make_embedder
from lookalike.embedding.shards import Plan, embed_parts, start_shards, unreadable_in
from lookalike.errors import ConfigError, DataError, Interrupted
from lookalike.files import shown
from lookalike.locking import sole_writer
from lookalike.progress import Progress, SilentProgress, counted, default_progress
from lookalike.runtime.device import make_runtime
from lookalike.runtime.world import World, joined


@dataclass(frozen=True)
class EmbedResult:
    """The folder of embeddings, and what is in it.

    `num_parts_before` were done already when the command began. `num_images` counts all images
    of the source; those in `unreadable` have no row.
    """

    folder: Path
    model_name: str
    kind: str
    dim: int
    fingerprint: str
    num_images: int
    num_parts: int
    num_parts_before: int
    unreadable: list[Unreadable]

    @property
    def num_rows(self) -> int:
        """Returns the number of images that could be read."""
        return self.num_images - len(self.unreadable)


def embed(config: EmbedConfig, *, progress: Progress | None = None) -> EmbedResult:
    """Embeds the images of a source into a folder of parts, `config.out`.

    Each part is written when it is done, and never done twice: the same command, after it was
    stopped or killed, embeds the parts that are missing. Processes that `torchrun` started embed a
    share of the parts each; the rows are the same to the bit however many there are, if each
    computes with as many threads. `open_shards` and `evaluate` read the folder.

    Raises:
        ConfigError: no images are named, or the folder lies among them.
        DataError: there are no images, or not one that can be read.
        OutputError: the folder holds embeddings of another model, other images or settings.
        ModelError, CheckpointError: the model cannot be loaded.
        Interrupted: Ctrl-C; the parts that are done are kept.
    """
    with joined() as world, ExitStack() as at_the_end:
        progress = (progress or default_progress()) if world.is_main else SilentProgress()
        try:
            return _embed(config, progress, world, at_the_end)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; finished parts are kept in {shown(config.out)}, and the "
                              "same command continues with the others") from None  # fmt: skip


def _embed(
    config: EmbedConfig, progress: Progress, world: World, at_the_end: ExitStack
) -> EmbedResult:
    """Embeds in processes that have joined; `at_the_end` lets go of the folder."""
    if config.data is None:
        raise ConfigError("there is nothing to embed; give a folder of images or a table: "
                          "lookalike embed IMAGES")  # fmt: skip
    source, out = Path(config.data), Path(config.out)
    keep_out_of_images(out, [config.data])
    images = load_unlabelled(config.data, progress)
    world.on_main(lambda: at_the_end.enter_context(sole_writer(out)))
    runtime = make_runtime(config.device, config.precision, config.num_workers, world)
    embedder = make_embedder(config, runtime, progress)
    batch_size = config.eval_batch_size
    batches = -(-config.images_per_part // batch_size)
    plan = Plan(len(images), batches * batch_size, batch_size)
    progress.note(f"model    {embedder.encoder.title} · {embedder.kind} {embedder.dim}-d")
    progress.note(f"images   {counted(len(images), 'image')} of {shown(source)}")
    progress.note(f"device   {runtime.describe()}")
    missing = world.on_main(
        lambda: start_shards(out, images, embedder, plan, overwrite=config.overwrite)
    )
    before = plan.num_parts - len(missing)
    if before:
        progress.note(f"done     {before:,} of {counted(plan.num_parts, 'part')} there already")
    embed_parts(out, embedder, images, plan, missing[world.share_of(len(missing))])
    world.all_gather_objects(None)  # all parts are there from here on
    unreadable = unreadable_in(out, plan)
    if len(unreadable) == len(images):
        raise DataError(f"none of the {len(images):,} images can be read: "
                        f"{list_unreadable(unreadable)}")  # fmt: skip
    model = (config.model_name, embedder.kind, embedder.dim, embedder.fingerprint)
    return EmbedResult(out, *model, len(images), plan.num_parts, before, unreadable)
