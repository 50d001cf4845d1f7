"""The invented picture catalogue behind `lookalike demo`.

An *object* is a little made-up product: a body of some silhouette with a pattern in two colours,
and a topper, side parts, feet and an emblem. These parts, drawn from `seed` and the object's id
alone, are its identity. A *view* is one picture of it: pose, framing, light and scene are drawn
afresh from the view's id. Every picture can therefore be drawn on its own, in any order and in
any process, and comes out the same.

Coordinates: object shapes are float arrays of shape (N, 2), in object units, x to the right and
y down, with the middle of the body at (0, 0) and the body about one unit tall. Scene shapes are in
frame units, where the picture is the square from (0, 0) to (1, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Points = NDArray[np.float64]
Colour = tuple[int, int, int]
# A filled outline and the role of its colour: an index into `_colours(design)`.
Shape = tuple[int, Points]
Part = tuple[Shape, ...]

_SUPERSAMPLING = 2
_JPEG_QUALITY = 92
_BODY, _PATTERN, _ACCENT, _INK, _CREAM = range(5)
_INK_COLOUR: Colour = (44, 38, 58)
_CREAM_COLOUR: Colour = (252, 244, 226)
_LINE_WIDTH = 0.045


# --- Shape helpers ---------------------------------------------------------------------------


def _poly(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _disc(x: float, y: float, rx: float, ry: float | None = None, n: int = 20) -> Points:
    """An ellipse of radii `rx`, `ry` (a circle without `ry`) as an `n`-cornered outline."""
    turn = np.linspace(0.0, 2.0 * math.pi, n, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + (ry or rx) * np.sin(turn)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _poly((left, top), (right, top), (right, bottom), (left, bottom))


def _star(x: float, y: float, outer: float, inner: float, tips: int) -> Points:
    turn = np.linspace(0.0, 2.0 * math.pi, 2 * tips, endpoint=False) - math.pi / 2
    radius = np.where(np.arange(2 * tips) % 2 == 0, outer, inner)
    return np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)


def _body(
    half_width: float,
    half_height: float,
    squareness: float = 2.0,
    taper: float = 0.0,
    waist: float = 0.0,
    lobes: int = 0,
) -> Points:
    """A body outline: a superellipse, then made wider below, pinched or lobed.

    `squareness` is the superellipse's exponent (2 is an ellipse, 6 nearly a box), `taper` widens
    the lower end, `waist` narrows the middle, and `lobes` counts the bumps around the edge.
    """
    turn = np.linspace(0.0, 2.0 * math.pi, 48, endpoint=False)
    x, y = (np.sign(t) * np.abs(t) ** (2.0 / squareness) for t in (np.cos(turn), np.sin(turn)))
    bumps = 1.0 + (0.1 * np.cos(lobes * (turn + math.pi / 2)) if lobes else 0.0)
    x = x * (1.0 + taper * y + waist * (y**2 - 0.6)) * bumps
    return np.stack([half_width * x, half_height * y * bumps], axis=1)


def _mirrored(part: Part) -> Part:
    return tuple((role, points * (-1.0, 1.0)) for role, points in part)


def _both_sides(part: Part) -> Part:
    return part + _mirrored(part)


# --- The stock of parts ----------------------------------------------------------------------

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

# Patterns reach beyond every body and are clipped to it.
_STEPS = np.arange(-4, 5)
_PATTERNS: tuple[tuple[Points, ...], ...] = (
    (),
    tuple(_box(-1, 0.30 * i - 0.075, 1, 0.30 * i + 0.075) for i in _STEPS),
    tuple(_box(0.30 * i - 0.075, -1, 0.30 * i + 0.075, 1) for i in _STEPS),
    tuple(
        _poly((0.42 * i, -1), (0.42 * i + 0.21, -1), (0.42 * i + 1.21, 1), (0.42 * i + 1.0, 1))
        for i in np.arange(-6, 4)
    ),
    tuple(
        _disc(0.3 * i + 0.15 * (j % 2), 0.26 * j, 0.09, n=10)
        for i in range(-3, 3)
        for j in range(-3, 4)
    ),
    tuple(
        _box(0.26 * i - 0.13, 0.26 * j - 0.13, 0.26 * i + 0.13, 0.26 * j + 0.13)
        for i in range(-3, 4)
        for j in range(-3, 4)
        if (i + j) % 2
    ),
    (_box(-1, 0.0, 1, 1),),
    (_box(0.0, -1, 1, 1),),
    tuple(
        np.concatenate([zigzag, zigzag[::-1] + (0.0, 0.15)])
        for j in range(-3, 4)
        for zigzag in [
            np.stack([0.2 * np.arange(-5, 6), 0.34 * j + 0.12 * (np.arange(11) % 2)], axis=1)
        ]
    ),
    (_disc(0, 0, 0.46),),
    (_box(-1, -1, 1, -0.22), _box(-1, 0.22, 1, 1)),
    tuple(
        _disc(x, y, 0.21, n=14)
        for x, y in ((-0.4, -0.36), (0.36, -0.42), (0.46, 0.2), (-0.42, 0.3), (0.05, 0.5))
    ),
)

# Toppers stand on (0, 0).
_TOPPERS: tuple[Part, ...] = (
    (),
    ((_INK, _box(-0.03, -0.3, 0.03, 0.05)), (_ACCENT, _disc(0, -0.32, 0.11))),  # antenna
    _both_sides(((_ACCENT, _poly((-0.4, 0.14), (-0.36, -0.26), (-0.06, 0.04))),)),  # cat ears
    _both_sides(((_PATTERN, _disc(-0.2, -0.16, 0.09, 0.26)),)),  # rabbit ears
    ((_ACCENT, _box(-0.3, -0.1, 0.3, 0.06)), (_PATTERN, _disc(0, -0.17, 0.1))),  # lid
    ((_ACCENT, _poly((-0.28, 0.05), (0, -0.42), (0.28, 0.05))), (_CREAM, _disc(0, -0.4, 0.09))),
    (
        (
            _ACCENT,
            _poly(
                (-0.28, 0.05),
                (-0.34, -0.3),
                (-0.14, -0.12),
                (0, -0.36),
                (0.14, -0.12),
                (0.34, -0.3),
                (0.28, 0.05),
            ),
        ),
    ),  # crown
    (
        (_INK, _box(-0.03, -0.2, 0.03, 0.05)),
        (_ACCENT, _disc(-0.2, -0.24, 0.2, 0.08)),
        (_ACCENT, _disc(0.2, -0.24, 0.2, 0.08)),
    ),  # propeller
    (
        (_PATTERN, _box(-0.15, -0.34, 0.15, 0.1)),
        (_ACCENT, _box(-0.21, -0.4, 0.21, -0.28)),
    ),  # chimney
    ((_INK, _box(-0.03, -0.15, 0.03, 0.05)), (_ACCENT, _star(0, -0.28, 0.22, 0.1, 5))),  # star
    tuple(
        (_ACCENT, _disc(x, -0.07 - y, 0.14)) for x, y in ((-0.2, 0), (0.2, 0), (0, 0.1))
    ),  # curls
)

# Side parts are those of the right side, fixed at (0, 0).
_RING = np.concatenate([_disc(0.1, 0, 0.2, 0.24, 21), _disc(0.1, 0, 0.1, 0.13, 21)[::-1]])
_SIDES: tuple[tuple[Part, bool], ...] = (
    ((), False),
    (((_ACCENT, _RING),), False),
    (((_ACCENT, _RING),), True),
    (
        ((_PATTERN, _poly((-0.1, -0.05), (0.34, -0.3), (0.28, 0.0), (0.34, 0.14), (-0.1, 0.18))),),
        True,
    ),  # wings
    (((_ACCENT, _poly((-0.1, 0.0), (0.3, -0.34), (0.38, -0.26), (-0.1, 0.24))),), False),  # spout
    (((_INK, _box(-0.1, -0.03, 0.2, 0.03)), (_ACCENT, _disc(0.24, 0, 0.12))), True),  # knobs
    (((_BODY, _disc(0.1, 0.08, 0.1, 0.24)),), True),  # arms
)

# Feet hang from (0, 0); the body is about 0.6 wide there.
_FEET: tuple[Part, ...] = (
    (),
    _both_sides(((_ACCENT, _box(-0.26, -0.1, -0.1, 0.2)),)),  # legs
    ((_ACCENT, _poly((-0.3, -0.08), (0.3, -0.08), (0.42, 0.14), (-0.42, 0.14))),),  # stand
    _both_sides(((_INK, _disc(-0.26, 0.04, 0.16)), (_CREAM, _disc(-0.26, 0.04, 0.07)))),  # wheels
    _both_sides(((_PATTERN, _disc(-0.2, 0.06, 0.18, 0.11)),)),  # shoes
    ((_INK, _box(-0.04, -0.05, 0.04, 0.2)), (_ACCENT, _disc(0, 0.22, 0.32, 0.08))),  # lamp foot
    tuple((_ACCENT, _poly((x - 0.1, -0.1), (x + 0.1, -0.1), (x, 0.2))) for x in (-0.25, 0, 0.25)),
)

_PLATE = (_CREAM, _disc(0, 0, 0.25))
_EMBLEMS: tuple[Part, ...] = (
    (),
    (_PLATE, (_ACCENT, _star(0, 0.01, 0.2, 0.085, 5))),
    (_PLATE, (_ACCENT, _disc(0, 0, 0.12))),
    (_PLATE, (_INK, _disc(0, 0.02, 0.15)), (_CREAM, _disc(0.05, -0.03, 0.05))),  # one eye
    (_PLATE, (_ACCENT, _star(0, 0, 0.2, 0.06, 4))),
    (
        _PLATE,
        (
            _ACCENT,
            _poly(
                (0, 0.18), (-0.19, -0.03), (-0.1, -0.15), (0, -0.06), (0.1, -0.15), (0.19, -0.03)
            ),
        ),
    ),  # heart
    _both_sides(((_CREAM, _disc(-0.16, -0.06, 0.13)), (_INK, _disc(-0.14, -0.04, 0.065))))
    + ((_INK, _disc(0, 0.17, 0.08, 0.05)),),  # face
    (
        (_CREAM, _box(-0.24, -0.2, 0.24, 0.2)),
        (_INK, _box(-0.03, -0.2, 0.03, 0.2)),
        (_INK, _box(-0.24, -0.03, 0.24, 0.03)),
    ),  # window
    ((_CREAM, _box(-0.26, -0.12, 0.26, 0.12)), (_ACCENT, _box(-0.2, -0.05, 0.2, 0.05))),  # label
    ((_INK, _star(0, 0, 0.24, 0.2, 6)), (_ACCENT, _disc(0, 0, 0.13))),  # porthole
    (
        _PLATE,
        (
            _INK,
            _poly(
                (0.06, -0.2),
                (-0.13, 0.04),
                (-0.01, 0.04),
                (-0.06, 0.2),
                (0.13, -0.05),
                (0.01, -0.05),
            ),
        ),
    ),  # bolt
)

# Body, pattern and accent. Each colour occurs in several palettes, and far more objects than
# palettes are drawn, so that colour narrows the choice down and never settles it.
_RED, _CORAL, _AMBER, _LEMON = (206, 62, 66), (240, 128, 104), (236, 160, 52), (248, 214, 94)
_LEAF, _MINT, _TEAL, _SKY = (96, 160, 84), (150, 212, 178), (40, 130, 138), (124, 186, 228)
_BLUE, _PLUM, _PINK, _SAND = (58, 94, 176), (122, 74, 142), (240, 164, 188), (230, 206, 164)
_PALETTES: tuple[tuple[Colour, Colour, Colour], ...] = (
    (_RED, _SAND, _TEAL),
    (_RED, _LEMON, _BLUE),
    (_CORAL, _SAND, _PLUM),
    (_CORAL, _MINT, _BLUE),
    (_AMBER, _SAND, _RED),
    (_AMBER, _TEAL, _LEMON),
    (_LEMON, _CORAL, _TEAL),
    (_LEMON, _LEAF, _PINK),
    (_LEAF, _LEMON, _RED),
    (_LEAF, _SAND, _AMBER),
    (_MINT, _TEAL, _CORAL),
    (_MINT, _PINK, _PLUM),
    (_TEAL, _SAND, _AMBER),
    (_TEAL, _MINT, _PINK),
    (_SKY, _BLUE, _LEMON),
    (_SKY, _SAND, _CORAL),
    (_BLUE, _SKY, _AMBER),
    (_BLUE, _PINK, _RED),
    (_PLUM, _PINK, _LEMON),
    (_PLUM, _SKY, _MINT),
    (_PINK, _RED, _LEAF),
    (_PINK, _PLUM, _SKY),
    (_SAND, _RED, _BLUE),
    (_SAND, _LEAF, _PLUM),
    (_RED, _PINK, _MINT),
    (_CORAL, _LEMON, _TEAL),
    (_AMBER, _PLUM, _SKY),
    (_AMBER, _MINT, _BLUE),
    (_LEMON, _BLUE, _RED),
    (_LEMON, _SKY, _PLUM),
    (_LEAF, _SKY, _CORAL),
    (_MINT, _LEMON, _RED),
    (_TEAL, _CORAL, _SAND),
    (_SKY, _RED, _AMBER),
    (_SKY, _LEAF, _PINK),
    (_BLUE, _MINT, _LEMON),
    (_BLUE, _AMBER, _LEAF),
    (_PLUM, _CORAL, _LEAF),
    (_PINK, _TEAL, _AMBER),
    (_SAND, _PLUM, _TEAL),
)


# --- Identity --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Design:
    """What makes an object itself: an index into each stock of parts."""

    body: int
    palette: int
    pattern: int
    topper: int
    sides: int
    feet: int
    emblem: int
    name: str


def _design(seed: int, object_id: int) -> _Design:
    # The third number is 0 for the design and 1 or more for the views.
    rng = np.random.default_rng(np.random.SeedSequence([seed, object_id, 0]))
    stocks = (_BODIES, _PALETTES, _PATTERNS, _TOPPERS, _SIDES, _FEET, _EMBLEMS)
    picks = [int(rng.integers(len(stock))) for stock in stocks]
    syllables = [str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) for _ in range(2)]
    word = "".join(syllables) + str(rng.choice(_CODAS))
    return _Design(*picks, name=f"{word}-{object_id:04d}")


_ONSETS = ("b", "br", "d", "f", "fl", "g", "gl", "k", "l", "m", "n", "p", "pl", "r", "s", "t", "v")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "k", "l", "m", "n", "p", "sk", "t", "x")


def object_name(seed: int, object_id: int) -> str:
    """The object's invented name, unique among the objects of one seed and safe as a folder."""
    return _design(seed, object_id).name


# --- Drawing ---------------------------------------------------------------------------------


def _pixels(points: Points, pose: Points) -> list[tuple[float, float]]:
    """Outline corners in pixels: `points` (N, 2) under the affine `pose` (2, 3)."""
    moved = points @ pose[:, :2].T + pose[:, 2]
    return [(x, y) for x, y in moved.tolist()]


def _draw_part(
    draw: ImageDraw.ImageDraw,
    part: Part,
    at: Points,
    pose: Points,
    colours: list[Colour],
    line: int,
) -> None:
    for role, points in part:
        corners = _pixels(points + at, pose)
        draw.polygon(corners, fill=colours[role])
        draw.line([*corners, *corners[:2]], fill=_INK_COLOUR, width=line, joint=_joint(line))


def _joint(line: int) -> str | None:
    # Rounded joints cost time and cannot be seen on thin lines.
    return "curve" if line > 4 else None


def _random_colour(rng: np.random.Generator) -> Colour:
    hue = rng.uniform(-32, 32, size=3)
    red, green, blue = (int(value) for value in rng.uniform(130, 225) + hue)
    return red, green, blue


def _scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


def _draw_scene(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> Colour:
    """Wall, things on it, and floor; returns the floor's colour."""
    wall, floor = _random_colour(rng), _random_colour(rng)
    horizon = rng.uniform(0.55, 0.9) * size
    draw.rectangle((0, 0, size, size), fill=wall)
    for _ in range(int(rng.integers(0, 5))):
        x, y, radius = rng.uniform((0, 0, 0.06), (1, 0.8, 0.25)) * size
        draw_blob = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        draw_blob((x - radius, y - radius, x + radius, y + radius), fill=_random_colour(rng))
    draw.rectangle((0, horizon, size, size), fill=floor)
    return floor


def draw_view(seed: int, object_id: int, view_id: int, size_px: int) -> Image.Image:
    """One RGB picture, `size_px` x `size_px`, of an object.

    The same seed and ids give the same scene at every size.
    """
    design = _design(seed, object_id)
    rng = np.random.default_rng(np.random.SeedSequence([seed, object_id, view_id + 1]))
    size = size_px * _SUPERSAMPLING
    colours = [*_PALETTES[design.palette], _INK_COLOUR, _CREAM_COLOUR]

    angle = math.radians(rng.uniform(-12, 12))
    unit = rng.uniform(0.45, 0.53) * size
    turn, shear = rng.uniform(0.86, 1.0), rng.uniform(-0.08, 0.08)
    middle = (rng.uniform((0.45, 0.48), (0.55, 0.58))) * size
    cos, sin = math.cos(angle) * unit, math.sin(angle) * unit
    pose = np.array([[cos, -sin], [sin, cos]]) @ np.array([[turn, shear], [0.0, 1.0]])
    pose = np.concatenate([pose, middle[:, None]], axis=1)
    line = max(1, round(_LINE_WIDTH * unit))

    picture = Image.new("RGB", (size, size))
    draw = ImageDraw.Draw(picture)
    floor = _draw_scene(draw, rng, size)

    body = _BODIES[design.body]
    bottom = float(body[:, 1].max())
    shadow = _disc(0, bottom + 0.2, 0.6, 0.12) + rng.uniform((-0.15, 0), (0.15, 0.04))
    draw.polygon(_pixels(shadow, pose), fill=_scaled(floor, 0.7))

    side = np.array([float(body[np.abs(body[:, 1]) < 0.12, 0].max()), 0.0])
    part, mirrored = _SIDES[design.sides]
    _draw_part(draw, part, side, pose, colours, line)
    if mirrored:
        _draw_part(draw, _mirrored(part), -side, pose, colours, line)
    _draw_part(draw, _FEET[design.feet], np.array([0.0, bottom]), pose, colours, line)
    top = np.array([0.0, float(body[np.abs(body[:, 0]) < 0.12, 1].min())])
    _draw_part(draw, _TOPPERS[design.topper], top, pose, colours, line)

    outline = _pixels(body, pose)
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    skin = Image.new("RGB", (size, size), colours[_BODY])
    skin_draw = ImageDraw.Draw(skin)
    for patch in _PATTERNS[design.pattern]:
        skin_draw.polygon(_pixels(patch, pose), fill=colours[_PATTERN])
    # The body is darker away from the light: all of it but a copy moved towards the light.
    light = rng.choice((-1, 1))
    moved = ImageChops.offset(mask, round(light * 0.12 * unit), round(-0.1 * unit))
    shade = ImageChops.subtract(mask, moved).point(_SHADE)
    skin.paste(_INK_COLOUR, mask=shade)
    picture.paste(skin, mask=mask)
    draw.line([*outline, *outline[:2]], fill=_INK_COLOUR, width=line, joint=_joint(line))
    _draw_part(draw, _EMBLEMS[design.emblem], np.zeros(2), pose, colours, line)

    picture = picture.reduce(_SUPERSAMPLING)
    # Light: a tint over the picture, and one side brighter than the other.
    tint = rng.uniform(0.8, 1.12) * rng.uniform(0.93, 1.07, size=3)
    slope = light * rng.uniform(0.0, 0.2) * np.linspace(-1, 1, size_px)
    lit = np.asarray(picture) * (1.0 + slope)[None, :, None] * tint
    return Image.fromarray(np.minimum(lit, 255.0).astype(np.uint8))


_SHADE = [value * 80 // 255 for value in range(256)]


# --- Writing ---------------------------------------------------------------------------------
