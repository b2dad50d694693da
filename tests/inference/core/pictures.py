"""Real pictures, encoded by Pillow."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from inference.artifact import Preprocessing
from inference.preprocess import Preprocessor

SIDE = 32


def preprocessing(
    resize: str = "crop", interpolation: str = "bicubic", side: int = SIDE
) -> Preprocessing:
    return Preprocessing.model_validate(
        {"image_size": side, "resize": resize, "interpolation": interpolation}
    )


def preprocessor(
    how: Preprocessing | None = None,
    *,
    max_image_bytes: int = 1_000_000,
    max_image_pixels: int = 4_000_000,
) -> Preprocessor:
    return Preprocessor(
        how or preprocessing(), max_image_bytes=max_image_bytes, max_image_pixels=max_image_pixels
    )


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture with no symmetry, so that no turn, flip or wrong crop goes unnoticed."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = 128 + 100 * np.sin(12 * x + 7 * y)
    pixels = np.stack([255 * x, 255 * y, waves], axis=-1).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray((waves * 256).astype(np.uint16))
    if mode in ("LA", "RGBA"):
        picture = picture.convert("L" if mode == "LA" else "RGB")
        picture.putalpha(Image.fromarray((255 * (1 - x)).astype(np.uint8)))
        return picture
    return picture.quantize(64) if mode == "P" else picture.convert(mode)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
