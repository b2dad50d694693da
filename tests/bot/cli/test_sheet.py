"""The picture sheet, looked at pixel by pixel."""

import io
import struct
import zlib
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bot.archive.port import Match, Picture, PictureKey
from bot.search import Verdict
from bot.sheet import Tile, render_sheet
from tests.bot.importer.exports import picture_bytes

GROUND, WELL = (0x1E, 0x1F, 0x22), (0x17, 0x18, 0x1A)
# Where the query's picture is drawn, and the first match's.
QUERY = np.s_[36:292, 36:292]
FIRST = np.s_[36:292, 356:612]
FIRST_ACCENT = (310, 358)


def tile(data: bytes | None = None, verdict: Verdict | None = None, **fields: Any) -> Tile:
    picture: dict[str, Any] = {
        "key": PictureKey(message_id="1", attachment_id="2"),
        "guild_id": "3",
        "channel_id": "4",
        "user_id": "5",
        "message_link": "https://discord.com/channels/3/4/1",
        "image_url": "",
        "posted_at": datetime(2024, 5, 1, tzinfo=UTC),
        "width": 16,
        "height": 16,
        "file_size": 1,
        "content_hash": "0",
        "author": "Alice",
        "channel": "map-archive",
    }
    match = Match(picture=Picture(**picture | fields), score=0.5)
    return Tile(match=match, verdict=verdict, data=data)


def drawn(query: bytes | str, *tiles: Tile) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(render_sheet(query, tiles))) as sheet:
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")
        return np.asarray(sheet)


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size, with whatever follows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


@pytest.mark.parametrize(
    ("matches", "size"),
    [
        (0, (648, 420)),
        (1, (648, 420)),
        (3, (1252, 420)),
        (5, (1856, 420)),
        (6, (1252, 814)),
        (24, (1856, 1996)),
        (30, (1856, 1996)),
    ],
)
def test_it_is_as_large_as_its_matches_need(matches: int, size: tuple[int, int]) -> None:
    sheet = drawn(picture_bytes(0), *(tile(picture_bytes(n)) for n in range(matches)))
    assert sheet.shape == (size[1], size[0], 3)


def test_query_and_match_stand_side_by_side_with_hard_edges() -> None:
    sheet = drawn(picture_bytes(1), tile(picture_bytes(2)))
    for place, seed in ((QUERY, 1), (FIRST, 2)):
        blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        np.testing.assert_array_equal(sheet[place], blocks.repeat(64, axis=0).repeat(64, axis=1))


def test_every_verdict_has_its_colour() -> None:
    colours = {
        verdict: tuple(drawn("x", tile(verdict=verdict))[FIRST_ACCENT])
        for verdict in (*Verdict, None)
    }
    assert colours[Verdict.SAME] == (0x23, 0xA5, 0x5A)
    assert colours[Verdict.SIMILAR] == (0xF0, 0xB2, 0x32)
    assert colours[Verdict.NOTHING] == colours[None] == (0x80, 0x84, 0x8E)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"not a picture", id="no picture"),
        pytest.param(picture_bytes(0)[:-30], id="cut short"),
        pytest.param(picture_bytes(0, format="JPEG", side=256)[:200], id="cut in its header"),
        pytest.param(picture_bytes(0, format="BMP"), id="a format that is not read"),
        pytest.param(png(30_000, 30_000), id="bomb"),
        pytest.param(png(12_000, 10_000), id="bomb that Pillow only warns about"),
        pytest.param(png(0, 5), id="no pixels"),
        pytest.param(png(16, 16, (b"IDAT", zlib.compress(bytes(3)))), id="too few pixels"),
        pytest.param(
            png(16, 16, (b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000)))), id="text bomb"
        ),
        pytest.param(picture_bytes(0) + bytes(33 * 1024 * 1024), id="more bytes than are read"),
    ],
)
def test_what_cannot_be_drawn_is_a_placeholder(data: bytes) -> None:
    np.testing.assert_array_equal(drawn(data, tile(data)), drawn(b"", tile(b"")))


def test_odd_pictures_are_drawn_as_they_look() -> None:
    grey = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert tuple(drawn(encoded(grey), tile())[164, 164]) == (128, 128, 128)

    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert tuple(drawn(encoded(clear), tile())[164, 164]) == WELL

    frames = [Image.new("P", (8, 8)), Image.new("P", (8, 8), 1)]
    for frame in frames:
        frame.putpalette([0, 0, 255, 255, 0, 0])
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(drawn(moving, tile())[164, 164]) == (0, 0, 255)

    turned = Image.new("RGB", (64, 32), (0, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    well = drawn(encoded(turned, exif=exif), tile())[QUERY]
    assert tuple(well[4, 128]) == (0, 255, 0)
    assert tuple(well[128, 4]) == WELL

    sliver = drawn(encoded(Image.new("L", (1, 20_000), 255)), tile())[QUERY]
    white = (sliver == 255).all(axis=-1)
    assert white[32:-32, 96:-96].all(), "it can be seen, although it is but a thread"
    assert not white[:24].any(), "it fades where it is cut"
    assert not white[-24:].any()


@pytest.mark.parametrize(
    "name",
    ["x" * 5000, "Zoë 🗺 地图", "\u202eright\x1b[31m\0", "\n\n", "y̷̢̛" * 60, "\ud800"],
)
def test_no_name_leaves_its_card(name: str) -> None:
    sheet = drawn(name, tile(author=name, channel=name), tile())
    for gap in (np.s_[:, :22], np.s_[:, 306:342], np.s_[:, 626:644], np.s_[:22], np.s_[-22:]):
        assert (sheet[gap] == GROUND).all()
