"""The picture sheet: the query and its matches side by side, for looking instead of clicking."""

import asyncio
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from bot.archive.port import Match, Picture
from bot.framing import BOX, JPEG, WELL, decoded, is_small, small
from bot.lettering import centred, fitted, font_of
from bot.search import Verdict

# Beyond this many matches a sheet is no longer looked at.
MOST_TILES = 24

UNDRAWABLE = "this file cannot be drawn"

# A level of PNG's compression: half the time of the usual one, for a third more bytes.
_QUICK = 1

_PADDING = 14
_GAP = 18
_MARGIN = 22
_RADIUS = 12
_GROUND = "#1e1f22"
_CARD = "#2b2d31"
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
class Layout:
    """How much is written on a sheet, and how large.

    Attributes:
        columns: Most matches in a row.
        title: Size of the line with the number and the score, in pixels.
        text: Size of what stands below it, and in the place of a picture.
        lines: Whether author, date and channel are written below it.
    """

    columns: int
    title: int
    text: int
    lines: bool

    @property
    def width(self) -> int:
        """Of a card, in pixels."""
        return BOX + 2 * _PADDING

    @property
    def height(self) -> int:
        """Of a card, in pixels."""
        return BOX + 2 * _PADDING + 10 + round(1.45 * self.title) + (50 if self.lines else 0)


# For a window of its own.
FULL = Layout(columns=5, title=22, text=17, lines=True)
# For Discord, which shows it at less than half its size, below the words of the answer.
BRIEF = Layout(columns=3, title=31, text=26, lines=False)


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


async def keepable(data: bytes) -> bytes | None:
    """What to keep of a picture to draw it later: a small file, or `small` of it in a thread."""
    return data if is_small(data) else await asyncio.to_thread(small, data)


async def draw_reply(
    query: bytes | str | None, tiles: Sequence[Tile], *, first: int, own: bool
) -> bytes:
    """The sheet for Discord, a JPEG, in a thread; `own` if only the member who asked will see it.

    Args:
        query: See `render_sheet`.
        tiles: Likewise.
        first: The number of the first match.
        own: Whose the query is, as it is called on the sheet.
    """
    title = "Your picture" if own else "Looked up"

    def render() -> bytes:
        return _encoded(_sheet(query, tiles, BRIEF, first=first, title=title), "JPEG", **JPEG)

    return await asyncio.to_thread(render)


def render_sheet(query: bytes | str | None, tiles: Sequence[Tile]) -> bytes:
    """Draws the query and its matches.

    Pictures that are damaged, too large or of a strange format become placeholders; of an
    animation the first frame counts.

    Args:
        query: The encoded file that was asked about, or the words; None if it cannot be drawn.
        tiles: The matches, best first; at most `MOST_TILES` are drawn.

    Returns:
        A PNG.
    """
    return _encoded(_sheet(query, tiles, FULL), "PNG", compress_level=_QUICK)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _sheet(
    query: bytes | str | None,
    tiles: Sequence[Tile],
    layout: Layout,
    *,
    first: int = 1,
    title: str = "Your picture",
) -> Image.Image:
    tiles = tiles[:MOST_TILES]
    rows = max(1, math.ceil(len(tiles) / layout.columns))
    columns = max(1, math.ceil(len(tiles) / rows))
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + (columns + 1) * (layout.width + _GAP),
            2 * _MARGIN + rows * (layout.height + _GAP) - _GAP,
        ),
        _GROUND,
    )
    card = _Card(sheet, _MARGIN, _MARGIN, _QUERY, layout)
    if isinstance(query, str):
        card.words(query)
        card.caption("?", "Search", ("by words",))
    else:
        card.picture(query, UNDRAWABLE)
        card.caption("?", title)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        # The gap beside the query is twice as wide: it is another kind of thing.
        x = _MARGIN + (column + 1) * (layout.width + _GAP) + _GAP
        y = _MARGIN + row * (layout.height + _GAP)
        card = _Card(sheet, x, y, _COLOURS[tile.verdict], layout)
        card.picture(tile.data, tile.note)
        picture = tile.match.picture
        score = f"{tile.match.score:.2f}"
        lines = (picture.author, " · ".join(filter(None, (_day(picture), _place(tile.match)))))
        if layout.lines:
            meaning = tile.verdict or "similarity"
            card.caption(str(number + first), meaning, lines, score=score)
        else:
            # Scores of words mean something else, and the verdict says what the others mean.
            meaning = "" if isinstance(query, str) else tile.verdict or score
            card.caption(str(number + first), meaning)
    if not tiles:
        x = _MARGIN + layout.width + 2 * _GAP
        box = (x, _MARGIN, x + layout.width, _MARGIN + layout.height)
        centred(ImageDraw.Draw(sheet), "nothing found", box, _FAINT, layout.text)
    return sheet


class _Card:
    """A rounded box with a picture and its caption, drawn onto the sheet."""

    def __init__(self, sheet: Image.Image, x: int, y: int, accent: str, layout: Layout) -> None:
        self._sheet = sheet
        self._draw = ImageDraw.Draw(sheet)
        self._x = x + _PADDING
        self._y = y + _PADDING
        self._accent = accent
        self._layout = layout
        box = (x, y, x + layout.width - 1, y + layout.height - 1)
        self._draw.rounded_rectangle(box, _RADIUS, fill=_CARD)
        self._well = (self._x, self._y, self._x + BOX, self._y + BOX)
        self._draw.rectangle((self._x, self._y, self._x + BOX - 1, self._y + BOX - 1), fill=WELL)

    def picture(self, data: bytes | None, note: str) -> None:
        """Puts a picture into the middle of the box, or the note."""
        picture = None if data is None else decoded(data)
        if picture is None:
            words = note if data is None else UNDRAWABLE
            centred(self._draw, words, self._well, _FAINT, self._layout.text)
            return
        offset = ((BOX - picture.width) // 2, (BOX - picture.height) // 2)
        self._sheet.paste(picture, (self._x + offset[0], self._y + offset[1]))

    def words(self, text: str) -> None:
        """Puts words where the picture would be."""
        centred(self._draw, f"“{text}”", self._well, _BRIGHT, self._layout.text)

    def caption(
        self, badge: str, title: str, lines: Sequence[str] = (), *, score: str = ""
    ) -> None:
        """Writes below the picture: a badge, a title, and the score right of it."""
        font, x, y = font_of(self._layout.title), self._x, self._y + BOX + 10
        side = round(1.25 * self._layout.title)
        width = max(side, round(font.getlength(badge)) + side // 2)
        self._draw.rounded_rectangle((x, y, x + width - 1, y + side - 1), side // 4, self._accent)
        middle = y + side / 2
        ink = _BRIGHT if self._accent == _QUERY else _GROUND
        self._draw.text((x + width / 2, middle), badge, ink, font=font, anchor="mm")
        x += width + side // 3
        room = self._well[2] - x - font.getlength(score)
        self._draw.text((x, middle), fitted(title, font, room), _BRIGHT, font=font, anchor="lm")
        self._draw.text((self._well[2], middle), score, _BRIGHT, font=font, anchor="rm")
        if not self._layout.lines:
            return
        font = font_of(self._layout.text)
        y += 34
        for line, colour in zip(lines, (_BRIGHT, _MUTED), strict=False):
            if line:
                self._draw.text((self._x, y), fitted(line, font, BOX), colour, font=font)
                y += 25


def _day(picture: Picture) -> str:
    return f"{picture.posted_at:%Y-%m-%d}"


def _place(match: Match) -> str:
    name = match.picture.channel
    on_discord = match.picture.message_link.startswith("https://discord.com/")
    return f"#{name}" if name and on_discord else name
