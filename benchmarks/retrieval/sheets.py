"""Contact sheets: what was asked, what was found, what was right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

_TILE = (240, 150)
_CAPTION = 30
_GAP = 6
_PER_PAGE = 24
_COLUMNS = 2
_INK = (225, 226, 230)


@dataclass(frozen=True, slots=True)
class Case:
    """One search.

    Attributes:
        query: The picture that was asked with.
        found: The picture that came first; None where it may not be shown.
        right: The picture that should have come first.
        captions: A line for each of the three.
    """

    query: Path
    found: Path | None
    right: Path
    captions: tuple[str, str, str]


def write_sheets(
    cases: Sequence[Case], folder: Path, name: str, progress: Callable[[float], None]
) -> list[Path]:
    """Draw the cases, 24 a page, as ``FOLDER/NAME-01.jpg`` and so on; earlier pages are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.jpg"):
        old.unlink()
    pages: list[Path] = []
    for start in range(0, len(cases), _PER_PAGE):
        pages.append(folder / f"{name}-{len(pages) + 1:02}.jpg")
        draw_sheet(cases[start : start + _PER_PAGE], _COLUMNS).save(pages[-1], quality=88)
        progress(min(1.0, (start + _PER_PAGE) / len(cases)))
    return pages


def draw_sheet(cases: Sequence[Case], columns: int) -> Image.Image:
    """Draw cases side by side: three pictures each."""
    wide, tall = 3 * (_TILE[0] + _GAP), _TILE[1] + _CAPTION
    rows = -(-len(cases) // columns)
    sheet = Image.new("RGB", (columns * (wide + 2 * _GAP), rows * tall), (24, 25, 28))
    for index, case in enumerate(cases):
        left = index % columns * (wide + 2 * _GAP) + _GAP
        top = index // columns * tall
        for place, path in enumerate((case.query, case.found, case.right)):
            at = (left + place * (_TILE[0] + _GAP), top)
            font = ImageFont.load_default(size=11)
            ImageDraw.Draw(sheet).text((at[0], at[1] + 3), case.captions[place], _INK, font)
            if path is not None:
                _put(sheet, (at[0], at[1] + _CAPTION - 12), path)
    return sheet


def _put(sheet: Image.Image, at: tuple[int, int], path: Path) -> None:
    with Image.open(path) as opened:
        opened.draft("RGB", _TILE)
        picture = opened.convert("RGB")
    fitted = ImageOps.contain(picture, _TILE, Image.Resampling.LANCZOS)
    sheet.paste(fitted, (at[0] + (_TILE[0] - fitted.width) // 2, at[1]))
