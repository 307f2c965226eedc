"""Draw the generated shop's products: the shape is the category; palette, texture and ornament are the style.

Coordinates of a product are (x right, y down), about -1..1, before it is scaled, turned and placed.
"""

import io
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Points: TypeAlias = NDArray[np.float64]  # (P, 2)
Plane: TypeAlias = NDArray[np.float32]  # (SIZE, SIZE)
Photo: TypeAlias = NDArray[np.float32]  # (3, SIZE, SIZE): red, green, blue, 0..255
Paint: TypeAlias = NDArray[np.float32]  # (3, 1, 1) or a Photo
Colour: TypeAlias = tuple[int, int, int]

SIZE: Final = 112  # pixels, square
OVERSAMPLE: Final = 4  # masks are drawn this much larger and averaged down: smooth edges

PALETTES: Final[dict[str, tuple[Colour, Colour]]] = {  # main colour, second colour
    "crimson": ((198, 32, 44), (250, 200, 190)),
    "amber": ((236, 158, 28), (120, 66, 20)),
    "forest": ((34, 116, 58), (196, 226, 150)),
    "teal": ((18, 160, 168), (240, 226, 190)),
    "navy": ((34, 58, 150), (150, 196, 246)),
    "violet": ((124, 58, 176), (226, 190, 246)),
    "rose": ((240, 112, 168), (255, 226, 236)),
    "charcoal": ((58, 58, 62), (186, 186, 190)),
}
TEXTURES: Final = ("plain", "stripes", "checks", "dots", "zigzag", "blotches")
ORNAMENTS: Final = ("none", "star", "heart", "ring", "bow")

_INK: Final = np.array((44, 38, 42), np.float32)[:, None, None]
_CREAM: Final = np.array((253, 247, 230), np.float32)[:, None, None]
_ROW, _COLUMN = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + np.float32(0.5)


class Shape(NamedTuple):
    """A product's outline: textured parts, plain parts in the second colour, and where its ornament sits."""

    body: tuple[Points, ...]
    trim: tuple[Points, ...]
    behind: tuple[Points, ...]  # trim that the body covers
    ornament: tuple[float, float, float]  # x, y, radius


class Pose(NamedTuple):
    """How a product stands before the camera. Product (x, y) lies at pixel centre + matrix @ (x, y)."""

    matrix: NDArray[np.float64]  # (2, 2), pixels per unit
    centre: NDArray[np.float64]  # (2,), pixels
    light: NDArray[np.float64]  # (2,), unit vector towards the light


def draw(category: str, palette: str, texture: str, ornament: str, rng: np.random.Generator) -> Image.Image:
    """One product photo: SIZE x SIZE RGB on a light ground; place, size, angle and light are drawn from `rng`.

    Raises KeyError for a name that is not in CATEGORIES, PALETTES, TEXTURES or ORNAMENTS.
    """
    shape, pose = SHAPES[category], _pose(rng)
    main, second = (_tinted(colour, rng) for colour in PALETTES[palette])
    body = _mask(pose, shape.body)
    trim = _mask(pose, shape.trim)
    behind = _mask(pose, shape.behind)
    whole = np.maximum(np.maximum(body, trim), behind)
    x, y = _product_coordinates(pose)

    photo = _ground(rng)
    photo = photo * (1 - 0.4 * _shadow(whole, pose.light))
    photo = _over(photo, second * 0.8, behind)
    photo = _over(photo, _over(main, second, TEXTURE[texture](x, y, rng)), body)
    photo = _over(photo, second * 0.8, trim)
    photo = np.where(whole > 0, photo * _shading(whole, x, y, pose), photo)
    outline, fill = _ornament(ornament, shape, pose)
    photo = _over(_over(photo, _INK, outline), _CREAM, fill)
    return _expose(photo, rng)


def placeholder() -> Image.Image:
    """The shop's "no image" picture: a grey frame with a crossed-out mountain."""
    image = Image.new("RGB", (SIZE, SIZE), (228, 229, 231))
    pen = ImageDraw.Draw(image)
    grey = (168, 171, 176)
    pen.rectangle((22, 30, 90, 82), outline=grey, width=4)
    pen.polygon(((28, 76), (48, 50), (60, 64), (68, 56), (84, 76)), fill=grey)
    pen.ellipse((66, 38, 76, 48), fill=grey)
    pen.line((18, 92, 94, 20), fill=(200, 96, 96), width=4)
    return image


def encode(image: Image.Image) -> bytes:
    """JPEG bytes, chroma not subsampled: thin lines of colour survive."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()


# --- outlines -------------------------------------------------------------------------------------------------------


def _points(*pairs: tuple[float, float]) -> Points:
    return np.array(pairs, float)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _points((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Points:
    angle = np.radians(np.linspace(start, end, 40))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _smooth(outline: Points, steps: int = 6) -> Points:
    """A closed Catmull-Rom curve through the points."""
    before, after, beyond = np.roll(outline, 1, 0), np.roll(outline, -1, 0), np.roll(outline, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = before[:, None], outline[:, None], after[:, None], beyond[:, None]
    curve = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    return np.asarray(0.5 * curve).reshape(-1, 2)


SHAPES: Final[dict[str, Shape]] = {
    "dress": Shape(
        body=(
            _points(
                *((-0.34, -1.0), (-0.2, -1.0), (-0.16, -0.78), (0, -0.7), (0.16, -0.78), (0.2, -1.0), (0.34, -1.0)),
                *((0.38, -0.55), (0.26, -0.12), (0.8, 0.9), (0.4, 1.0), (0, 1.03), (-0.4, 1.0), (-0.8, 0.9)),
                *((-0.26, -0.12), (-0.38, -0.55)),
            ),
        ),
        trim=(_points((-0.29, -0.22), (0.29, -0.22), (0.3, -0.04), (-0.3, -0.04)),),
        behind=(),
        ornament=(0.0, 0.48, 0.36),
    ),
    "shirt": Shape(
        body=(
            _points(
                *((-0.26, -0.82), (-0.14, -0.68), (0, -0.63), (0.14, -0.68), (0.26, -0.82), (0.6, -0.7), (1.05, -0.2)),
                *((0.78, 0.08), (0.56, -0.14), (0.58, 0.88), (-0.58, 0.88), (-0.56, -0.14), (-0.78, 0.08)),
                *((-1.05, -0.2), (-0.6, -0.7)),
            ),
        ),
        trim=(_box(-0.58, 0.76, 0.58, 0.9),),
        behind=(_ellipse(0, -0.76, 0.24, 0.12),),
        ornament=(0.0, 0.12, 0.38),
    ),
    "bag": Shape(
        body=(_points((-0.72, -0.28), (0.72, -0.28), (0.9, 0.84), (0.82, 0.92), (-0.82, 0.92), (-0.9, 0.84)),),
        trim=(_points((-0.72, -0.3), (0.72, -0.3), (0.75, -0.1), (-0.75, -0.1)),),
        behind=(np.concatenate([_ellipse(0, -0.25, 0.5, 0.75, 180, 360), _ellipse(0, -0.25, 0.34, 0.58, 360, 180)]),),
        ornament=(0.0, 0.4, 0.38),
    ),
    "shoe": Shape(
        body=(
            _smooth(
                _points(
                    *((-0.72, -0.96), (-0.3, -0.98), (0.08, -0.94), (0.1, -0.4), (0.2, -0.16), (0.6, 0.02)),
                    *((0.96, 0.28), (1.0, 0.62), (0.2, 0.64), (-0.78, 0.64), (-0.8, 0.0)),
                )
            ),
        ),
        trim=(
            _points((-0.84, 0.58), (1.04, 0.58), (1.02, 0.78), (-0.28, 0.78), (-0.3, 0.94), (-0.82, 0.94)),
            _box(-0.8, -1.02, 0.14, -0.84),
        ),
        behind=(),
        ornament=(-0.34, -0.14, 0.36),
    ),
    "hat": Shape(
        body=(
            _smooth(
                _points(
                    (-0.62, 0.42), (-0.6, -0.3), (-0.42, -0.76), (0, -0.86), (0.42, -0.76), (0.6, -0.3), (0.62, 0.42)
                )
            ),
            _ellipse(0, 0.46, 1.08, 0.28),
        ),
        trim=(np.concatenate([_ellipse(0, 0.2, 0.64, 0.16, 180, 0), _ellipse(0, 0.4, 0.66, 0.16, 0, 180)]),),
        behind=(),
        ornament=(0.0, -0.3, 0.36),
    ),
    "mug": Shape(
        body=(
            np.concatenate(
                [
                    _points((-0.8, -0.72), (0.46, -0.72)),
                    _ellipse(-0.17, 0.74, 0.6, 0.18, 0, 180),
                    _points((-0.8, -0.72)),
                ]
            ),
        ),
        trim=(_ellipse(-0.17, -0.72, 0.64, 0.17),),
        behind=(np.concatenate([_ellipse(0.46, 0.02, 0.5, 0.5, -90, 90), _ellipse(0.46, 0.02, 0.3, 0.3, 90, -90)]),),
        ornament=(-0.17, 0.14, 0.4),
    ),
    "lamp": Shape(
        body=(np.concatenate([_ellipse(0, -0.94, 0.4, 0.08, 180, 360), _ellipse(0, 0.18, 0.88, 0.14, 0, 180)]),),
        trim=(),
        behind=(_box(-0.08, 0.1, 0.08, 0.86), _ellipse(0, 0.88, 0.46, 0.14)),
        ornament=(0.0, -0.24, 0.38),
    ),
    "chair": Shape(
        body=(
            _smooth(
                _points(
                    (-0.56, 0.0),
                    (-0.6, -0.5),
                    (-0.5, -0.98),
                    (0, -1.04),
                    (0.5, -0.98),
                    (0.6, -0.5),
                    (0.56, 0.0),
                    (0, 0.04),
                )
            ),
            _points((-0.62, 0.16), (0.62, 0.16), (0.8, 0.42), (-0.8, 0.42)),
        ),
        trim=(_points((-0.8, 0.42), (0.8, 0.42), (0.8, 0.52), (-0.8, 0.52)),),
        behind=(
            *(_box(x - 0.06, -0.1, x + 0.06, 0.3) for x in (-0.4, 0.4)),
            *(_box(x - 0.07, 0.4, x + 0.07, 1.02) for x in (-0.7, 0.7)),
            *(_box(x - 0.05, 0.4, x + 0.05, 0.84) for x in (-0.4, 0.4)),
        ),
        ornament=(0.0, -0.48, 0.38),
    ),
}
CATEGORIES: Final = tuple(SHAPES)


def _star() -> tuple[Points, ...]:
    angle = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return (np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1),)


def _heart() -> tuple[Points, ...]:
    t = np.linspace(0, 2 * np.pi, 40)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return (np.stack([16 * np.sin(t) ** 3, -y - 2], axis=1) / 17,)


def _ring() -> tuple[Points, ...]:
    return (np.concatenate([_ellipse(0, 0, 0.92, 0.92), _ellipse(0, 0, 0.48, 0.48, 360, 0)]),)


def _bow() -> tuple[Points, ...]:
    left = _points((0, -0.12), (-0.55, -0.62), (-1.08, -0.55), (-1.08, 0.55), (-0.55, 0.62), (0, 0.12))
    return (left, left * (-1, 1), _ellipse(0, 0, 0.26, 0.3))


ORNAMENT: Final[dict[str, tuple[Points, ...]]] = {
    "none": (),
    "star": _star(),
    "heart": _heart(),
    "ring": _ring(),
    "bow": _bow(),
}

# --- textures: how much of the second colour lies at (x, y), 0..1 ---------------------------------------------------

Texture: TypeAlias = Callable[[Plane, Plane, np.random.Generator], Plane]


def _wave(phase: Plane) -> Plane:
    """A square wave of period 1 with softened edges, 0..1."""
    return np.asarray(np.clip(0.5 + 2.5 * np.sin(2 * np.pi * phase), 0, 1), np.float32)


def _plain(x: Plane, _y: Plane, _rng: np.random.Generator) -> Plane:
    return np.zeros_like(x)


def _stripes(_x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    return _wave(y / rng.uniform(0.3, 0.38) + rng.uniform())


def _checks(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    period = rng.uniform(0.42, 0.52)
    return np.asarray((_wave(x / period + rng.uniform()) + _wave(y / period + rng.uniform())) / 2, np.float32)


def _dots(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    period = rng.uniform(0.34, 0.42)
    row = y / period + rng.uniform()
    column = x / period + rng.uniform() + 0.5 * (np.floor(row) % 2)
    distance = np.hypot(row % 1 - 0.5, column % 1 - 0.5)
    return np.asarray(np.clip((0.32 - distance) * 10 + 0.5, 0, 1), np.float32)


def _zigzag(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    teeth = np.abs((x / rng.uniform(0.5, 0.6) + rng.uniform()) % 1 - 0.5)
    return _wave((y + 0.5 * teeth) / rng.uniform(0.34, 0.42) + rng.uniform())


def _blotches(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    waves = np.zeros_like(x)
    for angle, phase, pitch in rng.uniform((0, 0, 7), (np.pi, 2 * np.pi, 12), (6, 3)).astype(np.float32):
        waves += np.sin(pitch * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return np.asarray(np.clip(waves * 1.6 + 0.3, 0, 1), np.float32)


TEXTURE: Final[dict[str, Texture]] = {
    "plain": _plain,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "zigzag": _zigzag,
    "blotches": _blotches,
}

# --- the camera -----------------------------------------------------------------------------------------------------


def _pose(rng: np.random.Generator) -> Pose:
    turn, scale = np.radians(rng.uniform(-13, 13)), SIZE * rng.uniform(0.35, 0.43)
    mirror = -1.0 if rng.uniform() < 0.5 else 1.0
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    light = np.radians(rng.uniform(200, 340))
    return Pose(
        matrix=scale * rotation @ np.diag([mirror, 1.0]),
        centre=SIZE / 2 + rng.uniform(-4, 4, 2),
        light=np.array([np.cos(light), np.sin(light)]),
    )


def _mask(pose: Pose, parts: tuple[Points, ...]) -> Plane:
    """Coverage of each pixel by the parts, 0..1."""
    canvas = Image.new("L", (SIZE * OVERSAMPLE, SIZE * OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    for part in parts:
        pen.polygon(((pose.centre + part @ pose.matrix.T) * OVERSAMPLE).ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLE), np.float32) / np.float32(255)


def _product_coordinates(pose: Pose) -> tuple[Plane, Plane]:
    """Every pixel's place on the product."""
    across, down = _COLUMN - np.float32(pose.centre[0]), _ROW - np.float32(pose.centre[1])
    (a, b), (c, d) = np.linalg.inv(pose.matrix).astype(np.float32)
    return a * across + b * down, c * across + d * down


def _blurred(plane: Plane, radius: float) -> Plane:
    image = Image.fromarray((plane * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32) / np.float32(255)


def _shadow(whole: Plane, light: NDArray[np.float64]) -> Plane:
    shift = np.rint(-5 * light).astype(int)
    return np.roll(_blurred(whole, 4), (shift[1], shift[0]), axis=(0, 1))


def _shading(whole: Plane, x: Plane, y: Plane, pose: Pose) -> Plane:
    """Brightness over the product: lighter towards the light, darker at its edges."""
    slope = (pose.matrix.diagonal() * pose.light / SIZE).astype(np.float32)
    across = np.clip(slope[0] * x + slope[1] * y, -0.6, 0.6)
    return np.asarray((1 + 0.28 * across) * (0.72 + 0.3 * _blurred(whole, 3)))


def _ground(rng: np.random.Generator) -> Photo:
    tone = (rng.uniform(232, 250) + rng.uniform(-4, 4, 3))[:, None, None]
    slope = np.linspace(rng.uniform(0, 6), rng.uniform(-14, -4), SIZE)[:, None]
    column = np.clip(tone + slope, 0, 255).astype(np.float32)
    return np.broadcast_to(column, (3, SIZE, SIZE))


def _ornament(name: str, shape: Shape, pose: Pose) -> tuple[Plane, Plane]:
    """Coverage of the ornament's dark outline and of its light fill."""
    x, y, radius = shape.ornament
    placed = tuple(part * radius + (x, y) for part in ORNAMENT[name])
    fill = _mask(pose, placed)
    return np.clip(_blurred(fill, 1.6) * 3.2, 0, 1) if placed else fill, fill


def _tinted(colour: Colour, rng: np.random.Generator) -> Paint:
    tinted = np.array(colour) * rng.uniform(0.93, 1.05) + rng.uniform(-8, 8, 3)
    return tinted.astype(np.float32)[:, None, None]


def _over(photo: Photo, paint: Paint, mask: Plane) -> Photo:
    """Lay `paint` over the photo where the mask covers it."""
    return np.asarray(photo + (paint - photo) * mask)


def _expose(photo: Photo, rng: np.random.Generator) -> Image.Image:
    cast = rng.uniform(0.93, 1.05) * (1 + np.array([1, 0, -1]) * rng.uniform(-0.03, 0.03))
    grain = 1.5 * rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    pixels = np.clip(photo * cast.astype(np.float32)[:, None, None] + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
