"""What is written never lies among the images, however both are named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lookalike
from lookalike.config import CheckConfig, EmbedConfig, EvaluateConfig, TrainConfig
from lookalike.data.placement import keep_cache_apart, keep_out_of_images
from lookalike.errors import ConfigError

Place = Callable[[Path], str]
INSIDE: dict[str, Place] = {
    "the folder": lambda test: str(test),
    "with dots": lambda test: f"{test}/classa/../../test/.",
    "relative": lambda test: os.path.relpath(test),
    "a class": lambda test: str(test / "classa"),
    "not there yet": lambda test: str(test / "new" / "deep"),
    "a hidden folder": lambda test: str(test / ".cache"),
    "a link to it": lambda test: linked(test.parent / "link", test),
    "below a link": lambda test: linked(test.parent / "link", test) + "/new",
}


def linked(link: Path, to: Path) -> str:
    link.symlink_to(to)
    return str(link)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("place", INSIDE)
def test_a_place_among_the_images_is_refused(tmp_path: Path, place: str) -> None:
    test = tmp_path / "test"
    (test / "classa").mkdir(parents=True)
    written = INSIDE[place](test)
    with pytest.raises(ConfigError, match=r"pass for images; .* --out"):
        keep_out_of_images(written, [None, str(tmp_path / "none"), str(test)])
    with pytest.raises(ConfigError, match=r"pass for images; .* --decode-cache"):
        keep_cache_apart(written, tmp_path / "out", [str(test)])


def test_every_verb_refuses_it_and_writes_nothing(photos: Path) -> None:
    test, train, out = str(photos / "test"), str(photos / "train"), str(photos / "out")
    link, before = linked(photos / "link", photos / "test") + "/new", files_of(photos)
    verbs: list[tuple[Callable[..., Any], Any]] = [
        (lookalike.train, TrainConfig(train=train, test=test, out=link)),
        (lookalike.train, TrainConfig(train=test, test=train, out=link)),
        (lookalike.train, TrainConfig(train=test, out=out, decode_cache=link)),
        (lookalike.evaluate, EvaluateConfig(test=test, out=link)),
        (lookalike.evaluate, EvaluateConfig(query=train, gallery=test, out=link)),
        (lookalike.evaluate, EvaluateConfig(test=test, out=out, decode_cache=link)),
        (lookalike.embed, EmbedConfig(data=test, out=link)),
        (lookalike.check, CheckConfig(data=train, test=test, out=link)),
    ]
    for verb, config in verbs:
        with pytest.raises(ConfigError, match="pass for images"):
            verb(config)
    assert files_of(photos) == before


@pytest.mark.parametrize("place", ["", "results", "results/shop", "weights", "link/results"])
def test_images_where_results_are_written_are_refused_too(tmp_path: Path, place: str) -> None:
    linked(tmp_path / "link", tmp_path)
    images = tmp_path / place
    images.mkdir(parents=True, exist_ok=True)
    if place == "results/shop":  # which no run writes to
        keep_out_of_images(tmp_path, [str(images)])
        return
    with pytest.raises(ConfigError, match="pass for images"):
        keep_out_of_images(tmp_path, [str(images)])


def test_images_beside_out_or_below_it_are_no_harm(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [str(photos / "train"), None, "test"]
    monkeypatch.chdir(photos)
    for out in (".", photos, "out", "out/new", "../other", "training", "train2"):
        keep_out_of_images(out, sources)
    (photos / "list.csv").write_text("path\ntrain/a.jpg\n")
    keep_out_of_images(".", ["list.csv", "shards-{0..3}.tar", "not there"])


def test_a_cache_holds_nothing_that_backups_should_keep(photos: Path) -> None:
    sources, out = [str(photos / "train")], str(photos / "out")
    for cache in (photos, photos.parent):
        with pytest.raises(ConfigError, match="backups would skip them"):
            keep_cache_apart(cache, out, sources)
    (photos / "out").mkdir()
    with pytest.raises(ConfigError, match="backups would skip them"):
        keep_cache_apart(photos / "out", out, sources)
    home = photos / "home"
    home.mkdir()
    (home / "letters.txt").touch()
    with pytest.raises(ConfigError, match=r"holds other things \(letters\.txt\)"):
        keep_cache_apart(home, out, sources)


def test_a_new_an_empty_and_an_earlier_cache_may_be_used(photos: Path) -> None:
    sources, cache = [str(photos / "train")], photos / "cache"
    keep_cache_apart(cache, photos / "out", sources)
    cache.mkdir()
    keep_cache_apart(cache, photos / "out", sources)
    for name in ("CACHEDIR.TAG", "used", ".DS_Store"):
        (cache / name).touch()
    (cache / "0f").mkdir()
    keep_cache_apart(cache, photos / "out", sources)
    keep_cache_apart(photos / "out" / "cache", photos / "out", sources)  # a run's own
