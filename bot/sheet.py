"""The picture sheet: the query and its matches side by side, for looking instead of clicking."""

import asyncio
import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

from bot.archive.port import Match
from bot.importer.files import FORMATS, dimensions
from bot.search import Verdict

# Pictures come from strangers: what is larger, or of a format that the server does not read,
# becomes a placeholder.
_MOST_BYTES = 32 * 1024 * 1024
_MOST_PIXELS = 40_000_000

# Beyond this many matches a sheet is no longer looked at.
MOST_TILES = 24
_COLUMNS = 5

_BOX = 256  # side of a picture, in pixels: twice a map
_PADDING = 14
_GAP = 18
_MARGIN = 22
_CARD_WIDTH = _BOX + 2 * _PADDING
_CAPTION_HEIGHT = 92
_CARD_HEIGHT = _BOX + 2 * _PADDING + _CAPTION_HEIGHT
_RADIUS = 12
_ACCENT_WIDTH = 5

_MOST_LETTERS = 200
_TITLE_SIZE = 22
_TEXT_SIZE = 17

_GROUND = "#1e1f22"
_CARD = "#2b2d31"
_WELL = "#17181a"
_BRIGHT = "#f2f3f5"
_MUTED = "#b5bac1"
_FAINT = "#80848e"
_QUERY = "#5865f2"
_COLOURS = {
    Verdict.SAME: "#23a55a",
    Verdict.SIMILAR: "#f0b232",
    Verdict.NOTHING: _FAINT,
    None: _FAINT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One match on the sheet.

    Attributes:
        match: What was found.
        verdict: What its score means; None where that is not known.
        data: The encoded file; None where it is missing or must not be shown.
        note: What stands in its place then.
    """

    match: Match
    verdict: Verdict | None = None
    data: bytes | None = None
    note: str = "picture not at hand"


async def draw_sheet(query: bytes | str, tiles: Sequence[Tile]) -> bytes:
    """`render_sheet` in a thread, so that the event loop goes on."""
    return await asyncio.to_thread(render_sheet, query, tiles)


def render_sheet(query: bytes | str, tiles: Sequence[Tile]) -> bytes:
    """Draws the query and its matches.

    Pictures that are damaged, too large or of a strange format become placeholders; of an
    animation the first frame counts.

    Args:
        query: The encoded file that was asked about, or the words.
        tiles: The matches, best first; at most `MOST_TILES` are drawn.

    Returns:
        A PNG.
    """
    tiles = tiles[:MOST_TILES]
    rows = max(1, math.ceil(len(tiles) / _COLUMNS))
    columns = max(1, math.ceil(len(tiles) / rows))
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + (columns + 1) * _CARD_WIDTH + (columns + 1) * _GAP,
            2 * _MARGIN + rows * _CARD_HEIGHT + (rows - 1) * _GAP,
        ),
        _GROUND,
    )
    card = _Card(sheet, _MARGIN, _MARGIN, _QUERY)
    if isinstance(query, str):
        card.words(query)
        card.caption("Search", "by words", "")
    else:
        card.picture(query, "")
        card.caption("Your picture", "", "")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        # The gap beside the query is twice as wide: it is another kind of thing.
        x = _MARGIN + (column + 1) * (_CARD_WIDTH + _GAP) + _GAP
        y = _MARGIN + row * (_CARD_HEIGHT + _GAP)
        card = _Card(sheet, x, y, _COLOURS[tile.verdict])
        card.picture(tile.data, tile.note)
        picture = tile.match.picture
        card.caption(
            f"{number + 1}. {tile.verdict or 'similarity'}",
            picture.author,
            " · ".join(filter(None, (f"{picture.posted_at:%Y-%m-%d}", _place(tile.match)))),
            score=f"{tile.match.score:.2f}",
        )
    if not tiles:
        draw = ImageDraw.Draw(sheet)
        x = _MARGIN + _CARD_WIDTH + 2 * _GAP
        _centre(
            draw, "nothing found", (x, _MARGIN, x + _CARD_WIDTH, _MARGIN + _CARD_HEIGHT), _FAINT
        )
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


class _Card:
    """A rounded box with a picture and its caption, drawn onto the sheet."""

    def __init__(self, sheet: Image.Image, x: int, y: int, accent: str) -> None:
        self._sheet = sheet
        self._draw = ImageDraw.Draw(sheet)
        self._x = x + _PADDING
        self._y = y + _PADDING
        self._accent = accent
        box = (x, y, x + _CARD_WIDTH - 1, y + _CARD_HEIGHT - 1)
        self._draw.rounded_rectangle(box, _RADIUS, fill=_CARD)
        self._well = (self._x, self._y, self._x + _BOX, self._y + _BOX)
        self._draw.rectangle((self._x, self._y, self._x + _BOX - 1, self._y + _BOX - 1), fill=_WELL)

    def picture(self, data: bytes | None, note: str) -> None:
        """Puts a picture into the middle of the box, or the note."""
        picture = None if data is None else _decoded(data)
        if picture is None:
            words = note if data is None else "this file cannot be drawn"
            _centre(self._draw, words, self._well, _FAINT)
            return
        offset = ((_BOX - picture.width) // 2, (_BOX - picture.height) // 2)
        self._sheet.paste(picture, (self._x + offset[0], self._y + offset[1]))

    def words(self, text: str) -> None:
        """Puts words where the picture would be."""
        _centre(self._draw, f"“{text}”", self._well, _BRIGHT)

    def caption(self, title: str, second: str, third: str, *, score: str = "") -> None:
        """Writes up to three lines under the picture; the score stands right of the title."""
        y = self._y + _BOX + 10
        self._draw.rectangle((self._x, y, self._x + _ACCENT_WIDTH - 1, y + 24), fill=self._accent)
        title_font, text_font = _font(_TITLE_SIZE), _font(_TEXT_SIZE)
        score_width = title_font.getlength(score)
        x = self._x + 12
        room = _BOX - 12 - score_width - (8 if score else 0)
        self._draw.text((x, y), _fitted(title, title_font, room), _BRIGHT, font=title_font)
        self._draw.text((self._x + _BOX - score_width, y), score, _BRIGHT, font=title_font)
        y += 34
        for line, colour in ((second, _BRIGHT), (third, _MUTED)):
            if not line:
                continue
            self._draw.text((self._x, y), _fitted(line, text_font, _BOX), colour, font=text_font)
            y += 25


def _place(match: Match) -> str:
    name = match.picture.channel
    on_discord = match.picture.message_link.startswith("https://discord.com/")
    return f"#{name}" if name and on_discord else name


def _decoded(data: bytes) -> Image.Image | None:
    """A picture that fits the box, or None where the file must not or cannot be drawn."""
    width, height = dimensions(data)
    if len(data) > _MOST_BYTES or not 0 < width * height <= _MOST_PIXELS:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            opened.draft("RGB", (2 * _BOX, 2 * _BOX))  # JPEG only: decodes at a fraction
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off
                picture = picture.point(lambda value: value / 256).convert("L")
            return _framed(picture.convert("RGBA"))
    except Exception:  # noqa: BLE001 - decoders raise anything over a hostile file
        return None


def _framed(picture: Image.Image) -> Image.Image:
    """Scales a picture to the box; pixel art keeps its hard edges."""
    longest = max(picture.size)
    factor = _BOX // longest
    if factor > 1:
        picture = picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    else:
        picture = picture.resize(
            (
                max(1, round(picture.width * _BOX / longest)),
                max(1, round(picture.height * _BOX / longest)),
            ),
            Image.Resampling.LANCZOS,
            reducing_gap=2.0,
        )
    ground = Image.new("RGBA", picture.size, _WELL)
    return Image.alpha_composite(ground, picture).convert("RGB")


def _centre(
    draw: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int], colour: str
) -> None:
    """Writes words into the middle of a box, on as many lines as fit."""
    font = _font(_TEXT_SIZE)
    width, most_lines = box[2] - box[0] - 24, 8
    lines = [""]
    for word in _drawable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_fitted(word, font, width))
    lines = [line for line in lines if line]
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], "…"]
    y = (box[1] + box[3]) / 2 - 24 * (len(lines) - 1) / 2
    for number, line in enumerate(lines):
        draw.text(((box[0] + box[2]) / 2, y + 24 * number), line, colour, font=font, anchor="mm")


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
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
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("This Pillow was built without FreeType: install Pillow's own wheel.")
    return font


@cache
def _has_glyph(char: str) -> bool:
    if char == " ":
        return True
    font = _font(_TEXT_SIZE)
    return bytes(font.getmask(char)) != bytes(font.getmask("\uffff"))
