"""The game's interface on top of a picture: hotbar, bars, chat, crosshair, the player's arm."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

_HOTBAR: Final = (182, 22)
_SLOT: Final = 20
_WORDS: Final = (
    "where is this from",
    "who made the map",
    "lol",
    "trading 2 stacks of glass",
    "anyone at spawn?",
    "gg",
    "joined the game",
    "left the game",
    "nice build",
    "brb",
    "selling map copies",
    "tpa pls",
    "has made the advancement [Hot Stuff]",
    "drowned",
    "is this 1x1 or 2x2",
    "afk",
    "hi",
    "wow",
)
_NAMES: Final = (
    "Pixelle",
    "mapfan42",
    "Dirtbag",
    "xo_kelp",
    "CarpetLord",
    "Nori",
    "stairway",
    "Ume",
)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface, the only one that is surely there."""
    return ImageFont.load_default(size=size)


def draw_interface(
    rng: np.random.Generator, picture: Image.Image, *, chat: bool, arm: bool
) -> Image.Image:
    """Put the interface over a picture.

    Args:
        rng: Source of chance.
        picture: RGB.
        chat: Whether lines of chat are shown.
        arm: Whether the player's arm is in the picture.

    Returns:
        A new picture of the same size.
    """
    # The game scales its interface by whole pixels of a screen that is larger than the picture.
    scale = picture.height / 480 * float(rng.choice([1.33, 1.78, 2.0]))
    if arm:
        picture = _arm(rng, picture)
    layer = Image.new("RGBA", (round(picture.width / scale), round(picture.height / scale)))
    _bars(rng, layer)
    if chat:
        _chat(rng, layer)
    over = layer.resize(picture.size, Image.Resampling.BILINEAR)
    result = picture.copy()
    result.paste(over, (0, 0), over)
    return _crosshair(result, scale)


def _bars(rng: np.random.Generator, layer: Image.Image) -> None:
    """Hotbar with items, hearts, hunger and experience, in pixels of the interface."""
    draw = ImageDraw.Draw(layer)
    left, top = (layer.width - _HOTBAR[0]) // 2, layer.height - _HOTBAR[1]
    draw.rectangle((left, top, left + _HOTBAR[0], layer.height), fill=(40, 40, 40, 150))
    for slot in range(9):
        x = left + 1 + slot * _SLOT
        draw.rectangle((x, top + 1, x + _SLOT - 1, top + _SLOT), outline=(130, 130, 130, 200))
        if rng.random() < 0.75:
            layer.paste(_item(rng), (x + 2, top + 3))
    held = left + int(rng.integers(9)) * _SLOT
    draw.rectangle(
        (held - 1, top - 1, held + _SLOT + 2, top + _HOTBAR[1]),
        outline=(235, 235, 235, 255),
        width=2,
    )
    if rng.random() < 0.35:
        # Creative mode has no bars.
        return
    draw.rectangle((left, top - 7, left + _HOTBAR[0], top - 3), fill=(30, 40, 25, 220))
    experience = left + int(rng.uniform(0, _HOTBAR[0]))
    draw.rectangle((left, top - 6, experience, top - 4), fill=(128, 220, 50, 255))
    level = str(int(rng.integers(1, 60)))
    draw.text((layer.width / 2, top - 9), level, (128, 255, 32, 255), _font(9), anchor="mm")
    for index in range(10):
        x = left + index * 8
        draw.polygon([(x, top - 15), (x + 8, top - 15), (x + 4, top - 9)], fill=(205, 25, 25, 255))
        draw.rectangle(
            (x + 1, top - 17, x + 7, top - 14), fill=(205, 25, 25, 255), outline=(20, 0, 0, 255)
        )
        x = left + _HOTBAR[0] - 9 - index * 8
        draw.ellipse(
            (x, top - 17, x + 7, top - 10), fill=(160, 105, 55, 255), outline=(30, 15, 5, 255)
        )


def _item(rng: np.random.Generator) -> Image.Image:
    """An icon of 16 x 16: a lump of pixels, or a block."""
    colour = rng.integers(30, 240, 3)
    shades = np.clip(colour * rng.uniform(0.55, 1.25, (8, 8, 1)), 0, 255)
    icon = np.zeros((8, 8, 4), np.uint8)
    icon[..., :3] = shades
    y, x = np.mgrid[0:8, 0:8]
    kind = int(rng.integers(3))
    shape = np.ones((8, 8), bool) if kind == 0 else np.abs(x - y) < 2
    if kind == 2:
        shape = np.hypot(x - 3.5, y - 3.5) < 3.6
    icon[..., 3] = shape * 255
    return Image.fromarray(icon).resize((16, 16), Image.Resampling.NEAREST)


def _chat(rng: np.random.Generator, layer: Image.Image) -> None:
    """Lines of chat on a translucent ground, at the lower left."""
    draw = ImageDraw.Draw(layer)
    lines = int(rng.integers(2, 10))
    bottom = layer.height - 40
    width = min(320, round(layer.width * rng.uniform(0.4, 0.62)))
    draw.rectangle((0, bottom - 9 * lines, width, bottom), fill=(0, 0, 0, 120))
    for line in range(lines):
        name = f"<{rng.choice(_NAMES)}> "
        words = name + str(rng.choice(_WORDS))
        colour = (255, 255, 255, 255) if rng.random() < 0.8 else (255, 255, 85, 255)
        draw.text((2, bottom - 9 * (line + 1) - 1), words, colour, _font(9))


def _crosshair(picture: Image.Image, scale: float) -> Image.Image:
    """A cross in the middle that inverts what is behind it, as the game's does."""
    mask = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mask)
    x, y, long, thick = picture.width / 2, picture.height / 2, 4.5 * scale, 0.5 * scale
    draw.rectangle((x - long, y - thick, x + long, y + thick), fill=255)
    draw.rectangle((x - thick, y - long, x + thick, y + long), fill=255)
    return Image.composite(ImageChops.invert(picture), picture, mask)


def _arm(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """The player's arm at the lower right, sometimes with a sleeve or a held block."""
    result = picture.copy()
    draw = ImageDraw.Draw(result)
    width, height = picture.size
    tones = [(225, 180, 150), (150, 105, 80), (95, 65, 50), (60, 120, 140), (70, 70, 75)]
    red, green, blue = tones[int(rng.integers(len(tones)))]
    shift = rng.uniform(-0.05, 0.06) * width
    wrist = [(0.80, 0.72), (0.87, 0.66), (1.06, 1.0), (0.90, 1.0)]
    draw.polygon([(x * width + shift, y * height) for x, y in wrist], fill=(red, green, blue))
    side = [(0.80, 0.72), (0.90, 1.0), (0.84, 1.0), (0.775, 0.75)]
    dark = (round(red * 0.65), round(green * 0.65), round(blue * 0.65))
    draw.polygon([(x * width + shift, y * height) for x, y in side], fill=dark)
    return result


def draw_player(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Another player who stands in the way: head, body and legs of blocks."""
    result = picture.copy()
    unit = picture.height * rng.uniform(0.012, 0.032)
    x = picture.width * rng.uniform(0.08, 0.92)
    foot = picture.height * rng.uniform(0.95, 1.35)
    parts = [(-4, 32, 4, 24), (-4, 24, 4, 12), (-8, 24, -4, 12), (4, 24, 8, 12), (-4, 12, 4, 0)]
    for left, top, right, bottom in parts:
        tone = rng.integers(30, 230, 3)
        cells = (max(1, right - left), max(1, top - bottom))
        noise = np.clip(tone * rng.uniform(0.7, 1.15, (cells[1], cells[0], 1)), 0, 255)
        skin = Image.fromarray(noise.astype(np.uint8))
        size = (max(1, round((right - left) * unit)), max(1, round((top - bottom) * unit)))
        at = (round(x + left * unit), round(foot - top * unit))
        result.paste(skin.resize(size, Image.Resampling.NEAREST), at)
    if rng.random() < 0.6:
        draw = ImageDraw.Draw(result)
        name = str(rng.choice(_NAMES))
        middle = (x, foot - 36 * unit)
        box = draw.textbbox(middle, name, _font(14), anchor="mm")
        draw.rectangle(box, fill=(60, 60, 60))
        draw.text(middle, name, (255, 255, 255), _font(14), anchor="mm")
    return result
