"""Pictures of maps as people post them and search with them: NumPy and Pillow only.

A ray caster looks at a wall of maps in a small world of blocks; then come the interface, shaders,
phones and compression. It shares nothing with `exporter.training.views`, which is what the model
learns from: views drawn here measure whether it learnt more than its own generator.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.training import mapart
from exporter.training.scenes.camera import Stance, place
from exporter.training.scenes.interface import draw_interface, draw_player
from exporter.training.scenes.wear import add_noise, grade, photograph, rescale, soften
from exporter.training.scenes.world import World, to_image

__all__ = ["SIZE", "Kind", "render_file", "render_view"]

SIZE: Final = (854, 480)
"""The game's default window."""


class Kind(StrEnum):
    """How good a picture is."""

    POST = "post"
    """A mild, nearly straight screenshot, as people post a map."""

    GOOD = "good"
    """A close-up or straight screenshot, with some of the interface, compressed a little."""

    POOR = "poor"
    """Far, at an angle, dark, covered, photographed from a screen, compressed hard."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """The probabilities and strengths behind a kind."""

    stance: Stance
    neighbours: float
    interface: float
    chat: float
    player: float
    night: float
    grade: float
    photo: float
    blur: float
    noise: float
    rescale: float
    lossless: float
    quality: tuple[int, int]


_RECIPES: Final = {
    Kind.POST: _Recipe(
        Stance(yaw=9, pitch=6, fill=(0.6, 1.0), seen=1.0, aside=0.08),
        neighbours=0.1, interface=0.3, chat=0.1, player=0.0, night=0.05, grade=0.25, photo=0.0,
        blur=0.0, noise=0.0, rescale=0.0, lossless=0.5, quality=(80, 95),
    ),
    Kind.GOOD: _Recipe(
        Stance(yaw=16, pitch=10, fill=(0.6, 1.15), seen=0.85, aside=0.1),
        neighbours=0.1, interface=0.5, chat=0.15, player=0.0, night=0.1, grade=0.45, photo=0.0,
        blur=0.05, noise=0.0, rescale=0.1, lossless=0.2, quality=(70, 92),
    ),
    Kind.POOR: _Recipe(
        Stance(yaw=48, pitch=28, fill=(0.3, 1.0), seen=0.65, aside=0.32),
        neighbours=0.3, interface=0.85, chat=0.45, player=0.3, night=0.3, grade=1.0, photo=0.3,
        blur=0.4, noise=0.3, rescale=0.4, lossless=0.0, quality=(20, 65),
    ),
}  # fmt: skip


def render_file(
    map_pixels: npt.NDArray[np.uint8], rng: np.random.Generator, kind: Kind | str = Kind.POST
) -> tuple[bytes, str]:
    """Take a picture of a map, as the file that would be uploaded.

    Args:
        map_pixels: A wall of maps, ``uint8`` RGB of shape (128 * rows, 128 * columns, 3).
        rng: Decides everything random.
        kind: How good the picture is.

    Returns:
        The encoded bytes, and ``".png"`` or ``".jpg"``.
    """
    recipe = _RECIPES[Kind(kind)]
    image = _take(map_pixels, rng, recipe)
    encoded = io.BytesIO()
    if rng.random() < recipe.lossless:
        image.save(encoded, "PNG", compress_level=1)
        return encoded.getvalue(), ".png"
    image.save(encoded, "JPEG", quality=int(rng.integers(*recipe.quality, endpoint=True)))
    return encoded.getvalue(), ".jpg"


def render_view(
    map_pixels: npt.NDArray[np.uint8], rng: np.random.Generator, kind: Kind | str = Kind.POST
) -> Image.Image:
    """Take a picture of a map: what `render_file` encodes, decoded; RGB, 854 x 480 or smaller."""
    data, _ = render_file(map_pixels, rng, kind)
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _take(
    map_pixels: npt.NDArray[np.uint8], rng: np.random.Generator, recipe: _Recipe
) -> Image.Image:
    """Stand, look, and let the picture wear."""
    height, width = (side / mapart.MAP_SIDE for side in map_pixels.shape[:2])
    neighbours: list[npt.NDArray[np.uint8]] = []
    if rng.random() < recipe.neighbours:
        seeds = rng.integers(2**32, 2**33, int(rng.integers(1, 3)))
        neighbours = [mapart.draw_map(int(seed)) for seed in seeds]
    camera = place(rng, (width, height), SIZE, recipe.stance)
    night = bool(rng.random() < recipe.night)
    world = World(rng, map_pixels, camera, neighbours, night=night)
    image = to_image(grade(rng, world.render(camera, SIZE), recipe.grade))
    if rng.random() < recipe.player:
        image = draw_player(rng, image)
    if rng.random() < recipe.interface:
        chat, arm = rng.random() < recipe.chat, rng.random() < 0.5
        image = draw_interface(rng, image, chat=bool(chat), arm=bool(arm))
    if rng.random() < recipe.blur:
        image = soften(rng, image)
    if rng.random() < recipe.photo:
        image = photograph(rng, image)
    elif rng.random() < recipe.noise:
        image = add_noise(rng, image, rng.uniform(2, 14))
    if rng.random() < recipe.rescale:
        image = rescale(rng, image)
    return image
