"""The invented image catalogue behind `lookalike demo`.

An *object* is a little made-up product: a body with a pattern in two colours, a topper, side
parts, feet and an emblem, drawn from the seed and the object's id alone. A *view* is one image of
it, with its own pose, framing, light and scene. Any image can therefore be drawn on its own, in
any order and in any process, and comes out the same.

Outlines are float arrays of shape (N, 2), x to the right and y down, in object units: the middle
of the body is (0, 0) and the body is about one unit tall.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from lookalike.errors import OutputError
from lookalike.files import explain
from lookalike.runtime.children import follow_parent, uninterrupted

Points = NDArray[np.float64]
Colour = tuple[int, int, int]
# Outlines to fill, back to front, each with the role of its colour.
Part = tuple[tuple[int, Points], ...]

_BODY, _PATTERN, _ACCENT, _INK, _CREAM = range(5)
_INK_COLOUR: Colour = (44, 38, 58)
_CREAM_COLOUR: Colour = (252, 244, 226)
_LINE_WIDTH = 0.045  # object units
_SUPERSAMPLING = 2

# --- Outlines ---------------------------------------------------------------------------------


def _poly(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _poly((left, top), (right, top), (right, bottom), (left, bottom))


def _turns(n: int, start: float = 0.0, stop: float = 2.0) -> Points:
    """Returns `n` angles in radians from `start` to `stop` (in units of pi) without the last."""
    return np.linspace(start * math.pi, stop * math.pi, n, endpoint=False)


def _around(x: float, y: float, turn: Points, rx: float | Points, ry: float | Points) -> Points:
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)


def _disc(x: float, y: float, rx: float, ry: float | None = None) -> Points:
    """Returns an ellipse of radii `rx` and `ry`, a circle without `ry`."""
    return _around(x, y, _turns(20), rx, rx if ry is None else ry)


def _star(x: float, y: float, outer: float, inner: float, tips: int) -> Points:
    radius = np.where(np.arange(2 * tips) % 2 == 0, outer, inner)
    return _around(x, y, _turns(2 * tips, -0.5, 1.5), radius, radius)


def _body(
    rx: float, ry: float, power: float = 2.0, taper: float = 0.0, waist: float = 0.0, lobes: int = 0
) -> Points:
    """Returns a superellipse (exponent `power`: 2 is an ellipse, 7 nearly a box), reshaped.

    `taper` widens the lower end, `waist` narrows the middle, `lobes` counts bumps on the edge.
    """
    turn = _turns(48)
    x, y = (np.sign(t) * np.abs(t) ** (2.0 / power) for t in (np.cos(turn), np.sin(turn)))
    bumps = 1.0 + (0.1 if lobes else 0.0) * np.cos(lobes * (turn + math.pi / 2))
    x = x * (1.0 + taper * y + waist * (y**2 - 0.6))
    return np.stack([rx * x * bumps, ry * y * bumps], axis=1)


def _moved(points: Points, x: float, y: float) -> Points:
    moved: Points = points + np.array([x, y])
    return moved


def _mirrored(part: Part) -> Part:
    return tuple((role, points * (-1.0, 1.0)) for role, points in part)


def _twice(*part: tuple[int, Points]) -> Part:
    return part + _mirrored(part)


# --- The stock of parts -----------------------------------------------------------------------

_BODIES: tuple[Points, ...] = (
    _body(0.50, 0.50),  # ball
    _body(0.62, 0.40, 2.4),  # bun
    _body(0.36, 0.60, 2.6),  # pill
    _body(0.46, 0.54, 2.2, taper=0.42),  # pear
    _body(0.46, 0.54, 2.2, taper=-0.42),  # balloon
    _body(0.48, 0.48, 7.0),  # cube
    _body(0.60, 0.36, 7.0),  # radio
    _body(0.34, 0.60, 7.0),  # tower
    _body(0.46, 0.52, 6.0, taper=0.38),  # bell
    _body(0.46, 0.52, 6.0, taper=-0.38),  # cup
    _body(0.46, 0.56, 5.0, waist=0.55),  # hourglass
    _body(0.46, 0.52, 4.0, waist=-0.5),  # barrel
    _body(0.58, 0.58, 1.15),  # diamond
    _body(0.52, 0.52, lobes=5),  # blossom
    _body(0.52, 0.52, lobes=8),  # cloud
    _body(0.52, 0.52, lobes=3),  # clover
)

# Patterns reach beyond every body and are clipped to it. Finer ones would blur in a small image.
_GRID = tuple((i, j) for i in range(-3, 4) for j in range(-3, 4))
_EDGE = np.stack([0.2 * np.arange(-5, 6), 0.12 * (np.arange(11) % 2)], axis=1)
_ZIGZAG = np.concatenate([_EDGE, _moved(_EDGE[::-1], 0.0, 0.15)])
_CHECK = _box(-0.13, -0.13, 0.13, 0.13)
_SLANT = _poly((0.0, -1.0), (0.21, -1.0), (1.21, 1.0), (1.0, 1.0))
_SPOTS = ((-0.4, -0.36), (0.36, -0.42), (0.46, 0.2), (-0.42, 0.3), (0.05, 0.5))
_PATTERNS: tuple[tuple[Points, ...], ...] = (
    (),  # plain
    tuple(_box(-1.0, 0.3 * i - 0.075, 1.0, 0.3 * i + 0.075) for i in range(-4, 5)),  # hoops
    tuple(_box(0.3 * i - 0.075, -1.0, 0.3 * i + 0.075, 1.0) for i in range(-4, 5)),  # stripes
    tuple(_moved(_SLANT, 0.42 * i, 0.0) for i in range(-6, 4)),  # slanting stripes
    tuple(_disc(0.3 * i + 0.15 * (j % 2), 0.26 * j, 0.09) for i, j in _GRID),  # dots
    tuple(_moved(_CHECK, 0.26 * i, 0.26 * j) for i, j in _GRID if (i + j) % 2),  # checks
    (_box(-1.0, 0.0, 1.0, 1.0),),  # dipped
    (_box(0.0, -1.0, 1.0, 1.0),),  # half and half
    tuple(_moved(_ZIGZAG, 0.0, 0.34 * j) for j in range(-3, 4)),  # zigzags
    (_disc(0.0, 0.0, 0.46),),  # belly
    (_box(-1.0, -1.0, 1.0, -0.22), _box(-1.0, 0.22, 1.0, 1.0)),  # sash
    tuple(_disc(x, y, 0.21) for x, y in _SPOTS),  # spots
)

# Toppers stand on (0, 0), the top of the body.
_CROWN = _poly((-0.28, 0.05), (-0.34, -0.3), (-0.14, -0.12), (0, -0.36), (0.14, -0.12),
               (0.34, -0.3), (0.28, 0.05))  # fmt: skip
_STICK = (_INK, _box(-0.03, -0.3, 0.03, 0.05))
_TOPPERS: tuple[Part, ...] = (
    (),
    (_STICK, (_ACCENT, _disc(0, -0.32, 0.11))),  # antenna
    (_STICK, (_ACCENT, _star(0, -0.28, 0.22, 0.1, 5))),  # star
    (_STICK, *_twice((_ACCENT, _disc(-0.2, -0.26, 0.2, 0.08)))),  # propeller
    _twice((_ACCENT, _poly((-0.4, 0.14), (-0.36, -0.26), (-0.06, 0.04)))),  # cat ears
    _twice((_PATTERN, _disc(-0.2, -0.16, 0.09, 0.26))),  # rabbit ears
    ((_ACCENT, _box(-0.3, -0.1, 0.3, 0.06)), (_PATTERN, _disc(0, -0.17, 0.1))),  # lid
    ((_ACCENT, _poly((-0.28, 0.05), (0, -0.42), (0.28, 0.05))), (_CREAM, _disc(0, -0.4, 0.09))),
    ((_ACCENT, _CROWN),),
    ((_PATTERN, _box(-0.15, -0.34, 0.15, 0.1)), (_ACCENT, _box(-0.21, -0.4, 0.21, -0.28))),
    (*_twice((_ACCENT, _disc(-0.2, -0.07, 0.14))), (_ACCENT, _disc(0, -0.17, 0.14))),  # curls
)

# Side parts are drawn for the right side, where (0, 0) is the edge of the body; True repeats them
# on the left.
_RIM = _around(0.02, 0, _turns(16, -0.5, 0.5), 0.27, 0.24)
_EAR = np.concatenate([_RIM, _around(0.02, 0, _turns(16, 0.5, -0.5), 0.16, 0.13)])
_WING = _poly((-0.1, -0.05), (0.34, -0.3), (0.28, 0.0), (0.34, 0.14), (-0.1, 0.18))
_SPOUT = _poly((-0.1, 0.0), (0.3, -0.34), (0.38, -0.26), (-0.1, 0.24))
_SIDES: tuple[tuple[Part, bool], ...] = (
    ((), False),
    (((_ACCENT, _EAR),), False),  # one handle
    (((_ACCENT, _EAR),), True),  # two handles
    (((_PATTERN, _WING),), True),
    (((_ACCENT, _SPOUT),), False),
    (((_INK, _box(-0.1, -0.03, 0.2, 0.03)), (_ACCENT, _disc(0.24, 0, 0.12))), True),  # balls
    (((_BODY, _disc(0.1, 0.08, 0.1, 0.24)),), True),  # arms
)

# Feet hang from (0, 0), the bottom of the body.
_PEG = _poly((-0.1, -0.1), (0.1, -0.1), (0.0, 0.2))
_FEET: tuple[Part, ...] = (
    (),
    _twice((_ACCENT, _box(-0.26, -0.1, -0.1, 0.2))),  # legs
    ((_ACCENT, _poly((-0.3, -0.08), (0.3, -0.08), (0.42, 0.14), (-0.42, 0.14))),),  # stand
    _twice((_INK, _disc(-0.26, 0.04, 0.16)), (_CREAM, _disc(-0.26, 0.04, 0.07))),  # wheels
    _twice((_PATTERN, _disc(-0.2, 0.06, 0.18, 0.11))),  # shoes
    ((_INK, _box(-0.04, -0.05, 0.04, 0.2)), (_ACCENT, _disc(0, 0.22, 0.32, 0.08))),  # lamp foot
    tuple((_ACCENT, _moved(_PEG, x, 0.0)) for x in (-0.25, 0.0, 0.25)),  # pegs
)

# Emblems are drawn over the middle of the body.
_PLATE = (_CREAM, _disc(0, 0, 0.25))
_HEART = _poly((0, 0.18), (-0.19, -0.03), (-0.1, -0.15), (0, -0.06), (0.1, -0.15), (0.19, -0.03))
_BOLT = _poly(
    (0.06, -0.2), (-0.13, 0.04), (-0.01, 0.04), (-0.06, 0.2), (0.13, -0.05), (0.01, -0.05)
)
_EYE = ((_CREAM, _disc(-0.16, -0.06, 0.13)), (_INK, _disc(-0.14, -0.04, 0.065)))
_PANE = (_INK, _box(-0.03, -0.2, 0.03, 0.2)), (_INK, _box(-0.24, -0.03, 0.24, 0.03))
_EMBLEMS: tuple[Part, ...] = (
    (),
    (_PLATE, (_ACCENT, _star(0, 0.01, 0.2, 0.085, 5))),
    (_PLATE, (_ACCENT, _star(0, 0, 0.2, 0.06, 4))),
    (_PLATE, (_ACCENT, _disc(0, 0, 0.12))),
    (_PLATE, (_ACCENT, _HEART)),
    (_PLATE, (_INK, _BOLT)),
    (_PLATE, (_INK, _disc(0, 0.02, 0.15)), (_CREAM, _disc(0.05, -0.03, 0.05))),  # one eye
    (*_twice(*_EYE), (_INK, _disc(0, 0.17, 0.08, 0.05))),  # face
    ((_CREAM, _box(-0.24, -0.2, 0.24, 0.2)), *_PANE),  # window
    ((_CREAM, _box(-0.26, -0.12, 0.26, 0.12)), (_ACCENT, _box(-0.2, -0.05, 0.2, 0.05))),  # label
    ((_INK, _star(0, 0, 0.24, 0.2, 6)), (_ACCENT, _disc(0, 0, 0.13))),  # porthole
)

# Every colour occurs in several palettes, and far more objects are drawn than there are palettes:
# colour narrows the choice down and never settles it.
_RED, _CORAL, _AMBER, _LEMON = (206, 62, 66), (240, 128, 104), (236, 160, 52), (248, 214, 94)
_LEAF, _MINT, _TEAL, _SKY = (96, 160, 84), (150, 212, 178), (40, 130, 138), (124, 186, 228)
_BLUE, _PLUM, _PINK, _SAND = (58, 94, 176), (122, 74, 142), (240, 164, 188), (230, 206, 164)
# For each body colour, the colours of pattern and accent that go with it.
_MATCHES: dict[Colour, tuple[tuple[Colour, Colour], ...]] = {
    _RED: ((_SAND, _TEAL), (_LEMON, _BLUE), (_PINK, _MINT)),
    _CORAL: ((_SAND, _PLUM), (_MINT, _BLUE), (_LEMON, _TEAL)),
    _AMBER: ((_SAND, _RED), (_TEAL, _LEMON), (_PLUM, _SKY), (_MINT, _BLUE)),
    _LEMON: ((_CORAL, _TEAL), (_LEAF, _PINK), (_BLUE, _RED), (_SKY, _PLUM)),
    _LEAF: ((_LEMON, _RED), (_SAND, _AMBER), (_SKY, _CORAL)),
    _MINT: ((_TEAL, _CORAL), (_PINK, _PLUM), (_LEMON, _RED)),
    _TEAL: ((_SAND, _AMBER), (_MINT, _PINK), (_CORAL, _SAND)),
    _SKY: ((_BLUE, _LEMON), (_SAND, _CORAL), (_RED, _AMBER), (_LEAF, _PINK)),
    _BLUE: ((_SKY, _AMBER), (_PINK, _RED), (_MINT, _LEMON), (_AMBER, _LEAF)),
    _PLUM: ((_PINK, _LEMON), (_SKY, _MINT), (_CORAL, _LEAF)),
    _PINK: ((_RED, _LEAF), (_PLUM, _SKY), (_TEAL, _AMBER)),
    _SAND: ((_RED, _BLUE), (_LEAF, _PLUM), (_PLUM, _TEAL)),
}
_PALETTES = tuple((body, *match) for body, matches in _MATCHES.items() for match in matches)

# --- Identity ---------------------------------------------------------------------------------

_ONSETS = ("b", "br", "d", "f", "fl", "g", "gl", "k", "l", "m", "n", "p", "pl", "r", "s", "t", "v")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "k", "l", "m", "n", "p", "sk", "t", "x")


class _Design(NamedTuple):
    """The parts that make an object itself."""

    body: Points
    palette: tuple[Colour, Colour, Colour]
    pattern: tuple[Points, ...]
    topper: Part
    sides: tuple[Part, bool]
    feet: Part
    emblem: Part


def _rng(seed: int, object_id: int, stream: int) -> np.random.Generator:
    # A seed sequence takes missing numbers for zeros, so each stream has its own third number:
    # 0 is the design, 1 the name, and `view_id + 2` a view.
    return np.random.default_rng(np.random.SeedSequence([seed, object_id, stream]))


def _design(seed: int, object_id: int) -> _Design:
    stocks: tuple[tuple[Any, ...], ...] = (
        _BODIES, _PALETTES, _PATTERNS, _TOPPERS, _SIDES, _FEET, _EMBLEMS
    )  # fmt: skip
    picks = _rng(seed, object_id, 0).integers([len(stock) for stock in stocks])
    return _Design(*(stock[pick] for stock, pick in zip(stocks, picks.tolist(), strict=True)))


def object_name(seed: int, object_id: int) -> str:
    """Returns the object's name, such as `brosik-0413`: safe as a folder, unique in its seed."""
    rng = _rng(seed, object_id, 1)
    sounds = (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS)
    word = "".join(stock[int(rng.integers(len(stock)))] for stock in sounds)
    return f"{word}-{object_id:04d}"


# --- Drawing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Brush:
    """Draws outlines in object units on a canvas. Edges are `line` pixels wide.

    `pose` is an affine map, shape (2, 3), to canvas pixels; `colours` are indexed by role.
    """

    draw: ImageDraw.ImageDraw
    pose: Points
    colours: tuple[Colour, ...]
    line: int


def _corners(points: Points, pose: Points) -> list[tuple[float, float]]:
    """Returns `points`, shape (N, 2), in canvas pixels."""
    return [(x, y) for x, y in (points @ pose[:, :2].T + pose[:, 2]).tolist()]


def _draw_edge(brush: _Brush, corners: list[tuple[float, float]]) -> None:
    # Rounded joints take time and cannot be seen in thin lines.
    joint = "curve" if brush.line > 4 else None
    brush.draw.line([*corners, *corners[:2]], fill=_INK_COLOUR, width=brush.line, joint=joint)


def _draw_part(brush: _Brush, part: Part, x: float, y: float) -> None:
    for role, points in part:
        corners = _corners(_moved(points, x, y), brush.pose)
        brush.draw.polygon(corners, fill=brush.colours[role])
        _draw_edge(brush, corners)


def _draw_body(brush: _Brush, canvas: Image.Image, design: _Design, shift: tuple[int, int]) -> None:
    """Draws the patterned body, shaded where a copy moved by `shift` pixels does not cover it."""
    corners = _corners(design.body, brush.pose)
    mask = Image.new("L", canvas.size)
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    skin = Image.new("RGB", canvas.size, brush.colours[_BODY])
    skin_draw = ImageDraw.Draw(skin)
    for patch in design.pattern:
        skin_draw.polygon(_corners(patch, brush.pose), fill=brush.colours[_PATTERN])
    shade = ImageChops.subtract(mask, ImageChops.offset(mask, *shift), scale=3.0)
    skin.paste(_INK_COLOUR, mask=shade)
    canvas.paste(skin, mask=mask)
    _draw_edge(brush, corners)


def _soft_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = (rng.uniform(130, 225) + rng.uniform(-32, 32, size=3)).astype(int).tolist()
    return red, green, blue


def _draw_scene(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> Colour:
    """Draws a wall, up to four things on it, and a floor; returns the floor's colour."""
    draw.rectangle((0, 0, size, size), fill=_soft_colour(rng))
    for _ in range(int(rng.integers(5))):
        x, y, radius = (rng.uniform((0.0, 0.0, 0.06), (1.0, 0.8, 0.25)) * size).tolist()
        draw_thing = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        draw_thing((x - radius, y - radius, x + radius, y + radius), fill=_soft_colour(rng))
    floor = _soft_colour(rng)
    draw.rectangle((0, rng.uniform(0.55, 0.9) * size, size, size), fill=floor)
    return floor


def _random_pose(rng: np.random.Generator, size: int) -> Points:
    """Returns a random view: an affine map, shape (2, 3), to a `size` pixels wide canvas."""
    angle, turn, shear = rng.uniform((-10.0, 0.88, -0.06), (10.0, 1.0, 0.06))
    unit = rng.uniform(0.45, 0.52) * size
    middle = rng.uniform((0.455, 0.485), (0.545, 0.575)) * size
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = unit * np.array([[cos, -sin], [sin, cos]]) @ np.array([[turn, shear], [0.0, 1.0]])
    return np.concatenate([turned, middle[:, None]], axis=1)


def _lit(image: Image.Image, rng: np.random.Generator, side: int) -> Image.Image:
    """Returns the image under tinted light that falls off away from `side` (-1 left, 1 right)."""
    tint = rng.uniform(0.8, 1.12) * rng.uniform(0.93, 1.07, size=3)
    slope = 1.0 + side * rng.uniform(0.0, 0.2) * np.linspace(-1.0, 1.0, image.width)
    lit = np.asarray(image) * slope[None, :, None] * tint
    return Image.fromarray(np.minimum(lit, 255.0).astype(np.uint8))


def draw_view(seed: int, object_id: int, view_id: int, size_px: int) -> Image.Image:
    """Returns one RGB image of an object, `size_px` pixels wide and high.

    The same seed and ids give the same scene at every size. All three are 0 or more.
    """
    design = _design(seed, object_id)
    rng = _rng(seed, object_id, view_id + 2)
    size = size_px * _SUPERSAMPLING
    canvas = Image.new("RGB", (size, size))
    draw = ImageDraw.Draw(canvas)
    floor = _draw_scene(draw, rng, size)
    pose = _random_pose(rng, size)
    unit = float(np.linalg.norm(pose[:, 1]))
    colours = (*design.palette, _INK_COLOUR, _CREAM_COLOUR)
    brush = _Brush(draw, pose, colours, line=max(1, round(_LINE_WIDTH * unit)))
    light = 1 if rng.random() < 0.5 else -1

    near_middle = np.abs(design.body) < 0.2
    right = float(design.body[near_middle[:, 1], 0].max())
    middle = design.body[near_middle[:, 0], 1]
    top, bottom = float(middle.min()), float(middle.max())
    ground = bottom + max((float(points[:, 1].max()) for _, points in design.feet), default=0.0)

    shadow = _disc(-0.2 * light, ground - 0.02, 0.6, 0.12)
    red, green, blue = (channel * 7 // 10 for channel in floor)
    draw.polygon(_corners(shadow, pose), fill=(red, green, blue))
    side_part, on_both_sides = design.sides
    _draw_part(brush, side_part, right, 0.0)
    if on_both_sides:
        _draw_part(brush, _mirrored(side_part), -right, 0.0)
    _draw_part(brush, design.feet, 0.0, bottom)
    _draw_part(brush, design.topper, 0.0, top)
    _draw_body(brush, canvas, design, shift=(round(light * 0.12 * unit), round(-0.1 * unit)))
    _draw_part(brush, design.emblem, 0.0, 0.0)
    return _lit(canvas.reduce(_SUPERSAMPLING), rng, light)


# --- Writing ----------------------------------------------------------------------------------


def _write_object(
    task: tuple[int, dict[str, range]], *, folder: Path, seed: int, size_px: int
) -> int:
    """Writes one object's views below each of its splits; returns how many images that made."""
    object_id, splits = task
    for split, view_ids in splits.items():
        class_folder = folder / split / object_name(seed, object_id)
        class_folder.mkdir(parents=True, exist_ok=True)
        for view_id in view_ids:
            image = draw_view(seed, object_id, view_id, size_px)
            # Without chroma subsampling, which would smear the colours of so small an image.
            path = class_folder / f"{class_folder.name}-{view_id:02d}.jpg"
            encoded = BytesIO()  # written to a full disk, Pillow's files are cut off without a word
            image.save(encoded, "JPEG", quality=92, subsampling=0)
            path.write_bytes(encoded.getvalue())
    return sum(map(len, splits.values()))


def write_catalogue(
    folder: Path, *, seed: int, num_train_classes: int, num_test_classes: int,
    views_per_class: int, num_query_views: int, num_gallery_views: int, size_px: int,
    num_workers: int, on_progress: Callable[[int], None],
) -> None:  # fmt: skip
    """Draws a catalogue into `folder`, one folder a class in each of its trees.

    `train/` holds `views_per_class` images of each training object. `test/query/` and
    `test/gallery/` hold different views of the same `num_test_classes` further objects. The work
    is spread over `num_workers` processes, none besides this one if that is 1.
    `on_progress` is told, again and again, how many more images have been written.

    Raises:
        OutputError: an image cannot be written, or one of the processes was ended from outside.
    """
    train = {"train": range(views_per_class)}
    test = {
        "test/query": range(num_query_views),
        "test/gallery": range(num_query_views, num_query_views + num_gallery_views),
    }
    num_classes = num_train_classes + num_test_classes
    tasks = [(i, train if i < num_train_classes else test) for i in range(num_classes)]
    write = partial(_write_object, folder=folder, seed=seed, size_px=size_px)
    try:
        if num_workers == 1:
            for count in map(write, tasks):
                on_progress(count)
            return
        # Spawned on every system: forking a process that has threads may leave locks held.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, initializer=follow_parent) as pool:
            with uninterrupted():  # all of them start here
                counts = pool.map(write, tasks, chunksize=16)
            for count in counts:
                on_progress(count)
    except OSError as error:
        raise OutputError(explain(folder, error, before="")) from error
    except BrokenProcessPool as error:
        raise OutputError("a process that draws images was ended from outside, as where memory "
                          "is scarce; start the demo again") from error  # fmt: skip
