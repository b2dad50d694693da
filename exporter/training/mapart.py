"""Pictures as Minecraft maps: the game's palette, staircases, dithering, walls of several maps.

A map is 128 x 128 pixels. Each pixel has one of 61 base colours, darkened by how the block's height
compares with its northern neighbour's: 180, 220 or 255 of 255 (135 exists but cannot be built). A
flat map has one shade, a staircased one three; a map of carpets has the 16 dyes only. Generators
such as MapArtCraft quantise a picture to those colours, with or without dithering (R. W. Floyd and
L. Steinberg, "An adaptive algorithm for spatial greyscale", 1976; B. E. Bayer, "An optimum method
for two-level rendition of continuous-tone pictures", 1973). Needs NumPy and Pillow only.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.training import art
from inference.renders import BASE_COLOURS

MAP_SIDE: Final = 128
"""Pixels along one map, and along one block of a wall of maps."""

WALL_SHAPES: Final[tuple[tuple[int, int], ...]] = (
    (1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (3, 1),
)  # fmt: skip
"""Common walls as (columns, rows), the commonest first."""

# White wool is "snow" (id 8) and the other fifteen dyes are ids 15 to 29.
_DYES: Final = np.concatenate([BASE_COLOURS[7:8], BASE_COLOURS[14:29]])


class Blocks(StrEnum):
    """What a map is built of, which decides its colours."""

    STAIRCASE = "staircase"
    FLAT = "flat"
    CARPET = "carpet"


class Dither(StrEnum):
    """How the colours between the palette's are shown."""

    NONE = "none"
    ORDERED = "ordered"
    FLOYD_STEINBERG = "floyd-steinberg"


@cache
def palette(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Return the colours that a kind of map can show, ``uint8`` of shape (n, 3), read-only."""
    shades = (180, 220, 255) if blocks is Blocks.STAIRCASE else (220,)
    base = _DYES if blocks is Blocks.CARPET else BASE_COLOURS
    # The game multiplies and divides integers, so this rounds down as it does.
    colours = np.concatenate([base.astype(np.uint16) * level // 255 for level in shades])
    distinct = np.unique(colours, axis=0).astype(np.uint8)
    distinct.setflags(write=False)
    return distinct


@cache
def _pillow_palette(blocks: Blocks) -> Image.Image:
    """Hold a palette in the form that Pillow's quantiser takes; it pads with the last colour."""
    colours = palette(blocks)
    padded = np.concatenate([colours, np.repeat(colours[-1:], 256 - len(colours), axis=0)])
    image = Image.new("P", (1, 1))
    image.putpalette(padded.tobytes())
    return image


@cache
def _bayer(side: int) -> npt.NDArray[np.float32]:
    """Bayer's threshold matrix, -0.5..0.5, shape (side, side); the side is a power of two."""
    matrix = np.zeros((1, 1), np.float32)
    while len(matrix) < side:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return ((matrix + 0.5) / matrix.size - 0.5).astype(np.float32)


def quantise(
    picture: npt.NDArray[np.uint8],
    blocks: Blocks = Blocks.STAIRCASE,
    dither: Dither = Dither.FLOYD_STEINBERG,
) -> npt.NDArray[np.uint8]:
    """Reduce a picture to the colours of a map.

    Pillow does it in C, thirty times faster than NumPy could diffuse errors. It looks colours up in
    steps of four levels, so a tie between two near colours may go either way.

    Args:
        picture: ``uint8`` RGB of shape (height, width, 3).
        blocks: Which colours there are.
        dither: How the error is spread.

    Returns:
        ``uint8`` RGB of the same shape, every pixel in ``palette(blocks)``.
    """
    if dither is Dither.ORDERED:
        # The spread is about the distance between neighbouring colours of the palette.
        spread = 255 / len(palette(blocks)) ** (1 / 3)
        height, width = picture.shape[:2]
        pattern = np.tile(_bayer(8), (-(-height // 8), -(-width // 8)))[:height, :width, None]
        picture = np.clip(picture + pattern * spread, 0, 255).astype(np.uint8)
    method = Image.Dither.NONE
    if dither is Dither.FLOYD_STEINBERG:
        method = Image.Dither.FLOYDSTEINBERG
    indexed = Image.fromarray(picture).quantize(palette=_pillow_palette(blocks), dither=method)
    return np.asarray(indexed.convert("RGB"))


def random_style(rng: np.random.Generator) -> tuple[Blocks, Dither]:
    """Pick how a map is built, about as often as players build so."""
    blocks = rng.choice(list(Blocks), p=[0.55, 0.3, 0.15])
    dither = rng.choice(list(Dither), p=[0.3, 0.15, 0.55])
    return Blocks(blocks), Dither(dither)


def random_shape(rng: np.random.Generator) -> tuple[int, int]:
    """Pick a wall's (columns, rows); half of all walls are one map."""
    index = rng.choice(len(WALL_SHAPES), p=[0.5, 0.12, 0.1, 0.14, 0.06, 0.04, 0.04])
    return WALL_SHAPES[int(index)]


def draw_map(seed: int, shape: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Draw the map with this number: procedural art of that seed, quantised in a random style.

    Args:
        seed: The picture's number, as for `art.draw`.
        shape: (columns, rows) of the wall; drawn at random when absent.

    Returns:
        ``uint8`` RGB of shape (128 * rows, 128 * columns, 3), map colours only.
    """
    rng = np.random.default_rng([seed, 0x6D61_7061])
    columns, rows = shape or random_shape(rng)
    picture = art.draw(seed, (columns * MAP_SIDE, rows * MAP_SIDE))
    return quantise(picture, *random_style(rng))
