"""Pixels against those of Transformers' own Pillow processors, and what augmentation may do."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers.limits import memory_limited_to
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from lookalike.data.images import InMemory
from lookalike.data.reading.decode import read_image
from lookalike.data.transforms import Augmentation, Preprocessing, augment, preprocess, to_tensor
from lookalike.errors import ModelError
from lookalike.model.preprocessing import preprocessing_from

Box = tuple[float, float, float, float]


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a slope: every pixel and every shift of the cut shows."""
    rng = np.random.default_rng([seed, width, height])
    slope = np.linspace(0, 155, width)[None, :, None] + np.zeros((height, 1, 3))
    values = slope + rng.integers(0, 100, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


PROCESSORS: dict[str, Any] = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square(32)),
    "clip, its own size": CLIPImageProcessorPil(),
    "clip, bilinear": CLIPImageProcessorPil(
        size={"shortest_edge": 30}, crop_size=square(30), resample=2
    ),
    "clip, a narrow crop": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 33, "width": 20}
    ),
    "clip, a crop wider than the image": CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 32}
    ),
    "clip, an even crop larger than an odd image": CLIPImageProcessorPil(
        size={"shortest_edge": 21}, crop_size=square(32)
    ),
    "clip, an odd crop larger than an even image": CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size=square(33)
    ),
    "bit (dinov2)": BitImageProcessorPil(
        size={"shortest_edge": 36},
        crop_size=square(32),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ),
    "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    "siglip, not square": SiglipImageProcessorPil(size={"height": 24, "width": 40}),
    "vit": ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "vit, other arithmetic": ViTImageProcessorPil(
        size={"height": 16, "width": 16}, rescale_factor=1 / 127.5, image_std=[2.0, 3.0, 4.0]
    ),
    "convnext below 384 px": ConvNextImageProcessorPil(size={"shortest_edge": 32}),
    "convnext with a margin of its own": ConvNextImageProcessorPil(
        size={"shortest_edge": 30}, crop_pct=0.95
    ),
    "convnext at 384 px": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "no normalisation": ViTImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False),
    "no scale": ViTImageProcessorPil(size={"height": 16, "width": 16}, do_rescale=False),
}
HOW = Preprocessing(24, 24, 24, 3, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SIZES = [
    (64, 48), (48, 64), (91, 37), (37, 91), (33, 32), (32, 33), (32, 32), (31, 31), (10, 12),
    (3, 5), (20, 50), (50, 20), (1, 1), (1, 40), (40, 1), (300, 200), (201, 301),
]  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_agree_with_transformers_before_and_after_normalisation(name: str) -> None:
    processor = PROCESSORS[name]
    how = preprocessing_from(processor.to_dict(), name)
    mean, std = (np.array(v, dtype=np.float64)[:, None, None] for v in (how.mean, how.std))
    sizes = SIZES if how.height < 200 else SIZES[:4]
    for size in sizes:
        image = noise_image(*size)
        pixels = preprocess(image, how)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, how.height, how.width)
        assert pixels.is_contiguous()
        ours = pixels.numpy().astype(np.float64)

        raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        assert np.abs(ours - raw["pixel_values"][0]).max() <= 1, f"{size}: pixels differ"

        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        # A pixel may differ by one of its 255 steps; all the rest is rounding.
        step = how.scale / min(how.std) if (ours != raw["pixel_values"][0]).any() else 0
        computed = (ours * how.scale - mean) / std
        scale = max(1.0, np.abs(theirs).max())
        assert np.abs(computed - theirs).max() <= step + 1e-6 * scale, f"{size}: values differ"


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_agree_with_transformers_to_the_last_bit(name: str) -> None:
    processor = PROCESSORS[name]
    how = preprocessing_from(processor.to_dict(), name)
    for size in SIZES[:6]:
        image = noise_image(*size, seed=1)
        raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        assert np.array_equal(preprocess(image, how).numpy(), raw["pixel_values"][0]), size


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    shortest=st.integers(8, 40),
    crop=st.integers(8, 40),
)
def test_whatever_the_sizes_the_cut_is_that_of_clip(
    width: int, height: int, shortest: int, crop: int
) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": shortest}, crop_size=square(crop))
    image = noise_image(width, height)
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    ours = preprocess(image, preprocessing_from(processor.to_dict(), "clip")).numpy()
    assert np.abs(ours.astype(np.int64) - raw["pixel_values"][0]).max() <= 1


# Quick pixels


@pytest.mark.parametrize("name", PROCESSORS)
def test_quick_pixels_are_those_of_the_processor_but_for_rounding(name: str) -> None:
    how = preprocessing_from(PROCESSORS[name].to_dict(), name)
    for size in SIZES if how.height < 200 else SIZES[:4]:
        image = noise_image(*size, seed=2)
        exact = preprocess(image, how).numpy().astype(np.int64)
        quick = preprocess(image, replace(how, exact=False))
        assert quick.dtype == torch.uint8
        assert quick.is_contiguous()
        apart = np.abs(quick.numpy() - exact)
        # Of noise a few pixels across, where intermediate results are rounded elsewhere.
        assert apart.max(initial=0) <= 4, size
        assert apart.mean() < 0.4, size


def test_quick_pixels_of_an_image_of_common_size_are_a_step_off_at_most() -> None:
    how = replace(HOW, height=224, width=224, shortest_edge=224)
    for size in ((256, 256), (640, 480), (333, 500)):
        image = noise_image(*size)
        quick = preprocess(image, replace(how, exact=False)).numpy().astype(np.int64)
        apart = np.abs(quick - preprocess(image, how).numpy())
        assert apart.max() == 1
        assert apart.mean() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(499, 331), (403, 605), (480, 320), (397, 397)])
@pytest.mark.parametrize("name", ["crop", "squash"])
def test_a_file_that_is_decoded_smaller_is_cut_where_the_whole_one_is(
    size: tuple[int, int], name: str, orientation: int
) -> None:
    # Sides that no power of two divides: rounded up, they would move the cut by up to a pixel.
    how = replace(HOW, height=48, width=48, shortest_edge=48 if name == "crop" else None)
    quick = replace(how, exact=False)
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = [128 + 100 * np.sin(across / 19), 128 + 100 * np.sin(down / 17 + across / 31), 0 * down]
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    image.save(file, "JPEG", quality=98, subsampling=0, exif=exif)
    whole = read_image(InMemory("", file.getvalue()))
    smaller = read_image(InMemory("", file.getvalue()), draft_px=quick.draft_px())
    assert max(smaller.size) < 0.6 * max(whole.size)
    difference = (preprocess(whole, how).int() - preprocess(smaller, quick).int()).abs()
    assert difference.max() <= 5
    changes = crop_flip(0.6)
    both = [augment(one, cut, changes, rng(7)).int()
            for one, cut in ((whole, how), (smaller, quick))]  # fmt: skip
    assert (both[0] - both[1]).abs().max() <= 5


def test_a_filter_that_has_no_quick_form_is_exact() -> None:
    how = replace(HOW, resample=int(Image.Resampling.LANCZOS))
    image = noise_image(60, 50)
    assert torch.equal(preprocess(image, replace(how, exact=False)), preprocess(image, how))


def test_quick_augmentation_keeps_the_same_part_of_the_image_up_to_a_pixel() -> None:
    # Of a slope a shift by a pixel is a step of 1 of 255.
    across, down = np.meshgrid(np.arange(200), np.arange(150))
    image = Image.fromarray(np.stack([across, down, across // 2 + down // 2], 2).astype(np.uint8))
    for seed in range(20):
        exact, quick = (
            augment(image, how, crop_flip(0.3), rng(seed)).numpy().astype(np.int64)
            for how in (HOW, replace(HOW, exact=False))
        )
        assert np.abs(exact - quick).max() <= 2


def test_changed_colours_are_those_of_the_exact_part_up_to_a_step() -> None:
    changes = Augmentation("none", 1.0, color_jitter=0.5)
    image = noise_image(60, 50)
    for seed in range(5):
        exact, quick = (
            augment(image, how, changes, rng(seed)).numpy().astype(np.int64)
            for how in (HOW, replace(HOW, exact=False))
        )
        assert np.abs(exact - quick).max() <= 4


@pytest.mark.parametrize(
    ("how", "least_area", "expected"),
    [
        (HOW, 1.0, None),
        (replace(HOW, exact=False), 1.0, 48),  # twice 24
        (replace(HOW, exact=False), 0.25, 96),  # of a quarter of an image a half of each side
        (replace(HOW, exact=False, shortest_edge=48), 1.0, 96),
        (replace(HOW, exact=False, shortest_edge=None, width=100), 1.0, 200),
    ],
)
def test_files_are_decoded_twice_as_large_as_they_are_looked_at(
    how: Preprocessing, least_area: float, expected: int | None
) -> None:
    assert how.draft_px(least_area) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its own memory")
def test_a_long_thin_image_does_not_eat_the_memory() -> None:
    # A shorter side of 224 px makes the longer one of a file of a few hundred bytes 13 million
    # px, of which all but 224 are cut off.
    how = Preprocessing(224, 224, 224, 3, 1 / 255, (0, 0, 0), (1, 1, 1))
    with memory_limited_to(2**30):
        for exact in (True, False):
            for size in ((60_000, 1), (1, 60_000)):
                image = Image.new("RGB", size, "red")
                assert preprocess(image, replace(how, exact=exact)).shape == (3, 224, 224)


# Configurations


def changed(**changes: Any) -> Mapping[str, Any]:
    return {**CLIPImageProcessorPil().to_dict(), **changes}


@pytest.mark.parametrize(
    ("processor", "why"),
    [
        (changed(do_pad=True), "varying size"),
        (changed(do_resize=False), "varying size"),
        (changed(do_center_crop=False), "no centre crop"),
        (changed(crop_size=None), "no centre crop"),
        (changed(size={"longest_edge": 224}), "longest_edge"),
        (changed(size={"shortest_edge": 224, "longest_edge": 300}), "longest_edge"),
        (changed(size={"max_height": 9, "max_width": 9}), "max_height"),
        (changed(size={}), "size that varies"),
        (changed(size={"height": 256, "width": 256}), "an exact resize and then a crop"),
        (changed(image_mean=[0.5]), "3 colour channels"),
        (changed(image_std=[0.5] * 4), "3 colour channels"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_a_model_error(
    processor: Mapping[str, Any], why: str
) -> None:
    with pytest.raises(ModelError) as caught:
        preprocessing_from(processor, "some/model")
    assert why in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unsupported_configuration_names_the_model_and_what_to_take_instead() -> None:
    with pytest.raises(ModelError, match=r"some/model .*CLIPImageProcessor.*such as CLIP"):
        preprocessing_from(changed(do_pad=True), "some/model")


def test_a_configuration_is_read_number_by_number() -> None:
    how = preprocessing_from(
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_center_crop": True,
            "size": {"shortest_edge": 256, "height": None},
            "crop_size": {"height": 224, "width": 192},
            "resample": 2,
            "rescale_factor": 0.5,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": 0.4,
        },
        "model",
    )
    assert how == Preprocessing(224, 192, 256, 2, 0.5, (0.1, 0.2, 0.3), (0.4, 0.4, 0.4))


# Augmentation


def crop_flip(min_crop_area: float) -> Augmentation:
    return Augmentation("crop-flip", min_crop_area)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def boxes(
    size: tuple[int, int], how: Preprocessing, min_crop_area: float, seeds: range
) -> list[Box]:
    """The parts of an image that are kept, as Pillow is asked for them."""
    asked: list[Box] = []

    class Spy(Image.Image):
        def resize(
            self, size: Any, resample: Any = None, box: Any = None, reducing_gap: Any = None
        ) -> Image.Image:
            asked.append(box)
            return Image.new("RGB", size)

    spy = Spy()
    spy._size = size
    for seed in seeds:
        augment(spy, how, crop_flip(min_crop_area), rng(seed))
    return asked


@settings(deadline=None, max_examples=300)
@given(
    size=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    target=st.sampled_from([(24, 24), (24, 12), (16, 40), (300, 110), (110, 300), (7, 3)]),
    min_crop_area=st.floats(0.01, 1),
    seed=st.integers(0, 10_000),
)
@example(size=(69, 25), target=(300, 110), min_crop_area=1.0, seed=0)  # 25 * 300/110 * 110/300 > 25
def test_the_part_kept_lies_inside_and_has_a_fair_area_and_shape(
    size: tuple[int, int], target: tuple[int, int], min_crop_area: float, seed: int
) -> None:
    how = Preprocessing(target[1], target[0], None, 3, 1.0, (0.0,) * 3, (1.0,) * 3)
    (box,) = boxes(size, how, min_crop_area, range(seed, seed + 1))
    left, top, right, bottom = box
    assert 0 <= left < right <= size[0] * (1 + 1e-9)
    assert 0 <= top < bottom <= size[1] * (1 + 1e-9)
    width, height = right - left, bottom - top
    stretch = (width / height) / (target[0] / target[1])
    area = width * height / (size[0] * size[1])
    assert min_crop_area - 1e-9 <= area <= 1 + 1e-9
    if not 3 / 4 - 1e-9 <= stretch <= 4 / 3 + 1e-9:
        # A part that large has room in no shape nearer to the target's.
        assert math.isclose(width if stretch < 1 else height, size[0 if stretch < 1 else 1])


@pytest.mark.parametrize("shortest_edge", [64, None])  # None: a model that squashes
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "size", [(240, 240), (320, 240), (240, 360), (426, 240), (240, 480), (900, 100)]
)
def test_the_share_that_is_asked_for_is_kept_of_images_of_any_shape(
    size: tuple[int, int], exact: bool, shortest_edge: int | None
) -> None:
    how = Preprocessing(64, 64, shortest_edge, 2, 1.0, (0.0,) * 3, (1.0,) * 3, exact=exact)
    # Colour tells the place: red across, green down.
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([across, down, 0 * down], -1).round().astype(np.uint8))
    shares = []
    for seed in range(60):
        pixels = augment(image, how, crop_flip(0.8), rng(seed)).numpy().astype(float)
        wide, high = np.ptp(pixels[0].mean(0)), np.ptp(pixels[1].mean(1))
        shares.append(wide / 255 * 64 / 63 * high / 255 * 64 / 63)
    assert min(shares) > 0.77  # 0.8, less what the edges are smoothed by
    assert max(shares) > 0.93


def test_the_parts_kept_are_spread_over_all_areas_shapes_and_places() -> None:
    kept = np.array(boxes((100, 100), HOW, 0.2, range(500)))
    widths, heights = kept[:, 2] - kept[:, 0], kept[:, 3] - kept[:, 1]
    areas, shapes = widths * heights / 1e4, widths / heights
    assert areas.min() < 0.22
    assert areas.max() > 0.9
    assert 0.5 < np.median(areas) < 0.66  # evenly between 0.2 and 1, but for those too wide
    assert shapes.min() < 0.77
    assert shapes.max() > 1.3
    assert 0.45 < (shapes < 1).mean() < 0.55
    free = widths < 70
    assert np.median(kept[free, 0] / (100 - widths[free])) == pytest.approx(0.5, abs=0.08)
    assert np.median(kept[free, 1] / (100 - heights[free])) == pytest.approx(0.5, abs=0.08)


def test_half_of_the_images_are_mirrored() -> None:
    # Dark on the left: the whole of it is kept, so a light left edge means mirrored.
    slope = np.linspace(0, 255, 48).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(slope[None, :, None], (48, 48, 3)).copy())
    straight = 0
    for seed in range(400):
        pixels = augment(image, HOW, crop_flip(0.9), rng(seed)).float()
        assert pixels[:, :, 0].mean() < 60 or pixels[:, :, -1].mean() < 60
        assert torch.equal(pixels[:, :1], pixels[:, -1:])  # never upside down, never turned
        straight += bool(pixels[:, :, 0].mean() < pixels[:, :, -1].mean())
    assert 160 < straight < 240


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    min_crop_area=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
def test_augmented_pixels_have_the_shape_of_preprocessed_ones(
    size: tuple[int, int], target: tuple[int, int], min_crop_area: float, seed: int
) -> None:
    how = Preprocessing(*target, None, 3, 1.0, (0.0,) * 3, (1.0,) * 3)
    pixels = augment(noise_image(*size), how, crop_flip(min_crop_area), rng(seed))
    assert pixels.shape == preprocess(noise_image(*size), how).shape == (3, *target)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()


def test_the_generator_alone_decides_what_changes() -> None:
    image = noise_image(60, 50)
    first = [augment(image, HOW, crop_flip(0.3), rng(seed)) for seed in range(8)]
    np.random.seed(1)  # the global generators do not matter
    torch.manual_seed(1)
    again = [augment(image, HOW, crop_flip(0.3), rng(seed)) for seed in range(8)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({one.numpy().tobytes() for one in first}) == 8


def test_one_generator_gives_new_changes_each_time() -> None:
    generator, image = rng(0), noise_image(60, 50)
    seen = {augment(image, HOW, crop_flip(0.3), generator).numpy().tobytes() for _ in range(8)}
    assert len(seen) == 8


# Colour


def gray(pixels: np.ndarray) -> np.ndarray:
    """Lightness as ITU-R 601 has it, 0..255."""
    lightness: np.ndarray = pixels @ np.array([0.299, 0.587, 0.114])
    return lightness


def jittered(pixels: np.ndarray, order: Sequence[int], factors: Sequence[float]) -> np.ndarray:
    """Brightness (0), contrast (1) and saturation (2) in float64, from their definition."""
    for which in order:
        base = [0.0, np.round(gray(pixels).mean()), gray(pixels)[..., None]][which]
        pixels = np.clip(base + factors[which] * (pixels - base), 0, 255)
    return pixels


@pytest.mark.parametrize("kind", ["crop-flip", "none"])
@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_colours_change_as_their_definitions_say_and_the_part_kept_does_not(
    kind: Literal["crop-flip", "none"], strength: float
) -> None:
    image = noise_image(60, 50)
    for seed in range(40):
        generator = rng(seed)
        plain = augment(image, HOW, Augmentation(kind, 0.3), generator)
        factors = generator.uniform(1 - strength, 1 + strength, 3)
        order = generator.permutation(3).tolist()
        pixels = augment(image, HOW, Augmentation(kind, 0.3, strength), rng(seed))
        expected = jittered(plain.permute(1, 2, 0).numpy().astype(float), order, factors.tolist())
        off = np.abs(pixels.permute(1, 2, 0).numpy() - expected)
        # Pillow cuts each of three results off to a whole number, and the next magnifies that.
        assert off.max() <= 3 + strength * 4
        assert off.mean() < 2


def test_colours_change_by_up_to_the_strength_and_not_further() -> None:
    grey = Image.new("RGB", (24, 24), (100, 100, 100))  # contrast and saturation do nothing to it
    levels = [
        int(augment(grey, HOW, Augmentation("none", 1.0, 0.3), rng(seed))[0, 0, 0])
        for seed in range(500)
    ]
    assert 69 <= min(levels) < 73
    assert 127 < max(levels) <= 130
    assert 98 < np.mean(levels) < 102


def test_a_size_for_training_keeps_the_part_of_the_image() -> None:
    how = Preprocessing(224, 224, 256, 3, 1 / 255, (0.1,) * 3, (0.2,) * 3)
    assert how.at(112) == replace(how, height=112, width=112, shortest_edge=128)
    assert how.at(224) == how
    assert replace(how, shortest_edge=None).at(98).shortest_edge is None
    # A sharp edge between dark and light stays where it was: in the middle, then at a quarter.
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 256 - 56 :] = 255
    for side in (224, 112):
        row = preprocess(Image.fromarray(pixels), how.at(side))[0, side // 2].float()
        assert (row > 127).nonzero()[0, 0] == side // 4


@pytest.mark.parametrize("size", [(60, 50), (20, 90), (5, 5)])
def test_without_augmentation_pixels_are_the_preprocessed_ones(size: tuple[int, int]) -> None:
    kind: Literal["none"] = "none"
    image, generator = noise_image(*size), rng(0)
    pixels = augment(image, HOW, Augmentation(kind, 0.3), generator)
    assert torch.equal(pixels, preprocess(image, HOW))
    assert generator.random() == rng(0).random()  # nothing was drawn


def test_a_tensor_has_channels_first_and_rows_before_columns() -> None:
    image = Image.new("RGB", (3, 2))
    image.putpixel((2, 0), (10, 20, 30))
    pixels = to_tensor(image)
    assert pixels.shape == (3, 2, 3)
    assert pixels[:, 0, 2].tolist() == [10, 20, 30]
    assert int(pixels.sum()) == 60
