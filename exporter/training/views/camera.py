"""Where the camera stands: homographies between the wall, the frame and pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_FRAMES = (16 / 9, 16 / 9, 16 / 9, 16 / 9, 4 / 3, 1.0, 9 / 16, 2.1)
"""Width over height of pictures as people post them, the common ones more than once."""


@dataclass(frozen=True, slots=True)
class Camera:
    """How a wall is seen.

    The wall is the plane z = 0; its map spans -aspect..aspect by -1..1, y points down, and the
    camera is where z is negative. The frame spans -1..1 both ways whatever its shape is.
    """

    projection: Matrix
    """From the world to the frame, (3, 4)."""

    frame: float
    """Width over height of the frame."""

    @property
    def at(self) -> npt.NDArray[np.floating[Any]]:
        """Where it stands, (3,): the one point that the projection takes to nowhere."""
        return np.linalg.solve(self.projection[:, :3], -self.projection[:, 3])

    @property
    def to_frame(self) -> Matrix:
        """Homography from the wall to the frame, (3, 3)."""
        return self.projection[:, [0, 1, 3]]

    def of_plane(self, axis: int, at: float) -> Matrix:
        """Homography to the frame from the plane where x (0) or y (1) is so: of z and the other."""
        other = 1 - axis
        right = self.projection[:, 3] + at * self.projection[:, axis]
        return np.stack([self.projection[:, 2], self.projection[:, other], right], 1)

    @classmethod
    def place(cls, rng: np.random.Generator, aspect: float, reach: float, aside: float) -> Self:
        """Stand somewhere before the wall.

        Args:
            rng: Decides where.
            aspect: Width over height of the map.
            reach: 0 (near, and straight before it) to 1 (from any distance and angle).
            aside: 0 (the map is in the middle) to 1 (anywhere, and partly out of the picture).
        """
        frame = float(rng.choice(_FRAMES)) * rng.uniform(0.93, 1.07)
        if rng.random() < 0.15:
            frame = aspect * rng.uniform(0.8, 1.25)  # a cut-out of the screen
        yaw = math.radians(rng.uniform(-1, 1) * (4 + 48 * reach))
        pitch = math.radians(rng.uniform(-1, 1) * (3 + 29 * reach))
        roll = math.radians(rng.normal() * 3 * reach)
        focal = rng.uniform(1.0, 2.4)
        # At `fit` a straight view of the map just fits into the frame.
        fit = focal * max(aspect / frame, 1.0)
        least = 0.7 - 0.48 * reach
        fill = least + (1.2 - least) * rng.random() ** 1.3
        distance = fit / fill
        half = fill * min(frame / aspect, 1.0) * np.array([aspect, 1.0])
        limit = np.array([frame, 1.0])
        slack = np.maximum(0.0, limit - half) + 0.28 * aside * half
        shift = rng.uniform(-1, 1, 2) * (0.15 + 0.85 * aside) * slack
        if rng.random() < 0.4 * aside:  # across an edge of the picture
            axis, out = int(rng.integers(2)), rng.uniform(0.05, 0.45)
            shift[axis] = rng.choice([-1, 1]) * (limit - half + 2 * out * half)[axis]
        shift *= distance / focal
        turn = _turn(yaw, pitch, roll)
        moved = np.array([*shift, distance])
        lens = np.diag([focal / frame, focal, 1.0])
        return cls(lens @ np.column_stack([turn, moved]), frame)


def _turn(yaw: float, pitch: float, roll: float) -> Matrix:
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    about_y = np.array([(cy, 0, sy), (0, 1, 0), (-sy, 0, cy)])
    about_x = np.array([(1, 0, 0), (0, cp, -sp), (0, sp, cp)])
    about_z = np.array([(cr, -sr, 0), (sr, cr, 0), (0, 0, 1)])
    turn: Matrix = about_z @ about_x @ about_y
    return turn


def project(matrix: Matrix, points: npt.NDArray[np.float32]) -> Matrix:
    """Apply a homography to points (n, 2)."""
    ahead = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    seen: Matrix = ahead[:, :2] / np.maximum(ahead[:, 2:], 1e-6)
    return seen


def pixels_of(width: int, height: int) -> Matrix:
    """From -1..1 both ways to the pixels of a picture, as OpenCV counts them: (3, 3)."""
    return np.array([(width / 2, 0, width / 2 - 0.5), (0, height / 2, height / 2 - 0.5), (0, 0, 1)])
