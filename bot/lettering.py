"""Writes text of strangers onto pictures: cut where it is too long, without odd characters."""

import unicodedata
from functools import cache

from PIL import ImageDraw, ImageFont

_MOST_LETTERS = 200
_ANY_SIZE = 17


def centred(
    draw: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int], colour: str, size: int
) -> None:
    """Writes words into the middle of a box, on as many lines as fit."""
    font, line_height = font_of(size), round(1.4 * size)
    width, most_lines = box[2] - box[0] - 24, (box[3] - box[1] - 24) // line_height
    lines = [""]
    for word in _drawable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fitted(word, font, width))
    lines = [line for line in lines if line]
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], "…"]
    y = (box[1] + box[3]) / 2 - line_height * (len(lines) - 1) / 2
    for line in lines:
        draw.text(((box[0] + box[2]) / 2, y), line, colour, font=font, anchor="mm")
        y += line_height


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than there is room."""
    text = _drawable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _drawable(text: str) -> str:
    """One line without what the built-in font has no shapes for."""
    line = " ".join((text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…").split())
    return "".join(char if _has_glyph(char) else _nearest_glyph(char) for char in line)


def _nearest_glyph(char: str) -> str:
    """The letter under the accents, or a dot."""
    base = unicodedata.normalize("NFKD", char)[0]
    return base if _has_glyph(base) else "·"


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The built-in font, in so many pixels."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("This Pillow was built without FreeType: install Pillow's own wheel.")
    return font


@cache
def _has_glyph(char: str) -> bool:
    if char == " ":
        return True
    font = font_of(_ANY_SIZE)
    return bytes(font.getmask(char)) != bytes(font.getmask("\uffff"))
