"""What stands around a map: block textures, walls, floors and skies, and the light on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.training import mapart
from exporter.training.scenes.camera import Array, Camera
from inference.renders import BASE_COLOURS

Pixels = npt.NDArray[np.uint8]

_TEXEL: Final = 16
"""Pixels along a block's face, as in the game."""

_REACH: Final = 16
"""Blocks of a painted plane in each direction; beyond, it repeats."""

_HORIZON: Final = 60.0
"""Blocks to where the sky begins."""

_NEAR: Final = 1e-3

_FRAME_RIM: Final = 1 / 16
"""Blocks that the item frames' wood shows around a wall of maps."""

_THICKNESS: Final = 1 / 16
"""Blocks that item frames stand out from the wall."""

_FRAME_WOOD: Final = (90, 64, 34)


def _noise(rng: np.random.Generator, cells: int, strength: float) -> Array:
    """Blocky noise around 1, (16, 16, 1)."""
    coarse = rng.normal(1, strength, (cells, cells)).astype(np.float32)
    return np.kron(coarse, np.ones((_TEXEL // cells, _TEXEL // cells), np.float32))[..., None]


def _stone(rng: np.random.Generator) -> Array:
    grey = rng.uniform(70, 150)
    tint = np.array([grey, grey, grey + rng.uniform(-4, 10)], np.float32)
    return tint * _noise(rng, 16, 0.05) * _noise(rng, 4, 0.07)


def _cobble(rng: np.random.Generator) -> Array:
    sites = rng.uniform(0, _TEXEL, (10, 2))
    y, x = np.mgrid[0:_TEXEL, 0:_TEXEL] + 0.5
    # Distances wrap, so that neighbouring blocks join without a seam.
    apart_y = np.abs(y[..., None] - sites[:, 0])
    apart_x = np.abs(x[..., None] - sites[:, 1])
    apart = np.hypot(np.minimum(apart_y, _TEXEL - apart_y), np.minimum(apart_x, _TEXEL - apart_x))
    order = np.sort(apart, axis=-1)
    gap = np.clip((order[..., 1] - order[..., 0]) / 2.5, 0.45, 1)
    tone = rng.uniform(0.8, 1.15, 10)[apart.argmin(-1)]
    grey: Array = (rng.uniform(90, 150) * (gap * tone)).astype(np.float32)
    return np.repeat(grey[..., None], 3, axis=2)


def _planks(rng: np.random.Generator) -> Array:
    woods = [
        (162, 131, 79), (114, 85, 49), (192, 175, 121), (66, 43, 20), (160, 115, 81),
        (103, 49, 49), (43, 104, 99), (169, 92, 51), (117, 54, 48),
    ]  # fmt: skip
    wood = np.array(woods[int(rng.integers(len(woods)))], np.float32)
    grain = np.repeat(rng.normal(1, 0.06, (16, 4)), 4, axis=1)[..., None].astype(np.float32)
    texture = wood * grain * _noise(rng, 16, 0.02)
    texture[3::4] *= 0.72
    for board in range(4):
        texture[4 * board : 4 * board + 4, (7 + 8 * board) % 16] *= 0.78
    return texture


def _bricks(rng: np.random.Generator) -> Array:
    hues = [(150, 97, 83), (122, 122, 122), (45, 22, 26), (72, 72, 78), (235, 229, 222)]
    hue = np.array(hues[int(rng.integers(len(hues)))], np.float32)
    texture = hue * _noise(rng, 16, 0.05) * _noise(rng, 4, 0.06)
    joint = rng.uniform(0.6, 1.25)
    texture[3::4] *= joint
    for course in range(4):
        texture[4 * course : 4 * course + 3, (7 * course + 3) % 8 :: 8] *= joint
    return texture


def _smooth(rng: np.random.Generator) -> Array:
    dyes = BASE_COLOURS[14:29]
    dye = dyes[int(rng.integers(len(dyes)))].astype(np.float32)
    if rng.random() < 0.4:
        dye = np.full(3, rng.uniform(150, 240), np.float32)
    brightness = np.float32(rng.uniform(0.7, 1.05))
    texture: Array = dye * brightness * _noise(rng, 16, rng.uniform(0.005, 0.05))
    return texture


def _earth(rng: np.random.Generator) -> Array:
    tones = [(134, 96, 67), (95, 159, 53), (219, 207, 163), (104, 78, 47), (70, 110, 40)]
    tone = np.array(tones[int(rng.integers(len(tones)))], np.float32)
    return tone * _noise(rng, 16, 0.09) * _noise(rng, 8, 0.05)


def _bark(rng: np.random.Generator) -> Array:
    tone = np.array([[105, 84, 50], [58, 37, 16], [216, 215, 210], [85, 67, 25]], np.float32)
    stripes = np.repeat(rng.normal(1, 0.18, (1, 16)), 16, axis=0)[..., None].astype(np.float32)
    texture: Array = tone[int(rng.integers(4))] * stripes * _noise(rng, 8, 0.07)
    return texture


_BLOCKS: Final[Sequence[Callable[[np.random.Generator], Array]]] = (
    _stone, _cobble, _planks, _bricks, _smooth, _earth, _bark,
)  # fmt: skip


def _block(rng: np.random.Generator) -> Array:
    """One block's face, (16, 16, 3) in 0..255."""
    return np.clip(_BLOCKS[int(rng.integers(len(_BLOCKS)))](rng), 0, 255)


def _paint(rng: np.random.Generator, shape: tuple[float, float] | None) -> Array:
    """Lay blocks on a plane of 32 x 32; with a ``shape``, as builders lay them around a map."""
    side = 2 * _REACH
    kinds = np.stack([_block(rng) for _ in range(3)])
    plan = np.zeros((side, side), np.intp)
    layout = int(rng.integers(5))
    rows, columns = np.mgrid[0:side, 0:side]
    if layout == 1:
        plan[(rows + columns) % 2 == 0] = 1
    elif layout == 2:
        plan[columns % int(rng.integers(3, 7)) == 0] = 1
    elif layout == 3:
        plan[rng.random((side, side)) < 0.25] = 1
    if shape is not None and rng.random() < 0.45:
        half_x, half_y = (shape[0] + 1) // 2 + 1, (shape[1] + 1) // 2 + 1
        border = (np.abs(columns - _REACH + 0.5) < half_x) & (np.abs(rows - _REACH + 0.5) < half_y)
        plan[border] = 2
    picture = kinds[plan].transpose(0, 2, 1, 3, 4).reshape(side * _TEXEL, side * _TEXEL, 3)
    # No two blocks look quite alike in lit worlds; it also breaks the tiling.
    vary = rng.normal(1, 0.02, (side, side)).astype(np.float32)
    vary = np.kron(vary, np.ones((_TEXEL, _TEXEL), np.float32))
    return (picture * vary[..., None]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane across one axis, with the shade that the game gives that direction."""

    axis: int
    at: float
    face: float
    texture: Array


def _travel(camera: Camera, speed: Array, plane: _Plane) -> Array:
    """How far rays travel until they meet a plane, (n,); infinite if they never do."""
    with np.errstate(divide="ignore", invalid="ignore"):
        travel = np.float32(plane.at - camera.position[plane.axis]) / speed
    return np.where(travel > _NEAR, travel, np.float32(np.inf))


@dataclass(frozen=True, slots=True)
class Hanging:
    """A wall of maps, and where its centre is on the wall, in blocks."""

    pixels: Pixels
    at: tuple[float, float]
    rim: bool
    seams: bool = False

    @property
    def half(self) -> tuple[float, float]:
        """Half its width and half its height in blocks."""
        height, width = self.pixels.shape[:2]
        return width / mapart.MAP_SIDE / 2, height / mapart.MAP_SIDE / 2

    def framed(self) -> Pixels:
        """The maps with what shows of their frames, RGBA, 128 pixels a block."""
        pixels = self.pixels
        if self.seams:
            # Frames that do not quite touch leave hairlines between the maps.
            pixels = pixels.copy()
            pixels[mapart.MAP_SIDE :: mapart.MAP_SIDE] //= 2
            pixels[:, mapart.MAP_SIDE :: mapart.MAP_SIDE] //= 2
        pad = round(_FRAME_RIM * mapart.MAP_SIDE) if self.rim else 0
        height, width = pixels.shape[:2]
        layer = np.full((height + 2 * pad, width + 2 * pad, 4), 255, np.uint8)
        layer[..., :3] = _FRAME_WOOD
        layer[pad : pad + height, pad : pad + width, :3] = pixels
        return layer


class World:
    """A wall with maps, its surroundings and its light.

    Args:
        rng: Source of chance.
        map_pixels: The map in the middle, ``uint8`` (128 * rows, 128 * columns, 3).
        camera: Where the player stands, so that nothing is built around them.
        neighbours: Other maps that hang on the same wall.
        night: Whether only lamps light the scene.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        map_pixels: Pixels,
        camera: Camera,
        neighbours: Sequence[Pixels] = (),
        *,
        night: bool = False,
    ) -> None:
        height, width = (side / mapart.MAP_SIDE for side in map_pixels.shape[:2])
        self.shape = (width, height)
        self._wall = _paint(rng, self.shape)
        self._ground = _paint(rng, None)
        x, y, _ = camera.position
        self._floor = max(height / 2 + float(rng.integers(0, 4)), float(y) + 1.6)
        self._ceiling = None
        if rng.random() < 0.6:
            self._ceiling = min(-height / 2 - float(rng.integers(1, 6)), float(y) - 1.0)
        self._side = None
        if rng.random() < 0.5:
            edge = max(width / 2, abs(float(x))) + float(rng.integers(1, 9))
            self._side = edge * float(rng.choice([-1, 1]))
        top = float(rng.uniform(0.25, 1))
        self._sky = (
            np.array([120, 165, 255], np.float32) * top
            if rng.random() < 0.6
            else (rng.uniform(20, 255, 3).astype(np.float32))
        )
        framed = bool(rng.random() < 0.4)
        seams = framed and bool(rng.random() < 0.5)
        self.hangings = [Hanging(map_pixels, (0.0, 0.0), framed, seams)]
        for index, pixels in enumerate(neighbours):
            other = Hanging(pixels, (0.0, 0.0), self.hangings[0].rim)
            away = self.shape[0] / 2 + other.half[0] + float(rng.integers(1, 3))
            side = 1 if index % 2 else -1
            self.hangings.append(Hanging(pixels, (side * away, 0.0), other.rim))
        glowing = rng.random() < 0.25
        self._ambient = 0.22 if night else float(rng.uniform(0.75, 1.0))
        self._map_ambient = 1.0 if glowing else self._ambient
        lamps = int(rng.integers(1, 4)) if night or rng.random() < 0.5 else 0
        self._lamps = rng.uniform((-5, -3, 0.3), (5, 2, 3), (lamps, 3)).astype(np.float32)
        self._warmth = np.array([1.0, 0.82, 0.58], np.float32)

    def render(self, camera: Camera, size: tuple[int, int]) -> Array:
        """Draw what the camera sees, ``float32`` (height, width, 3) in 0..255.

        The surroundings are sampled at half the resolution, the maps at twice: the game draws maps
        without mipmaps, and people's screens have more pixels than what they post.

        Args:
            camera: From where.
            size: Width and height in pixels, even.
        """
        half = (size[0] // 2, size[1] // 2)
        rays = camera.rays(half).reshape(-1, 3)
        planes = self._planes()
        travel = np.stack([_travel(camera, rays[:, plane.axis], plane) for plane in planes])
        owner, depth = travel.argmin(0), travel.min(0)
        owner[depth >= _HORIZON] = len(planes)
        coarse = np.broadcast_to(self._sky, rays.shape).copy()
        for index, plane in enumerate(planes):
            seen = np.flatnonzero(owner == index)
            coarse[seen] = self._shade(plane, camera, rays[seen], depth[seen])
        image = to_image(coarse.reshape(half[1], half[0], 3))
        picture = np.array(image.resize(size, Image.Resampling.BILINEAR), np.float32)
        depth = depth.reshape(half[1], half[0]).repeat(2, axis=0).repeat(2, axis=1)
        # The one in question last: the game lets no map hide another.
        for hanging in reversed(self.hangings):
            self._draw_map(picture, depth, camera, size, hanging)
        return picture

    def _planes(self) -> list[_Plane]:
        """Everything flat that surrounds the maps."""
        planes = [_Plane(2, 0.0, 0.8, self._wall), _Plane(1, self._floor, 1.0, self._ground)]
        if self._ceiling is not None:
            planes.append(_Plane(1, self._ceiling, 0.5, self._ground))
        if self._side is not None:
            planes.append(_Plane(0, self._side, 0.6, self._wall))
        return planes

    def _light(self, points: Array, ambient: float) -> Array:
        """Light on points (..., 3), RGB factors."""
        lamps = np.zeros(points.shape[:-1], np.float32)
        for lamp in self._lamps:
            apart = sum(np.square(points[..., axis] - lamp[axis]) for axis in range(3))
            lamps += np.float32(1.3) / (1 + np.float32(0.35) * apart)
        light: Array = lamps[..., None] * self._warmth + np.float32(ambient)
        return np.minimum(light, np.float32(1.15))

    def _shade(self, plane: _Plane, camera: Camera, rays: Array, travel: Array) -> Array:
        """Colour the points of a plane that rays (n, 3) meet after some travel (n,)."""
        points = camera.position.astype(np.float32) + rays * travel[:, None]
        # A side wall's horizontal axis is depth.
        across, along = ((2, 1), (0, 2), (0, 1))[plane.axis]
        side = 2 * _REACH * _TEXEL
        column = np.floor((points[:, across] + _REACH) * _TEXEL).astype(np.int32) % side
        row = np.floor((points[:, along] + _REACH) * _TEXEL).astype(np.int32) % side
        colour: Array = plane.texture[row, column]
        # Far blocks fade into their average, as mipmaps make them.
        far = np.clip((travel - 6) / 20, 0, 1)[:, None]
        colour += (plane.texture[::7, ::7].mean((0, 1)) - colour) * far
        colour *= (
            self._light(points, self._ambient) if len(self._lamps) else np.float32(self._ambient)
        )
        colour *= np.float32(plane.face)
        return colour

    def _draw_map(
        self, picture: Array, depth: Array, camera: Camera, size: tuple[int, int], hanging: Hanging
    ) -> None:
        """Draw a wall of maps over the wall, supersampled."""
        half_x, half_y = hanging.half
        rim = _FRAME_RIM if hanging.rim else 0.0
        left, top = hanging.at[0] - half_x - rim, hanging.at[1] - half_y - rim
        right, bottom = hanging.at[0] + half_x + rim, hanging.at[1] + half_y + rim
        front = np.array([(x, y, _THICKNESS) for x in (left, right) for y in (top, bottom)])
        seen = camera.project(np.concatenate([front, front * (1, 1, 0)]), size)
        if np.isnan(seen).any():
            # Partly behind the player: only a neighbour can be.
            return
        low, high = np.floor(seen.min(0)).astype(int), np.ceil(seen.max(0)).astype(int)
        box = (
            max(0, int(low[0])), max(0, int(low[1])),
            min(size[0], int(high[0])), min(size[1], int(high[1])),
        )  # fmt: skip
        if box[0] >= box[2] or box[1] >= box[3]:
            return
        layer = Image.fromarray(hanging.framed())
        # The frames' edge, seen from the side, is what their back shows beyond their front.
        edge = Image.new("RGBA", layer.size, (*_FRAME_WOOD, 255))
        scale = (layer.width / (right - left), layer.height / (bottom - top))
        painted = _paste_plane(edge, camera, size, box, corner=(left, top, 0.0), scale=scale)
        painted.alpha_composite(
            _paste_plane(layer, camera, size, box, corner=(left, top, _THICKNESS), scale=scale)
        )
        # Transparent is black here, so the average over four samples is premultiplied.
        small = np.asarray(painted.reduce(2), np.float32)
        rays = camera.rays(size, box)
        travel = (np.float32(_THICKNESS) - np.float32(camera.position[2])) / rays[..., 2]
        light: Array | np.float32 = np.float32(min(self._map_ambient, 1.15))
        if len(self._lamps):
            points = camera.position.astype(np.float32) + rays * travel[..., None]
            light = self._light(points, self._map_ambient)
        part = picture[box[1] : box[3], box[0] : box[2]]
        nearest = depth[box[1] : box[3], box[0] : box[2]] + 0.1 >= travel
        cover = small[..., 3:] / np.float32(255)
        part[:] = np.where(nearest[..., None], part * (1 - cover) + small[..., :3] * light, part)


def _paste_plane(
    layer: Image.Image,
    camera: Camera,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    *,
    corner: tuple[float, float, float],
    scale: tuple[float, float],
) -> Image.Image:
    """See a picture that stands parallel to the wall, at twice the resolution.

    Args:
        layer: RGBA.
        camera: From where.
        size: Width and height of the whole picture.
        box: The part of it that is wanted.
        corner: Where the layer's upper left corner is, in blocks.
        scale: The layer's pixels for each block, along both axes.

    Returns:
        RGBA of twice the box's size, transparent black around the layer.
    """
    width, height = (box[2] - box[0]) * 2, (box[3] - box[1]) * 2
    # Along a ray the layer's plane is met where travel * ray.z closes the gap; both of its other
    # coordinates are then ratios of functions that are linear in the pixel: a homography.
    left, top = box[0] * 2, box[1] * 2
    corners = camera.rays((size[0] * 2, size[1] * 2), (left, top, left + 2, top + 2))
    corners = corners.astype(np.float64)
    origin, by_x, by_y = corners[0, 0], corners[0, 1] - corners[0, 0], corners[1, 0] - corners[0, 0]
    # Pillow counts pixels from their corners.
    origin = origin - (by_x + by_y) / 2
    gap = corner[2] - camera.position[2]
    rows = []
    for axis in (0, 1):
        start = camera.position[axis] - corner[axis]
        rows.append(
            [scale[axis] * (gap * step[axis] + start * step[2]) for step in (by_x, by_y, origin)]
        )
    below = [by_x[2], by_y[2], origin[2]]
    coefficients = [value / below[2] for value in (*rows[0], *rows[1], *below[:2])]
    return layer.transform(
        (width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.NEAREST
    )


def to_image(picture: Array) -> Image.Image:
    """Round to an 8-bit picture."""
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
