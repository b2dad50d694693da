"""The game's interface over the picture: hotbar, chat, crosshair, debug text, the player's hand."""

from __future__ import annotations

import string

import cv2
import numpy as np

from exporter.training.views.wall import Pixels

_LETTERS = np.array(list(string.ascii_letters + string.digits + "     .,:!<>[]"))
_FONTS = (cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX)


def draw(rng: np.random.Generator, picture: Pixels, hardness: float) -> Pixels:
    """Draw what the game shows on top, in place, and return it."""
    if rng.random() < 0.35 * hardness:
        _hand(rng, picture)
    if rng.random() < 0.25 * hardness:
        _bodies(rng, picture)
    if rng.random() < 0.25 + 0.6 * hardness:
        _hotbar(rng, picture)
        _crosshair(picture)
    if rng.random() < 0.05 + 0.4 * hardness:
        rows = int(rng.integers(1, 9))
        _text(rng, picture, rows, (0.0, rng.uniform(0.45, 0.8)), back=rng.random() < 0.8)
    if rng.random() < 0.12 * hardness:
        _text(rng, picture, int(rng.integers(4, 18)), (0.0, 0.0), back=True)
    if rng.random() < 0.1 * hardness:  # a scoreboard, a label, a watermark
        at = (rng.uniform(0.5, 0.85), rng.uniform(0.1, 0.8))
        _text(rng, picture, int(rng.integers(1, 8)), at, back=rng.random() < 0.5)
    return picture


def _hotbar(rng: np.random.Generator, picture: Pixels) -> None:
    """Nine slots, hearts, food and experience; 182 by 22 of the interface's pixels."""
    height, width = picture.shape[:2]
    unit = min(rng.uniform(0.2, 0.52) * height * 16 / 9, width * 0.98) / 182
    wide, tall = round(182 * unit), max(4, round(22 * unit))
    left, top = (width - wide) // 2, height - tall
    bar = picture[top:, left : left + wide]
    bar[:] = bar * 0.35 + 45
    slot = wide / 9
    for number in range(9):
        first = round(left + number * slot)
        edge = (190, 190, 190) if number == 4 else (110, 110, 110)
        cv2.rectangle(picture, (first, top), (round(first + slot) - 1, height - 1), edge, 1)
        if rng.random() < 0.6:
            inset = round(slot * 0.2)
            colour = tuple(int(level) for level in rng.integers(0, 256, 3))
            last = round(first + slot) - inset
            cv2.rectangle(picture, (first + inset, top + inset), (last, height - inset), colour, -1)
    row = max(2, round(8 * unit))
    cv2.rectangle(
        picture, (left, top - row), (left + wide, top - row + max(1, round(4 * unit))),
        (70, 160, 40), -1,
    )  # fmt: skip
    if rng.random() < 0.7:
        for number in range(10):
            at = left + round(number * 8 * unit)
            size = max(1, round(6 * unit))
            cv2.rectangle(picture, (at, top - 2 * row), (at + size, top - 2 * row + size),
                          (200, 20, 20), -1)  # fmt: skip
            at = left + wide - round((number + 1) * 8 * unit)
            cv2.rectangle(picture, (at, top - 2 * row), (at + size, top - 2 * row + size),
                          (150, 95, 45), -1)  # fmt: skip


def _crosshair(picture: Pixels) -> None:
    """A cross of inverted colours in the middle."""
    height, width = picture.shape[:2]
    y, x, arm = height // 2, width // 2, max(3, height // 60)
    for part in (np.s_[y : y + 1, x - arm : x + arm], np.s_[y - arm : y + arm, x : x + 1]):
        picture[part] = 255 - picture[part]


def _text(
    rng: np.random.Generator, picture: Pixels, rows: int, at: tuple[float, float], *, back: bool
) -> None:
    """Lines of text from a place on, as fractions of the picture."""
    height, width = picture.shape[:2]
    line = max(7, round(height * rng.uniform(0.025, 0.05)))
    left, top = round(at[0] * width) + 2, round(at[1] * height) + 2
    wide = round(width * rng.uniform(0.2, 0.6))
    font, size = _FONTS[int(rng.integers(len(_FONTS)))], line / 26
    colour = (255, 255, 255) if rng.random() < 0.7 else tuple(map(int, rng.integers(80, 256, 3)))
    for number in range(rows):
        y = top + number * line
        if back:
            part = picture[y : y + line, left : left + wide]
            part[:] = part * 0.5
        words = "".join(rng.choice(_LETTERS, int(rng.integers(4, 40))))
        words = words[: max(1, int(wide / (size * 19)))]
        cv2.putText(picture, words, (left, y + line - 2), font, size, colour, 1)


def _hand(rng: np.random.Generator, picture: Pixels) -> None:
    """The player's arm, or what it holds, in a lower corner."""
    height, width = picture.shape[:2]
    tip = np.array([rng.uniform(0.62, 0.85), rng.uniform(0.5, 0.85)])
    outline = np.array([tip, tip + np.array((0.14, -0.04)), (1.02, 0.9), (1.02, 1.05), (0.8, 1.05)])
    if rng.random() < 0.15:
        outline[:, 0] = 1 - outline[:, 0]
    colour = (205, 160, 130) if rng.random() < 0.5 else tuple(map(int, rng.integers(0, 256, 3)))
    cv2.fillConvexPoly(picture, (outline * (width, height)).astype(np.int32), colour)


def _bodies(rng: np.random.Generator, picture: Pixels) -> None:
    """Other players, mobs, torches, plants: upright things before the wall."""
    height, width = picture.shape[:2]
    for _ in range(int(rng.integers(1, 3))):
        x, foot = rng.uniform(0, 1) * width, rng.uniform(0.7, 1.3) * height
        tall = rng.uniform(0.2, 0.9) * height
        wide = tall * rng.uniform(0.2, 0.6)
        coarse = int(rng.integers(1, 5)) if rng.random() < 0.6 else 0
        # From the feet up; a head is narrower, arms make a chest wider.
        for part, share in enumerate(rng.uniform(0.4, 1.0, 3)):
            top, bottom = foot - tall * (part + 1) / 3, foot - tall * part / 3
            box = [x - wide * share / 2, top, x + wide * share / 2, bottom]
            left, top, right, bottom = np.clip(box, 0, [width, height, width, height]).astype(int)
            if right > left and bottom > top:
                picture[top:bottom, left:right] = _skin(rng, (bottom - top, right - left), coarse)


def _skin(rng: np.random.Generator, size: tuple[int, int], coarse: int) -> Pixels:
    """A limb of one colour, or of a skin's few square pixels."""
    colour = rng.uniform(0, 230, 3)
    if not coarse:
        return np.full((*size, 3), colour, np.uint8)
    cells = colour + rng.normal(0, rng.uniform(5, 60), (2 * coarse, 2 * coarse, 3))
    skin = np.clip(cells, 0, 255).astype(np.uint8)
    enlarged: Pixels = cv2.resize(skin, size[::-1], interpolation=cv2.INTER_NEAREST)
    return enlarged.reshape(*size, 3)
