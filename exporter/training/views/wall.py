"""The wall that a map hangs on, and what hangs beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from exporter.training.mapart import MAP_SIDE
from exporter.training.views.camera import Camera, pixels_of

Pixels = npt.NDArray[np.uint8]

_BLOCK = 16
"""Pixels along a block's texture."""

_HEIGHT = 240
"""Rows of a rendered screen; everything ends much smaller than this."""

_MOST_WIDTH = 440


class Textures:
    """A bank of block textures, and floors and skies to go with them.

    Args:
        seed: Decides all of them.
        count: How many.
    """

    def __init__(self, seed: int, count: int = 400) -> None:
        rng = np.random.default_rng([seed, 0x7465_7874])
        self._blocks = [_texture(rng) for _ in range(count)]

    def wall(self, rng: np.random.Generator, columns: int, rows: int) -> Pixels:
        """Tile a wall of this many blocks: ``uint8`` (16 * rows, 16 * columns, 3)."""
        texture = self._blocks[int(rng.integers(len(self._blocks)))]
        if rng.random() < 0.2:
            other = self._blocks[int(rng.integers(len(self._blocks)))]
            mixed = rng.random((rows, columns)) < rng.uniform(0.1, 0.5)
            if rng.random() < 0.3:
                mixed = np.add.outer(np.arange(rows), np.arange(columns)) % 2 == 0
            spread = np.kron(mixed, np.ones((_BLOCK, _BLOCK), bool))[..., None]
            return np.where(
                spread, np.tile(texture, (rows, columns, 1)), np.tile(other, (rows, columns, 1))
            )
        return np.tile(texture, (rows, columns, 1))


def _texture(rng: np.random.Generator) -> Pixels:
    """One tileable block: noise of its colour, with the joints of bricks or planks or none."""
    base = np.clip(rng.uniform(15, 235) + rng.normal(0, 30, 3), 0, 255)
    grain = rng.normal(0, rng.uniform(0, 22), (_BLOCK, _BLOCK, 1))
    coarse = np.kron(rng.normal(0, rng.uniform(0, 20), (4, 4)), np.ones((4, 4)))[..., None]
    texture = base + grain + coarse
    if rng.random() < 0.15:  # ore, flowers, lamps: blots of another colour
        blots = np.kron(rng.random((8, 8)) < 0.2, np.ones((2, 2), bool))
        texture[blots] = rng.uniform(0, 255, 3)
    kind = rng.random()
    dark = rng.uniform(0.45, 0.9)
    if kind < 0.25:  # planks
        texture[3::4] *= dark
        for course in range(4):
            texture[4 * course : 4 * course + 4, int(rng.integers(_BLOCK))] *= dark
    elif kind < 0.45:  # bricks
        step = int(rng.choice([4, 8]))
        texture[step - 1 :: step] *= dark
        for course in range(_BLOCK // step):
            first = (course % 2) * step
            texture[course * step : (course + 1) * step, first :: 2 * step] *= dark
    elif kind < 0.6:  # blocks with an edge
        texture[0] *= dark
        texture[:, 0] *= dark
    elif kind < 0.7:  # logs
        texture *= (1 + 0.3 * np.sign(np.sin(np.arange(_BLOCK) * rng.uniform(1, 3))))[:, None]
    return np.clip(texture, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Side:
    """Another side of the room, at right angles to the wall: a floor, a ceiling, a wall.

    Attributes:
        axis: The room ends there in x (0) or in y (1).
        at: Where.
        pixels: Its texture, ``uint8`` (h, w, 3): down goes the other of x and y, as far as the
            wall reaches, and to the right is the wall.
    """

    axis: int
    at: float
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Canvas:
    """A wall with maps on it.

    Attributes:
        map_pixels: The map itself.
        wall: What is around it, ``uint8`` (h, w, 3); spans -reach..reach of the wall's units.
        reach: x and y.
        sky: What a ray meets that misses the wall.
        sides: Of the room that it is in.
    """

    map_pixels: Pixels
    wall: Pixels
    reach: tuple[float, float]
    sky: tuple[int, int, int]
    sides: tuple[Side, ...]

    @classmethod
    def hang(cls, rng: np.random.Generator, maps: list[Pixels], textures: Textures) -> Self:
        """Hang the first map in the middle of a wall, and the others around it."""
        rows, columns = (side // MAP_SIDE for side in maps[0].shape[:2])
        # One block is one map's side, or two maps in the rare big block of a resource pack.
        around = 8
        wide, tall = columns + 2 * around, rows + 2 * around
        sky = np.clip(rng.uniform(0, 255) + rng.normal(0, 40, 3), 0, 255).astype(np.uint8)
        in_room = rng.random() < 0.5
        if rng.random() < 0.25:
            wall = np.full((_BLOCK * tall, _BLOCK * wide, 3), sky, np.uint8)
        else:
            wall = textures.wall(rng, wide, tall)
            if not in_room:
                ground = textures.wall(rng, wide, tall)
                _limit(rng, wall, ground, sky, around=around, rows=rows)
        scale = 2
        wall = cv2.resize(wall, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        block = _BLOCK * scale
        for other in maps[1:]:
            _beside(rng, wall, other, block=block, around=around, shape=(columns, rows))
        pixels = maps[0]
        if rng.random() < 0.3:
            _frame(rng, wall, block, around, (columns, rows))
        if rng.random() < 0.15 and rows * columns > 1:
            pixels = _seams(rng, pixels)
        # The map's half height is 1, so a block is 2 / rows.
        reach = (wide / rows, tall / rows)
        sides = _room(rng, textures, (columns, rows), reach) if in_room else ()
        return cls(pixels, wall, reach, (int(sky[0]), int(sky[1]), int(sky[2])), sides)

    def look(self, camera: Camera) -> Pixels:
        """What the camera sees: ``uint8`` (height, width, 3)."""
        height = _HEIGHT
        width = round(height * camera.frame)
        if width > _MOST_WIDTH:
            height, width = round(_MOST_WIDTH / camera.frame), _MOST_WIDTH
        to_pixels = pixels_of(width, height) @ camera.to_frame
        rows, columns = self.wall.shape[:2]
        onto_wall = np.diag([*self.reach, 1.0]) @ np.linalg.inv(pixels_of(columns, rows))
        picture: Pixels = cv2.warpPerspective(
            self.wall, to_pixels @ onto_wall, (width, height),
            flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=self.sky,
        )  # fmt: skip
        pixels = self._at_scale(to_pixels)
        rows, columns = pixels.shape[:2]
        aspect = self.map_pixels.shape[1] / self.map_pixels.shape[0]
        onto_wall = np.diag([aspect, 1.0, 1.0]) @ np.linalg.inv(pixels_of(columns, rows))
        cv2.warpPerspective(
            pixels, to_pixels @ onto_wall, (width, height), dst=picture,
            flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT,
        )  # fmt: skip
        for side in self.sides:
            self._look_at(side, camera, picture)
        return picture

    def _look_at(self, side: Side, camera: Camera, picture: Pixels) -> None:
        """Draw a side of the room over what it hides."""
        at = camera.at
        if (at[side.axis] - side.at) * side.at >= 0:
            return  # the camera stands behind it
        size = picture.shape[1], picture.shape[0]
        reach = self.reach[1 - side.axis]
        rows, columns = side.pixels.shape[:2]
        depth = columns / rows * 2 * reach
        # Nothing of it that is beside the camera, or behind.
        kept = max(1, int(columns * min(1.0, -0.9 * at[2] / depth)))
        pixels = side.pixels[:, columns - kept :]
        texel = depth / columns
        onto_side = np.array(
            [(texel, 0, -texel * kept), (0, 2 * reach / rows, -reach), (0, 0, 1.0)]
        )
        cv2.warpPerspective(
            pixels, pixels_of(*size) @ camera.of_plane(side.axis, side.at) @ onto_side, size,
            dst=picture, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT,
        )  # fmt: skip

    def _at_scale(self, to_pixels: npt.NDArray[np.float64]) -> Pixels:
        """The map, averaged down to about the size at which it is seen: no aliasing."""
        aspect = self.map_pixels.shape[1] / self.map_pixels.shape[0]
        middle = to_pixels @ np.array([(0.0, 0.1 * aspect, 0.0), (0.0, 0.0, 0.1), (1.0, 1.0, 1.0)])
        at = middle[:2] / middle[2]
        across = 20 * np.linalg.norm(at[:, 1] - at[:, 0])
        down = 20 * np.linalg.norm(at[:, 2] - at[:, 0])
        rows, columns = self.map_pixels.shape[:2]
        size = (
            int(np.clip(across * 1.3, 16, columns)), int(np.clip(down * 1.3, 16, rows)),
        )  # fmt: skip
        if size == (columns, rows):
            return self.map_pixels
        shrunk: Pixels = cv2.resize(self.map_pixels, size, interpolation=cv2.INTER_AREA)
        return shrunk


def _room(
    rng: np.random.Generator, textures: Textures, shape: tuple[int, int], reach: tuple[float, float]
) -> tuple[Side, ...]:
    """A floor in most rooms, ceilings and walls beside the map in some."""
    columns, rows = shape
    block = 2 / rows
    half = (columns / rows, 1.0)
    sides = []
    for axis, sign, share in ((1, 1, 0.8), (1, -1, 0.35), (0, 1, 0.35), (0, -1, 0.35)):
        if rng.random() >= share:
            continue
        long, deep = round(2 * reach[1 - axis] / block), int(rng.integers(2, 9))
        lit = textures.wall(rng, deep, long) * rng.uniform(0.5, 1.0)
        away = half[axis] + block * int(rng.exponential(1.5))
        sides.append(Side(axis, sign * away, lit.astype(np.uint8)))
    return tuple(sides)


def _limit(
    rng: np.random.Generator, wall: Pixels, ground: Pixels, sky: Pixels, *, around: int, rows: int
) -> None:
    """End the wall somewhere: a floor below, sky above, corners at the sides."""
    below = around + rows + int(rng.integers(0, around + 1))
    wall[below * _BLOCK :] = ground[below * _BLOCK :] * rng.uniform(0.5, 1.0)
    above = around - int(rng.integers(0, around + 1))
    wall[: above * _BLOCK] = sky if rng.random() < 0.5 else ground[: above * _BLOCK] * 0.6
    for edge in (0, 1):
        if rng.random() < 0.3:
            out = int(rng.integers(1, around)) * _BLOCK
            part = np.s_[:, :out] if edge == 0 else np.s_[:, -out:]
            wall[part] = sky if rng.random() < 0.4 else wall[part] * rng.uniform(0.5, 0.9)


def _beside(
    rng: np.random.Generator, wall: Pixels, other: Pixels, *, block: int, around: int,
    shape: tuple[int, int],
) -> None:  # fmt: skip
    """Hang another map somewhere around the one in the middle, not over it."""
    rows, columns = (side // MAP_SIDE for side in other.shape[:2])
    small = cv2.resize(other, (columns * block, rows * block), interpolation=cv2.INTER_AREA)
    gap = int(rng.integers(0, 3))
    left, top = around, around
    match int(rng.integers(4)):
        case 0:
            left = around - gap - columns
        case 1:
            left = around + shape[0] + gap
        case 2:
            top = around - gap - rows
        case _:
            top = around + shape[1] + gap
    left, top = max(left, 0), max(top, 0)
    part = wall[top * block : (top + rows) * block, left * block : (left + columns) * block]
    if gap or left + columns <= around or left >= around + shape[0] or top != around:
        part[:] = small[: part.shape[0], : part.shape[1]]


def _frame(
    rng: np.random.Generator, wall: Pixels, block: int, around: int, shape: tuple[int, int]
) -> None:
    """A border around the map, drawn before it: wood, dark blocks, a glow."""
    out = int(rng.integers(1, block // 2))
    first, last = around * block - out, np.array(shape) * block + around * block + out
    colour = rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.array([120, 85, 50])
    wall[first : last[1], first : last[0]] = colour


def _seams(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Lines between the maps of a wall."""
    seamed = pixels.copy()
    level = rng.uniform(0.3, 0.9)
    for at in range(MAP_SIDE, pixels.shape[0], MAP_SIDE):
        seamed[at - 1 : at + 1] = seamed[at - 1 : at + 1] * level
    for at in range(MAP_SIDE, pixels.shape[1], MAP_SIDE):
        seamed[:, at - 1 : at + 1] = seamed[:, at - 1 : at + 1] * level
    return seamed
