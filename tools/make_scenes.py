#!/usr/bin/env python3
"""Draw labelled street scenes: seeded, procedural, the same bytes on every machine.

A scene is what a camera behind a windscreen sees in a European town: a road in perspective between two
rows of houses (or a park), pavements with kerbs, trees, cars, lamp posts, signs, railings, people. Every
pixel carries one of CamVid's eleven classes or "void". No photograph is read; everything is drawn from
the seed.

How it stays identical to the byte: random numbers come from an integer generator written here, noise from
integer hashes, polygons from the rasteriser below, and all remaining float64 arithmetic uses only
+ - * / sqrt and floor, which IEEE 754 defines exactly (no sums over an axis, no matrix product, no
trigonometric function). Pillow only encodes and decodes PNG files.

Geometry: metres; X to the right, Y up, Z away from the camera; the ground is Y = 0. The picture is painted
from far to near at twice the asked size and averaged over 2x2 blocks.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from PIL import Image

from intseg.errors import InputError
from intseg.files import write_atomically

CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
    "void",
)
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, VOID = range(12)

MIN_SIDE, MAX_SIDE = 32, 4096
STREET_SEED = 47
STREET_DIR = Path(__file__).resolve().parent.parent / "golden" / "images"

NEAR = 0.6  # metres; nothing closer to the camera is drawn
FAR = 115.0  # metres; where the street ends
KERB = 0.12  # metres; height of the pavement above the road

T = TypeVar("T")
Array = np.ndarray
RGB = tuple[float, float, float]
Shade = RGB | Callable[[Array, Array], Array]
Points = Sequence[Sequence[float]]

# A circle of radius one as 16 corners; rational in t, so that no sine is needed.
_QUADRANT = [((1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)) for t in (0.0, 0.2, 0.414, 0.668)]
CIRCLE = [(a * x - b * y, b * x + a * y) for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in _QUADRANT]


# ---------------------------------------------------------------------------------------------- chance and noise


class Rng:
    """SplitMix64: a stream of random numbers that depends on nothing but the seed."""

    def __init__(self, seed: int) -> None:
        self._state = seed & 0xFFFFFFFFFFFFFFFF

    def bits(self) -> int:
        """The next 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        return z ^ (z >> 31)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((self.bits() >> 11) / (1 << 53))

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + self.bits() % (high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform(0.0, 1.0) < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.bits() % len(items)]

    def seed(self) -> int:
        """A seed for a noise field."""
        return self.bits() & 0xFFFF


def hashed(ix: Array, iy: Array, seed: int) -> Array:
    """White noise on the integer lattice: whole-valued floats or integers in, float64 in [0, 1) out."""
    x = ix.astype(np.int64).astype(np.uint32)
    y = iy.astype(np.int64).astype(np.uint32)
    h = x * np.uint32(0x9E3779B1) + y * np.uint32(0x85EBCA77) + np.uint32((seed * 0xC2B2AE3D) & 0xFFFFFFFF)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
    h = h ^ (h >> np.uint32(15))
    return h.astype(np.float64) / 4294967296.0


def value_noise(x: Array, y: Array, seed: int) -> Array:
    """Smooth noise in [0, 1) with a feature size of one unit; x and y float64 of one shape."""
    x0, y0 = np.floor(x), np.floor(y)
    u, v = x - x0, y - y0
    u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
    top = hashed(x0, y0, seed) * (1.0 - u) + hashed(x0 + 1, y0, seed) * u
    bottom = hashed(x0, y0 + 1, seed) * (1.0 - u) + hashed(x0 + 1, y0 + 1, seed) * u
    return top * (1.0 - v) + bottom * v


def fractal(x: Array, y: Array, seed: int, octaves: int = 4) -> Array:
    """Sum of value noises of halving size and weight, in [0, 1)."""
    total, weight, scale = np.zeros_like(x), 0.0, 1.0
    for octave in range(octaves):
        total = total + value_noise(x * scale, y * scale, seed + 101 * octave) / scale
        weight += 1.0 / scale
        scale *= 2.0
    return total / weight


def tint(colour: RGB, factor: float) -> RGB:
    """The colour, brighter or darker."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def solid(colour: RGB, like: Array) -> Array:
    """float64 [h, w, 3] filled with one colour, for a plane `like` [h, w]."""
    return np.broadcast_to(np.asarray(colour, np.float64), (*like.shape, 3)).copy()


def blend(rgb: Array, alpha: Array, colour: RGB | Array) -> None:
    """Lay a colour over rgb [h, w, 3] in place; alpha is bool or float [h, w]."""
    a = alpha.astype(np.float64)[..., None]
    rgb += a * (np.asarray(colour, np.float64) - rgb)


# ---------------------------------------------------------------------------------------------- canvas


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking along Z: focal length and principal point in canvas pixels, height in metres."""

    focal: float
    cx: float
    cy: float
    height: float

    def project(self, points: Points) -> list[tuple[float, float]]:
        """Points (X, Y, Z) with Z > 0 to canvas positions (x, y)."""
        return [(self.cx + self.focal * x / z, self.cy + self.focal * (self.height - y) / z) for x, y, z in points]

    def on_ground(self, px: Array, py: Array, level: float = 0.0) -> tuple[Array, Array]:
        """Where the rays through pixels below the horizon meet the plane Y = level: X and Z."""
        z = self.focal * (self.height - level) / np.maximum(py - self.cy, 0.25)
        return (px - self.cx) * z / self.focal, z

    def on_side(self, px: Array, py: Array, x: float) -> tuple[Array, Array]:
        """Where the rays meet the plane X = x: Z and Y."""
        dx = px - self.cx
        z = x * self.focal / np.where(dx * x > 0, dx, x)
        return z, self.height - (py - self.cy) * z / self.focal

    def on_front(self, px: Array, py: Array, z: float) -> tuple[Array, Array]:
        """Where the rays meet the plane Z = z: X and Y."""
        return (px - self.cx) * z / self.focal, self.height - (py - self.cy) * z / self.focal


def clip_near(points: Points) -> list[tuple[float, float, float]]:
    """The part of a polygon (X, Y, Z) with Z >= NEAR (Sutherland-Hodgman)."""
    kept: list[tuple[float, float, float]] = []
    for i, (bx, by, bz) in enumerate(points):
        ax, ay, az = points[i - 1]
        if (az < NEAR) != (bz < NEAR):
            t = (NEAR - az) / (bz - az)
            kept.append((ax + t * (bx - ax), ay + t * (by - ay), NEAR))
        if bz >= NEAR:
            kept.append((bx, by, bz))
    return kept


def polygon_mask(points: Sequence[tuple[float, float]], rows: Array, cols: Array) -> Array:
    """Even-odd fill: bool [len(rows), len(cols)], true where the pixel centre lies inside."""
    mask = np.zeros((len(rows), len(cols)), bool)
    y, x = rows + 0.5, cols + 0.5
    for i, (bx, by) in enumerate(points):
        ax, ay = points[i - 1]
        low, high = min(ay, by), max(ay, by)
        crossed = np.nonzero((y >= low) & (y < high))[0]
        if crossed.size:
            edge = ax + (y[crossed] - ay) * ((bx - ax) / (by - ay))
            mask[crossed] ^= x[None, :] >= edge[:, None]
    return mask


@dataclass
class Canvas:
    """The picture under way: rgb float64 [H, W, 3] (0..255) and labels uint8 [H, W]."""

    rgb: Array
    labels: Array
    camera: Camera
    haze: RGB
    haze_distance: float
    _lines: tuple[Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        self._lines = (np.arange(self.labels.shape[0]), np.arange(self.labels.shape[1]))

    def window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice, Array, Array]:
        """Slices of the canvas for a box, and its pixel centres x, y as float64 [h, w]."""
        height, width = self.labels.shape
        rows = slice(int(min(max(y0, 0), height)), int(min(max(y1 + 1, 0), height)))
        cols = slice(int(min(max(x0, 0), width)), int(min(max(x1 + 1, 0), width)))
        py = np.broadcast_to((self._lines[0][rows] + 0.5)[:, None], (rows.stop - rows.start, cols.stop - cols.start))
        px = np.broadcast_to((self._lines[1][cols] + 0.5)[None, :], py.shape)
        return rows, cols, px, py

    def fill(
        self, points: Sequence[tuple[float, float]], shade: Shade, label: int | None = None, alpha: float = 1.0
    ) -> None:
        """Paint a polygon of canvas positions; a label of None leaves the labels as they are."""
        if len(points) < 3:
            return
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        rows, cols, px, py = self.window(min(xs), min(ys), max(xs), max(ys))
        if px.size == 0:
            return
        mask = polygon_mask(points, self._lines[0][rows], self._lines[1][cols])
        colour = shade(px, py) if callable(shade) else shade
        blend(self.rgb[rows, cols], mask * alpha, colour)
        if label is not None:
            self.labels[rows, cols][mask] = label

    def face(self, points: Points, shade: Shade, label: int | None = None, alpha: float = 1.0) -> None:
        """Paint a polygon given in space (X, Y, Z); a plain colour gets the haze of its mean distance."""
        kept = clip_near(points)
        if len(kept) < 3:
            return
        if not callable(shade):
            shade = self.hazed(shade, sum(p[2] for p in kept) / len(kept))
        self.fill(self.camera.project(kept), shade, label, alpha)

    def hazed(self, colour: RGB, z: float) -> RGB:
        """A colour as seen through z metres of air."""
        a = z / (z + self.haze_distance)
        return tuple(c + a * (h - c) for c, h in zip(colour, self.haze, strict=True))  # type: ignore[return-value]

    def haze_over(self, rgb: Array, z: Array | float) -> Array:
        """rgb [h, w, 3] as seen through z metres of air (z: one number or [h, w])."""
        z = np.asarray(z, np.float64)
        a = (z / (z + self.haze_distance))[..., None]
        return rgb + a * (np.asarray(self.haze) - rgb)


@dataclass(frozen=True)
class Light:
    """The weather of a scene: brightness of the sunlit and the shaded side, and where the sun stands."""

    sun_side: int  # -1: the sun stands to the left, so the left row of houses is in shade
    sun: float
    shade: float

    def on(self, side: int) -> float:
        """Brightness of a wall on the given side of the street (-1 left, 1 right)."""
        return self.shade if side == self.sun_side else self.sun


@dataclass(frozen=True)
class Street:
    """The ground plan: X of kerbs and house fronts, and where the centre line runs."""

    left_kerb: float
    right_kerb: float
    left_front: float
    right_front: float
    centre: float

    def kerb(self, side: int) -> float:
        """X of the kerb on a side (-1 left, 1 right)."""
        return self.left_kerb if side < 0 else self.right_kerb

    def front(self, side: int) -> float:
        """X of the house fronts on a side (-1 left, 1 right)."""
        return self.left_front if side < 0 else self.right_front


# ---------------------------------------------------------------------------------------------- sky and ground


def draw_sky(canvas: Canvas, rng: Rng) -> None:
    """A bright sky, pale towards the horizon, with soft clouds drawn out by perspective."""
    height, width = canvas.labels.shape
    rows, cols, px, py = canvas.window(0, 0, width, height)
    up = np.clip((canvas.camera.cy - py) / canvas.camera.cy, 0.0, 1.0)
    zenith = rng.pick([(176.0, 212.0, 240.0), (190.0, 222.0, 244.0), (198.0, 214.0, 228.0), (205.0, 226.0, 240.0)])
    rgb = solid((246.0, 250.0, 250.0), px)
    blend(rgb, up * (0.45 + 0.55 * up), zenith)
    depth = 1.0 / (up + 0.25)
    seed = rng.seed()
    scale = 2.4 / width
    cloud = fractal((px - canvas.camera.cx) * scale * depth + 40.0, depth * 2.2, seed, 5)
    cover = rng.uniform(0.40, 0.50)
    blend(rgb, np.clip((cloud - cover) * 5.0, 0.0, 0.85), (252.0, 253.0, 252.0))
    under = np.clip((cloud - cover - 0.13) * 3.0, 0.0, 0.35)
    blend(rgb, under, (214.0, 219.0, 224.0))
    canvas.rgb[rows, cols] = rgb
    canvas.labels[...] = SKY


def asphalt(x: Array, z: Array, grey: float, street: Street, seed: int) -> Array:
    """Colour of the road at (X, Z): grain, blotches, polished wheel tracks, repaired strips; float64 [h, w, 3]."""
    fine = 14.0 / (14.0 + z)
    tone = grey * (0.90 + 0.20 * fractal(x * 0.7, z * 0.16, seed, 4))
    tone = tone + 20.0 * fine * (hashed(np.floor(x * 45.0), np.floor(z * 22.0), seed) - 0.5)
    for track in (-0.75, 0.75):
        away = np.abs(x - track)
        tone = tone + grey * 0.07 * np.clip(1.0 - away / 0.45, 0.0, 1.0)
    oil = np.clip(1.0 - np.abs(x) / 0.4, 0.0, 1.0) * value_noise(x * 2.0, z * 0.3, seed + 3)
    tone = tone * (1.0 - 0.12 * oil)
    patch = (x > street.centre + 0.5) & (x < street.centre + 1.7) & (z > 5.5) & (z < 24.0)
    tone = np.where(patch, tone * 0.88, tone)
    seam = (np.abs(x - street.centre - 0.5) < 0.03) & (z > 5.5) & (z < 24.0)
    tone = np.where(seam, tone * 0.75, tone)
    return tone[..., None] * np.array([0.96, 1.0, 1.05])


def road_markings(x: Array, z: Array, street: Street, seed: int) -> tuple[Array, Array]:
    """Cover (0..1) of white and of yellow paint on the road at (X, Z), worn by noise."""
    wear = np.clip(0.62 + 0.5 * fractal(x * 6.0, z * 2.0, seed, 3), 0.0, 0.97)
    dash = (z / 6.0 - np.floor(z / 6.0)) < 0.5
    white = (np.abs(x - street.centre) < 0.065) & dash
    left, right = x - street.left_kerb, street.right_kerb - x
    yellow = np.zeros_like(white)
    for edge in (left, right):
        yellow = yellow | (np.abs(edge - 0.30) < 0.045) | (np.abs(edge - 0.50) < 0.045)
    return white * wear, yellow * wear * 0.8


def draw_road(canvas: Canvas, street: Street, light: Light, rng: Rng, grey: float) -> None:
    """The ground up to the horizon as road, with markings."""
    height, width = canvas.labels.shape
    rows, cols, px, py = canvas.window(0, canvas.camera.cy + 1, width, height)
    x, z = canvas.camera.on_ground(px, py)
    seed = rng.seed()
    rgb = asphalt(x, z, grey, street, seed)
    gutter = np.minimum(np.abs(x - street.left_kerb), np.abs(x - street.right_kerb))
    rgb *= (1.0 - 0.25 * np.clip(1.0 - gutter / 0.35, 0.0, 1.0))[..., None]
    white, yellow = road_markings(x, z, street, seed + 9)
    blend(rgb, white, (176.0, 178.0, 176.0))
    blend(rgb, yellow, (142.0, 126.0, 78.0))
    canvas.rgb[rows, cols] = canvas.haze_over(rgb, z * 0.6)
    canvas.labels[rows, cols] = ROAD


def draw_arrow(canvas: Canvas, street: Street, z: float) -> None:
    """A white straight-on arrow painted on our lane, z metres ahead."""
    x = 0.5 * (street.left_kerb + street.centre)
    outline = [(-0.09, 0.0), (0.09, 0.0), (0.09, 2.6), (0.38, 2.6), (0.0, 4.4), (-0.38, 2.6), (-0.09, 2.6)]
    canvas.face([(x + dx, 0.0, z + dz) for dx, dz in outline], (160.0, 162.0, 160.0), None, 0.75)


def draw_manhole(canvas: Canvas, x: float, z: float, grey: float) -> None:
    """An iron lid in the road."""
    for radius, tone in ((0.36, 0.62), (0.30, 0.80)):
        canvas.face([(x + radius * cx, 0.0, z + radius * cy) for cx, cy in CIRCLE], (grey * tone,) * 3)


def draw_pavement(canvas: Canvas, street: Street, side: int, rng: Rng, grey: float) -> None:
    """Flagged pavement on one side, its kerb stones and the kerb's face."""
    kerb, front, seed = street.kerb(side), street.front(side) + side * 1.0, rng.seed()
    warm = rng.uniform(0.96, 1.04)

    def flags(px: Array, py: Array) -> Array:
        x, z = canvas.camera.on_ground(px, py, KERB)
        u, v = x / 0.75, z / 0.9
        v = v + 0.5 * (np.floor(u) % 2)
        slab = hashed(np.floor(u), np.floor(v), seed)
        fine = 12.0 / (12.0 + z)
        tone = grey * (0.86 + 0.20 * slab * fine + 0.16 * fractal(x * 1.3, z * 0.5, seed + 1, 4))
        tone = tone + 14.0 * fine * (hashed(np.floor(x * 40.0), np.floor(z * 20.0), seed + 2) - 0.5)
        joint = (u - np.floor(u) < 0.05) | (v - np.floor(v) < 0.05)
        tone = np.where(joint, tone * (1.0 - 0.30 * fine), tone)
        inner = np.abs(x - street.front(side))
        tone = tone * (1.0 - 0.35 * np.clip(1.0 - inner / 0.7, 0.0, 1.0))
        stone = np.abs(x - kerb) < 0.17
        gap = (z / 0.9 - np.floor(z / 0.9)) < 0.05
        tone = np.where(stone, grey * (1.18 - 0.3 * gap * fine), tone)
        rgb = tone[..., None] * np.array([1.02 * warm, 1.0, 0.99 / warm])
        return canvas.haze_over(rgb, z * 0.6)

    def kerb_face(px: Array, py: Array) -> Array:
        z, y = canvas.camera.on_side(px, py, kerb)
        tone = grey * (0.55 + 0.15 * hashed(np.floor(z / 0.9), np.floor(z * 0.0), seed) + y)
        return canvas.haze_over(tone[..., None] * np.ones(3), z * 0.6)

    canvas.face([(kerb, KERB, NEAR), (front, KERB, NEAR), (front, KERB, 400.0), (kerb, KERB, 400.0)], flags, PAVEMENT)
    canvas.face([(kerb, 0, NEAR), (kerb, KERB, NEAR), (kerb, KERB, 400.0), (kerb, 0, 400.0)], kerb_face, PAVEMENT)


# ---------------------------------------------------------------------------------------------- buildings


@dataclass(frozen=True)
class House:
    """One house of a row: where it stands along the street and how its front is made."""

    start: float
    end: float
    floors: int
    ground: float  # height of the ground floor
    storey: float
    bay: float  # distance of the windows
    wall: RGB
    trim: RGB
    shop: RGB | None  # colour of the shop's fascia board
    brick: bool
    roof: float  # height of the mansard roof, 0 for a parapet
    seed: int

    @property
    def eaves(self) -> float:
        """Height of the wall."""
        return self.ground + self.floors * self.storey + 0.5

    @property
    def top(self) -> float:
        """Height of the front including the roof."""
        return self.eaves + self.roof


WALLS: tuple[tuple[RGB, bool], ...] = (
    ((112.0, 86.0, 70.0), True),
    ((128.0, 112.0, 88.0), True),
    ((98.0, 78.0, 68.0), True),
    ((140.0, 124.0, 98.0), True),
    ((150.0, 146.0, 136.0), False),
    ((134.0, 128.0, 114.0), False),
    ((118.0, 118.0, 116.0), False),
    ((162.0, 156.0, 140.0), False),
)
FASCIAS: tuple[RGB, ...] = (
    (38.0, 62.0, 52.0),
    (98.0, 34.0, 34.0),
    (34.0, 46.0, 78.0),
    (44.0, 42.0, 42.0),
    (120.0, 104.0, 70.0),
    (150.0, 146.0, 138.0),
)


def make_house(rng: Rng, start: float, width: float, tall: int) -> House:
    """A house with a random front, its floors around `tall`."""
    wall, brick = rng.pick(WALLS)
    return House(
        start=start,
        end=start + width,
        floors=max(1, tall + rng.integer(-1, 1)),
        ground=rng.uniform(3.3, 3.8),
        storey=rng.uniform(2.8, 3.2),
        bay=width / max(2, int(width / rng.uniform(2.2, 3.0))),
        wall=tint(wall, rng.uniform(0.85, 1.1)),
        trim=tint((178.0, 174.0, 164.0), rng.uniform(0.7, 1.0)),
        shop=rng.pick(FASCIAS) if rng.chance(0.6) else None,
        brick=brick,
        roof=rng.uniform(1.6, 2.6) if rng.chance(0.45) else 0.0,
        seed=rng.seed(),
    )


def wall_rgb(house: House, s: Array, y: Array, detail: Array) -> Array:
    """Bare wall of a front: courses of brick or stained plaster; float64 [h, w, 3]."""
    stain = 0.86 + 0.26 * fractal(s * 0.5, y * 0.3, house.seed, 4)
    if house.brick:
        row = np.floor(y / 0.10)
        column = np.floor(s / 0.30 + 0.5 * (row % 2))
        stain = stain + 0.30 * detail * (hashed(column, row, house.seed + 1) - 0.5)
        stain = np.where(y / 0.10 - row < 0.16, stain + 0.10 * detail, stain)
    else:
        stain = stain + 0.12 * detail * (hashed(np.floor(s * 9.0), np.floor(y * 9.0), house.seed + 1) - 0.5)
    drip = value_noise(s * 2.5, y * 0.15, house.seed + 2)
    stain = stain * (1.0 - 0.18 * np.clip(drip - 0.5, 0.0, 1.0) * 2.0)
    return stain[..., None] * np.asarray(house.wall)


def glass_rgb(house: House, u: Array, v: Array, pane: Array) -> Array:
    """A window pane: dark room, sky reflected towards the top, some with curtains; u, v in 0..1."""
    rgb = solid((34.0, 39.0, 44.0), u)
    blend(rgb, np.clip(v * 0.55 + 0.35 * pane - 0.15, 0.0, 0.7), (122.0, 136.0, 146.0))
    curtain = (pane > 0.62) & ((u < 0.24) | (u > 0.76) | (v > 0.86))
    blend(rgb, curtain * 0.7, (150.0, 144.0, 132.0))
    glint = np.abs(u - 0.5 * v - 0.6 * pane) < 0.07
    blend(rgb, glint * 0.25, (190.0, 204.0, 212.0))
    return rgb


def add_windows(rgb: Array, house: House, s: Array, y: Array) -> None:
    """Sash windows with frame, lintel, sill and the shade of the reveal, one per bay and storey."""
    storey = (y - house.ground) / house.storey
    k, bay = np.floor(storey), s / house.bay
    j = np.floor(bay)
    upper = (k >= 0) & (k < house.floors)
    half, low, high = 0.52 / house.bay, 0.30, 0.30 + 1.65 / house.storey
    du, v = np.abs(bay - j - 0.5), storey - k
    inside = upper & (du < half) & (v > low) & (v < high)
    lintel = upper & (du < half * 1.25) & (v >= high) & (v < high + 0.07)
    sill = upper & (du < half * 1.25) & (v > low - 0.05) & (v <= low)
    drop = upper & (du < half * 1.2) & (v > low - 0.11) & (v <= low - 0.05)
    blend(rgb, lintel * 0.75, house.trim)
    blend(rgb, sill, house.trim)
    blend(rgb, drop * 0.30, (20.0, 20.0, 22.0))
    gu = (bay - j - 0.5 + half) / (2 * half)
    gv = (v - low) / (high - low)
    pane = hashed(j, k, house.seed + 5)
    frame = (
        (gu < 0.09) | (gu > 0.91) | (gv < 0.06) | (gv > 0.94) | (np.abs(gv - 0.5) < 0.025) | (np.abs(gu - 0.5) < 0.03)
    )
    blend(rgb, inside, glass_rgb(house, gu, gv, pane))
    blend(rgb, inside & frame, tint(house.trim, 1.05))
    blend(rgb, (inside & ((gv > 0.86) | (gu < 0.14))) * 0.4, (16.0, 16.0, 18.0))


def add_shop(rgb: Array, house: House, s: Array, y: Array, fascia: RGB) -> None:
    """A shop on the ground floor: fascia with mock lettering, blind, dark display windows, stall riser."""
    floor = y < house.ground
    blend(rgb, floor, tint(fascia, 0.9))
    bay = s / 1.7
    u, j = bay - np.floor(bay), np.floor(bay)
    lit = hashed(j, np.floor(y * 0.0), house.seed + 7)
    glass = floor & (y > 0.55) & (y < house.ground - 0.85) & (u > 0.05) & (u < 0.95)
    blend(rgb, glass, glass_rgb(house, u, np.clip((y - 0.55) / 2.2, 0.0, 1.0) * 0.7, lit))
    goods = glass & (y < 0.9 + 0.9 * value_noise(s * 2.2, s * 0.0, house.seed + 8))
    stock = hashed(np.floor(s * 4.0), np.floor(y * 3.0), house.seed + 9)
    blend(rgb, goods * 0.45 * stock, (150.0, 120.0, 96.0))
    lamp = glass & (np.abs(y - house.ground + 1.15) < 0.06) & (lit > 0.35)
    blend(rgb, lamp * 0.8, (236.0, 214.0, 160.0))
    door = floor & (y < 2.4) & (hashed(j, np.floor(y * 0.0), house.seed + 10) > 0.7) & (u > 0.15) & (u < 0.75)
    blend(rgb, door * 0.85, (30.0, 28.0, 28.0))
    board = floor & (y > house.ground - 0.75) & (y < house.ground - 0.12)
    blend(rgb, board, fascia)
    letter = hashed(np.floor(s * 5.0), np.floor((y - house.ground) * 7.0), house.seed + 11) > 0.45
    text = board & (y > house.ground - 0.58) & (y < house.ground - 0.28) & letter & (s % 5.6 > 1.2) & (s % 5.6 < 4.2)
    blend(rgb, text * 0.8, (206.0, 196.0, 168.0))
    shadow = floor & (y > house.ground - 1.05) & (y <= house.ground - 0.75)
    blend(rgb, shadow * 0.5, (12.0, 12.0, 14.0))


def add_door_floor(rgb: Array, house: House, s: Array, y: Array) -> None:
    """A dwelling's ground floor: plinth, a door in every third bay and windows in the others."""
    bay = s / house.bay
    j = np.floor(bay)
    u = bay - j
    entry = (j + house.seed) % 3 == 0
    door = entry & (np.abs(u - 0.5) < 0.5 / house.bay) & (y < 2.5)
    blend(rgb, entry & (np.abs(u - 0.5) < 0.62 / house.bay) & (y < 2.75), house.trim)
    paint = FASCIAS[house.seed % len(FASCIAS)]
    blend(rgb, door, paint)
    blend(rgb, door & (y > 2.05), (44.0, 50.0, 54.0))
    half = 0.58 / house.bay
    window = ~entry & (np.abs(u - 0.5) < half) & (y > 0.9) & (y < 2.6)
    gu, gv = (u - 0.5 + half) / (2 * half), (y - 0.9) / 1.7
    blend(rgb, ~entry & (np.abs(u - 0.5) < half * 1.2) & (y > 0.78) & (y < 2.75), house.trim)
    blend(rgb, window, glass_rgb(house, gu, gv * 0.7, hashed(j, np.floor(y * 0.0), house.seed + 6)))
    bars = (np.abs(gu - 0.5) < 0.03) | (np.abs(gv - 0.5) < 0.025)
    blend(rgb, window & bars, house.trim)
    blend(rgb, (y < 0.5) * 0.5, (70.0, 68.0, 66.0))


def front_rgb(house: House, s: Array, y: Array, z: Array) -> Array:
    """Colour of a house front at s metres along it and y metres up; float64 [h, w, 3]."""
    detail = np.clip(1.2 - z / 22.0, 0.12, 1.0)
    rgb = wall_rgb(house, s, y, detail)
    add_windows(rgb, house, s, y)
    if house.shop is not None:
        add_shop(rgb, house, s, y, house.shop)
    else:
        add_door_floor(rgb, house, s, y)
    course = (np.abs(y - house.ground) < 0.12) | ((y > house.eaves - 0.35) & (y <= house.eaves))
    blend(rgb, course * 0.8, house.trim)
    blend(rgb, ((y > house.eaves - 0.55) & (y <= house.eaves - 0.35)) * 0.45, (18.0, 18.0, 20.0))
    slate = y > house.eaves
    row = np.floor(y / 0.22)
    tile = hashed(np.floor(s / 0.3 + 0.5 * (row % 2)), row, house.seed + 12)
    blend(rgb, slate, (70.0 + 26.0 * detail * tile)[..., None] * np.array([0.98, 1.0, 1.05]))
    bay = s / house.bay
    u = np.abs(bay - np.floor(bay) - 0.5) * house.bay
    dormer = slate & (np.floor(bay) % 2 == 0) & (u < 0.6) & (y < house.eaves + 1.3)
    blend(rgb, dormer, house.trim)
    blend(rgb, dormer & (u < 0.45) & (y > house.eaves + 0.25) & (y < house.eaves + 1.1), (48.0, 54.0, 60.0))
    edge = np.minimum(s, house.end - house.start - s)
    blend(rgb, (edge < 0.14) * 0.35, (24.0, 23.0, 22.0))
    return rgb


def draw_house(canvas: Canvas, house: House, side: int, front: float, light: Light) -> None:
    """A house of the row on one side: the gable towards us, chimneys, and the front along the street."""
    glow = light.on(side)

    def gable(px: Array, py: Array) -> Array:
        x, y = canvas.camera.on_front(px, py, house.start)
        rgb = wall_rgb(house, x, y, np.full_like(x, 0.6)) * (0.72 * light.sun)
        return canvas.haze_over(rgb, house.start)

    def street_front(px: Array, py: Array) -> Array:
        z, y = canvas.camera.on_side(px, py, front)
        z = np.clip(z, house.start, house.end)
        rgb = front_rgb(house, z - house.start, y, z) * glow
        low = np.clip(1.0 - y / 9.0, 0.0, 1.0)
        return canvas.haze_over(rgb * (1.0 - 0.22 * low)[..., None], z)

    back, ridge, shoulder = front + side * 9.0, front + side * 4.5, front + side * 1.2
    a, b, eaves, top = house.start, house.end, house.eaves, house.top
    crown = [(shoulder, top, a), (back, top, a)] if house.roof else [(ridge, eaves + 2.4, a), (back, eaves, a)]
    outline = [(front, 0, a), (front, top, a), *crown, (back, 0, a)]
    draw_chimneys(canvas, house, side, front)
    canvas.face(outline, gable, BUILDING)
    canvas.face([(front, 0, a), (front, top, a), (front, top, b), (front, 0, b)], street_front, BUILDING)


def draw_chimneys(canvas: Canvas, house: House, side: int, front: float) -> None:
    """A brick chimney stack with pots at either end of the roof."""
    inner, outer = front + side * 1.2, front + side * 2.4
    for z in (house.end - 0.8, house.start + 0.2):
        low, high = house.eaves - 0.5, house.top + 1.5
        near = [(inner, low, z), (outer, low, z), (outer, high, z), (inner, high, z)]
        flank = [(inner, low, z), (inner, low, z + 0.7), (inner, high, z + 0.7), (inner, high, z)]
        for k in (0.25, 0.7):
            x = inner + (outer - inner) * k
            pot = [(x - 0.13, high, z + 0.3), (x + 0.13, high, z + 0.3), (x + 0.1, high + 0.5, z + 0.3)]
            canvas.face([*pot, (x - 0.1, high + 0.5, z + 0.3)], (136.0, 92.0, 70.0), BUILDING)
        canvas.face(flank, tint(house.wall, 0.9), BUILDING)
        canvas.face(near, tint(house.wall, 0.65), BUILDING)


def make_row(rng: Rng, tall: int, gap: float) -> list[House]:
    """Houses from the camera to the end of the street; gap is the chance of a passage between two."""
    row, z = [], rng.uniform(-7.0, -1.0)
    while z < FAR - 12.0:
        width = rng.uniform(7.0, 14.0)
        row.append(make_house(rng, z, width, tall))
        z += width + (rng.uniform(2.0, 5.0) if rng.chance(gap) else 0.0)
    return row


def draw_vista(canvas: Canvas, rng: Rng) -> None:
    """What closes the street far away: house fronts across it, a tower now and then, trees before them."""
    x = -70.0
    while x < 75.0:
        width = rng.uniform(7.0, 13.0)
        draw_cross_house(canvas, make_house(rng, x, width, rng.integer(1, 3)), FAR + rng.uniform(0.0, 25.0))
        x += width - 2.0  # they stand at different depths: overlap, so that no gap opens between them
    if rng.chance(0.5):
        draw_tower(canvas, rng.uniform(-6.0, 8.0), FAR + 60.0, rng.uniform(24.0, 32.0))
    for _ in range(5):
        draw_tree(canvas, rng, rng.uniform(-14.0, 18.0), FAR - rng.uniform(2.0, 12.0), rng.uniform(6.0, 9.0), 1.0, True)


def draw_cross_house(canvas: Canvas, house: House, z: float) -> None:
    """A house across the end of the street, its front towards us, under a pitched roof."""

    def front(px: Array, py: Array) -> Array:
        x, y = canvas.camera.on_front(px, py, z)
        rgb = front_rgb(house, np.clip(x - house.start, 0.0, house.end - house.start), y, np.full_like(x, 30.0))
        return canvas.haze_over(rgb * 0.85, z)

    a, b, top = house.start, house.end, house.eaves
    canvas.face(
        [(a, top, z), (b, top, z), (b - 1.5, top + 3.0, z), (a + 1.5, top + 3.0, z)], (84.0, 80.0, 80.0), BUILDING
    )
    canvas.face([(a, 0, z), (a, top, z), (b, top, z), (b, 0, z)], front, BUILDING)


def draw_tower(canvas: Canvas, x: float, z: float, height: float) -> None:
    """A church tower with a spire, pale with distance."""
    stone = (118.0, 112.0, 102.0)
    canvas.face([(x - 3, 0, z), (x - 3, height, z), (x + 3, height, z), (x + 3, 0, z)], stone, BUILDING)
    canvas.face([(x + 1, 0, z), (x + 1, height, z), (x + 3, height, z), (x + 3, 0, z)], tint(stone, 0.8), BUILDING)
    canvas.face([(x - 2.4, height, z), (x, height + 14, z), (x + 2.4, height, z)], tint(stone, 0.75), BUILDING)
    for dx in (-1.4, 0.4):
        louvre = [
            (x + dx, height - 5, z),
            (x + dx, height - 2, z),
            (x + dx + 1, height - 2, z),
            (x + dx + 1, height - 5, z),
        ]
        canvas.face(louvre, (60.0, 58.0, 56.0), BUILDING)


# ---------------------------------------------------------------------------------------------- trees and hedges

LEAVES: tuple[RGB, ...] = ((122.0, 146.0, 54.0), (138.0, 152.0, 56.0), (110.0, 140.0, 58.0), (140.0, 146.0, 58.0))
LEAF_CONTRAST = 1.5
LEAF_COVER = 0.60  # share of a clump's rim that is leaves rather than holes
BARK: RGB = (62.0, 55.0, 48.0)


def limb(canvas: Canvas, x0: float, y0: float, x1: float, y1: float, w0: float, w1: float, z: float, bark: RGB) -> None:
    """A tapering branch from (x0, y0) to (x1, y1) in the plane Z = z, widths in metres."""
    dx, dy = x1 - x0, y1 - y0
    length = math.sqrt(dx * dx + dy * dy) or 1.0
    nx, ny = -dy / length / 2, dx / length / 2
    corners = [
        (x0 + nx * w0, y0 + ny * w0, z),
        (x1 + nx * w1, y1 + ny * w1, z),
        (x1 - nx * w1, y1 - ny * w1, z),
        (x0 - nx * w0, y0 - ny * w0, z),
    ]
    canvas.face(corners, bark, TREE)


def grow(
    canvas: Canvas, rng: Rng, x: float, y: float, dx: float, dy: float, width: float, depth: int, z: float, light: float
) -> None:
    """Branches from (x, y) in direction (dx, dy), forking `depth` times."""
    x1, y1 = x + dx, y + dy
    limb(canvas, x, y, x1, y1, width, width * 0.7, z, tint(BARK, light * rng.uniform(0.85, 1.15)))
    if depth == 0:
        return
    for _ in range(2 + (depth > 2)):
        turn, shrink = rng.uniform(-0.75, 0.75), rng.uniform(0.68, 0.86)
        ndx, ndy = dx - turn * dy, dy + turn * dx + 0.06
        norm = shrink / math.sqrt(1.0 + turn * turn)
        grow(canvas, rng, x1, y1, ndx * norm, ndy * norm, width * 0.62, depth - 1, z, light)


def blob(canvas: Canvas, x: float, y: float, z: float, radius: float, leaf: RGB, sun: int, seed: int) -> None:
    """A ragged clump of leaves round (x, y): lit from above and from the sun's side, with holes at its rim."""
    scale = canvas.camera.focal / z
    (cx, cy), r = canvas.camera.project([(x, y, z)])[0], radius * scale * 1.25
    rows, cols, px, py = canvas.window(cx - r, cy - r, cx + r, cy + r)
    if px.size == 0:
        return
    u, v = (px - cx) / (radius * scale), (py - cy) / (radius * scale)
    gx, gy = px / scale, py / scale
    ragged = fractal(gx * 3.6, gy * 3.6, seed, 4)
    distance = u * u + v * v + 1.5 * (ragged - 0.5)
    mask = distance < 0.86
    leaf_noise = fractal(gx * 6.5, gy * 8.0, seed + 7, 4)
    grain = hashed(np.floor(px * 0.5), np.floor(py * 0.5), seed + 8)
    tone = 0.70 - 0.30 * v + 0.14 * sun * u + LEAF_CONTRAST * (leaf_noise - 0.5) + 0.26 * (grain - 0.5)
    hole = value_noise(gx * 6.0, gy * 6.0, seed + 9) > LEAF_COVER + 0.25 * (1.0 - np.clip(distance, 0.0, 1.0))
    colour = np.clip(tone, 0.25, 1.5)[..., None] * np.asarray(leaf)
    blend(canvas.rgb[rows, cols], mask & ~hole, canvas.haze_over(colour, z * 0.8))
    canvas.labels[rows, cols][mask] = TREE


def twigs(canvas: Canvas, x: float, y: float, z: float, radius: float, colour: RGB, seed: int) -> None:
    """The veil of fine twigs of a bare crown round (x, y): a net of dark lines, the background shining through."""
    scale = canvas.camera.focal / z
    (cx, cy), r = canvas.camera.project([(x, y, z)])[0], radius * scale * 1.2
    rows, cols, px, py = canvas.window(cx - r, cy - r, cx + r, cy + r)
    if px.size == 0:
        return
    u, v = (px - cx) / (radius * scale), (py - cy) / (radius * scale)
    gx, gy = px / scale, py / scale
    distance = u * u + v * v + 0.7 * (fractal(gx * 2.0, gy * 2.0, seed, 3) - 0.5)
    mask = distance < 0.92
    bend = 0.5 * value_noise(gx * 3.0, gy * 3.0, seed + 1)
    thick = 1.0 - 0.45 * np.clip(distance, 0.0, 1.0)
    coarse = np.abs(value_noise(gx * 2.6 + bend, gy * 2.0 + bend, seed + 2) - 0.5) < 0.060 * thick
    fine = np.abs(value_noise(gx * 6.5 + bend, gy * 5.0 + bend, seed + 3) - 0.5) < 0.105 * thick
    dust = hashed(np.floor(px * 0.5), np.floor(py * 0.5), seed + 4) < 0.22 * thick
    tone = 0.62 + 0.75 * value_noise(gx * 5.0, gy * 5.0, seed + 5) - 0.12 * v
    paint = canvas.haze_over(tone[..., None] * np.asarray(colour), z * 0.8)
    cover = np.where(coarse, 0.9, np.where(fine, 0.75, np.where(dust, 0.6, 0.16)))
    blend(canvas.rgb[rows, cols], mask * cover, paint)
    canvas.labels[rows, cols][mask] = TREE


def draw_tree(
    canvas: Canvas, rng: Rng, x: float, z: float, height: float, glow: float, leafy: bool, sun: int = 1
) -> None:
    """A street tree at (x, z): trunk, boughs, and a crown of leaf clumps or of bare twigs."""
    crown_y, crown_r = height * 0.62, height * 0.38
    limb(canvas, x, 0.0, x, height * 0.42, height * 0.052, height * 0.036, z, tint(BARK, glow))
    shaded = x - sun * height * 0.012
    limb(canvas, shaded, 0.0, shaded, height * 0.4, height * 0.02, height * 0.012, z, tint(BARK, glow * 0.7))
    seed = rng.seed()
    if not leafy:
        bark = tint((96.0, 86.0, 78.0), glow)
        for k in range(5):
            dx, dy = rng.uniform(-0.45, 0.45) * crown_r, rng.uniform(-0.35, 0.3) * crown_r
            twigs(canvas, x + dx, crown_y + dy, z, crown_r * 0.72, bark, seed + 17 * k)
    lean = rng.uniform(-0.03, 0.03) * height
    grow(canvas, rng, x, height * 0.3, lean, height * 0.19, height * 0.034, 3 if leafy else 5, z, glow)
    if leafy:
        draw_leaves(canvas, rng, x, crown_y, z, crown_r, tint(rng.pick(LEAVES), glow), sun)


def draw_leaves(canvas: Canvas, rng: Rng, x: float, y: float, z: float, radius: float, leaf: RGB, sun: int) -> None:
    """A crown of leaf clumps round (x, y), lower ones first and darker."""
    clumps, seed = [], rng.seed()
    for _ in range(26):
        u, v = rng.uniform(-1.0, 1.0), rng.uniform(-1.0, 1.0)
        if u * u + v * v < 1.0:
            clumps.append((y + v * radius, x + u * radius * (0.95 - 0.2 * v)))
    for k, (by, bx) in enumerate(sorted(clumps)):
        lift = 0.78 + 0.34 * (by - y + radius) / (2 * radius)
        blob(canvas, bx, by, z, radius * rng.uniform(0.34, 0.5), tint(leaf, lift), sun, seed + 31 * k)


def draw_hedge(canvas: Canvas, x: float, z0: float, z1: float, height: float, glow: float, rng: Rng) -> None:
    """A clipped hedge along the plane X = x."""
    leaf, seed = tint(rng.pick(LEAVES), glow * 0.8), rng.seed()

    def leaves(px: Array, py: Array) -> Array:
        z, y = canvas.camera.on_side(px, py, x)
        tone = 0.45 + 0.35 * y / height + 0.9 * (fractal(z * 2.5, y * 4.0, seed, 4) - 0.4)
        tone = tone + 0.2 * (hashed(np.floor(px), np.floor(py), seed) - 0.5)
        return canvas.haze_over(np.clip(tone, 0.2, 1.4)[..., None] * np.asarray(leaf), z)

    canvas.face([(x, 0, z0), (x, height, z0), (x, height, z1), (x, 0, z1)], leaves, TREE)


# ---------------------------------------------------------------------------------------------- street furniture


def upright(canvas: Canvas, x: float, y0: float, y1: float, z: float, width: float, colour: RGB, label: int) -> None:
    """A vertical bar with a lit and a dark edge; at least a canvas pixel wide."""
    half = max(width, 1.6 * z / canvas.camera.focal) / 2
    for left, right, tone in ((-1.0, 1.0, 1.0), (-1.0, -0.3, 1.35), (0.4, 1.0, 0.6)):
        bar = [(x + left * half, y0, z), (x + left * half, y1, z), (x + right * half, y1, z), (x + right * half, y0, z)]
        canvas.face(bar, tint(colour, tone), label)


def draw_lamp(canvas: Canvas, x: float, z: float, side: int, height: float) -> None:
    """A lamp post whose arm reaches over the road."""
    steel = (74.0, 78.0, 80.0)
    upright(canvas, x, 0.0, 1.1, z, 0.20, steel, POLE)
    upright(canvas, x, 1.0, height, z, 0.12, steel, POLE)
    reach = -side * 1.3
    arm = [(x, height - 0.05, z), (x + reach, height + 0.32, z), (x + reach, height + 0.42, z), (x, height + 0.06, z)]
    canvas.face(arm, steel, POLE)
    tip = x + reach
    lamp = [(tip, height + 0.45, z), (tip - side * 0.6, height + 0.48, z), (tip - side * 0.55, height + 0.3, z)]
    canvas.face([*lamp, (tip, height + 0.28, z)], (168.0, 170.0, 168.0), POLE)


def disc(canvas: Canvas, x: float, y: float, z: float, radius: float, colour: RGB, label: int) -> None:
    """A round plate facing us."""
    canvas.face([(x + radius * cx, y + radius * cy, z) for cx, cy in CIRCLE], colour, label)


def draw_sign(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    """A traffic sign on its post: a prohibition, a direction arrow, a warning triangle or a blue board."""
    upright(canvas, x, 0.0, 2.9, z, 0.09, (104.0, 106.0, 106.0), POLE)
    kind, y = rng.integer(0, 3), 2.7
    if kind == 0:
        disc(canvas, x, y, z, 0.40, (172.0, 34.0, 38.0), SIGN)
        disc(canvas, x, y, z, 0.28, (218.0, 218.0, 212.0), SIGN)
    elif kind == 1:
        disc(canvas, x, y, z, 0.40, (206.0, 210.0, 212.0), SIGN)
        disc(canvas, x, y, z, 0.36, (36.0, 72.0, 142.0), SIGN)
        arrow = [(-0.05, -0.24), (0.05, -0.24), (0.05, 0.02), (0.16, 0.02), (0.0, 0.25), (-0.16, 0.02), (-0.05, 0.02)]
        canvas.face([(x + dx, y + dy, z) for dx, dy in arrow], (216.0, 218.0, 218.0), SIGN)
    elif kind == 2:
        for size, colour in ((0.48, (172.0, 36.0, 38.0)), (0.31, (220.0, 218.0, 210.0))):
            canvas.face(
                [(x - size, y - 0.58 * size, z), (x, y + 1.1 * size, z), (x + size, y - 0.58 * size, z)], colour, SIGN
            )
    else:
        for half, colour in ((0.42, (206.0, 210.0, 212.0)), (0.38, (34.0, 66.0, 124.0))):
            plate = [(x - half, y - half, z), (x - half, y + half, z), (x + half, y + half, z), (x + half, y - half, z)]
            canvas.face(plate, colour, SIGN)
        for dy in (-0.18, 0.0, 0.18):
            bar = [
                (x - 0.28, y + dy, z),
                (x - 0.28, y + dy + 0.07, z),
                (x + 0.22, y + dy + 0.07, z),
                (x + 0.22, y + dy, z),
            ]
            canvas.face(bar, (196.0, 202.0, 206.0), SIGN)


def draw_signal(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    """A traffic light on its post, one lamp burning."""
    upright(canvas, x, 0.0, 2.3, z, 0.12, (58.0, 60.0, 62.0), POLE)
    case = [(x - 0.20, 2.15, z), (x - 0.20, 3.25, z), (x + 0.20, 3.25, z), (x + 0.20, 2.15, z)]
    canvas.face(case, (24.0, 25.0, 26.0), SIGN)
    burning = rng.integer(0, 2)
    lamps: tuple[RGB, ...] = ((46.0, 224.0, 150.0), (240.0, 178.0, 60.0), (236.0, 62.0, 52.0))
    for k, colour in enumerate(lamps):
        disc(canvas, x, 2.36 + 0.34 * k, z, 0.125, colour if k == burning else tint(colour, 0.2), SIGN)


def draw_railing(canvas: Canvas, x: float, z0: float, z1: float, rail: RGB) -> None:
    """Guard railings along the kerb: posts, two rails, thin bars one can look through."""

    def paint(px: Array, py: Array, keep: Array) -> Array:
        z, y = canvas.camera.on_side(px, py, x)
        thick = np.maximum(0.02, 0.6 * z * z / (abs(x) * canvas.camera.focal))
        bars = (z / 0.13 - np.floor(z / 0.13)) * 0.13 < thick
        post = (z / 2.0 - np.floor(z / 2.0)) * 2.0 < np.maximum(0.07, thick)
        line = (np.abs(y - 1.08) < 0.035) | (np.abs(y - 0.28) < 0.03)
        solid_part = line | post | (bars & (y > 0.28))
        near = canvas.haze_over(solid(rail, px), z)
        return np.where(solid_part[..., None], near, keep * 0.92)

    points = [(x, KERB, z0), (x, 1.12, z0), (x, 1.12, z1), (x, KERB, z1)]
    kept = canvas.camera.project(clip_near(points))
    if len(kept) < 3:
        return

    def over(px: Array, py: Array) -> Array:
        rows = slice(int(py[0, 0]), int(py[0, 0]) + py.shape[0])
        cols = slice(int(px[0, 0]), int(px[0, 0]) + px.shape[1])
        return paint(px, py, canvas.rgb[rows, cols])

    canvas.fill(kept, over, FENCE)


def draw_pillar_box(canvas: Canvas, x: float, z: float) -> None:
    """A red letter box; not one of the classes, so it counts as void."""
    red = (150.0, 30.0, 32.0)
    for left, right, tone in ((-0.23, 0.23, 0.9), (-0.16, 0.02, 1.15), (0.10, 0.23, 0.6)):
        canvas.face(
            [(x + left, 0.1, z), (x + left, 1.5, z), (x + right, 1.5, z), (x + right, 0.1, z)], tint(red, tone), VOID
        )
    canvas.face([(x - 0.28, 1.5, z), (x - 0.2, 1.66, z), (x + 0.2, 1.66, z), (x + 0.28, 1.5, z)], red, VOID)
    canvas.face(
        [(x - 0.12, 1.28, z), (x - 0.12, 1.33, z), (x + 0.12, 1.33, z), (x + 0.12, 1.28, z)], (20.0, 12.0, 12.0), VOID
    )
    canvas.face(
        [(x - 0.25, 0.0, z), (x - 0.25, 0.14, z), (x + 0.25, 0.14, z), (x + 0.25, 0.0, z)], (26.0, 24.0, 24.0), VOID
    )


# ---------------------------------------------------------------------------------------------- cars

# Outline of a car from its tail to its nose: (metres from the tail, height); three body styles.
HATCHBACK = (
    (0.0, 0.32),
    (-0.03, 0.62),
    (0.05, 0.95),
    (0.38, 1.40),
    (1.0, 1.48),
    (2.1, 1.43),
    (2.95, 0.98),
    (3.8, 0.80),
    (3.95, 0.55),
    (3.9, 0.28),
)
SALOON = (
    (0.0, 0.34),
    (-0.03, 0.62),
    (0.04, 0.93),
    (0.65, 0.99),
    (1.25, 1.36),
    (2.4, 1.40),
    (3.25, 0.97),
    (4.3, 0.80),
    (4.45, 0.55),
    (4.4, 0.28),
)
VAN = (
    (0.0, 0.36),
    (-0.03, 0.70),
    (0.03, 1.15),
    (0.15, 1.95),
    (0.4, 2.05),
    (3.2, 2.02),
    (3.9, 1.25),
    (4.6, 1.02),
    (4.75, 0.60),
    (4.7, 0.32),
)
BODIES = ((HATCHBACK, 1.70, 0.94), (SALOON, 1.76, 0.95), (VAN, 1.86, 1.20))
PAINTS: tuple[RGB, ...] = (
    (150.0, 154.0, 158.0),
    (38.0, 42.0, 50.0),
    (96.0, 28.0, 30.0),
    (44.0, 60.0, 96.0),
    (182.0, 184.0, 182.0),
    (78.0, 84.0, 90.0),
    (46.0, 66.0, 58.0),
)
GLASS: RGB = (30.0, 35.0, 40.0)


@dataclass(frozen=True)
class Car:
    """A car: its centre X, the Z of its near end, the way it points, its body and paint."""

    x: float
    z: float
    oncoming: bool
    outline: tuple[tuple[float, float], ...]
    width: float
    belt: float  # height of the window line
    paint: RGB
    glow: float

    @property
    def length(self) -> float:
        """Length in metres."""
        return self.outline[-2][0]

    def along(self, t: float) -> float:
        """Z of a place t metres from the tail."""
        return self.z + (self.length - t if self.oncoming else t)

    def half(self, y: float) -> float:
        """Half the width at height y: the cabin leans inwards above the window line."""
        return self.width / 2 - 0.30 * max(0.0, y - self.belt)


def make_car(rng: Rng, x: float, z: float, oncoming: bool, glow: float) -> Car:
    """A car of random body and paint."""
    outline, width, belt = rng.pick((BODIES[0], BODIES[0], BODIES[1], BODIES[1], BODIES[2]))
    return Car(x, z, oncoming, outline, width, belt, rng.pick(PAINTS), glow)


def across(
    car: Car, t0: float, y0: float, t1: float, y1: float, inset: float = 0.0
) -> list[tuple[float, float, float]]:
    """The strip of the body between two places of its outline, from flank to flank."""
    a, b = car.half(y0) - inset, car.half(y1) - inset
    za, zb = car.along(t0), car.along(t1)
    return [(car.x - a, y0, za), (car.x + a, y0, za), (car.x + b, y1, zb), (car.x - b, y1, zb)]


def draw_car_shadow(canvas: Canvas, car: Car) -> None:
    """The dark under and around a car; the road keeps its label."""
    mid, reach = car.z + car.length / 2, car.length / 2
    for grow_by, alpha in ((1.22, 0.25), (1.1, 0.35), (0.98, 0.6)):
        ring = [
            (car.x + 0.95 * car.width / 1.7 * grow_by * cx, 0.0, mid + reach * 1.12 * grow_by * cy) for cx, cy in CIRCLE
        ]
        canvas.face(ring, (14.0, 14.0, 16.0), None, alpha)


def draw_wheels(canvas: Canvas, car: Car, flank: float) -> None:
    """Two wheels with rims on the flank X = flank."""
    for t in (0.72, car.length - 0.80):
        z = car.along(t)
        for radius, colour in (
            (0.37, (16.0, 16.0, 17.0)),
            (0.30, (24.0, 24.0, 25.0)),
            (0.20, (112.0, 114.0, 116.0)),
            (0.06, (40.0, 40.0, 42.0)),
        ):
            canvas.face([(flank, 0.31 + radius * cy, z + radius * cx) for cx, cy in CIRCLE], colour, CAR)


def draw_flank(canvas: Canvas, car: Car) -> None:
    """The side of the car that we see, with windows and wheels, if we see one."""
    side = 1 if car.x < 0 else -1
    if abs(car.x) < car.width / 2:
        return
    flank = car.x + side * car.width / 2
    paint = tint(car.paint, 0.78 * car.glow)

    def sheet(px: Array, py: Array) -> Array:
        z, y = canvas.camera.on_side(px, py, flank)
        tone = 0.70 + 0.42 * np.clip(y / car.belt, 0.0, 1.0) + 0.20 * (np.abs(y - car.belt + 0.10) < 0.04)
        tone = np.where(y < 0.36, tone * 0.62, tone)
        doors = (np.abs(z - car.along(1.55)) < 0.012) | (np.abs(z - car.along(2.65)) < 0.012)
        tone = np.where(doors, tone * 0.6, tone)
        return canvas.haze_over(tone[..., None] * np.asarray(paint), z)

    lower = [(t, min(y, car.belt)) for t, y in car.outline]
    canvas.face([(flank, y, car.along(t)) for t, y in lower], sheet, CAR)
    cabin = [(t, y) for t, y in car.outline if y >= car.belt - 0.05]
    canvas.face(
        [(car.x + side * car.half(y), y, car.along(t)) for t, y in cabin], tint(car.paint, 0.85 * car.glow), CAR
    )
    middle_t = 0.5 * (cabin[0][0] + cabin[-1][0])
    top = max(y for _, y in cabin)
    pane = [(middle_t + 0.84 * (t - middle_t), car.belt + 0.02 + 0.84 * (y - car.belt)) for t, y in cabin]
    pane = [(t, max(y, car.belt + 0.02)) for t, y in pane]
    canvas.face([(car.x + side * car.half(y), y, car.along(t)) for t, y in pane], GLASS, CAR)
    half = [(t, y) for t, y in pane if y > 0.55 * (car.belt + top)]
    if len(half) > 2:
        canvas.face([(car.x + side * car.half(y), y, car.along(t)) for t, y in half], (92.0, 104.0, 112.0), CAR, 0.55)
    pillar = [(1.5, car.belt), (1.5, top - 0.04), (1.62, top - 0.04), (1.62, car.belt)]
    canvas.face(
        [(car.x + side * car.half(y), y, car.along(t)) for t, y in pillar], tint(car.paint, 0.6 * car.glow), CAR
    )
    draw_wheels(canvas, car, flank)


def facing(canvas: Canvas, car: Car, a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether the strip between outline points a and b (tail to nose, over the roof) is turned towards us."""
    za, zb = car.along(a[0]), car.along(b[0])
    normal_z, normal_y = -(b[1] - a[1]), zb - za
    if car.oncoming:
        normal_z, normal_y = -normal_z, -normal_y
    return normal_z * (0.0 - za) + normal_y * (canvas.camera.height - a[1]) > 0


def draw_strips(canvas: Canvas, car: Car) -> None:
    """Tail, roof, bonnet and screens, as far as they face us, far ones first."""
    strips = list(zip(car.outline[:-1], car.outline[1:], strict=True))
    strips.sort(key=lambda s: -(car.along(s[0][0]) + car.along(s[1][0])))
    for a, b in strips:
        if not facing(canvas, car, a, b):
            continue
        steep = abs(b[1] - a[1]) / (abs(b[1] - a[1]) + abs(b[0] - a[0]))
        low, high = min(a[1], b[1]), max(a[1], b[1])
        tone = 1.22 - 0.42 * steep - 0.22 * (high < 0.7)
        canvas.face(across(car, *a, *b), tint(car.paint, tone * car.glow), CAR)
        if high > car.belt + 0.15 and low >= car.belt - 0.30 and steep > 0.3:
            draw_screen(canvas, car, a, b)


def draw_screen(canvas: Canvas, car: Car, a: tuple[float, float], b: tuple[float, float]) -> None:
    """A wind or rear screen within the strip from a to b, sky mirrored in its upper part, seats behind."""
    (t0, y0), (t1, y1) = (a, b) if a[1] < b[1] else (b, a)

    def at(k: float) -> tuple[float, float]:
        return t0 + k * (t1 - t0), y0 + k * (y1 - y0)

    canvas.face(across(car, *at(0.08), *at(0.92), 0.10), GLASS, CAR)
    canvas.face(across(car, *at(0.60), *at(0.92), 0.10), (108.0, 120.0, 128.0), CAR, 0.5)
    z = 0.5 * (car.along(t0) + car.along(t1))
    for x in (car.x - 0.36, car.x + 0.36):
        y = y0 + 0.30 * (y1 - y0)
        rest = [(x - 0.13, y - 0.12, z), (x - 0.11, y + 0.12, z), (x + 0.11, y + 0.12, z), (x + 0.13, y - 0.12, z)]
        canvas.face(rest, (14.0, 15.0, 17.0), CAR, 0.8)


def draw_end(canvas: Canvas, car: Car) -> None:
    """Lights, plate, bumper and wheels of the end towards us."""
    z, w = car.z - 0.035, car.width / 2

    def plate(x0: float, x1: float, y0: float, y1: float, colour: RGB, alpha: float = 1.0) -> None:
        canvas.face(
            [(car.x + x0, y0, z), (car.x + x0, y1, z), (car.x + x1, y1, z), (car.x + x1, y0, z)], colour, CAR, alpha
        )

    plate(-w, w, 0.26, 0.44, (30.0, 31.0, 33.0))
    plate(-w, w, 0.44, 0.48, tint(car.paint, 0.5 * car.glow))
    for side in (-1, 1):
        plate(side * (w - 0.24), side * (w - 0.05), 0.0, 0.28, (14.0, 14.0, 15.0))
        if car.oncoming:
            plate(side * (w - 0.42), side * (w - 0.06), 0.60, 0.74, (206.0, 208.0, 200.0))
            plate(side * (w - 0.34), side * (w - 0.16), 0.63, 0.72, (244.0, 244.0, 236.0))
        else:
            plate(side * (w - 0.24), side * (w - 0.03), 0.60, 0.86, (136.0, 26.0, 26.0))
            plate(side * (w - 0.20), side * (w - 0.07), 0.74, 0.84, (206.0, 58.0, 46.0))
    plate(-0.27, 0.27, 0.46, 0.58, (210.0, 210.0, 204.0) if car.oncoming else (206.0, 182.0, 70.0))
    plate(-0.21, 0.21, 0.50, 0.545, (40.0, 40.0, 40.0), 0.75)
    if car.oncoming:
        plate(-0.45, 0.45, 0.62, 0.70, (24.0, 25.0, 27.0))


def draw_car(canvas: Canvas, car: Car) -> None:
    """A whole car with its shadow."""
    draw_car_shadow(canvas, car)
    draw_flank(canvas, car)
    draw_strips(canvas, car)
    draw_end(canvas, car)


# ---------------------------------------------------------------------------------------------- people

COATS: tuple[RGB, ...] = (
    (34.0, 34.0, 40.0),
    (48.0, 40.0, 38.0),
    (92.0, 30.0, 34.0),
    (36.0, 48.0, 70.0),
    (66.0, 66.0, 62.0),
    (26.0, 26.0, 28.0),
)
SKIN: RGB = (152.0, 112.0, 92.0)


def figure(canvas: Canvas, x: float, y: float, z: float, parts: Sequence[tuple[Points, RGB]], label: int) -> None:
    """Polygons (dx, dy) in metres around (x, y) in the plane Z = z."""
    for outline, colour in parts:
        canvas.face([(x + dx, y + dy, z) for dx, dy in outline], colour, label)


def draw_pedestrian(canvas: Canvas, rng: Rng, x: float, z: float, base: float) -> None:
    """Someone walking, seen from the front or from behind."""
    coat, trousers, k = rng.pick(COATS), rng.pick(COATS), rng.uniform(0.94, 1.06)
    stride = rng.uniform(0.04, 0.16)
    canvas.face([(x + 0.4 * cx, base, z + 0.25 * cy) for cx, cy in CIRCLE], (16.0, 16.0, 18.0), None, 0.5)
    legs = tint(trousers, 0.8)
    parts: list[tuple[Points, RGB]] = [
        ([(-0.16, 0.85), (0.02, 0.85), (-0.02 - stride, 0.0), (-0.18 - stride, 0.0)], legs),
        ([(-0.02, 0.85), (0.17, 0.85), (0.16 + stride, 0.0), (0.02 + stride, 0.0)], tint(trousers, 0.95)),
        ([(-0.18, 1.42), (-0.24, 1.38), (-0.32, 0.88), (-0.24, 0.84), (-0.16, 1.2)], tint(coat, 0.8)),
        ([(0.18, 1.42), (0.24, 1.38), (0.31, 0.86), (0.24, 0.84), (0.16, 1.2)], tint(coat, 0.8)),
        ([(-0.20, 1.44), (0.20, 1.44), (0.22, 0.72), (-0.21, 0.72)], coat),
        ([(0.06, 1.44), (0.20, 1.44), (0.22, 0.72), (0.12, 0.72)], tint(coat, 0.75)),
        ([(-0.06, 1.52), (0.06, 1.52), (0.07, 1.40), (-0.07, 1.40)], tint(SKIN, 0.8)),
        ([(0.105 * cx, 1.62 + 0.135 * cy) for cx, cy in CIRCLE], SKIN if rng.chance(0.5) else (54.0, 42.0, 36.0)),
        ([(0.115 * cx, 1.68 + 0.09 * cy) for cx, cy in CIRCLE], (44.0, 35.0, 30.0)),
    ]
    figure(canvas, x, base, z, [([(a * k, b * k) for a, b in outline], c) for outline, c in parts], PEDESTRIAN)


def draw_bicyclist(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    """A cyclist ahead of us, seen from behind, with a rear light."""
    coat, legs = rng.pick(COATS), (36.0, 36.0, 42.0)
    vest = (168.0, 172.0, 46.0) if rng.chance(0.4) else tint(coat, 1.5)
    canvas.face([(x + 0.28 * cx, 0.0, z + 0.55 * cy) for cx, cy in CIRCLE], (14.0, 14.0, 16.0), None, 0.35)
    parts: list[tuple[Points, RGB]] = [
        ([(0.05 * cx, 0.34 + 0.34 * cy) for cx, cy in CIRCLE], (18.0, 18.0, 19.0)),
        ([(0.02 * cx, 0.34 + 0.28 * cy) for cx, cy in CIRCLE], (66.0, 67.0, 70.0)),
        ([(-0.06, 0.72), (0.06, 0.72), (0.045, 0.40), (-0.045, 0.40)], (38.0, 39.0, 42.0)),
        ([(-0.18, 1.02), (-0.02, 1.02), (-0.04, 0.62), (-0.07, 0.20), (-0.15, 0.20), (-0.19, 0.62)], legs),
        ([(-0.18, 0.22), (-0.05, 0.22), (-0.05, 0.10), (-0.18, 0.10)], (20.0, 20.0, 22.0)),
        ([(0.02, 1.02), (0.18, 1.02), (0.20, 0.72), (0.15, 0.42), (0.07, 0.42), (0.05, 0.72)], tint(legs, 1.25)),
        ([(0.05, 0.44), (0.18, 0.44), (0.18, 0.32), (0.05, 0.32)], (20.0, 20.0, 22.0)),
        ([(-0.34, 1.04), (0.34, 1.04), (0.34, 1.00), (-0.34, 1.00)], (34.0, 34.0, 36.0)),
        (
            [(-0.17, 1.50), (-0.25, 1.42), (-0.34, 1.14), (-0.31, 1.00), (-0.25, 1.02), (-0.26, 1.14), (-0.16, 1.3)],
            tint(coat, 0.85),
        ),
        (
            [(0.17, 1.50), (0.25, 1.42), (0.34, 1.14), (0.31, 1.00), (0.25, 1.02), (0.26, 1.14), (0.16, 1.3)],
            tint(coat, 0.7),
        ),
        (
            [
                (-0.12, 1.55),
                (0.12, 1.55),
                (0.23, 1.46),
                (0.19, 1.12),
                (0.20, 0.95),
                (-0.20, 0.95),
                (-0.19, 1.12),
                (-0.23, 1.46),
            ],
            vest,
        ),
        ([(0.08, 1.55), (0.12, 1.55), (0.23, 1.46), (0.19, 1.12), (0.20, 0.95), (0.12, 0.95)], tint(vest, 0.78)),
        ([(-0.20, 1.22), (0.20, 1.22), (0.19, 1.16), (-0.19, 1.16)], tint(vest, 1.25)),
        ([(0.10 * cx, 1.66 + 0.12 * cy) for cx, cy in CIRCLE], (88.0, 66.0, 54.0)),
        ([(0.12 * cx, 1.72 + 0.10 * cy) for cx, cy in CIRCLE], (150.0, 152.0, 154.0)),
        ([(0.03 + 0.08 * cx, 1.71 + 0.08 * cy) for cx, cy in CIRCLE], (112.0, 114.0, 118.0)),
        ([(0.03 * cx, 0.80 + 0.03 * cy) for cx, cy in CIRCLE], (228.0, 58.0, 44.0)),
    ]
    figure(canvas, x, 0.0, z, parts, BICYCLIST)


# ---------------------------------------------------------------------------------------------- composition

Item = tuple[float, Callable[[], None]]


def cast_shadow(canvas: Canvas, street: Street, light: Light, row: Sequence[House], rng: Rng) -> None:
    """The shadow that the houses on the sun's side throw over pavement and road, with their skyline as its edge."""
    if light.sun - light.shade < 0.15:
        return
    side, slant = light.sun_side, rng.uniform(0.34, 0.52)
    front = street.front(side)
    for soft in (0.0, 0.12, 0.24):
        skyline = [(front, -8.0)]
        for house in row:
            edge = front - side * (house.eaves * slant + soft)
            skyline += [(edge, house.start), (edge, house.end)]
        skyline.append((front, FAR))
        canvas.face([(x, 0.05, z) for x, z in skyline], (16.0, 20.0, 30.0), None, 0.17)


def cars(canvas: Canvas, rng: Rng, street: Street, light: Light) -> Iterator[Item]:
    """Traffic in both lanes and cars parked at the right kerb."""
    glow = 0.5 * (light.sun + light.shade) + 0.1

    def item(car: Car) -> Item:
        return car.z, lambda: draw_car(canvas, car)

    lane = 0.5 * (street.left_kerb + street.centre)
    yield item(make_car(rng, lane + rng.uniform(-0.2, 0.2), rng.uniform(11.0, 22.0), False, glow))
    yield item(make_car(rng, lane + rng.uniform(-0.2, 0.2), rng.uniform(34.0, 60.0), False, glow))
    other = street.centre + 1.5
    z = rng.uniform(9.0, 20.0)
    for _ in range(rng.integer(1, 3)):
        yield item(make_car(rng, other + rng.uniform(-0.2, 0.2), z, True, glow))
        z += rng.uniform(12.0, 25.0)
    z, parked = rng.uniform(7.5, 16.0), rng.pick((0.0, 0.6, 0.85))
    while z < 60.0:
        if rng.chance(parked):
            yield item(make_car(rng, street.right_kerb - 1.0, z, rng.chance(0.8), glow))
        z += rng.uniform(5.6, 8.5)


def trees(canvas: Canvas, rng: Rng, street: Street, light: Light, side: int, park: bool, leafy: bool) -> Iterator[Item]:
    """Trees along a pavement, or two ranks of them with a hedge where a park lies."""

    def item(x: float, z: float, height: float) -> Item:
        seed = Rng(rng.bits())
        return z, lambda: draw_tree(canvas, seed, x, z, height, 0.5 + 0.5 * light.on(-side), leafy, light.sun_side)

    z = rng.uniform(11.0, 16.0) if park else rng.uniform(16.0, 24.0)
    while z < FAR - 15.0:
        if park:
            yield item(street.front(side) + side * rng.uniform(1.0, 2.5), z, rng.uniform(8.0, 11.5))
            yield item(street.front(side) + side * rng.uniform(6.0, 12.0), z + 3.0, rng.uniform(9.0, 13.0))
        elif rng.chance(0.75):
            yield item(street.kerb(side) + side * 0.7, z, rng.uniform(5.5, 8.0))
        z += rng.uniform(5.0, 8.0) if park else rng.uniform(9.0, 15.0)


def furniture(canvas: Canvas, rng: Rng, street: Street) -> Iterator[Item]:
    """Lamp posts, signs, a traffic light, railings and a letter box along both kerbs."""
    for side in (-1, 1):
        x, z = street.kerb(side) + side * 0.35, rng.uniform(14.0, 24.0)
        while z < 90.0:
            yield z, lambda x=x, z=z, side=side: draw_lamp(canvas, x, z, side, 6.5)
            z += 26.0
        z, seed = rng.uniform(10.0, 30.0), Rng(rng.bits())
        yield z, lambda x=x, z=z, seed=seed: draw_sign(canvas, seed, x, z)
    x, z, seed = street.left_kerb - 0.4, rng.uniform(18.0, 34.0), Rng(rng.bits())
    yield z, lambda: draw_signal(canvas, seed, x, z)
    if rng.chance(0.5):
        z0 = rng.uniform(16.0, 26.0)
        yield z0, lambda: draw_railing(canvas, street.left_kerb - 0.25, z0, z0 + 14.0, (72.0, 76.0, 78.0))
    if rng.chance(0.35):
        zb = rng.uniform(9.0, 15.0)
        yield zb, lambda: draw_pillar_box(canvas, street.left_kerb - 0.6, zb)


def people(canvas: Canvas, rng: Rng, street: Street) -> Iterator[Item]:
    """Pedestrians on both pavements and a cyclist or two by the left kerb."""
    for _ in range(rng.integer(4, 9)):
        side, z, seed = rng.pick((-1, 1)), rng.uniform(9.0, 45.0), Rng(rng.bits())
        x = street.kerb(side) + rng.uniform(0.25, 0.85) * (street.front(side) - street.kerb(side))
        yield z, lambda x=x, z=z, seed=seed: draw_pedestrian(canvas, seed, x, z, KERB)
    for _ in range(rng.integer(0, 2)):
        z, seed = rng.uniform(8.0, 20.0), Rng(rng.bits())
        yield z, lambda z=z, seed=seed: draw_bicyclist(canvas, seed, street.left_kerb + 0.9, z)


def draw_side(
    canvas: Canvas, rng: Rng, street: Street, light: Light, side: int, park: bool, row: Sequence[House]
) -> None:
    """What borders the street on one side: the row of houses, or a park's hedge and railings."""
    front = street.front(side)
    if park:
        draw_hedge(canvas, front + side * 4.0, 2.0, FAR, 3.2, 0.9 * light.on(side), rng)
        draw_railing(canvas, front, 2.0, FAR, (40.0, 42.0, 42.0))
        return
    for house in reversed(row):
        draw_house(canvas, house, side, front, light)


def expose(canvas: Canvas, seed: int, gain: float) -> tuple[Array, Array]:
    """The finished picture at half the canvas size: averaged, exposed, with a little sensor noise.

    Returns rgb uint8 [H, W, 3] and labels uint8 [H, W].
    """
    c = canvas.rgb
    rgb = (c[0::2, 0::2] + c[0::2, 1::2] + c[1::2, 0::2] + c[1::2, 1::2]) * (0.25 * gain)
    height, width = rgb.shape[:2]
    y, x = np.arange(height)[:, None] + np.zeros((1, width)), np.arange(width)[None, :] + np.zeros((height, 1))
    for channel in range(3):
        noise = hashed(x, y, seed) + hashed(x, y, seed + 1 + channel)
        rgb[..., channel] += 5.0 * (noise - 1.0)
    return np.floor(np.clip(rgb, 0.0, 255.0) + 0.5).clip(0, 255).astype(np.uint8), canvas.labels[1::2, 1::2].copy()


def scene(seed: int, height: int = 360, width: int = 480) -> tuple[Array, Array]:
    """The street scene of a seed: rgb uint8 [height, width, 3] and labels uint8 [height, width] (0..11)."""
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise ValueError(f"size {height}x{width}: both sides must lie in {MIN_SIDE}..{MAX_SIDE}")
    rng = Rng(seed * 0x51ED27 + 11)
    h, w = 2 * height, 2 * width
    camera = Camera(
        focal=1.25 * h, cx=w * rng.uniform(0.46, 0.58), cy=h * rng.uniform(0.43, 0.49), height=rng.uniform(1.35, 1.6)
    )
    canvas = Canvas(
        np.zeros((h, w, 3)), np.zeros((h, w), np.uint8), camera, (206.0, 214.0, 220.0), rng.uniform(230, 420)
    )
    left, right = -rng.uniform(2.2, 2.9), rng.uniform(6.7, 7.7)
    street = Street(left, right, left - rng.uniform(2.4, 3.6), right + rng.uniform(2.4, 3.4), rng.uniform(1.6, 2.0))
    overcast = rng.chance(0.3)
    light = Light(rng.pick((-1, 1)), 0.9 if overcast else 1.0, 0.8 if overcast else rng.uniform(0.58, 0.7))
    park = rng.chance(0.45)
    leafy = not park or rng.chance(0.75)
    rows = {-1: make_row(rng, 2, 0.1), 1: make_row(rng, 2, 0.25)}
    grey = rng.uniform(72.0, 92.0)

    draw_sky(canvas, rng)
    draw_road(canvas, street, light, rng, grey)
    draw_vista(canvas, rng)
    for side in (-1, 1):
        draw_pavement(canvas, street, side, rng, grey * rng.uniform(0.88, 1.0))
    draw_arrow(canvas, street, rng.uniform(7.0, 10.0))
    draw_manhole(canvas, street.centre + 1.2, rng.uniform(5.0, 9.0), grey)
    if not (park and light.sun_side > 0):
        cast_shadow(canvas, street, light, rows[light.sun_side], rng)
    for side in (-1, 1):
        draw_side(canvas, rng, street, light, side, park and side > 0, rows[side])
    items = [*cars(canvas, rng, street, light), *furniture(canvas, rng, street), *people(canvas, rng, street)]
    items += trees(canvas, rng, street, light, 1, park, leafy)
    if rng.chance(0.4):
        items += trees(canvas, rng, street, light, -1, False, leafy)
    for _, draw in sorted(items, key=lambda item: -item[0]):
        draw()
    return expose(canvas, rng.seed(), rng.uniform(0.94, 1.04))


# ---------------------------------------------------------------------------------------------- files and command line


def save_png(path: Path, pixels: Array) -> None:
    """Write uint8 [H, W, 3] as an RGB or [H, W] as a grey PNG; the file appears complete or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def write_scenes(folder: Path, count: int, seed: int, height: int, width: int) -> None:
    """Scenes seed, seed + 1, ... to folder/images and folder/labels."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        rgb, labels = scene(seed + index, height, width)
        save_png(folder / "images" / f"scene_{index:04d}.png", rgb)
        save_png(folder / "labels" / f"scene_{index:04d}.png", labels)


def write_street(folder: Path) -> None:
    """The example image and its labels: folder/street.png and folder/street_truth.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rgb, labels = scene(STREET_SEED)
    save_png(folder / "street.png", rgb)
    save_png(folder / "street_truth.png", labels)


def check_street(folder: Path) -> str | None:
    """None where the example files in a folder hold the pixels drawn here, else what is wrong, in one line."""
    for name, drawn in zip(("street.png", "street_truth.png"), scene(STREET_SEED), strict=True):
        path = folder / name
        try:
            with Image.open(path) as image:
                stored = np.asarray(image)
        except (OSError, SyntaxError) as error:
            return f"{path}: cannot be read: {error}"
        if stored.shape != drawn.shape or stored.dtype != drawn.dtype:
            return f"{path}: is {stored.dtype} {stored.shape}, drawn is {drawn.dtype} {drawn.shape}"
        differing = np.count_nonzero(stored != drawn)
        if differing:
            return f"{path}: {differing} of {drawn.size} values differ from the scene of seed {STREET_SEED}"
    return None


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def size_argument(text: str) -> tuple[int, int]:
    """HxW, as in 360x480, to (height, width)."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 360x480 (height x width)")
    height, width = int(parts[0]), int(parts[1])
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise argparse.ArgumentTypeError(f"'{text}': both sides must lie in {MIN_SIDE}..{MAX_SIDE}")
    return height, width


def whole_argument(low: int, high: int) -> Callable[[str], int]:
    """An argument type: a whole number in low..high."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text[:20]) <= high):
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number in {low}..{high}")
        return int(text)

    return convert


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="make_scenes.py",
        description="Draw labelled street scenes (CamVid's classes) from a seed.",
        epilog="example: python tools/make_scenes.py -o scenes --count 8 --seed 100 --size 360x480",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--out", type=Path, metavar="DIR", help="write DIR/images and DIR/labels")
    what.add_argument("--street", type=Path, metavar="DIR", help="rewrite the example image in DIR (golden/images)")
    what.add_argument(
        "--check",
        type=Path,
        metavar="DIR",
        nargs="?",
        const=STREET_DIR,
        help="compare the example image in DIR (golden/images) with what is drawn; status 1 if they differ",
    )
    parser.add_argument("--count", type=whole_argument(1, 10000), default=1, metavar="N", help="scenes (default 1)")
    parser.add_argument(
        "--seed", type=whole_argument(0, 2**31 - 1), default=0, metavar="S", help="seed of the first scene (default 0)"
    )
    parser.add_argument(
        "--size", type=size_argument, default=(360, 480), metavar="HxW", help="height x width (default 360x480)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if args.check is not None:
            complaint = check_street(args.check)
            if complaint:
                print(f"{parser.prog}: {complaint}", file=sys.stderr)
            return 1 if complaint else 0
        if args.street is not None:
            write_street(args.street)
        else:
            write_scenes(args.out, args.count, args.seed, *args.size)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except InputError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
