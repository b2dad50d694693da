"""Per-pixel building blocks: coordinates, noise, colour ramps.

Every function is a pure function of its arguments and of the generator it is handed, so that one
seed always draws one picture. Fields are ``float32`` arrays of shape ``(height, width)``; colours
are ``float32`` RGB in 0..255.
"""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.float32]
"""Scalar per pixel, shape ``(height, width)``."""

Colours = npt.NDArray[np.float32]
"""RGB in 0..255, shape ``(n, 3)``."""

RGB = tuple[int, int, int]


def grid(width: int, height: int) -> tuple[Field, Field]:
    """Return x and y per pixel; the shorter side spans -1..1, the longer one more."""
    shorter = min(width, height)
    xs = (np.arange(width, dtype=np.float32) - (width - 1) / 2) * (2 / shorter)
    ys = (np.arange(height, dtype=np.float32) - (height - 1) / 2) * (2 / shorter)
    x, y = np.meshgrid(xs, ys)
    return x, y


def unit(field: Field) -> Field:
    """Stretch a field to 0..1 (a constant field becomes 0)."""
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-6)).astype(np.float32)


def value_noise(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    cells: float = 3.0,
    octaves: int = 5,
    decay: float = 0.5,
) -> Field:
    """Sum octaves of smoothly interpolated random lattices, stretched to 0..1.

    Args:
        rng: Source of the lattices.
        width: Pixels.
        height: Pixels.
        cells: Lattice cells across the shorter side in the first octave.
        octaves: Number of lattices, each twice as fine as the one before.
        decay: Amplitude of an octave relative to the one before.
    """
    total = np.zeros((height, width), np.float32)
    shorter = min(width, height)
    for octave in range(octaves):
        step = cells * 2**octave
        if step > shorter:
            break
        columns = max(2, round(step * width / shorter) + 1)
        rows = max(2, round(step * height / shorter) + 1)
        lattice = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
        smooth = lattice.resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, np.float32) * np.float32(decay**octave)
    return unit(total)


def line_noise(rng: np.random.Generator, length: int, cells: float, octaves: int = 5) -> Field:
    """Fractal noise along a line, shape ``(length,)`` in 0..1: mountain ridges, hair, coasts."""
    total = np.zeros(length, np.float32)
    xs = np.linspace(0, 1, length, dtype=np.float32)
    for octave in range(octaves):
        knots = max(2, round(cells * 2**octave) + 1)
        heights = rng.random(knots)
        total += np.interp(xs, np.linspace(0, 1, knots), heights).astype(np.float32) * 0.5**octave
    return unit(total)


def random_colour(
    rng: np.random.Generator,
    *,
    saturation: tuple[float, float] = (0.2, 1.0),
    value: tuple[float, float] = (0.15, 1.0),
) -> RGB:
    """One RGB colour, uniform in hue and in the given ranges of saturation and value."""
    red, green, blue = colorsys.hsv_to_rgb(
        rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def palette(rng: np.random.Generator, count: int) -> Colours:
    """Pick ``count`` colours that belong together, or that do not: artists do both.

    Schemes: free, monochrome ramp, analogous hues, complementary hues, greys, pastel.
    """
    scheme = int(rng.integers(6))
    hue = rng.random()
    colours = []
    for index in range(count):
        at = index / max(count - 1, 1)
        if scheme == 0:
            hsv = (rng.random(), rng.uniform(0.1, 1), rng.uniform(0.1, 1))
        elif scheme == 1:
            hsv = (hue, rng.uniform(0.2, 0.9), 0.08 + 0.9 * at)
        elif scheme == 2:
            hsv = ((hue + rng.uniform(-0.12, 0.12)) % 1, rng.uniform(0.3, 1), rng.uniform(0.2, 1))
        elif scheme == 3:
            turn = 0.5 * (index % 2) + rng.uniform(-0.05, 0.05)
            hsv = ((hue + turn) % 1, rng.uniform(0.3, 1), rng.uniform(0.15, 1))
        elif scheme == 4:
            hsv = (hue, rng.uniform(0, 0.12), 0.05 + 0.95 * at)
        else:
            hsv = (rng.random(), rng.uniform(0.1, 0.45), rng.uniform(0.75, 1))
        colours.append(colorsys.hsv_to_rgb(*hsv))
    chosen = np.asarray(colours, np.float32) * 255
    if rng.random() < 0.5:
        rng.shuffle(chosen, axis=0)
    return chosen


def ramp(field: Field, colours: Colours, *, bands: bool = False) -> npt.NDArray[np.uint8]:
    """Colour a 0..1 field.

    Args:
        field: Shape ``(height, width)``, clipped to 0..1.
        colours: Shape ``(n, 3)``, the colours from 0 to 1.
        bands: Flat bands of colour instead of a gradient.

    Returns:
        ``uint8`` of shape ``(height, width, 3)``.
    """
    at = np.clip(field, 0, 1)
    count = len(colours)
    if bands:
        index = np.minimum((at * count).astype(np.intp), count - 1)
        return colours[index].astype(np.uint8)
    stops = np.linspace(0, 1, count)
    channels = [np.interp(at, stops, colours[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def as_rgb(colour: npt.NDArray[np.float32]) -> RGB:
    """Turn one row of a palette into the tuple that Pillow wants."""
    red, green, blue = (int(channel) for channel in colour)
    return red, green, blue


def shade(colour: RGB, factor: float) -> RGB:
    """Scale a colour's brightness, clipped to 0..255."""
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue
