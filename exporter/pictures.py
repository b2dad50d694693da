"""Pictures and texts to verify and calibrate with: drawn here, the same on every machine."""

import io
from collections.abc import Iterator
from typing import Final, Literal

from PIL import Image

from exporter.training import art, mapart

# Sizes as they come: single maps, screenshots, portraits, a picture smaller than the model's input.
_SIZES: Final = ((128, 128), (854, 480), (640, 640), (480, 720), (256, 128), (96, 96), (1024, 576))
_JPEG_QUALITIES: Final = (95, 85, 70)
# Far apart, so that no picture that sets a quantisation range also judges it.
_FIRST_SEED: Final = {"verify": 7_000_000, "calibrate": 8_000_000}

TEXTS: Final = (
    "a map",
    "a photo of a cat",
    "a castle on a hill at sunset, pixel art",
    "an anime girl with blue hair looking over her shoulder",
    "the flag of a country that does not exist: three stripes, one star",
    "Creeper",
    "a 3x2 wall of maps, dithered, in item frames, slightly from below",
    "42",
    "Mona Lisa in sixteen colours",
    "¿dónde está el mapa? — ÜBER, naïve, 地図",
    "spiral galaxy " * 40,
    "!",
)
"""Short, long, longer than any context, and not all in English."""

CALIBRATION_TEXTS: Final = (
    "a drawing of a dog",
    "a wall of four maps in a stone room",
    "portrait of a woman, oil painting",
    "sword",
    "blue and white checkerboard pattern with a thin red border",
    "a dragon over a burning village, fantasy art, dithered",
    "el logotipo de un equipo de fútbol",
    "the words WELCOME TO SPAWN in yellow letters on a dark ground",
    "mandala",
    "a train station at night " * 20,
)
"""Others of the same kinds, to find quantisation ranges with."""


def drawn(purpose: Literal["verify", "calibrate"], count: int) -> Iterator[bytes]:
    """Draws artwork and map art in the formats and sizes that people post.

    Args:
        purpose: The two never share a picture.
        count: How many pictures.

    Yields:
        Encoded pictures, PNG and JPEG in turn.
    """
    first = _FIRST_SEED[purpose]
    for index in range(count):
        size = _SIZES[index % len(_SIZES)]
        pixels = mapart.draw_map(first + index) if index % 3 == 0 else art.draw(first + index, size)
        encoded = io.BytesIO()
        if index % 2:
            quality = _JPEG_QUALITIES[index // 2 % len(_JPEG_QUALITIES)]
            Image.fromarray(pixels).save(encoded, "JPEG", quality=quality)
        else:
            Image.fromarray(pixels).save(encoded, "PNG", compress_level=1)
        yield encoded.getvalue()
