"""`lookalike.check`: what is wrong with labelled images, before time is spent on them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from lookalike.checks.copies.duplicates import clusters, exact_groups, near_copies
from lookalike.checks.copies.groups import exact_findings, near_findings
from lookalike.checks.findings import KINDS, CheckResult, Files, Finding, Split
from lookalike.checks.labels import MIN_CLASS_SIZE, class_numbers, judge_labels
from lookalike.checks.page import write_page
from lookalike.checks.reading.image import ImageFacts
from lookalike.checks.reading.scan import SCAN_FILE, scan
from lookalike.checks.structure import (
    class_sizes,
    classes_across_splits,
    classes_too_high,
    extremes,
    repeated_names,
    similar_class_names,
    small_classes,
    unreadable,
)
from lookalike.config import CheckConfig
from lookalike.data.classes import class_key
from lookalike.data.images import ImageSet, shown_path
from lookalike.data.placement import keep_out_of_images
from lookalike.data.sources import if_one_class, load_images
from lookalike.embedding.embed import embed
from lookalike.embedding.embedder import Embedder, make_embedder
from lookalike.errors import ConfigError, Interrupted
from lookalike.files import shown, write_json, write_text
from lookalike.locking import sole_writer
from lookalike.progress import Progress, default_progress
from lookalike.runtime.device import Runtime, make_runtime

_Source = tuple[str, str, ImageSet]  # the split's name, where it is from, its images

_MAX_READERS = 16
_SAYS_LITTLE = 0.5  # share of images whose neighbours disagree, above which a model is no judge


def check(config: CheckConfig, *, progress: Progress | None = None) -> CheckResult:
    """Looks for whatever is wrong with a data set.

    Every file is decoded once and remembered in `scan.sqlite` under `config.out`, so that a
    check that was stopped goes on, and a second one reads only what has changed. The findings
    are written beside it, as `check.json` and, with their images, `check.html`.

    Raises:
        LookalikeError: the check could not be done (see `lookalike.errors`). What is wrong with
            the images raises nothing: it is what is returned.
        Interrupted: Ctrl-C; what was read is kept.
    """
    try:
        return _check(config, progress or default_progress())
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what was read is kept in {shown(Path(config.out) / SCAN_FILE)}, and the "
            "same command will not read it again"
        ) from None


def _check(config: CheckConfig, progress: Progress) -> CheckResult:
    sources = _sources(config, progress)
    with sole_writer(Path(config.out)) as out:
        return _check_in(out, sources, config, progress)


def _check_in(
    out: Path, sources: list[_Source], config: CheckConfig, progress: Progress
) -> CheckResult:
    """Checks sources, and writes what it finds."""
    runtime = make_runtime(config.device, config.precision, config.num_workers)
    embedder = None
    if config.model_name is not None:  # before anything is read: it may not be there
        embedder = make_embedder(config, runtime, progress)
    files = _read(sources, config, out, progress)
    embeddings, files = _embed(files, embedder, progress) if embedder else (None, files)
    copied, copies = _find_copies(files, embeddings, config, runtime, progress)
    training, sizes = _training_split(files), None
    if training is not None:
        sizes = class_sizes(files, training, config.n_classes_per_batch, config.n_samples_per_class)
    names, why_no_names = repeated_names(files, copies)
    wrong, left_out = _wrong_labels(files, embeddings, copies, config)
    findings = [
        *copied,
        *(small_classes(files, sizes) if sizes else ()),
        *unreadable(files),
        *classes_across_splits(files),
        *similar_class_names(files),
        *classes_too_high([(name, images) for name, _, images in sources]),
        *names,
        *extremes(files, _input_px(embedder)),
        *wrong,
    ]
    left_out += [why_no_names] if why_no_names else []
    if training is None:
        left_out.append("class sizes against K: no split is called train")
    order = {kind.name: place for place, kind in enumerate(KINDS)}
    findings.sort(key=lambda finding: order[finding.kind])
    splits = []
    for name, source, _ in sources:
        of = [
            i for i, split in enumerate(files.splits) if split == name and files.facts[i].readable
        ]
        labels = {files.labels[i] for i in of} - {None}
        splits.append(Split(name, shown(source), files.splits.count(name), len(of), len(labels)))
    document, page = out / "check.json", out / "check.html"
    result = CheckResult(findings, splits, sizes, left_out, [document, page, out / SCAN_FILE])
    write_json(document, {**result.document(), "config": asdict(config)})
    write_text(page, write_page(result, progress))
    return result


def _sources(config: CheckConfig, progress: Progress) -> list[_Source]:
    """Returns name, source and images of each split."""
    if config.data is None:
        raise ConfigError("there is nothing to check; give a folder of images or a table: "
                          "lookalike check IMAGES")  # fmt: skip
    found: list[_Source] = []
    seen: set[str] = set()
    for name, source in (("train", config.data), ("test", config.test),
                         ("query", config.query), ("gallery", config.gallery)):  # fmt: skip
        if source is None:
            continue
        real, is_folder = os.path.realpath(source), os.path.isdir(source)
        if real in seen:
            if is_folder:  # a table may well hold all the splits
                progress.warn(f"{shown(source)} was given twice; it is checked once")
            continue
        seen.add(real)
        keep_out_of_images(config.out, [source])
        images = load_images(source, progress)
        if name == "train" and images.labels is None and (advice := if_one_class(source)):
            progress.warn(f"{shown(source)} has no folders in it, and so no classes{advice}")
        if name != "train":  # of a table what training and evaluation would take
            found += _sides(name, source, images.of_split("test", name))
        elif images.splits is None:
            found += _sides(name, source, images)
        else:
            for split in sorted(set(images.splits), key=lambda split: (split != "train", split)):
                found += _sides(split, source, images.of_split(split))
    names = Counter(name for name, _, _ in found)
    return [
        (f"{name} of {os.path.basename(source)}" if names[name] > 1 else name, source, images)
        for name, source, images in found
    ]


def _sides(name: str, source: str, images: ImageSet) -> list[_Source]:
    """Returns a split, or its queries and its gallery, which are searched in each other."""
    flags = images.is_query
    if flags is None or len(set(flags)) < 2:
        return [(name, source, images)]
    return [
        (f"{name} {side}", source, images.subset(i for i, flag in enumerate(flags) if flag == asks))
        for side, asks in (("query", True), ("gallery", False))
    ]


def _read(sources: Sequence[_Source], config: CheckConfig, out: Path, progress: Progress) -> Files:
    """Reads every file, or its facts where it was read before."""
    refs = [ref for _, _, images in sources for ref in images.refs]
    names = [name for _, _, images in sources for name in images.names]
    splits = [split for split, _, images in sources for _ in images.refs]
    labels: list[str | None] = []
    for _, _, images in sources:
        labels += images.labels or [None] * len(images)
    # Nothing else needs the cores while files are read, so "auto" is more here than elsewhere.
    readers = min(_MAX_READERS, os.cpu_count() or 1)
    facts = scan(
        refs,
        out / SCAN_FILE,
        max_megapixels=config.max_megapixels,
        num_workers=readers if config.num_workers == "auto" else int(config.num_workers),
        progress=progress,
    )
    return Files(refs, names, splits, labels, facts)


def _embed(
    files: Files, embedder: Embedder, progress: Progress
) -> tuple[Float32[Tensor, "n dim"] | None, Files]:
    """Returns embeddings of all files, zeros for unreadable ones, and the files as they are now."""
    readable = [position for position, facts in enumerate(files.facts) if facts.readable]
    if not readable:
        return None, files
    progress.note(
        f"model    {embedder.encoder.title} · {embedder.kind} · {embedder.runtime.describe()}"
    )
    embedded = embed(embedder, embedder.loader([files.refs[position] for position in readable]))
    result = torch.zeros(len(files), embedded.embeddings.shape[1])
    rows = torch.tensor(readable)[torch.from_numpy(embedded.positions)]
    result[rows] = embedded.embeddings
    gone = {one.path: one.reason for one in embedded.unreadable}
    facts = [
        ImageFacts(reason=f"changed during the check: {gone[path]}") if path in gone else known
        for path, known in zip(map(shown_path, files.refs), files.facts, strict=True)
    ]
    return result, replace(files, facts=facts)


def _find_copies(
    files: Files,
    embeddings: Float32[Tensor, "n dim"] | None,
    config: CheckConfig,
    runtime: Runtime,
    progress: Progress,
) -> tuple[list[Finding], list[int]]:
    """Returns the copies, and for each file the first one it is connected to by copies."""
    near = near_copies(
        files.refs,
        files.facts,
        embeddings,
        max_megapixels=config.max_megapixels,
        device=runtime.device,
        progress=progress,
    )
    exact = exact_groups(files.facts)
    linked = [(group[0], other) for group in exact for other in group[1:]]
    linked += [(one.first, one.second) for one in near]
    copies = clusters(len(files), linked).tolist()
    return [*exact_findings(files, exact), *near_findings(files, near, copies)], copies


def _input_px(embedder: Embedder | None) -> int | None:
    """Returns the shorter side of what a model takes."""
    how = embedder.preprocessing if embedder else None
    return min(how.height, how.width) if how else None


def _training_split(files: Files) -> str | None:
    """Returns the split to learn from; None where none is called so and there are several."""
    splits = list(dict.fromkeys(files.splits))
    named = [split for split in splits if split.startswith("train")]
    return named[0] if named else splits[0] if len(splits) == 1 else None


def _wrong_labels(
    files: Files,
    embeddings: Float32[Tensor, "n dim"] | None,
    copies: Sequence[int],
    config: CheckConfig,
) -> tuple[list[Finding], list[str]]:
    """Returns likely wrong labels, and notes on what could not be judged."""
    if config.model_name is None:
        return [], ["likely wrong labels, and copies that only an embedding finds: give a model "
                    "with --model-name"]  # fmt: skip
    has_one = [] if embeddings is None else embeddings.any(dim=1).tolist()
    positions = [i for i, has in enumerate(has_one) if has and files.labels[i] is not None]
    if embeddings is None or not positions:
        return [], ["likely wrong labels: there are no images with labels"]
    labels = [str(files.labels[i]) for i in positions]
    spelling = {class_key(label): label for label in labels}
    if len(spelling) < 2:
        return [], ["likely wrong labels: there is only one class"]
    numbers, keys = class_numbers([class_key(label) for label in labels])
    rows = torch.tensor(positions)
    judgement = judge_labels(
        embeddings[rows], numbers, torch.tensor(copies)[rows], num_neighbors=config.num_neighbors
    )
    notes = []
    if judgement.num_unjudged:
        notes.append(
            f"labels of classes with fewer than {MIN_CLASS_SIZE} images that are not copies, too "
            f"few to judge by: {judgement.num_unjudged:,} in all"
        )
    if judgement.share_of_neighbors_disagreeing > _SAYS_LITTLE:
        notes.append(
            f"likely wrong labels: by {config.model_name} the nearest image is of another class "
            f"for {judgement.share_of_neighbors_disagreeing:.0%} of the images, so it cannot "
            "judge them. Try a larger model, or one trained on images like these"
        )
        return [], notes
    found = []
    for one in judgement.suspects:
        labelled = f"labelled {shown(labels[one.position])}"
        suggested = shown(spelling[keys[one.suggested]])
        images = [files.image(positions[one.position], labelled, "suspect")]
        images += [files.image(positions[i], "", "suggested") for i in one.nearest_suggested]
        images += [files.image(positions[i], "", "own") for i in one.nearest_own]
        says = f"{labelled}, looks like {suggested} (margin {one.margin:.2f})"
        found.append(Finding("wrong_label", says, images))
    return found, notes
