"""Light, lenses and the internet: what a picture suffers on its way."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from exporter.training.views.camera import Matrix, pixels_of
from exporter.training.views.wall import Pixels

_LEVELS = np.arange(256) / 255
_GROUNDS = ((255, 255, 255), (0, 0, 0), (49, 51, 56), (198, 198, 198), (30, 30, 30))
"""Paper, black, Discord's dark grey, the game's menus, editors."""


def plain_ground(rng: np.random.Generator) -> tuple[int, int, int]:
    """The colour of a plain surrounding."""
    if rng.random() < 0.6:
        return _GROUNDS[int(rng.integers(len(_GROUNDS)))]
    red, green, blue = (int(level) for level in rng.integers(0, 256, 3))
    return red, green, blue


def light(rng: np.random.Generator, picture: Pixels, hardness: float) -> Pixels:
    """Night, shaders, torches: exposure, colour cast, contrast, saturation, gradients."""
    exposure = math.exp(rng.normal() * 0.22 * hardness)
    if rng.random() < 0.05 + 0.35 * hardness:
        exposure *= math.exp(-rng.uniform(0.2, 1.7) * hardness)
    cast = np.exp(rng.normal(size=3) * 0.2 * hardness)
    gamma = math.exp(rng.normal() * 0.22 * hardness)
    contrast = 1 + rng.uniform(-0.45, 0.3) * hardness
    curve = (_LEVELS[:, None] ** gamma - 0.5) * contrast + 0.5
    table = np.clip(curve * exposure * cast * 255, 0, 255).astype(np.uint8)
    picture = cv2.LUT(picture, table[None])
    if rng.random() < 0.5 * hardness:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
        mixed = grey + (picture - grey) * (1 + rng.uniform(-0.95, 0.5))
        picture = np.clip(mixed, 0, 255).astype(np.uint8)
    if rng.random() < 0.55 * hardness:
        picture = _falloff(rng, picture, hardness)
    if rng.random() < 0.4 * hardness:
        picture = _shadow(rng, picture, hardness)
    if rng.random() < 0.15 * hardness:  # a shader's bloom
        glow = cv2.GaussianBlur(picture, (0, 0), rng.uniform(4, 12))
        picture = cv2.addWeighted(picture, 1.0, glow, rng.uniform(0.1, 0.5), 0)
    if rng.random() < 0.3 * hardness:  # and its haze
        share = rng.uniform(0.05, 0.6) * hardness
        haze = rng.uniform(60, 255, 3) * share
        picture = np.clip(picture * (1 - share) + haze, 0, 255).astype(np.uint8)
    return picture


def _falloff(rng: np.random.Generator, picture: Pixels, hardness: float) -> Pixels:
    """A slope across the picture, a lamp, or dark corners: drawn small, enlarged."""
    at = np.linspace(-1, 1, 24, dtype=np.float32)
    x, y = at[None, :], at[:, None]
    kind = rng.random()
    if kind < 0.4:
        turn = rng.uniform(0, 2 * math.pi)
        shade = 1 + rng.uniform(0.1, 0.6) * hardness * (x * math.cos(turn) + y * math.sin(turn))
    else:
        lamp_x, lamp_y = rng.uniform(-1, 1, 2) if kind < 0.8 else (0.0, 0.0)
        near = np.exp(-((x - lamp_x) ** 2 + (y - lamp_y) ** 2) / rng.uniform(0.3, 2.5))
        shade = 1 - rng.uniform(0.2, 0.85) * hardness * (1 - near)
    size = (picture.shape[1], picture.shape[0])
    wide = cv2.resize(shade.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    shaded: Pixels = np.clip(picture * wide[..., None], 0, 255).astype(np.uint8)
    return shaded


def _shadow(rng: np.random.Generator, picture: Pixels, hardness: float) -> Pixels:
    """The shadow of a roof or, with two edges, of a beam across the picture; bluish at times."""
    height, width = picture.shape[:2]
    turn = rng.uniform(0, 2 * math.pi)
    through = rng.uniform(0.15, 0.85, 2) * (width, height)
    along = np.array([math.cos(turn), math.sin(turn)]) * (width + height)
    side = np.array([-along[1], along[0]]) * (rng.uniform(0.03, 0.3) if rng.random() < 0.4 else 1)
    corners = np.stack([through - along, through + along, through + along + side,
                        through - along + side])  # fmt: skip
    level = 255 * (1 - rng.uniform(0.2, 0.75) * hardness)
    shade = np.full((height, width), 255, np.uint8)
    cv2.fillConvexPoly(shade, corners.astype(np.int32), level)
    shade = cv2.GaussianBlur(shade, (0, 0), math.exp(rng.uniform(-1.5, 1.4)))
    taken = 1 + rng.uniform(0, 0.15) * np.array([1, 0.5, 0])  # of red more than of blue
    left = np.maximum(0.05, 1 - (1 - _LEVELS)[:, None] * taken) * 255
    shades = cv2.LUT(cv2.merge([shade] * 3), left[None].astype(np.uint8))
    shaded: Pixels = cv2.multiply(picture, shades, scale=1 / 255)
    return shaded


def photograph(rng: np.random.Generator, picture: Pixels, hardness: float) -> tuple[Pixels, Matrix]:
    """A phone's photo of the screen: tilted, with its surroundings, moire, glare and grain.

    Returns:
        The photo, and the homography from the screen's -1..1 to the photo's.
    """
    height, width = picture.shape[:2]
    zoom = rng.uniform(0.75, 1.25)
    tilt = rng.uniform(-1, 1, (4, 2)) * 0.16 * hardness
    screen_corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    seen = (screen_corners * zoom + tilt + rng.uniform(-0.12, 0.12, 2)).astype(np.float32)
    onto = cv2.getPerspectiveTransform(screen_corners.astype(np.float32), seen).astype(np.float64)
    frame = pixels_of(width, height)
    matrix = frame @ onto @ np.linalg.inv(frame)
    bezel = max(2, round(height * rng.uniform(0.01, 0.06)))
    framed = cv2.copyMakeBorder(
        picture, bezel, bezel, bezel, bezel, cv2.BORDER_CONSTANT, value=(14, 14, 15)
    )
    photo = cv2.warpPerspective(
        framed, matrix @ np.array([(1, 0, -bezel), (0, 1, -bezel), (0, 0, 1.0)]), (width, height),
        flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(int(level) for level in rng.integers(10, 200, 3)),
    ).astype(np.float32)  # fmt: skip
    if rng.random() < 0.7:
        photo *= _moire(rng, width, height)
    if rng.random() < 0.6:
        at = np.linspace(-1, 1, 24, dtype=np.float32)
        x, y = rng.uniform(-1, 1, 2)
        spot = np.exp(-((at[None] - x) ** 2 + (at[:, None] - y) ** 2) / rng.uniform(0.02, 0.4))
        glare = cv2.resize(spot, (width, height)) * rng.uniform(20, 170)
        photo += glare[..., None]
    lift = rng.uniform(0, 0.3)
    photo = photo * (1 - lift) + 128 * lift
    return np.clip(photo, 0, 255).astype(np.uint8), onto


def _moire(rng: np.random.Generator, width: int, height: int) -> npt.NDArray[np.float32]:
    """Interference of two grids: waves of each colour, bent a little."""
    wave_x, wave_y = rng.uniform(-90, 90, 2) * rng.choice([0.3, 1.0])
    phase, depth = rng.uniform(0, 2 * math.pi, 3), rng.uniform(0.02, 0.14)
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    across = np.exp(1j * x * wave_x).astype(np.complex64)
    down = np.exp(1j * (y * wave_y + rng.uniform(0, 6) * y * y)).astype(np.complex64)
    wave = np.outer(down, across)
    turned = [wave.real * math.sin(at) + wave.imag * math.cos(at) for at in phase]
    return 1 + depth * np.stack(turned, -1).astype(np.float32)


def transmit(rng: np.random.Generator, picture: Pixels, side: int, hardness: float) -> Pixels:
    """Blur, rescaling, noise and compression, then the squash to the model's square."""
    if rng.random() < 0.1 + 0.45 * hardness:
        sigma = rng.uniform(0.3, 2.6) * hardness + 0.05
        stretch = rng.uniform(0.2, 1, 2) if rng.random() < 0.4 else (1.0, 1.0)
        picture = cv2.GaussianBlur(
            picture, (0, 0), sigma * stretch[0] + 0.05, sigmaY=sigma * stretch[1] + 0.05
        )
    height, width = picture.shape[:2]
    if rng.random() < 0.4 * hardness:
        share = rng.uniform(0.35, 0.9)
        size = (round(width * share), round(height * share))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.4 * hardness:
        grain = rng.standard_normal(picture.shape, np.float32) * (rng.uniform(2, 22) * hardness)
        picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
    if rng.random() < 0.4 + 0.55 * hardness:
        worst = round(90 - 72 * hardness)
        picture = jpeg(picture, int(rng.integers(worst, 96)))
    return squash(rng, picture, side)


def squash(rng: np.random.Generator, picture: Pixels, side: int) -> Pixels:
    """Resize to the model's square, in one of the ways that decoders do it.

    The server may shrink a JPEG while decoding it, then by whole steps, then by a filter; other
    clients have filters of their own. No embedding should depend on which it was.
    """
    height, width = picture.shape[:2]
    if min(height, width) < side:
        square: Pixels = cv2.resize(picture, (side, side), interpolation=_enlarging(rng))
        return square
    steps = min(height, width) // side
    if steps >= 2 and rng.random() < 0.5:
        share = int(rng.integers(2, steps + 1))
        size = (width // share, height // share)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.4:
        shrunk: Pixels = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        return shrunk
    # As a filter with support would: blur to the new scale, then sample.
    scale = np.array([width, height]) / side
    sigma = np.maximum(0.05, (scale - 1) * rng.uniform(0.2, 0.5))
    blurred = cv2.GaussianBlur(picture, (0, 0), sigma[0], sigmaY=sigma[1])
    sampled: Pixels = cv2.resize(blurred, (side, side), interpolation=_enlarging(rng))
    return sampled


def _enlarging(rng: np.random.Generator) -> int:
    kinds: tuple[int, ...] = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
    return kinds[int(rng.integers(len(kinds)))]


def jpeg(picture: Pixels, quality: int) -> Pixels:
    """Compress and decompress."""
    # OpenCV counts blue first, and JPEG treats red and blue differently.
    swapped = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Pixels = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return decoded
