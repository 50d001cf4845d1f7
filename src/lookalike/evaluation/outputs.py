"""The files that one evaluation writes, and those of an earlier one that these replace."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lookalike.config import EvaluateConfig
from lookalike.embedding.interchange import embedding_files
from lookalike.errors import OutputError
from lookalike.evaluation.protocol import Protocol
from lookalike.evaluation.results import (
    find_on_request,
    mixture_files,
    name_of_results,
    result_files,
)
from lookalike.files import shown


class Planned(NamedTuple):
    """The files that an evaluation will write, but for the report, which is always the newest."""

    out: Path
    name: str  # that of the results
    files: list[Path]
    trec: tuple[Path, Path] | None  # run and qrels
    embeddings: dict[str, Path]  # by side


def plan_files(
    config: EvaluateConfig, protocol: Protocol, out: Path, epoch: int, *, of_mixture: bool
) -> Planned:
    """Returns the files that are asked for."""
    files = [*(mixture_files(out) if of_mixture else result_files(out, epoch))]
    folder, end = out / "results", name_of_results(epoch, of_mixture=of_mixture)
    trec = None
    if config.trec:
        trec = folder / f"run_{end}.trec", folder / f"qrels_{end}.trec"
        files += trec if protocol.labelled else trec[:1]
    sides = ("test",) if protocol.kind == "leave-one-out" else ("query", "gallery")
    embeddings = {
        side: folder / f"embeddings_{end}_{side}.{config.save_embeddings}"
        for side in sides
        if config.save_embeddings != "none"
    }
    for path in embeddings.values():
        files += embedding_files(path)
    return Planned(out, end, files, trec, embeddings)


def refuse_to_replace(planned: Planned, config: EvaluateConfig) -> list[Path]:
    """Raises OutputError where an evaluation would replace files unasked.

    Returns:
        What an earlier evaluation of the same wrote on request, and would lie beside results that
        it does not belong to; but not what this one reads.
    """
    given = (config.test_embeddings, config.query_embeddings, config.gallery_embeddings)
    read = [Path(one) for one in (config.test, config.query, config.gallery) if one]
    read += [path for one in given if one for path in embedding_files(Path(one))]
    kept = {path.resolve() for path in read}
    found = find_on_request(planned.out, planned.name)
    outdated = [path for path in found if path.resolve() not in kept]
    refuse_existing([*planned.files, *outdated], config)
    return outdated


def refuse_existing(paths: list[Path], config: EvaluateConfig) -> None:
    """Raises OutputError where one of the files is there and is not to be replaced."""
    existing = [path for path in paths if path.exists()]
    if existing and not config.overwrite:
        raise OutputError(
            f"{shown(existing[0])} already exists; choose another folder with --out, or replace "
            "it with --overwrite"
        )
