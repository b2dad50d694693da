"""Families of artwork that are drawn with shapes: flags, faces, sprites, letters, scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from exporter.training.art.fields import (
    RGB,
    as_rgb,
    line_noise,
    palette,
    ramp,
    random_colour,
    shade,
    unit,
    value_noise,
)
from exporter.training.art.patterns import gradients, plasma, tilings

Point = tuple[float, float]

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz!?&#@%"


def _plain(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A background that leaves the subject alone: one colour, a gradient, or faint noise."""
    kind = rng.random()
    if kind < 0.5:
        return Image.new("RGB", (width, height), random_colour(rng, saturation=(0, 1)))
    if kind < 0.85:
        return gradients(rng, width, height)
    return plasma(rng, width, height)


def _polygon(centre: Point, radius: float, corners: int, turn: float = 0.0) -> list[Point]:
    """Corners of a regular polygon."""
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _star(centre: Point, radius: float, points: int, turn: float, inner: float) -> list[Point]:
    """Corners of a star; ``inner`` is the notches' radius relative to the tips'."""
    outer_corners = _polygon(centre, radius, points, turn)
    inner_corners = _polygon(centre, radius * inner, points, turn + math.pi / points)
    return [corner for pair in zip(outer_corners, inner_corners, strict=True) for corner in pair]


def _blob(rng: np.random.Generator, centre: Point, radius: float, rough: float) -> list[Point]:
    """Corners of a closed, wobbly outline."""
    wobble = 1 + rough * (line_noise(rng, 48, 4, 3) - 0.5)
    # Fade the wobble to the same value at both ends so that the outline closes without a notch.
    wobble = wobble * np.linspace(1, 0, 48) + wobble[::-1] * np.linspace(0, 1, 48)
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    reach = radius * wobble
    xs, ys = centre[0] + reach * np.cos(angles), centre[1] + reach * np.sin(angles)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _disk(
    draw: ImageDraw.ImageDraw, at: Point, radius_x: float, radius_y: float, fill: RGB
) -> None:
    """Fill an ellipse given by centre and half axes."""
    draw.ellipse(
        (at[0] - radius_x, at[1] - radius_y, at[0] + radius_x, at[1] + radius_y), fill=fill
    )


def flags(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Stripes, crosses, saltires, wedges and charges, in few strong colours."""
    colours = [as_rgb(row) for row in palette(rng, 4)]
    image = Image.new("RGB", (width, height), colours[0])
    draw = ImageDraw.Draw(image)
    kind = int(rng.integers(6))
    if kind <= 1:
        _stripes(rng, draw, (width, height), colours, upright=kind == 1)
    elif kind <= 3:
        _cross(rng, draw, (width, height), colours, diagonal=kind == 3)
    elif kind == 4:
        draw.rectangle((0, height / 2, width, height), fill=colours[1])
        tip = (width * rng.uniform(0.3, 0.6), height / 2)
        draw.polygon([(0, 0), tip, (0, height)], fill=colours[2])
    else:
        draw.polygon([(0, height), (width, 0), (width, height)], fill=colours[1])
    if rng.random() < 0.75:
        _charge(rng, draw, (width, height), colours)
    return image


def _stripes(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    colours: Sequence[RGB],
    *,
    upright: bool,
) -> None:
    """Fill a flag with stripes: few in three colours, many in two."""
    count = int(rng.integers(2, 10))
    for index in range(count):
        fill = colours[index % (2 if count > 4 else 3)]
        low, high = index / count, (index + 1) / count
        if upright:
            draw.rectangle((low * size[0], 0, high * size[0], size[1]), fill=fill)
        else:
            draw.rectangle((0, low * size[1], size[0], high * size[1]), fill=fill)


def _cross(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    colours: Sequence[RGB],
    *,
    diagonal: bool,
) -> None:
    """Draw a fimbriated cross, or one or both arms of a saltire."""
    width, height = size
    at_x, thick = rng.uniform(0.3, 0.6) * width, rng.uniform(0.08, 0.25) * height
    for fill, band in ((colours[1], thick), (colours[2], thick / 2)):
        if diagonal:
            draw.line((0, 0, width, height), fill=fill, width=round(band))
            if rng.random() < 0.7:
                draw.line((0, height, width, 0), fill=fill, width=round(band))
        else:
            draw.rectangle((at_x - band / 2, 0, at_x + band / 2, height), fill=fill)
            draw.rectangle((0, (height - band) / 2, width, (height + band) / 2), fill=fill)


def _charge(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    colours: Sequence[RGB],
) -> None:
    """Put a disk, a star or a crescent on a flag."""
    centre = (size[0] * rng.choice([0.25, 0.5]), size[1] * rng.choice([0.3, 0.5]))
    radius = min(size) * rng.uniform(0.12, 0.32)
    if rng.random() < 0.4:
        _disk(draw, centre, radius, radius, colours[3])
    if rng.random() < 0.6:
        star = _star(
            centre, radius, int(rng.integers(4, 13)), -math.pi / 2, rng.uniform(0.35, 0.75)
        )
        draw.polygon(star, fill=colours[2])
    elif rng.random() < 0.5:
        _disk(draw, centre, radius, radius, colours[2])
        bite = (centre[0] + radius * 0.35, centre[1])
        _disk(draw, bite, radius * 0.8, radius * 0.8, colours[0])


def emblems(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Logos and badges: nested bold shapes on a quiet ground, often with initials."""
    image = _plain(rng, width, height)
    draw = ImageDraw.Draw(image)
    radius = min(width, height) * rng.uniform(0.3, 0.48)
    centre = (width / 2, height / 2)
    for _ in range(int(rng.integers(2, 6))):
        fill = random_colour(rng, saturation=(0, 1))
        turn = float(rng.choice([0, math.pi / 4, -math.pi / 2]))
        kind = int(rng.integers(6))
        if kind == 0:
            _disk(draw, centre, radius, radius, fill)
        elif kind == 1:
            draw.polygon(_polygon(centre, radius, int(rng.integers(3, 9)), turn), fill=fill)
        elif kind == 2:
            points = int(rng.integers(3, 16))
            draw.polygon(_star(centre, radius, points, turn, rng.uniform(0.3, 0.8)), fill=fill)
        elif kind == 3:
            box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
            start = float(rng.uniform(0, 360))
            draw.pieslice(box, start, start + float(rng.uniform(90, 300)), fill=fill)
        elif kind == 4:
            draw.polygon(_blob(rng, centre, radius, 1.0), fill=fill)
        else:
            half = radius * 0.75
            corners = (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
            draw.rounded_rectangle(corners, radius=half * rng.uniform(0, 0.6), fill=fill)
        radius *= rng.uniform(0.5, 0.85)
        centre = (
            centre[0] + radius * rng.uniform(-0.2, 0.2),
            centre[1] + radius * rng.uniform(-0.2, 0.2),
        )
    if rng.random() < 0.4:
        font = ImageFont.load_default(size=max(10, radius * rng.uniform(0.8, 2)))
        letters = "".join(rng.choice(list(_LETTERS), size=int(rng.integers(1, 4))))
        draw.text((width / 2, height / 2), letters, random_colour(rng), font, anchor="mm")
    return image


def lettering(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Signs and posters: a few lines of big letters, some outlined, some at a slant."""
    image = _plain(rng, width, height)
    ink, edge = random_colour(rng, saturation=(0, 1)), random_colour(rng, value=(0, 0.6))
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    lines = int(rng.integers(1, 6))
    for line in range(lines):
        letters = "".join(rng.choice(list(_LETTERS), size=int(rng.integers(2, 9))))
        size = min(height / lines * 0.95, width / len(letters) * 1.7)
        font = ImageFont.load_default(size=max(9.0, size))
        draw.text(
            (width / 2, height * (line + 0.5) / lines), letters, ink, font, anchor="mm",
            stroke_width=int(rng.integers(0, max(2, int(size / 10)))), stroke_fill=edge,
        )  # fmt: skip
    if rng.random() < 0.5:
        layer = layer.rotate(float(rng.uniform(-35, 35)), Image.Resampling.BICUBIC)
    image.paste(layer, (0, 0), layer)
    return image


def sprites(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Pixel art: mirrored creatures with outlines, alone or on a sheet."""
    cells = int(rng.integers(1, 4))
    side = int(rng.choice([8, 12, 16, 24]))
    sheet_w, sheet_h = side * cells, max(1, round(side * cells * height / width))
    ground = random_colour(rng, saturation=(0, 1))
    canvas = np.full((sheet_h, sheet_w, 3), ground, np.uint8)
    for top in range(0, sheet_h - side // 2, side):
        for left in range(0, sheet_w, side):
            colours = palette(rng, int(rng.integers(2, 5))).astype(np.uint8)
            inner = side - 2
            noise = value_noise(rng, inner, inner, cells=3, octaves=3)
            noise = np.concatenate(
                [noise[:, : inner // 2], noise[:, : inner // 2][:, ::-1]], axis=1
            )
            span = np.linspace(-1, 1, inner)
            body = noise - 0.35 * np.hypot(span[None, :], span[:, None]) > rng.uniform(0.1, 0.25)
            index = np.minimum((unit(noise) * len(colours)).astype(int), len(colours) - 1)
            padded = np.pad(body, 1)
            rim = np.zeros_like(padded)
            for axis in (0, 1):
                for step in (-1, 1):
                    rim |= np.roll(padded, step, axis)
            cell = np.broadcast_to(np.asarray(ground, np.uint8), (side, side, 3)).copy()
            cell[rim] = (20, 16, 24)
            cell[1:-1, 1:-1][body] = colours[index][body]
            if rng.random() < 0.6:
                row, column = side // 3 + 1, side // 2 - max(2, side // 6)
                for eye in (column, side - 1 - column):
                    cell[row, eye] = (255, 255, 255)
            part = canvas[top : top + side, left : left + side]
            part[:] = cell[: part.shape[0], : part.shape[1]]
    return Image.fromarray(canvas).resize((width, height), Image.Resampling.NEAREST)


def anime_faces(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Flat-shaded characters: hair, big eyes, a neck and a collar before a plain ground."""
    image = _plain(rng, width, height)
    draw = ImageDraw.Draw(image)
    size = min(width, height) * rng.uniform(0.28, 0.42)
    x, y = width * rng.uniform(0.38, 0.62), height * rng.uniform(0.42, 0.58)
    skin = shade((255, 224, 200), rng.uniform(0.45, 1.0))
    hair, clothes = random_colour(rng, saturation=(0, 1)), random_colour(rng, saturation=(0, 1))
    iris = random_colour(rng, value=(0.4, 0.9))
    length = rng.uniform(0.2, 1.9)
    _disk(draw, (x, y - size * 0.15), size * 1.12, size * 1.1, shade(hair, 0.75))
    draw.polygon(
        [(x - size * 1.1, y - size * 0.2), (x - size * rng.uniform(0.8, 1.4), y + size * length),
         (x + size * rng.uniform(0.8, 1.4), y + size * length), (x + size * 1.1, y - size * 0.2)],
        fill=shade(hair, 0.7),
    )  # fmt: skip
    shoulder = y + size * 1.3
    draw.polygon(
        [(x - size * 1.5, height), (x - size * 0.9, shoulder), (x + size * 0.9, shoulder),
         (x + size * 1.5, height)], fill=clothes,
    )  # fmt: skip
    draw.rectangle(
        (x - size * 0.28, y + size * 0.6, x + size * 0.28, shoulder + size * 0.1),
        fill=shade(skin, 0.85),
    )
    _disk(draw, (x, y), size * 0.85, size * 0.8, skin)
    draw.polygon(
        [
            (x - size * 0.8, y + size * 0.25),
            (x, y + size * rng.uniform(1.0, 1.2)),
            (x + size * 0.8, y + size * 0.25),
        ],
        fill=skin,
    )
    tall, wide, apart = rng.uniform(0.18, 0.34), rng.uniform(0.14, 0.24), rng.uniform(0.34, 0.45)
    for side in (-1, 1):
        at = (x + side * size * apart, y + size * 0.22)
        _disk(draw, at, size * wide, size * tall, (250, 250, 252))
        _disk(draw, at, size * wide * 0.8, size * tall * 0.92, iris)
        _disk(draw, at, size * wide * 0.4, size * tall * 0.5, shade(iris, 0.3))
        _disk(
            draw,
            (at[0] - size * 0.05, at[1] - size * tall * 0.45),
            size * 0.06,
            size * 0.07,
            (255, 255, 255),
        )
        brow = y + size * (0.2 - tall - 0.06)
        draw.line(
            (at[0] - size * wide, brow, at[0] + size * wide, brow),
            shade(hair, 0.5),
            max(1, int(size / 14)),
        )
        if rng.random() < 0.6:
            _disk(
                draw,
                (at[0] + side * size * 0.12, y + size * 0.55),
                size * 0.12,
                size * 0.05,
                (240, 150, 150),
            )
    mouth = (x - size * 0.15, y + size * 0.55, x + size * 0.15, y + size * rng.uniform(0.65, 0.85))
    draw.chord(mouth, 0, 180, fill=(150, 60, 70))
    fringe = int(rng.integers(3, 8))
    edges = np.linspace(-1, 1, fringe + 1)
    for left, right in pairwise(edges):
        tip = (x + size * (left + right) / 2 * 0.9, y + size * rng.uniform(-0.15, 0.3))
        draw.polygon(
            [
                (x + size * left * 0.98, y - size * 0.5),
                tip,
                (x + size * right * 0.98, y - size * 0.5),
            ],
            fill=hair,
        )
    box = (x - size, y - size * 1.18, x + size, y + size * 0.4)
    draw.chord(box, 185, 355, fill=hair)
    if rng.random() < 0.4:
        ears = shade(hair, 0.95)
        for side in (-1, 1):
            base = x + side * size * 0.6
            draw.polygon(
                [(base - size * 0.3, y - size * 0.85), (base + side * size * 0.2, y - size * 1.6),
                 (base + size * 0.3, y - size * 0.75)], fill=ears,
            )  # fmt: skip
    return image


def portraits(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Painted heads: ellipses with light from one side, under brush-like noise."""
    image = _plain(rng, width, height)
    draw = ImageDraw.Draw(image)
    size = min(width, height) * rng.uniform(0.22, 0.38)
    x, y = width * rng.uniform(0.4, 0.6), height * rng.uniform(0.38, 0.52)
    skin, hair = (
        shade((225, 172, 140), rng.uniform(0.35, 1.1)),
        random_colour(rng, saturation=(0, 0.7), value=(0.05, 0.8)),
    )
    _disk(
        draw,
        (x, y + size * 2.1),
        size * rng.uniform(1.4, 2.1),
        size * 1.2,
        random_colour(rng, saturation=(0, 1)),
    )
    _disk(
        draw,
        (x, y - size * 0.25),
        size * rng.uniform(0.95, 1.3),
        size * rng.uniform(1.1, 1.6),
        hair,
    )
    draw.rectangle(
        (x - size * 0.3, y + size * 0.4, x + size * 0.3, y + size * 1.3), fill=shade(skin, 0.7)
    )
    side = float(rng.choice([-1, 1]))
    for step in range(6):
        fill = shade(skin, 0.65 + 0.09 * step)
        narrow = 1 - 0.09 * step
        _disk(
            draw,
            (x + side * size * 0.05 * step, y),
            size * 0.8 * narrow,
            size * 1.05 * narrow,
            fill,
        )
    for eye in (-1, 1):
        at = (x + eye * size * 0.34, y - size * 0.1)
        _disk(draw, at, size * 0.16, size * 0.09, (238, 234, 228))
        _disk(draw, at, size * 0.08, size * 0.08, random_colour(rng, value=(0.1, 0.6)))
        draw.arc(
            (at[0] - size * 0.22, at[1] - size * 0.25, at[0] + size * 0.22, at[1] + size * 0.1),
            200,
            340,
            hair,
            2,
        )
    draw.polygon(
        [(x, y - size * 0.05), (x + side * size * 0.18, y + size * 0.32), (x, y + size * 0.36)],
        fill=shade(skin, 0.75),
    )
    _disk(draw, (x, y + size * 0.6), size * rng.uniform(0.15, 0.32), size * 0.07, (150, 70, 70))
    if rng.random() < 0.4:
        _disk(
            draw,
            (x, y + size * 0.95),
            size * rng.uniform(0.4, 0.7),
            size * rng.uniform(0.2, 0.6),
            hair,
        )
    if rng.random() < 0.3:
        brim = y - size * 0.75
        draw.rectangle(
            (x - size * 0.8, brim - size * rng.uniform(0.5, 1), x + size * 0.8, brim),
            fill=shade(hair, 0.6),
        )
        draw.rectangle(
            (x - size * 1.4, brim, x + size * 1.4, brim + size * 0.15), fill=shade(hair, 0.5)
        )
    strokes = value_noise(rng, width, height, cells=12, octaves=3)[..., None]
    painted = np.asarray(image, np.float32) * (0.8 + 0.4 * strokes)
    return Image.fromarray(np.clip(painted, 0, 255).astype(np.uint8))


def creatures(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Cartoon animals and monsters: a wobbly body, limbs, eyes and a mouth."""
    image = _plain(rng, width, height)
    draw = ImageDraw.Draw(image)
    size = min(width, height) * rng.uniform(0.2, 0.38)
    x, y = width / 2 + size * rng.uniform(-0.4, 0.4), height / 2 + size * rng.uniform(-0.2, 0.4)
    coat = random_colour(rng)
    for side in (-1, 1):
        for limb in range(int(rng.integers(1, 4))):
            at = (x + side * size * rng.uniform(0.5, 1.0), y + size * (0.9 - 0.6 * limb))
            _disk(
                draw,
                at,
                size * rng.uniform(0.15, 0.5),
                size * rng.uniform(0.12, 0.5),
                shade(coat, 0.8),
            )
        tip = (x + side * size * rng.uniform(0.4, 1.1), y - size * rng.uniform(1, 2))
        roots = (x + side * size * 0.2, y - size * 0.6), (x + side * size * 0.8, y - size * 0.4)
        draw.polygon([roots[0], tip, roots[1]], fill=shade(coat, 0.9))
    draw.polygon(_blob(rng, (x, y), size, 0.6), fill=coat, outline=shade(coat, 0.4))
    belly = random_colour(rng, saturation=(0, 0.6), value=(0.6, 1))
    _disk(draw, (x, y + size * 0.35), size * 0.55, size * 0.45, belly)
    for _ in range(int(rng.integers(0, 14))):
        spot = (x + size * rng.uniform(-0.6, 0.6), y + size * rng.uniform(-0.6, 0.6))
        _disk(draw, spot, size * 0.08, size * 0.08, shade(coat, rng.uniform(0.5, 1.4)))
    eyes = int(rng.choice([1, 2, 2, 2, 3]))
    for eye in range(eyes):
        at = (x + size * 0.45 * (eye - (eyes - 1) / 2), y - size * 0.3)
        ball = size * rng.uniform(0.12, 0.24)
        _disk(draw, at, ball, ball, (250, 250, 250))
        _disk(draw, (at[0] + ball * 0.3, at[1]), ball * 0.5, ball * 0.5, (15, 15, 20))
    draw.arc(
        (x - size * 0.35, y - size * 0.2, x + size * 0.35, y + size * 0.25),
        20,
        160,
        (40, 10, 20),
        max(2, int(size / 12)),
    )
    return image


def cityscapes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Skylines with lit windows, houses with roofs, roads."""
    image = gradients(rng, width, height)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.6:
        _disk(
            draw,
            (width * rng.random(), height * rng.uniform(0.1, 0.4)),
            width * 0.08,
            width * 0.08,
            (250, 245, 215),
        )
    night = bool(rng.random() < 0.5)
    for row in range(int(rng.integers(1, 4))):
        left = -width * 0.05
        tone = random_colour(rng, saturation=(0, 0.6), value=(0.1, 0.8))
        while left < width:
            wide = width * rng.uniform(0.06, 0.22)
            top = height * rng.uniform(0.15 + 0.2 * row, 0.75)
            wall = shade(tone, rng.uniform(0.7, 1.3))
            draw.rectangle((left, top, left + wide, height), fill=wall)
            if rng.random() < 0.3:
                draw.polygon(
                    [(left, top), (left + wide / 2, top - wide * 0.6), (left + wide, top)],
                    fill=shade(wall, 0.6),
                )
            pane = max(2.0, wide / rng.uniform(3, 8))
            lamp = (255, 225, 130) if night else shade(wall, 0.55)
            for at_y in np.arange(top + pane * 0.5, height, pane * 1.6):
                for at_x in np.arange(left + pane * 0.3, left + wide - pane * 0.6, pane):
                    if rng.random() < 0.6:
                        draw.rectangle(
                            (at_x, at_y, at_x + pane * 0.5, at_y + pane * 0.8), fill=lamp
                        )
            left += wide * rng.uniform(0.8, 1.3)
    return image


def still_lifes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Loose collages of shaded shapes: balls, boxes, leaves, rings, at any size and turn."""
    image = _plain(rng, width, height)
    draw = ImageDraw.Draw(image)
    shorter = min(width, height)
    for _ in range(int(rng.integers(3, 22))):
        at = (width * rng.random(), height * rng.random())
        size = shorter * rng.uniform(0.05, 0.35)
        fill = random_colour(rng, saturation=(0, 1))
        kind = int(rng.integers(6))
        if kind == 0:
            for step in range(5):
                narrow = 1 - step * 0.18
                centre = (at[0] - size * step * 0.06, at[1] - size * step * 0.06)
                _disk(draw, centre, size * narrow, size * narrow, shade(fill, 0.6 + 0.16 * step))
        elif kind == 1:
            draw.polygon(_polygon(at, size, int(rng.integers(3, 7)), rng.uniform(0, 6)), fill=fill)
        elif kind == 2:
            draw.polygon(_blob(rng, at, size, 1.2), fill=fill)
        elif kind == 3:
            draw.polygon(
                _star(at, size, int(rng.integers(4, 9)), rng.uniform(0, 6), 0.45), fill=fill
            )
        elif kind == 4:
            box = (at[0] - size, at[1] - size, at[0] + size, at[1] + size)
            draw.ellipse(box, outline=fill, width=max(2, int(size * rng.uniform(0.1, 0.4))))
        else:
            end = (at[0] + size * rng.uniform(-3, 3), at[1] + size * rng.uniform(-3, 3))
            draw.line((at, end), fill=fill, width=max(1, int(size * rng.uniform(0.05, 0.4))))
    return image


def paintings(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Brush strokes that follow a flow and take their colour from an underpainting."""
    under = np.asarray(rng.choice(np.array([plasma, gradients], object))(rng, width, height))
    image = Image.fromarray(under)
    draw = ImageDraw.Draw(image)
    flow = value_noise(rng, width, height, cells=2, octaves=2) * 2 * math.pi * rng.uniform(0.5, 2)
    length, thick = min(width, height) * rng.uniform(0.04, 0.16), int(rng.integers(2, 9))
    for _ in range(int(rng.integers(120, 420))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        turn = float(flow[y, x])
        offset_x, offset_y = length * math.cos(turn), length * math.sin(turn)
        red, green, blue = (int(channel) for channel in under[y, x])
        fill = shade((red, green, blue), rng.uniform(0.65, 1.4))
        draw.line((x - offset_x, y - offset_y, x + offset_x, y + offset_y), fill, thick)
    return image


def banners(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Symmetric emblems from random shapes mirrored about the middle: masks, crests, insects."""
    half = _collage(rng, max(1, width // 2), height, random_colour(rng, saturation=(0, 1)))
    image = Image.new("RGB", (width, height))
    image.paste(half, (0, 0))
    mirrored = half.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.paste(mirrored, (width - mirrored.width, 0))
    return image


def _collage(rng: np.random.Generator, width: int, height: int, ground: RGB) -> Image.Image:
    """Wobbly outlines and wedges against the right edge, one half of a mirrored figure."""
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    colours = [as_rgb(row) for row in palette(rng, 5)]
    for index in range(int(rng.integers(4, 14))):
        at = (width * (1 - rng.random() ** 2), height * rng.uniform(0.05, 0.95))
        size = height * rng.uniform(0.04, 0.3)
        outline: Sequence[Point] = _blob(rng, at, size, rng.uniform(0.2, 1.6))
        if rng.random() < 0.4:
            outline = _polygon(at, size, int(rng.integers(3, 7)), rng.uniform(0, 6))
        draw.polygon(outline, fill=colours[index % 5])
    return image


def silhouettes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Trees, towers or figures, dark against a bright sky."""
    image = Image.fromarray(
        ramp(value_noise(rng, width, height, cells=1.5, octaves=3), palette(rng, 3))
    )
    draw = ImageDraw.Draw(image)
    ink = random_colour(rng, saturation=(0, 0.6), value=(0, 0.25))
    ground = height * rng.uniform(0.65, 0.95)
    hills = ground - line_noise(rng, width, 3) * height * 0.15
    draw.polygon([(0, height), *enumerate(hills.tolist()), (width, height)], fill=ink)
    for _ in range(int(rng.integers(2, 12))):
        x = width * rng.random()
        tall, wide = height * rng.uniform(0.15, 0.6), width * rng.uniform(0.02, 0.1)
        kind = int(rng.integers(3))
        if kind == 0:
            for tier in range(4):
                top = ground - tall * (0.4 + 0.2 * tier)
                reach = wide * (1.4 - 0.3 * tier)
                draw.polygon(
                    [
                        (x - reach, top + tall * 0.35),
                        (x, top - tall * 0.1),
                        (x + reach, top + tall * 0.35),
                    ],
                    fill=ink,
                )
            draw.rectangle(
                (x - wide * 0.15, ground - tall * 0.4, x + wide * 0.15, height), fill=ink
            )
        elif kind == 1:
            draw.rectangle((x - wide, ground - tall, x + wide, height), fill=ink)
            draw.polygon(
                [
                    (x - wide * 1.3, ground - tall),
                    (x, ground - tall * 1.4),
                    (x + wide * 1.3, ground - tall),
                ],
                fill=ink,
            )
        else:
            draw.rectangle((x - wide * 0.2, ground - tall, x + wide * 0.2, height), fill=ink)
            draw.polygon(_blob(rng, (x, ground - tall), wide * rng.uniform(1, 2.5), 1.0), fill=ink)
    return image


def quilts(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A tiling with figures on top: wallpapers, cards, album covers."""
    image = tilings(rng, width, height)
    top = Image.new("L", image.size)
    ImageDraw.Draw(top).polygon(
        _blob(rng, (width / 2, height / 2), min(width, height) * rng.uniform(0.25, 0.45), 0.8),
        fill=255,
    )
    image.paste(_plain(rng, width, height), (0, 0), top)
    return image
