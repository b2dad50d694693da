"""Where the camera stands: homographies between the wall, the frame and pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_FRAMES = (16 / 9, 16 / 9, 16 / 9, 16 / 9, 4 / 3, 1.0, 9 / 16, 2.1)
"""Width over height of pictures as people post them, the common ones more than once."""


@dataclass(frozen=True, slots=True)
class Camera:
    """How a wall is seen.

    The wall is the plane z = 0; its map spans -aspect..aspect by -1..1. The frame spans -1..1 both
    ways whatever its shape is.
    """

    to_frame: Matrix
    """Homography from the wall to the frame, (3, 3)."""

    frame: float
    """Width over height of the frame."""

    @classmethod
    def place(cls, rng: np.random.Generator, aspect: float, hardness: float) -> Self:
        """Stand somewhere before the wall."""
        frame = float(rng.choice(_FRAMES)) * rng.uniform(0.93, 1.07)
        if rng.random() < 0.1:
            frame = aspect * rng.uniform(0.8, 1.25)  # a cut-out of the screen
        yaw = math.radians(rng.uniform(-1, 1) * (4 + 48 * hardness))
        pitch = math.radians(rng.uniform(-1, 1) * (3 + 29 * hardness))
        roll = math.radians(rng.normal() * 3 * hardness)
        focal = rng.uniform(1.0, 2.4)
        # At `fit` a straight view of the map just fits into the frame.
        fit = focal * max(aspect / frame, 1.0)
        fill = rng.uniform(0.7 - 0.45 * hardness, 1.2)
        distance = fit / fill
        share = fill * min(frame / aspect, 1.0)
        reach = rng.uniform(-1, 1, 2) * (0.15 + 0.85 * hardness)
        slack = np.maximum(0.0, (frame - aspect * share, 1 - share)) + 0.28 * hardness * share
        shift = reach * slack * distance / focal
        turn = _turn(yaw, pitch, roll)
        # Points of the wall have z = 0, so the third column of the rotation drops out.
        place = np.stack([turn[:, 0], turn[:, 1], np.array([*shift, distance])], 1)
        return cls(np.diag([focal / frame, focal, 1.0]) @ place, frame)


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
