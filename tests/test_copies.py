"""Copies: how one image lies over another, and which are connected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photos import photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lookalike.checks.copies.alignment import align
from lookalike.checks.copies.duplicates import clusters, describe_thumbs, exact_groups, near_copies
from lookalike.checks.reading.image import describe_file
from lookalike.progress import SilentProgress

SIDE = 32


def luma(image: Image.Image, side: int = SIDE) -> torch.Tensor:
    small = image.convert("L").resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).copy())[None]


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """The part of an image between shares of its sides."""
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width),
                       round(bottom * height)))  # fmt: skip


def test_a_cut_copy_is_laid_where_it_was_cut_out() -> None:
    whole = photo(1, (400, 400))
    part = cut(whole, 0.1, 0.0, 1.0, 0.95)
    aligned = align(luma(part), luma(whole))
    # A part from `low` to `high` of a side has the scale high - low, its middle at low + high - 1.
    expected = torch.tensor([[0.9, 0.1, 0.95, -0.05]])
    assert torch.allclose(aligned.placement, expected, atol=0.01)
    assert aligned.agreement > 0.9
    assert aligned.spill < 0.01


def test_it_does_not_matter_which_of_the_two_was_cut() -> None:
    whole = photo(2, (400, 400))
    part = cut(whole, 0.06, 0.03, 0.98, 1.0)
    there, back = align(luma(part), luma(whole)), align(luma(whole), luma(part))
    assert torch.allclose(there.placement[:, 0] * back.placement[:, 0], torch.ones(1), atol=0.02)
    assert back.agreement > 0.85
    assert back.spill < 0.01


def test_brightness_and_contrast_change_nothing() -> None:
    first = luma(photo(3))
    assert torch.allclose(align(first, 0.6 * first + 30).agreement, torch.ones(1), atol=1e-3)


def test_another_standpoint_spills_over() -> None:
    scene = photo(4, (500, 400))
    left, right = cut(scene, 0.0, 0, 0.9, 1), cut(scene, 0.1, 0, 1.0, 1)
    aligned = align(luma(left), luma(right))
    assert aligned.agreement > 0.85  # the scene is the same
    assert aligned.spill == pytest.approx(0.2 / 0.9, abs=0.02)  # and neither holds the other


def test_different_images_do_not_agree() -> None:
    first = torch.cat([luma(photo(10 + i)) for i in range(20)])
    second = torch.cat([luma(photo(40 + i)) for i in range(20)])
    assert align(first, second).agreement.max() < 0.5


def test_light_and_layout_alone_are_no_agreement() -> None:
    rng = np.random.default_rng(0)
    layout = Image.fromarray(rng.uniform(40, 216, (4, 4)).astype(np.float32))
    smooth = np.asarray(layout.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    first, second = (
        torch.from_numpy((smooth + rng.normal(0, 6, (SIDE, SIDE))).astype(np.float32))[None]
        for _ in range(2)
    )
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.8
    assert align(first, second).agreement < 0.5


def test_flat_images_agree_with_nothing_and_break_nothing() -> None:
    flat = torch.full((1, SIDE, SIDE), 80.0)
    for other in (flat, luma(photo(5))):
        aligned = align(flat, other)
        assert aligned.agreement.isfinite().all()
        assert aligned.agreement.abs() < 0.1


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=20))
def test_clusters_are_what_walking_along_the_pairs_reaches(pairs: list[tuple[int, int]]) -> None:
    found = clusters(15, pairs)
    for start in range(15):
        reached, fresh = {start}, [start]
        while fresh:
            here = fresh.pop()
            for a, b in pairs:
                for one, other in ((a, b), (b, a)):
                    if one == here and other not in reached:
                        reached.add(other)
                        fresh.append(other)
        assert found[start] == min(reached)


def near(paths: list[str], embeddings: torch.Tensor | None = None) -> set[tuple[int, int]]:
    facts = [describe_file(path, 10) for path in paths]
    found = near_copies(
        paths, facts, embeddings, max_megapixels=10, device=torch.device("cpu"),
        progress=SilentProgress(),
    )  # fmt: skip
    return {(one.first, one.second) for one in found}


def test_copies_are_found_among_many_and_nothing_else(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{nth:02}.png") for nth in range(40)]
    for nth, path in enumerate(paths):
        photo(nth).save(path)
    planted = set()
    for nth in range(0, 40, 4):
        paths.append(str(tmp_path / f"copy{nth:02}.jpg"))
        copy = cut(photo(nth), 0.02, 0.0, 0.97, 0.98).resize((100 + 10 * nth, 80 + 8 * nth))
        copy.save(paths[-1], quality=70)
        planted.add((nth, len(paths) - 1))
    assert near(paths) == planted


def test_an_embedding_finds_what_the_descriptor_passes_over(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{nth}.png") for nth in range(8)]
    for nth, path in enumerate(paths):
        photo(nth).save(path)
    photo(0).crop((20, 14, 160, 120)).save(paths[1])  # an eighth of each side is gone
    facts = [describe_file(path, 10) for path in paths]
    descriptors = describe_thumbs([one.thumb for one in facts])
    assert float(descriptors[0] @ descriptors[1]) < 0.72
    assert near(paths) == set()
    embeddings = torch.eye(8)
    embeddings[1] = torch.tensor([0.9, (1 - 0.81) ** 0.5] + [0] * 6)
    assert near(paths, embeddings) == {(0, 1)}


def test_images_that_show_nothing_are_copies_of_nothing(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{nth}.png") for nth in range(2)]
    faint = photo(3).point(lambda value: 120 + value // 10)
    faint.save(paths[0])
    faint.resize((120, 90)).save(paths[1])
    assert near(paths) == set()
    for nth, path in enumerate(paths):
        photo(3, (160 - 20 * nth, 120 - 15 * nth)).save(path)
    assert near(paths) == {(0, 1)}


def test_one_scene_from_two_standpoints_is_no_copy(tmp_path: Path) -> None:
    scene = photo(4, (500, 400))
    paths = [str(tmp_path / "left.png"), str(tmp_path / "right.png")]
    cut(scene, 0.0, 0, 0.98, 1).save(paths[0])
    cut(scene, 0.02, 0, 1.0, 1).save(paths[1])
    assert near(paths) == set()


def test_a_file_that_is_gone_by_now_takes_no_part(tmp_path: Path) -> None:
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    photo(1).save(paths[0])
    photo(1).resize((120, 90)).save(paths[1])
    facts = [describe_file(path, 10) for path in paths]
    Path(paths[1]).unlink()
    found = near_copies(paths, facts, None, max_megapixels=10, device=torch.device("cpu"),
                        progress=SilentProgress())  # fmt: skip
    assert found == []


def test_exact_groups_hold_readable_images_only(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photo(1).save(tmp_path / name)
        (tmp_path / f"{name}.txt").write_text("the same text")
    paths = sorted(str(path) for path in tmp_path.iterdir())
    assert exact_groups([describe_file(path, 10) for path in paths]) == [[0, 2]]
