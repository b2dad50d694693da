"""Pictures from a folder, for art that someone may lawfully train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})


def picture_paths(folder: Path) -> list[Path]:
    """List the pictures below a folder, sorted so that every machine sees one order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def load_picture(
    path: Path, size: tuple[int, int], ground: tuple[int, int, int] = (255, 255, 255)
) -> npt.NDArray[np.uint8]:
    """Read a picture, put transparency over a ground, and crop it to fill a size.

    Args:
        path: Any format that Pillow reads.
        size: Width and height in pixels.
        ground: RGB behind transparent pixels.

    Returns:
        ``uint8`` of shape ``(height, width, 3)``, RGB.

    Raises:
        OSError: The file is not a readable picture.
    """
    with Image.open(path) as opened:
        # Clip art can be thousands of pixels wide; shrink before the costly conversions.
        opened.draft("RGB", size)
        picture = opened.convert("RGBA")
    picture.thumbnail((size[0] * 4, size[1] * 4), reducing_gap=2.0)
    flat = Image.new("RGBA", picture.size, (*ground, 255))
    flat.alpha_composite(picture)
    fitted = ImageOps.fit(flat.convert("RGB"), size, Image.Resampling.LANCZOS)
    return np.asarray(fitted)
