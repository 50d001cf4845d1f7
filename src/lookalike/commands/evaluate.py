"""`lookalike.evaluate`: one model, or what another system made, under one protocol."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from lookalike.config import EvaluateConfig
from lookalike.data.images import ImageSet, Unreadable, list_unreadable
from lookalike.data.placement import keep_cache_apart, keep_out_of_images
from lookalike.data.reading.cache import make_cache
from lookalike.data.reading.content import require_pyarrow
from lookalike.embedding.embedder import make_embedder
from lookalike.embedding.interchange import (
    embedder_of_both,
    load_embeddings,
    rows_of_images,
    save_embeddings,
)
from lookalike.embedding.shards import open_shards
from lookalike.errors import ConfigError, DataError
from lookalike.evaluation.outputs import plan_files, refuse_existing, refuse_to_replace
from lookalike.evaluation.protocol import Holdout, Protocol, load_protocol
from lookalike.evaluation.results import metrics_document, report_file, write_results
from lookalike.evaluation.retrieval import (
    Retrieval,
    evaluate_encoder,
    exclusions,
    refuse_learned_classes,
    retrieve,
)
from lookalike.evaluation.scoring.scores import QueryScores
from lookalike.evaluation.text import search_by_text, text_document, text_metrics, text_queries
from lookalike.evaluation.trec import write_trec
from lookalike.evaluation.trec_scoring import score_trec
from lookalike.files import briefly, shown, write_json, written_together
from lookalike.locking import sole_writer
from lookalike.model.encoder import CLIPEncoder
from lookalike.model.layers import on_device
from lookalike.model.pretrained import chosen_embedding, is_checkpoint, read_checkpoint
from lookalike.progress import Progress, SilentProgress, counted, default_progress
from lookalike.report.write import write_report
from lookalike.runtime.device import make_runtime
from lookalike.runtime.world import ALONE, World, joined
from lookalike.search.rows import Rows


@dataclass(frozen=True)
class EvaluateResult:
    """A model's retrievals, how good they are, and where they were written.

    `retrieval` is None where a run of another system was scored: it has no images.
    `text_scores` are of text search by class name, where the model has a text tower.
    """

    epoch: int
    scores: QueryScores | None
    retrieval: Retrieval | None
    files: list[Path]
    unreadable: list[Unreadable]
    text_scores: QueryScores | None = None

    @property
    def metrics(self) -> dict[str, float] | None:
        """Means over the queries that have an answer; None without labels."""
        return self.scores.micro() if self.scores else None

    @property
    def text_metrics(self) -> dict[str, float] | None:
        """Means over classes of text search; None where the model embeds no texts."""
        return text_metrics(self.text_scores) if self.text_scores else None


def evaluate(config: EvaluateConfig, *, progress: Progress | None = None) -> EvaluateResult:
    """Measures a model on labelled images, or just retrieves among unlabelled ones.

    Writes `results/retrieval_results_epoch_XX.json` and `results/metrics_epoch_XX.json` under
    `config.out`, XX being the epoch of a Lookalike checkpoint, or 00, and with `config.report`
    `results/report.html`, a page to look at. Embeddings made elsewhere
    (`test_embeddings`, ...) are measured as a model's are. A ranking made elsewhere (`run` and
    `qrels`) is scored without images, into `results/metrics_<name of the run>.json`.

    Processes that `torchrun` started embed a share of the images each; the first one ranks,
    writes and shows progress, and all return the same.

    Raises:
        LookalikeError: of the kind that says what is wrong (see `lookalike.errors`).
    """
    with joined() as world, ExitStack() as at_the_end:
        progress = (progress or default_progress()) if world.is_main else SilentProgress()
        out, sources = Path(config.out), [config.test, config.query, config.gallery]
        keep_out_of_images(out, sources)
        keep_cache_apart(config.decode_cache, out, sources)
        world.on_main(lambda: at_the_end.enter_context(sole_writer(out, "results")))
        if config.run or config.test_embeddings or config.query_embeddings:
            return world.on_main(lambda: _evaluate(config, progress, ALONE))
        return _evaluate(config, progress, world)


def _evaluate(config: EvaluateConfig, progress: Progress, world: World) -> EvaluateResult:
    """Evaluates in one of the processes that have joined."""
    out = Path(config.out)
    if config.run is not None and config.qrels is not None:
        return _evaluate_run(config, Path(config.run), Path(config.qrels), out, progress)
    if config.save_embeddings == "parquet":
        require_pyarrow()  # before anything is embedded
    given = config.test_embeddings or config.query_embeddings
    checkpoint: dict[str, Any] = {}
    if not given:
        if is_checkpoint(config.model_name):
            checkpoint = read_checkpoint(Path(config.model_name))
            checkpoint.pop("optimizer_state_dict", None)  # twice the size of the model
        # The results say which one was measured.
        config = replace(config, embedding=chosen_embedding(config.embedding, checkpoint))
    protocol = load_protocol(config, progress, _holdout_of(checkpoint, config, progress))
    if protocol is None:
        raise ConfigError("there is nothing to evaluate: give --test, or --query and --gallery; "
                          "or --run and --qrels from another system")  # fmt: skip
    for warning in protocol.warnings():
        progress.warn(warning)
    epoch, mixture = int(checkpoint.get("epoch", 0)), checkpoint.get("interpolation")
    planned = plan_files(config, protocol, out, epoch, of_mixture=mixture is not None)
    refuse_to_replace(planned, config)
    if given:
        found = _measure_given(config, protocol, progress)
    else:
        found = _measure_model(config, checkpoint or None, protocol, progress, world)
    retrieval = found.retrieval
    about = {"embeddings_of": given or config.model_name, "config": asdict(config)}
    about |= text_document(found.text_scores) | ({"alpha": mixture["alpha"]} if mixture else {})

    def write() -> list[Path]:
        outdated = refuse_to_replace(planned, config)  # again: much may have happened since
        with written_together(out, "results", outdated=outdated) as folder:
            one = (folder, epoch, retrieval, protocol)
            write_results(*one, about=about, of_mixture=mixture is not None)
            plan = plan_files(config, protocol, folder, epoch, of_mixture=mixture is not None)
            if plan.trec:
                write_trec(*plan.trec, retrieval)
            for side, path in plan.embeddings.items():
                images, embeddings = retrieval.query, retrieval.query_embeddings
                if side == "gallery":
                    images, embeddings = retrieval.gallery, retrieval.gallery_embeddings
                save_embeddings(path, embeddings[:], images, found.facts)
            if config.report:
                write_report(*one, progress=progress, of_mixture=mixture is not None)
        return [*planned.files, *([report_file(out)] if config.report else [])]

    files = world.on_main(write)
    return EvaluateResult(
        epoch, retrieval.scores, retrieval, files, retrieval.unreadable, found.text_scores
    )


class _Measured(NamedTuple):
    """A retrieval, text search where the model has texts, and facts to save with embeddings."""

    retrieval: Retrieval
    text_scores: QueryScores | None
    facts: dict[str, Any] | None


def _measure_model(
    config: EvaluateConfig,
    checkpoint: dict[str, Any] | None,
    protocol: Protocol,
    progress: Progress,
    world: World,
) -> _Measured:
    """Embeds with a model, and measures."""
    runtime = make_runtime(config.device, config.precision, config.num_workers, world)
    encoder = on_device(
        CLIPEncoder(config.model_name, embedding=config.embedding, checkpoint=checkpoint), runtime
    )
    embedder = make_embedder(config, runtime, progress, encoder)
    refuse_learned_classes(encoder, protocol)
    if protocol.gallery.labels is not None and encoder.has_text:
        _ = encoder.tokenizer  # one that cannot be built says so before anything is embedded
    progress.note(f"model    {encoder.title} · {embedder.kind} {embedder.dim}-d")
    progress.note(f"test     {protocol.describe()}")
    progress.note(f"device   {runtime.describe()}")
    cache = make_cache(config, progress)
    loader = embedder.loader(protocol.files, cache=cache)
    if cache is not None:
        world.on_main(cache.prepare)
        progress.note(f"cache    {cache.describe()}")
    retrieval = evaluate_encoder(
        embedder, protocol, loader, top_k_wanted=config.top_k, progress=progress
    )
    if cache is not None:
        progress.note(f"cache    {cache.reads_of_all(world)}")
    text_scores: QueryScores | None = None
    if retrieval.gallery.labels is not None and encoder.has_text:
        queries = text_queries(encoder, retrieval.gallery.labels, config.caption_template, progress)
        text_scores = search_by_text(queries, retrieval.gallery, retrieval.gallery_embeddings)
    facts = embedder.facts() if config.save_embeddings != "none" else None
    return _Measured(retrieval, text_scores, facts)


def _measure_given(config: EvaluateConfig, protocol: Protocol, progress: Progress) -> _Measured:
    """Measures embeddings that were made before."""
    query_path = Path(config.test_embeddings or config.query_embeddings or "")
    gallery_path = Path(config.test_embeddings or config.gallery_embeddings or "")
    progress.note(f"test     {protocol.describe()}")
    query = _given(query_path, protocol.query, protocol.query_ids, progress)
    same = query_path == gallery_path and protocol.query is protocol.gallery
    gallery = (
        query if same else _given(gallery_path, protocol.gallery, protocol.gallery_ids, progress)
    )
    facts = embedder_of_both(query_path, gallery_path)
    retrieval = retrieve(
        query.embeddings,
        gallery.embeddings,
        query.images,
        gallery.images,
        exclude=exclusions(query.images, gallery.images, query.ids, gallery.ids),
        top_k_wanted=config.top_k,
        progress=progress,
        unreadable=list(dict.fromkeys(protocol.unreadable + query.unreadable + gallery.unreadable)),
    )
    return _Measured(retrieval, None, facts)


class _Given(NamedTuple):
    """One side of a test, with the embeddings that were given of it."""

    embeddings: Float32[Tensor, "n dim"] | Rows
    images: ImageSet
    ids: list[int]
    unreadable: list[Unreadable]


def _given(path: Path, images: ImageSet, ids: list[int], progress: Progress) -> _Given:
    """Returns the embeddings of one side: a file's in memory, a folder's where they lie."""
    if not path.is_dir():
        return _Given(load_embeddings(path, images), images, ids, [])
    shards = open_shards(path)
    rows = rows_of_images(
        path, shards.names, images, progress, without=shards.unreadable, root=shards.root
    )
    unreadable = [
        Unreadable(full, shards.unreadable.get(name, "no embedding"))
        for row, name, full in zip(rows, images.names, images.paths, strict=True)
        if row < 0
    ]
    if len(unreadable) == len(images):
        raise DataError(f"none of the {len(images):,} images could be read when they were "
                        f"embedded: {list_unreadable(unreadable)}")  # fmt: skip
    if unreadable:
        keep = [i for i, row in enumerate(rows) if row >= 0]
        images, ids = images.subset(keep), [ids[i] for i in keep]
    order = np.array([row for row in rows if row >= 0])
    everything = np.array_equal(order, np.arange(len(shards.names)))
    return _Given(Rows(shards.embeddings, None if everything else order), images, ids, unreadable)


def _evaluate_run(
    config: EvaluateConfig, run: Path, qrels: Path, out: Path, progress: Progress
) -> EvaluateResult:
    """Scores a ranking that was made elsewhere."""
    path = out / "results" / f"metrics_{run.stem}.json"
    refuse_existing([path], config)
    scored = score_trec(run, qrels)
    progress.note(f"run      {shown(run)}: {scored.num_retrieved:,} retrieved")
    progress.note(f"qrels    {shown(qrels)}: {counted(len(scored.names), 'query', 'queries')}")
    for names, where, outcome in (
        (
            scored.not_in_run,
            "the run",
            "of the qrels, which score as if nothing had been retrieved",
        ),
        (scored.not_in_qrels, "the qrels, and left out", "of the run"),
    ):
        if names:
            number = counted(len(names), "query", "queries")
            progress.warn(f"not in {where}: {number} {outcome}, such as {briefly(names[0])}")
    protocol = {
        "kind": "run-qrels",
        "num_queries": len(scored.names),
        "num_queries_not_in_run": len(scored.not_in_run),
        "num_queries_not_in_qrels": len(scored.not_in_qrels),
        "fingerprint": scored.fingerprint,
    }
    about = {"config": asdict(config)}
    write_json(path, metrics_document(scored.scores, scored.names, protocol, about=about))
    return EvaluateResult(0, scored.scores, None, [path], [])


def _holdout_of(
    checkpoint: dict[str, Any], config: EvaluateConfig, progress: Progress
) -> Holdout | None:
    """Returns the classes that a checkpoint was kept from, where the test asks for the same."""
    saved = checkpoint.get("holdout")
    if saved is None:
        return None
    holdout = Holdout(**saved)
    if config.holdout_classes is None:
        progress.warn(
            f"{config.model_name} was not trained on {len(holdout.classes):,} of its classes; to "
            f"test only these: --holdout-classes {holdout.rule} --holdout-seed {holdout.seed}"
        )
    same = (config.holdout_classes, config.holdout_seed) == (holdout.rule, holdout.seed)
    return holdout if same else None
