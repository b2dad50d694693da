"""Artwork without limit: seeded procedural pictures, and folders of pictures.

Players put everything on maps: anime, flags, logos, portraits, landscapes, pixel art. No corpus of
that art may be shipped or trained on, so the bundled model learns from pictures drawn here, where
one integer is one picture, for ever. Only NumPy and Pillow are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from exporter.training.art import figures, patterns
from exporter.training.art.fields import random_colour, value_noise
from exporter.training.art.folder import load_picture, picture_paths

Family = Callable[[np.random.Generator, int, int], Image.Image]
"""Draws one RGB picture of the given width and height from a generator."""

FAMILIES: Final[dict[str, Family]] = {
    family.__name__: family
    for family in (
        patterns.gradients, patterns.plasma, patterns.continents, patterns.fractals,
        patterns.tilings, patterns.mandalas, patterns.waves, patterns.starfields,
        patterns.landscapes, patterns.soft_photos, figures.flags, figures.emblems,
        figures.lettering, figures.sprites, figures.anime_faces, figures.portraits,
        figures.creatures, figures.cityscapes, figures.still_lifes, figures.paintings,
        figures.banners, figures.silhouettes, figures.quilts,
    )
}  # fmt: skip
"""Every family of artwork by name."""

__all__ = ["FAMILIES", "Family", "draw", "load_picture", "picture_paths"]


def draw(
    seed: int, size: tuple[int, int] = (128, 128), *, family: str | None = None
) -> npt.NDArray[np.uint8]:
    """Draw the picture with this number.

    Most pictures are one family; some are two joined (a diptych, a mask of noise, a translucent
    overlay) and some get a frame, so that 23 families make far more kinds than that.

    Args:
        seed: The picture's number, 0 or more. The same seed and size give the same bytes.
        size: Width and height in pixels.
        family: A name from `FAMILIES`; drawn at random when absent.

    Returns:
        ``uint8`` of shape ``(height, width, 3)``, RGB.
    """
    rng = np.random.default_rng([seed, 0x6D61_7073])
    width, height = size
    names = list(FAMILIES)
    chosen = family or names[int(rng.integers(len(names)))]
    image = FAMILIES[chosen](rng, width, height)
    if family is None and rng.random() < 0.25:
        other = FAMILIES[names[int(rng.integers(len(names)))]](rng, width, height)
        image = _join(rng, image, other)
    return np.asarray(_finish(rng, image))


def _join(rng: np.random.Generator, first: Image.Image, second: Image.Image) -> Image.Image:
    """Combine two pictures of one size."""
    width, height = first.size
    kind = int(rng.integers(4))
    if kind == 0:
        return Image.blend(first, second, float(rng.uniform(0.25, 0.6)))
    mask = Image.new("L", first.size)
    if kind == 1:
        cut = float(rng.uniform(0.3, 0.7))
        box = (0, 0, round(width * cut), height)
        if rng.random() < 0.5:
            box = (0, 0, width, round(height * cut))
        mask.paste(255, box)
    elif kind == 2:
        noise = value_noise(rng, width, height, cells=2, octaves=4) > rng.uniform(0.4, 0.6)
        mask = Image.fromarray((noise * 255).astype(np.uint8))
    else:
        inset_x, inset_y = (round(side * rng.uniform(0.1, 0.3)) for side in first.size)
        mask.paste(255, (inset_x, inset_y, width - inset_x, height - inset_y))
    return Image.composite(second, first, mask)


def _finish(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Vary tone, turn a few pictures grey or negative, and frame a few."""
    image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.7, 1.35)))
    image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.75, 1.2)))
    roll = rng.random()
    if roll < 0.05:
        image = ImageOps.grayscale(image).convert("RGB")
    elif roll < 0.08:
        image = ImageOps.invert(image)
    elif roll < 0.11:
        image = ImageOps.posterize(image, int(rng.integers(1, 4)))
    if rng.random() < 0.1:
        border = max(1, round(min(image.size) * rng.uniform(0.02, 0.08)))
        inner = image.resize((image.width - 2 * border, image.height - 2 * border))
        image = ImageOps.expand(inner, border, fill=random_colour(rng, saturation=(0, 1)))
    return image
