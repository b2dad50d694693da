"""Where the player stands: a pinhole camera before a wall of maps.

The world is measured in blocks. The wall is the plane z = 0 with the map's centre at the origin; x
points right, y down, z towards the player.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

FIELD_OF_VIEW: Final = math.radians(70)
"""The game's default, from top to bottom."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A position and a rotation; its columns are the camera's right, down and forward."""

    position: npt.NDArray[np.float64]
    rotation: npt.NDArray[np.float64]

    def rays(self, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Array:
        """Return the direction of each pixel's ray.

        Args:
            size: Width and height of the whole picture.
            box: Left, top, right, bottom of the part that is wanted.

        Returns:
            ``float32`` (height, width, 3) in world coordinates, one unit deep.
        """
        width, height = size
        left, top, right, bottom = box or (0, 0, width, height)
        reach = math.tan(FIELD_OF_VIEW / 2)
        x = (np.arange(left, right) + 0.5 - width / 2) * (2 * reach / height)
        y = (np.arange(top, bottom) + 0.5 - height / 2) * (2 * reach / height)
        turn = self.rotation.astype(np.float32)
        across = x[:, None].astype(np.float32) * turn[:, 0] + turn[:, 2]
        down = y[:, None].astype(np.float32) * turn[:, 1]
        rays: Array = across[None, :, :] + down[:, None, :]
        return rays

    def project(self, points: npt.NDArray[np.float64], size: tuple[int, int]) -> Array:
        """Project points, (n, 3), to pixels, (n, 2); NaN behind the camera."""
        width, height = size
        local = (points - self.position) @ self.rotation
        depth = np.where(local[:, 2] > 1e-3, local[:, 2], np.nan)
        scale = height / (2 * math.tan(FIELD_OF_VIEW / 2))
        pixels: npt.NDArray[np.float64] = local[:, :2] / depth[:, None] * scale + np.array(
            [width / 2, height / 2]
        )
        return pixels.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Stance:
    """How a kind of picture is taken.

    Attributes:
        yaw: Largest angle to the wall's normal, left or right, in degrees.
        pitch: The same, up or down.
        fill: Range of the map's larger extent, relative to the picture's.
        seen: Least fraction of the map inside the picture.
        aside: How far off centre the map may be, relative to the picture.
    """

    yaw: float
    pitch: float
    fill: tuple[float, float]
    seen: float
    aside: float


@dataclass(frozen=True, slots=True)
class Sight:
    """What a camera sees of a wall of maps.

    Attributes:
        yaw: Angle to the wall's normal, in degrees, to the right.
        pitch: The same, downwards.
        seen: Fraction of the wall inside the picture.
        extent: The larger of the wall's extents in the picture, relative to the picture's.
        box: Left, top, right, bottom of what is seen of it, as fractions of the picture.
    """

    yaw: float
    pitch: float
    seen: float
    extent: float
    box: tuple[float, float, float, float]


def _grid(shape: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Points all over a wall of maps, (81, 3)."""
    columns, rows = shape
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 9) * columns, np.linspace(-0.5, 0.5, 9) * rows)
    return np.stack([x.ravel(), y.ravel(), np.zeros(81)], axis=1)


def sight(camera: Camera, shape: tuple[float, float], size: tuple[int, int]) -> Sight:
    """Measure what a camera sees of a wall of (columns, rows) maps in a picture of this size."""
    pixels = camera.project(_grid(shape), size)
    inside = ((pixels >= 0) & (pixels < np.array(size))).all(axis=1)
    clipped = np.clip(np.nan_to_num(pixels), 0, np.array(size)) / np.array(size)
    (left, top), (right, bottom) = clipped.min(0).tolist(), clipped.max(0).tolist()
    away = -camera.rotation[:, 2]
    return Sight(
        yaw=math.degrees(math.atan2(away[0], away[2])),
        pitch=math.degrees(math.asin(away[1])),
        seen=float(inside.mean()),
        extent=max(right - left, bottom - top),
        box=(left, top, right, bottom),
    )


def _look(target: npt.NDArray[np.float64], distance: float, yaw: float, pitch: float) -> Camera:
    """Stand at a distance from a point on the wall and look at it; angles in radians."""
    away = np.array(
        [math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)]
    )
    forward = -away
    # z points at the player, so the world's axes are left-handed and so are these products.
    right = np.cross(forward, np.array([0.0, 1.0, 0.0]))
    right /= np.linalg.norm(right)
    down = np.cross(right, forward)
    return Camera(target + away * distance, np.stack([right, down, forward], axis=1))


def place(
    rng: np.random.Generator, shape: tuple[float, float], size: tuple[int, int], stance: Stance
) -> Camera:
    """Find a place to stand.

    Args:
        rng: Source of chance.
        shape: Columns and rows of the wall of maps.
        size: Width and height of the picture.
        stance: What is allowed.
    """
    columns, rows = shape
    aspect = size[0] / size[1]
    points = _grid(shape)
    camera = _look(np.zeros(3), max(rows, columns / aspect), 0, 0)
    for _ in range(40):
        yaw = math.radians(stance.yaw) * rng.uniform(-1, 1)
        pitch = math.radians(stance.pitch) * rng.uniform(-1, 1)
        extent = max(rows, columns / aspect)
        distance = extent / (2 * math.tan(FIELD_OF_VIEW / 2) * rng.uniform(*stance.fill))
        visible = 2 * math.tan(FIELD_OF_VIEW / 2) * distance
        aside = rng.uniform(-1, 1, 2) * stance.aside * visible * np.array([aspect, 1.0])
        candidate = _look(np.array([aside[0], aside[1], 0.0]), distance, yaw, pitch)
        pixels = candidate.project(points, size)
        inside = ((pixels >= 0) & (pixels < np.array(size))).all(axis=1)
        if inside.mean() >= stance.seen and not np.isnan(pixels).any():
            return candidate
    return camera
