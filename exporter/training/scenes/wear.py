"""What happens to a picture after it was taken: light, lenses, phones, rescaling."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from exporter.training.scenes.camera import Array


def cast_shadow(rng: np.random.Generator, picture: Array) -> Array:
    """The sharp shadow of something outside the picture, as shaders draw it in sunlight."""
    height, width = picture.shape[:2]
    y, x = np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    turn = rng.uniform(0, 2 * math.pi)
    along = (x - rng.uniform(0.25, 0.75)) * math.cos(turn) + (y - 0.5) * math.sin(turn)
    lit = along > 0
    if rng.random() < 0.4:
        # A bar's or a trunk's: two parallel edges.
        lit = np.abs(along) > rng.uniform(0.05, 0.2)
    shade = np.array([0.5, 0.55, 0.68], np.float32) * np.float32(rng.uniform(0.6, 1.3))
    sun = np.array([1.1, 1.04, 0.92], np.float32)
    shadowed: Array = picture * np.where(lit[..., None], sun, shade)
    return shadowed


def grade(rng: np.random.Generator, picture: Array, strength: float) -> tuple[Array, bool]:
    """Colour as shaders and settings have it: gamma, cast, saturation, haze, bloom.

    Args:
        rng: Source of chance.
        picture: ``float32`` (height, width, 3) in 0..255.
        strength: 0 (untouched) to 1.

    Returns:
        The picture, and whether the change is a strong one.
    """
    gamma = math.exp(rng.normal(0, 0.25) * strength)
    cast = np.exp(rng.normal(0, 0.14, 3) * strength).astype(np.float32)
    strong = bool(abs(math.log(gamma)) > 0.3 or float(np.abs(np.log(cast)).max()) > 0.25)
    graded = 255 * np.clip(picture / 255, 0, 1) ** np.float32(gamma) * cast
    grey = graded.mean(-1, keepdims=True)
    graded = grey + (graded - grey) * np.float32(1 + rng.uniform(-0.45, 0.4) * strength)
    if rng.random() < 0.35 * strength:
        haze = rng.uniform(90, 230, 3).astype(np.float32)
        mix = np.float32(rng.uniform(0.1, 0.35) * strength)
        graded = graded * (1 - mix) + haze * mix
        strong = strong or bool(mix > 0.15)
    if rng.random() < 0.4 * strength:
        strong = True
        image = Image.fromarray(np.clip(graded, 0, 255).astype(np.uint8))
        glow = image.reduce(4).filter(ImageFilter.GaussianBlur(6)).resize(image.size)
        graded = graded + np.asarray(glow, np.float32) * np.float32(rng.uniform(0.1, 0.4))
    if rng.random() < 0.4 * strength:
        height, width = picture.shape[:2]
        y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        graded = graded * (1 - rng.uniform(0.1, 0.5) * (x * x + y * y) / 2)[..., None]
    clipped: Array = np.clip(graded, 0, 255).astype(np.float32)
    return clipped, strong


def photograph(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """A phone's photo of a monitor: tilt, moire, glare, raised black, blur and grain."""
    width, height = image.size
    tilted = _tilt(rng, image)
    pixels = np.asarray(tilted, np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turn = rng.uniform(0, math.pi)
    # The beat between the screen's grid and the sensor's: slow, bent stripes, a little coloured.
    along = x * math.cos(turn) + y * math.sin(turn) + 14 * np.sin((x * 0.7 - y) / 90)
    period = rng.uniform(4, 26)
    phases = rng.uniform(0, 1.5, 3).astype(np.float32)
    stripes = np.sin(2 * math.pi * along[..., None] / period + phases)
    pixels = pixels * (1 + np.float32(rng.uniform(0.02, 0.12)) * stripes)
    if rng.random() < 0.6:
        at_x, at_y = rng.uniform(0, width), rng.uniform(0, height)
        spread = rng.uniform(0.08, 0.3) * width
        glare = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * spread**2))
        pixels = pixels + glare[..., None] * np.float32(rng.uniform(40, 170))
    black = rng.uniform(0, 40)
    pixels = black + pixels * (1 - black / 255) * np.float32(rng.uniform(0.75, 1.05))
    pixels = pixels * np.array([1.0, 1.0, rng.uniform(0.85, 1.15)], np.float32)
    photo = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    photo = photo.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.6))))
    return add_noise(rng, photo, rng.uniform(3, 12))


def _tilt(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Turn the screen a little in perspective; what lies beyond it is a dark room."""
    width, height = image.size
    wander = rng.normal(0, 0.03, (4, 2)).clip(-0.07, 0.07) + rng.uniform(-0.02, 0.03)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
    source = (corners + wander) * (width, height)
    target = corners * (width, height)
    rows = []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    solved = np.linalg.solve(np.array(rows), source.reshape(-1))
    room = tuple(int(tone) for tone in rng.integers(0, 60, 3))
    return image.transform(
        image.size, Image.Transform.PERSPECTIVE, solved.tolist(), Image.Resampling.BILINEAR,
        fillcolor=room,
    )  # fmt: skip


def add_noise(rng: np.random.Generator, image: Image.Image, deviation: float) -> Image.Image:
    """Add a sensor's grain, of this standard deviation in 0..255."""
    pixels = np.asarray(image, np.float32)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(deviation)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def soften(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Blur: out of focus, or moving to the side."""
    if rng.random() < 0.5:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.6))))
    length = int(rng.integers(3, 12))
    pixels = np.asarray(image, np.float32)
    axis = int(rng.integers(2))
    # A box along one axis, from the difference of running sums.
    pad = [(0, 0)] * 3
    pad[axis] = (length, 0)
    sums = np.cumsum(np.pad(pixels, pad, mode="edge"), axis=axis, dtype=np.float64)
    ahead = np.take(sums, range(length, sums.shape[axis]), axis=axis)
    behind = np.take(sums, range(sums.shape[axis] - length), axis=axis)
    return Image.fromarray(((ahead - behind) / length).clip(0, 255).astype(np.uint8))


def rescale(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Lose detail the way chat programs do: shrink, and sometimes enlarge again."""
    factor = float(rng.uniform(0.35, 0.8))
    size = (round(image.width * factor), round(image.height * factor))
    small = image.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        return small
    return small.resize(image.size, Image.Resampling.BILINEAR)
