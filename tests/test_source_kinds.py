"""The same images from every kind of source: the same results as from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import assert_same_bits, load
from helpers.sources import CLASSES, KINDS, write_images, write_kind

import lookalike
from lookalike.data.reading.cache import DecodeCache
from lookalike.data.reading.decode import keep_readable
from lookalike.data.sources import load_images, load_unlabelled
from lookalike.embedding.embed import embed
from lookalike.embedding.embedder import Embedded, Embedder
from lookalike.evaluation.protocol import load_protocol
from lookalike.model.encoder import CLIPEncoder
from lookalike.progress import SilentProgress
from lookalike.runtime.device import make_runtime

OTHERS = [kind for kind in KINDS if kind != "folder"]
MACHINE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "num_workers": 0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images, and of each class one that is none."""
    root = tmp_path_factory.mktemp("kinds") / "tree"
    write_images(root)
    for number, name in enumerate(CLASSES):
        content = (root / name / f"{name}_000.png").read_bytes()
        broken = [content[:900], b"", b"<html>", content[:9], b"no image", content[:1200]][number]
        (root / name / f"{name}_x.png").write_bytes(broken)
    return root


@pytest.fixture(scope="module")
def source(tree: Path) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def of(kind: str) -> str:
        if kind not in made:
            made[kind] = write_kind(kind, tree, tree.parent / kind.replace(" ", "-"))
        return made[kind]

    return of


@pytest.fixture(scope="module")
def encoder(tiny_clip: Path) -> CLIPEncoder:
    return CLIPEncoder(str(tiny_clip))


def embedded(
    source: str, encoder: CLIPEncoder, num_workers: int = 0, cache: DecodeCache | None = None
) -> Embedded:
    embedder = Embedder(
        encoder, exact_pixels=True, max_megapixels=1, batch_size=16,
        runtime=make_runtime("cpu", "fp32", num_workers),
    )  # fmt: skip
    return embed(embedder, embedder.loader(load_images(source).refs, cache=cache))


@pytest.fixture(scope="module")
def from_files(source: Callable[[str], str], encoder: CLIPEncoder) -> Embedded:
    found = embedded(source("folder"), encoder)
    assert len(found.embeddings) == 60
    assert len(found.unreadable) == 6
    return found


def reasons(found: Embedded) -> list[str]:
    return [one.reason for one in found.unreadable]


@pytest.mark.parametrize("kind", OTHERS)
def test_every_kind_lists_the_same_images_with_the_same_labels(
    source: Callable[[str], str], kind: str
) -> None:
    files, others = load_images(source("folder")), load_images(source(kind))
    assert others.labels == files.labels
    assert len(set(others.names)) == len(files)
    assert [Path(name).name for name in others.names] == [Path(name).name for name in files.names]
    if kind == "tar":
        assert others.names == files.names
    assert load_images(source(kind)).names == others.names
    assert load_unlabelled(source(kind)).labels is None
    kept, bad = keep_readable(others)
    expected = keep_readable(files)
    assert kept.labels == expected[0].labels
    assert [one.reason for one in bad] == [one.reason for one in expected[1]]


@pytest.mark.parametrize("kind", OTHERS)
def test_every_kind_gives_the_same_embeddings_to_the_bit(
    source: Callable[[str], str], encoder: CLIPEncoder, from_files: Embedded, kind: str
) -> None:
    found = embedded(source(kind), encoder)
    assert torch.equal(found.embeddings, from_files.embeddings)
    assert found.positions.tolist() == from_files.positions.tolist()
    assert reasons(found) == reasons(from_files)


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_worker_processes_give_the_same_embeddings_to_the_bit(
    source: Callable[[str], str], encoder: CLIPEncoder, from_files: Embedded, kind: str
) -> None:
    found = embedded(source(kind), encoder, num_workers=2)
    assert torch.equal(found.embeddings, from_files.embeddings)
    assert sorted(reasons(found)) == sorted(reasons(from_files))


@pytest.mark.parametrize("kind", ["shards", "parquet", "saved"])
def test_a_decode_cache_keeps_images_of_every_kind(
    source: Callable[[str], str], encoder: CLIPEncoder, from_files: Embedded, kind: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    for decoded in (60, 0):
        cache = DecodeCache(tmp_path, 10**9, SilentProgress(), kept_free=0)
        found = embedded(source(kind), encoder, cache=cache)
        assert torch.equal(found.embeddings, from_files.embeddings)
        assert (cache.reads.decoded, cache.reads.from_cache) == (decoded, 60 - decoded)


@pytest.fixture(scope="module")
def once(source: Callable[[str], str]) -> Callable[..., Any]:
    """Calls a function with a kind, and of each function with files only once."""
    known: dict[Any, Any] = {}

    def call(function: Callable[[str], Any], kind: str) -> Any:
        if kind != "folder":
            return function(kind)
        name = function.__qualname__
        if name not in known:
            known[name] = function(kind)
        return known[name]

    return call


@pytest.mark.parametrize("kind", ["tar", "shards", "parquet", "saved splits"])
def test_evaluation_of_every_kind_gives_the_same_numbers(
    source: Callable[[str], str], once: Callable[..., Any], tiny_clip: Path, tmp_path: Path,
    kind: str,
) -> None:  # fmt: skip
    def evaluated(kind: str) -> tuple[Any, Any]:
        config = lookalike.EvaluateConfig(
            model_name=str(tiny_clip), test=source(kind), out=str(tmp_path / kind),
            report=kind == "shards", **MACHINE,
        )  # fmt: skip
        protocol = load_protocol(config, SilentProgress())
        assert protocol is not None
        metrics = lookalike.evaluate(config, progress=SilentProgress()).metrics
        return metrics, protocol.facts()["fingerprint"]

    files, others = once(evaluated, "folder"), evaluated(kind)
    assert others[0] == files[0]
    if kind == "tar":  # whose names are the same, so the test is
        assert others[1] == files[1]


@pytest.mark.parametrize("kind", ["shards", "parquet shards", "saved splits"])
def test_training_on_every_kind_gives_the_same_weights(
    source: Callable[[str], str], once: Callable[..., Any], tiny_clip: Path, tmp_path: Path,
    kind: str,
) -> None:  # fmt: skip
    def trained(kind: str) -> Any:
        config = lookalike.TrainConfig(
            model_name=str(tiny_clip), train=source(kind), test=source(kind),
            out=str(tmp_path / kind), num_epochs=2, n_classes_per_batch=3, n_samples_per_class=4,
            learning_rate=1e-3, report=False,
            **{**MACHINE, "num_workers": 2 if kind == "parquet shards" else 0},
        )  # fmt: skip
        result = lookalike.train(config, progress=SilentProgress())
        weights = load(result.checkpoint)["model_state_dict"]
        return weights, [one.metrics for one in result.history]

    files, others = once(trained, "folder"), trained(kind)
    assert_same_bits(others[0], files[0])
    assert others[1] == files[1]


@pytest.mark.parametrize("kind", ["tar", "shards", "parquet shards", "saved"])
def test_a_check_finds_the_same_in_every_kind(
    source: Callable[[str], str], once: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    def found(kind: str) -> list[Any]:
        config = lookalike.CheckConfig(data=source(kind), out=str(tmp_path / kind), **MACHINE)
        result = lookalike.check(config, progress=SilentProgress())
        assert "data:image/webp" in (tmp_path / kind / "check.html").read_text()
        return [
            (one.kind, one.says, [(i.split, i.label, i.detail, i.role, Path(i.name).name)
                                  for i in one.images])
            for one in result.findings
        ]  # fmt: skip

    files = once(found, "folder")
    assert {"unreadable", "tiny"} <= {kind for kind, *_ in files}
    assert found(kind) == files


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_bench_measures_every_kind(
    source: Callable[[str], str], tiny_clip: Path, kind: str
) -> None:
    config = lookalike.BenchConfig(
        data=source(kind), model_name=str(tiny_clip), seconds=0.2, eval_batch_size=8, **MACHINE
    )
    result = lookalike.bench(config, progress=SilentProgress())
    assert result.speed.whole > 0
    assert result.document()["images"] is not None
