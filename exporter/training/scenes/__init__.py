"""Pictures of maps as people post them and search with them: NumPy and Pillow only.

A ray caster looks at a wall of maps in a small world of blocks; then come the interface, shaders,
phones and compression. It shares nothing with `exporter.training.views`, which is what the model
learns from: views drawn here measure whether it learnt more than its own generator.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.training import mapart
from exporter.training.scenes.camera import Sight, Stance, place, sight
from exporter.training.scenes.interface import draw_interface, draw_player
from exporter.training.scenes.wear import (
    add_noise,
    cast_shadow,
    grade,
    photograph,
    rescale,
    soften,
)  # fmt: skip
from exporter.training.scenes.world import World, to_image

__all__ = ["SIZE", "Family", "Kind", "Taken", "render_file", "render_view", "take"]

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


class Family(StrEnum):
    """What makes a picture hard; most poor ones belong to several families."""

    TILT = "tilt"
    """At least 25 degrees to the side, or 15 up or down."""

    OUT_OF_FRAME = "out of frame"
    """At least a tenth of the map is outside the picture."""

    SMALL = "small"
    """The map takes less than 0.45 of the picture's width and of its height."""

    DARK = "dark"
    """At night, between a few lamps."""

    SHADER = "shader"
    """Shadows, bloom, haze or a strong change of tone."""

    INTERFACE = "chat, HUD"
    """Chat, hotbar, crosshair or arm over the picture."""

    PLAYER = "player"
    """Somebody stands in the way."""

    BLUR = "blur"
    """Out of focus, or moved."""

    PHOTO = "phone photo"
    """A photo of a screen: moire, glare, raised black."""

    NOISE = "noise"
    """A sensor's grain, without the rest of a photo."""

    RESCALE = "rescaled"
    """Shrunk to between 0.35 and 0.8 of its size."""

    JPEG = "JPEG below 35"
    """Compressed hard."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A picture, and what happened to it.

    Attributes:
        data: The file that would be uploaded.
        suffix: ``".png"`` or ``".jpg"``.
        families: What makes it hard.
        yaw: Degrees to the side of the wall's normal.
        pitch: Degrees below it.
        seen: Fraction of the map inside the picture.
        extent: The larger of the map's extents in the picture, relative to the picture's.
    """

    data: bytes
    suffix: str
    families: frozenset[Family]
    yaw: float
    pitch: float
    seen: float
    extent: float


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
    shadow: float
    photo: float
    blur: float
    noise: float
    rescale: float
    crop: float
    lossless: float
    quality: tuple[int, int]


_RECIPES: Final = {
    Kind.POST: _Recipe(
        Stance(yaw=9, pitch=6, fill=(0.6, 1.0), seen=1.0, aside=0.08),
        neighbours=0.1, interface=0.3, chat=0.1, player=0.0, night=0.05, grade=0.25, shadow=0.03,
        photo=0.0, blur=0.0, noise=0.0, rescale=0.0, crop=0.15, lossless=0.5, quality=(80, 95),
    ),
    Kind.GOOD: _Recipe(
        Stance(yaw=16, pitch=10, fill=(0.6, 1.15), seen=0.85, aside=0.1),
        neighbours=0.1, interface=0.5, chat=0.15, player=0.0, night=0.1, grade=0.45, shadow=0.05,
        photo=0.0, blur=0.05, noise=0.0, rescale=0.1, crop=0.5, lossless=0.2, quality=(70, 92),
    ),
    Kind.POOR: _Recipe(
        Stance(yaw=48, pitch=28, fill=(0.25, 1.15), seen=0.6, aside=0.34),
        neighbours=0.25, interface=0.85, chat=0.45, player=0.1, night=0.3, grade=1.0, shadow=0.25,
        photo=0.3, blur=0.4, noise=0.3, rescale=0.4, crop=0.1, lossless=0.0, quality=(20, 65),
    ),
}  # fmt: skip

# Most people play in this shape; some monitors and some windows have others.
_WINDOWS: Final = (SIZE, (768, 480), (640, 480), (1120, 480))
_WINDOW_SHARES: Final = (0.82, 0.08, 0.05, 0.05)


def render_file(
    map_pixels: npt.NDArray[np.uint8], rng: np.random.Generator, kind: Kind | str = Kind.POST
) -> tuple[bytes, str]:
    """Take a picture of a map: `take` without what happened to it."""
    taken = take(map_pixels, rng, kind)
    return taken.data, taken.suffix


def render_view(
    map_pixels: npt.NDArray[np.uint8], rng: np.random.Generator, kind: Kind | str = Kind.POST
) -> Image.Image:
    """Take a picture of a map: what `render_file` encodes, decoded; RGB."""
    data, _ = render_file(map_pixels, rng, kind)
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def take(
    map_pixels: npt.NDArray[np.uint8],
    rng: np.random.Generator,
    kind: Kind | str = Kind.POST,
    *,
    reduce: int = 1,
) -> Taken:
    """Take a picture of a map, as the file that would be uploaded.

    Args:
        map_pixels: A wall of maps, ``uint8`` RGB of shape (128 * rows, 128 * columns, 3).
        rng: Decides everything random.
        kind: How good the picture is.
        reduce: Draws a smaller picture, faster: the window's size is divided by this.
    """
    recipe = _RECIPES[Kind(kind)]
    window = _WINDOWS[int(rng.choice(len(_WINDOWS), p=_WINDOW_SHARES))]
    size = (window[0] // reduce // 2 * 2, window[1] // reduce // 2 * 2)
    height, width = (side / mapart.MAP_SIDE for side in map_pixels.shape[:2])
    neighbours: list[npt.NDArray[np.uint8]] = []
    stance = recipe.stance
    if rng.random() < recipe.neighbours:
        # Among several maps, the one that is meant is the one that is looked at.
        stance = dataclasses.replace(stance, aside=stance.aside / 3)
        seeds = rng.integers(2**32, 2**33, int(rng.integers(1, 3)))
        neighbours = [mapart.draw_map(int(seed)) for seed in seeds]
    camera = place(rng, (width, height), size, stance)
    found = sight(camera, (width, height), size)
    night = bool(rng.random() < recipe.night)
    world = World(rng, map_pixels, camera, neighbours, night=night)
    image, families = _wear(rng, world.render(camera, size), recipe)
    extent = found.extent
    if rng.random() < recipe.crop:
        image, extent = _crop(rng, image, found), 1.0
    families |= {Family.DARK} if night else set()
    families |= {Family.TILT} if abs(found.yaw) >= 25 or abs(found.pitch) >= 15 else set()
    families |= {Family.OUT_OF_FRAME} if found.seen <= 0.9 else set()
    families |= {Family.SMALL} if extent < 0.45 else set()
    encoded, suffix = io.BytesIO(), ".png"
    if rng.random() < recipe.lossless:
        image.save(encoded, "PNG", compress_level=1)
    else:
        quality, suffix = int(rng.integers(*recipe.quality, endpoint=True)), ".jpg"
        families |= {Family.JPEG} if quality < 35 else set()
        image.save(encoded, "JPEG", quality=quality)
    return Taken(
        encoded.getvalue(), suffix, frozenset(families),
        found.yaw, found.pitch, found.seen, extent,
    )  # fmt: skip


def _crop(rng: np.random.Generator, image: Image.Image, found: Sight) -> Image.Image:
    """Cut a picture down to the map by hand, as people do before they post."""
    left, top, right, bottom = found.box
    wide, tall = right - left, bottom - top
    # Mostly a little too much, sometimes a little too little.
    left, right = left - wide * rng.uniform(-0.04, 0.12), right + wide * rng.uniform(-0.04, 0.12)
    top, bottom = top - tall * rng.uniform(-0.04, 0.12), bottom + tall * rng.uniform(-0.04, 0.12)
    return image.crop(
        (
            round(max(0.0, left) * image.width), round(max(0.0, top) * image.height),
            round(min(1.0, right) * image.width), round(min(1.0, bottom) * image.height),
        )
    )  # fmt: skip


def _wear(
    rng: np.random.Generator, picture: npt.NDArray[np.float32], recipe: _Recipe
) -> tuple[Image.Image, set[Family]]:
    """Put over a picture of the world what the game, a phone and a chat program put there."""
    families: set[Family] = set()
    if rng.random() < recipe.shadow:
        families.add(Family.SHADER)
        picture = cast_shadow(rng, picture)
    graded, strong = grade(rng, picture, recipe.grade)
    if strong:
        families.add(Family.SHADER)
    image = to_image(graded)
    if rng.random() < recipe.player:
        families.add(Family.PLAYER)
        image = draw_player(rng, image)
    if rng.random() < recipe.interface:
        families.add(Family.INTERFACE)
        chat, arm = rng.random() < recipe.chat, rng.random() < 0.5
        image = draw_interface(rng, image, chat=bool(chat), arm=bool(arm))
    if rng.random() < recipe.blur:
        families.add(Family.BLUR)
        image = soften(rng, image)
    if rng.random() < recipe.photo:
        families.add(Family.PHOTO)
        image = photograph(rng, image)
    elif rng.random() < recipe.noise:
        families.add(Family.NOISE)
        image = add_noise(rng, image, rng.uniform(2, 14))
    if rng.random() < recipe.rescale:
        families.add(Family.RESCALE)
        image = rescale(rng, image)
    return image, families
