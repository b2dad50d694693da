"""Variants of pictures: how they are made, and which of their vectors count."""

import asyncio
import io
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

from bot import framing, looks
from bot.archive.port import ArchiveError
from bot.looks import VARIANTS, Variant, embedded_variants, variants
from inference.artifact import Preprocessing
from inference.client import ClientSettings, Embedded, EmbeddingClient, Timings
from inference.errors import UnavailableError
from inference.plain import plain
from inference.preprocess import reference

TOWER = Preprocessing(image_size=48, resize="squash", interpolation="bicubic")


def drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Soft colours that are others everywhere."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(255, 0, height)[:, None].repeat(width, 1)
    colours = Image.fromarray(np.stack([across, down, 255 - across / 2], 2).astype(np.uint8))
    if mode == "RGBA":
        colours.putalpha(Image.fromarray(((across + down) / 2).astype(np.uint8)))
    if mode == "I;16":
        return Image.fromarray((across * 256).astype(np.uint16))
    return colours.convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PICTURE = encoded(drawn(200, 120), "PNG")


def assert_variants_of(data: bytes, whole: Image.Image) -> None:
    """The server sees in each variant what it would see in that variant of the whole."""
    made = variants(data)
    assert len(made) == len(VARIANTS)
    for one, variant in zip(made, VARIANTS, strict=True):
        expected = reference(encoded(variant.of(whole), "PNG"), TOWER)
        seen = reference(one, TOWER)
        assert np.abs(seen.astype(float) - expected).max() < 8


def test_variants_are_parts_a_turn_a_border_and_other_light() -> None:
    made = [Image.open(io.BytesIO(one)) for one in variants(encoded(drawn(200, 120), "PNG"))]
    sizes = [one.size for one in made]
    assert sizes[:5] == [(150, 90), (130, 120), (120, 120), (120, 120), (200, 120)]
    # Turned by 15 degrees, it needs more room.
    assert sizes[5] == pytest.approx((200 * 0.966 + 120 * 0.259, 120 * 0.966 + 200 * 0.259), abs=2)
    assert sizes[6:] == [(260, 156), (200, 120), (200, 120), (100, 60)]
    assert_variants_of(encoded(drawn(200, 120), "PNG"), drawn(200, 120))


def test_a_part_is_what_lies_in_its_box() -> None:
    whole = drawn(200, 120)
    shown = Variant((0.25, 0.5, 0.75, 1.0)).of(whole)
    assert np.array_equal(np.asarray(shown), np.asarray(whole)[60:, 50:150])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("evened", [0.0, 0.25])
def test_levels_are_spread_over_the_whole_range(evened: float, mode: str) -> None:
    dull = drawn(200, 120).point(lambda level: 100 + level // 8).convert(mode)
    if mode == "RGBA":
        dull.putalpha(drawn(200, 120, "L"))
    shown = Variant(evened=evened, stretched=True).of(dull)
    assert shown.mode == mode
    assert not set(shown.convert("RGB").getextrema()) - {(0, 255)}
    if mode == "RGBA":
        assert shown.getchannel("A") == dull.getchannel("A")


@pytest.mark.parametrize("shade", [0.3, 0.6])
def test_a_shadow_over_half_of_a_picture_is_evened_out(shade: float) -> None:
    squares = np.kron(np.indices((12, 20)).sum(0) % 2, np.ones((16, 16))) * 100 + 100
    shadowed = squares.copy()
    shadowed[:, 160:] *= shade
    shown = np.asarray(Variant(evened=0.25).of(Image.fromarray(shadowed.astype(np.uint8))))
    lit, dark = shown[:, :112].astype(float), shown[:, 208:].astype(float)
    # More than half of the difference is gone.
    assert (1 + shade) / 2 < dark.mean() / lit.mean() < 1.1
    # The squares are still there, on both sides.
    for side in (lit, dark):
        assert side.max() - side.min() > 50


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_border_is_black_and_goes_all_around(mode: str) -> None:
    white = Image.new(mode, (200, 120), "white")
    shown = Variant(border=0.25).of(white)
    assert shown.size == (300, 180)
    assert shown.crop((50, 30, 250, 150)).tobytes() == white.tobytes()
    levels = np.asarray(shown.convert("RGBA"))
    assert (levels[..., 3] == 255).all()
    assert (levels[..., 0] > 0).sum() == 200 * 120


def test_a_turn_goes_counter_clockwise_and_cuts_nothing_off() -> None:
    whole = Image.new("L", (200, 120), 100)
    whole.paste(255, (0, 0, 20, 20))
    shown = np.asarray(Variant(degrees=90.0).of(whole))
    assert shown.shape == (200, 120)
    assert (shown[180:, :20] == 255).all()
    turned = np.asarray(Variant(degrees=8.0).of(whole))
    assert (turned > 50).sum() == pytest.approx(200 * 120, rel=0.02)
    assert turned[0, 0] == turned[-1, -1] == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_kind_of_pixels(mode: str) -> None:
    picture = drawn(200, 120, mode)
    if mode == "CMYK":
        data = encoded(picture, "JPEG", quality=95)
        assert_variants_of(data, Image.open(io.BytesIO(data)).convert("RGB"))
    elif mode in ("1", "P"):  # dithered: hard edges, which a JPEG softens
        assert len(variants(encoded(picture, "PNG"))) == len(VARIANTS)
    else:
        assert_variants_of(encoded(picture, "PNG"), plain(picture))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_variants_are_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(drawn(200, 120), kind, exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as stored:
        upright = ImageOps.exif_transpose(stored)
    if kind != "AVIF":  # its decoder turns it by itself
        assert upright.size == ((200, 120) if orientation < 5 else (120, 200))
    assert_variants_of(data, upright.convert("RGB"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_shown(kind: str) -> None:
    frames = [drawn(200, 120, "L"), ImageOps.invert(drawn(200, 120, "L"))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert_variants_of(data, frames[0])


@pytest.mark.parametrize(
    ("size", "count"),
    [((64, 64), 10), ((63, 64), 0), ((64, 63), 0), ((1000, 40), 0), ((1, 1), 0)],
)
def test_tiny_variants_are_none(size: tuple[int, int], count: int) -> None:
    assert len(variants(encoded(Image.new("RGB", size), "PNG"))) == count


@pytest.mark.parametrize(
    ("kind", "size", "reduced"),
    [
        ("PNG", (3000, 2600), (1280, 1109)),
        ("JPEG", (2800, 2600), (1280, 1189)),
        ("PNG", (3840, 2160), (1365, 768)),
        ("JPEG", (3840, 2160), (1365, 768)),
        ("PNG", (1280, 1400), (1280, 1400)),
        ("JPEG", (2000, 768), (2000, 768)),
    ],
)
def test_large_pictures_are_made_smaller(
    kind: str, size: tuple[int, int], reduced: tuple[int, int]
) -> None:
    made = variants(encoded(Image.new("RGB", size, "teal"), kind))
    with Image.open(io.BytesIO(made[2])) as left:
        assert left.size == (round(0.6 * reduced[0]), reduced[1])


@pytest.mark.parametrize("size", [(900, 40_000), (40_000, 900)])
def test_a_turned_strip_takes_no_more_room_than_other_pictures(size: tuple[int, int]) -> None:
    made = [Image.open(io.BytesIO(one)) for one in variants(encoded(Image.new("L", size), "PNG"))]
    assert len(made) == len(VARIANTS)
    assert max(side for one in made for side in one.size) <= 4096
    assert max(one.width * one.height for one in made) < 3_000_000


@pytest.mark.parametrize(("width", "reduced"), [(3000, 2304), (1000, 1000)])
def test_how_small_goes_by_the_upright_picture(width: int, reduced: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    made = variants(encoded(Image.new("RGB", (4000 - width, width)), "JPEG", exif=exif))
    with Image.open(io.BytesIO(made[2])) as left:
        assert left.width == round(0.6 * reduced)


def test_what_is_behind_transparent_pixels_stays_hidden() -> None:
    pixels = np.zeros((2600, 2600, 4), np.uint8)
    pixels[::2] = (255, 0, 0, 255)
    pixels[1::2] = (0, 255, 0, 0)
    # Which does not overshoot at the edges of what is turned.
    tower = TOWER.model_copy(update={"interpolation": "bilinear"})
    for one in variants(encoded(Image.fromarray(pixels), "PNG", compress_level=1)):
        assert reference(one, tower)[..., 1].max() <= 128


def _claiming(width: int, height: int) -> bytes:
    """A PNG whose header says that it is so large."""
    data = encoded(Image.new("RGB", (64, 64)), "PNG")
    return data[:16] + width.to_bytes(4) + height.to_bytes(4) + data[24:]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        encoded(drawn(200, 120), "BMP"),
        encoded(drawn(200, 120), "PNG")[:-400],
        encoded(drawn(200, 120), "JPEG")[:400],
        _claiming(0, 0),
        _claiming(50_000, 50_000),
        _claiming(8_000, 5_001),
        encoded(drawn(200, 120), "PNG") + bytes(32 << 20),
        # Nothing but comments, which Pillow would read one by one.
        encoded(drawn(200, 120), "GIF")[:781] + b"!\xfe\x01a\x00" * 30_000,
    ],
    ids=["empty", "text", "bmp", "short png", "short jpeg", "no size", "huge", "over the limit",
         "long", "comments"],
)  # fmt: skip
def test_what_cannot_be_read_has_no_variants(data: bytes) -> None:
    assert variants(data) == []


@pytest.mark.parametrize(
    ("limit", "most"), [("_MOST_PIXELS", 200 * 120), ("_MOST_BYTES", len(PICTURE))]
)
def test_what_is_over_the_limits_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(framing, limit, most)
    assert len(variants(PICTURE)) == len(VARIANTS)
    monkeypatch.setattr(framing, limit, most - 1)
    assert variants(PICTURE) == []


class Client(EmbeddingClient):
    """Answers for the variants of one picture, in turn, by what it is told."""

    def __init__(self, *answers: str | Exception | None) -> None:
        super().__init__(ClientSettings(server="127.0.0.1:1"))
        self.answers = list(answers)
        self.lanes: list[str] = []
        self.ended = 0
        self.asked = asyncio.Event()

    async def embed(
        self,
        image: bytes,
        *,
        lane: Literal["interactive", "bulk"] = "interactive",
        timeout_s: float | None = None,
    ) -> Embedded:
        """A vector of the model that is named, an error, or nothing ever."""
        assert timeout_s == looks._PATIENCE_S
        answer = self.answers[len(self.lanes)]
        self.lanes.append(lane)
        self.asked.set()
        try:
            if answer is None:
                await asyncio.Event().wait()
            if isinstance(answer, Exception):
                raise answer
        finally:
            self.ended += 1
        timings = Timings(decode_ms=0, queue_ms=0, inference_ms=0, batch_size=1)
        vector = np.eye(11, dtype=np.float32)[len(self.lanes)]
        return Embedded(embedding=vector, model_id=str(answer), timings=timings)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, nothing comes too late."""
    monkeypatch.setattr(looks, "_PATIENCE_S", 60.0)


@pytest.mark.usefixtures("patient")
async def test_variants_are_embedded_in_the_bulk_lane() -> None:
    client = Client(*"aaaaaaaaaa")
    found = await embedded_variants(client, PICTURE, model_id="a")
    assert [embedded.embedding.argmax() for embedded in found] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert client.lanes == ["bulk"] * 10


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "answer", ["b", UnavailableError("It is gone."), ArchiveError("It is gone.")]
)
async def test_what_fails_or_is_of_another_model_is_left_out(answer: str | Exception) -> None:
    client = Client("a", answer, *"aaaaaaaa")
    found = await embedded_variants(client, PICTURE, model_id="a")
    assert [embedded.model_id for embedded in found] == ["a"] * 9


@pytest.mark.usefixtures("patient")
async def test_a_fault_of_ours_is_not_hidden() -> None:
    client = Client("a", ZeroDivisionError(), *"aaaaaaaa")
    with pytest.raises(ZeroDivisionError):
        await embedded_variants(client, PICTURE, model_id="a")


@pytest.mark.usefixtures("patient")
async def test_without_variants_nothing_is_asked() -> None:
    assert await embedded_variants(Client(), b"no picture", model_id="a") == []


async def test_what_comes_late_is_left_out_and_called_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_PATIENCE_S", 2.0)
    client = Client("a", None, *"aaaaaaaa")
    found = await embedded_variants(client, PICTURE, model_id="a")
    assert [embedded.embedding.argmax() for embedded in found] == [1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert client.ended == 10


async def test_where_there_is_no_time_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_PATIENCE_S", 0.0)
    assert await embedded_variants(Client(), PICTURE, model_id="a") == []


@pytest.mark.usefixtures("patient")
async def test_who_gives_up_leaves_nothing_behind() -> None:
    client = Client(*[None] * 10)
    task = asyncio.create_task(embedded_variants(client, PICTURE, model_id="a"))
    await client.asked.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.ended == len(client.lanes) == 10
