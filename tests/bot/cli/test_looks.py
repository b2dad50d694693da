"""Parts of pictures: how they are cut out, and which of their vectors count."""

import asyncio
import io
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

from bot import framing, looks
from bot.archive.port import ArchiveError
from bot.looks import PARTS, embedded_parts, parts
from inference.artifact import Preprocessing
from inference.client import ClientSettings, Embedded, EmbeddingClient, Timings
from inference.errors import UnavailableError
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


def assert_parts_of(data: bytes, whole: Image.Image) -> None:
    """The server sees in each part what it would see in that box of the whole."""
    cut = parts(data)
    assert len(cut) == len(PARTS)
    for part, (left, top, right, bottom) in zip(cut, PARTS, strict=True):
        width, height = whole.size
        corners = round(left * width), round(top * height)
        box = (*corners, round(right * width), round(bottom * height))
        expected = reference(encoded(whole.crop(box), "PNG"), TOWER)
        seen = reference(part, TOWER)
        assert np.abs(seen.astype(float) - expected).max() < 8


def test_parts_are_the_middle_and_both_sides() -> None:
    cut = [Image.open(io.BytesIO(part)) for part in parts(encoded(drawn(200, 120), "PNG"))]
    assert [part.size for part in cut] == [(150, 90), (120, 120), (120, 120)]
    assert_parts_of(encoded(drawn(200, 120), "PNG"), drawn(200, 120))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_kind_of_pixels(mode: str) -> None:
    picture = drawn(200, 120, mode)
    if mode == "CMYK":
        data = encoded(picture, "JPEG", quality=95)
        assert_parts_of(data, Image.open(io.BytesIO(data)).convert("RGB"))
    elif mode in ("1", "P"):  # dithered: hard edges, which a JPEG softens
        assert len(parts(encoded(picture, "PNG"))) == len(PARTS)
    else:
        assert_parts_of(encoded(picture, "PNG"), picture)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_parts_are_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(drawn(200, 120), kind, exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as stored:
        upright = ImageOps.exif_transpose(stored)
    if kind != "AVIF":  # its decoder turns it by itself
        assert upright.size == ((200, 120) if orientation < 5 else (120, 200))
    assert_parts_of(data, upright.convert("RGB"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_cut(kind: str) -> None:
    frames = [Image.new("RGB", (200, 120), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert_parts_of(data, frames[0])


@pytest.mark.parametrize(
    ("size", "count"), [((54, 43), 3), ((52, 43), 0), ((54, 41), 0), ((1000, 40), 0), ((1, 1), 0)]
)
def test_tiny_parts_are_none(size: tuple[int, int], count: int) -> None:
    assert len(parts(encoded(Image.new("RGB", size), "PNG"))) == count


@pytest.mark.parametrize(
    ("kind", "size", "reduced"),
    [
        ("PNG", (3000, 2600), (1500, 1300)),
        ("JPEG", (2800, 2600), (1400, 1300)),
        ("PNG", (3840, 2160), (1920, 1080)),
        ("JPEG", (3840, 2160), (1920, 1080)),
        ("PNG", (2000, 1400), (2000, 1400)),
        ("JPEG", (2000, 1400), (2000, 1400)),
    ],
)
def test_large_pictures_are_made_smaller(
    kind: str, size: tuple[int, int], reduced: tuple[int, int]
) -> None:
    cut = parts(encoded(Image.new("RGB", size, "teal"), kind))
    with Image.open(io.BytesIO(cut[1])) as left:
        assert left.size == (round(0.6 * reduced[0]), reduced[1])


@pytest.mark.parametrize(("width", "reduced"), [(2600, 1300), (2100, 2100)])
def test_how_small_goes_by_the_upright_picture(width: int, reduced: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    cut = parts(encoded(Image.new("RGB", (2600 + 2100 - width, width)), "JPEG", exif=exif))
    with Image.open(io.BytesIO(cut[1])) as left:
        assert left.width == round(0.6 * reduced)


def test_what_is_behind_transparent_pixels_stays_hidden() -> None:
    pixels = np.zeros((2600, 2600, 4), np.uint8)
    pixels[::2] = (255, 0, 0, 255)
    pixels[1::2] = (0, 255, 0, 0)
    for part in parts(encoded(Image.fromarray(pixels), "PNG", compress_level=1)):
        assert reference(part, TOWER)[..., 1].max() <= 128


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
def test_what_cannot_be_cut_has_no_parts(data: bytes) -> None:
    assert parts(data) == []


@pytest.mark.parametrize(
    ("limit", "most"), [("_MOST_PIXELS", 200 * 120), ("_MOST_BYTES", len(PICTURE))]
)
def test_what_is_over_the_limits_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(framing, limit, most)
    assert len(parts(PICTURE)) == 3
    monkeypatch.setattr(framing, limit, most - 1)
    assert parts(PICTURE) == []


class Client(EmbeddingClient):
    """Answers for the parts of one picture, in turn, by what it is told."""

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
        vector = np.eye(4, dtype=np.float32)[len(self.lanes)]
        return Embedded(embedding=vector, model_id=str(answer), timings=timings)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, nothing comes too late."""
    monkeypatch.setattr(looks, "_PATIENCE_S", 60.0)


@pytest.mark.usefixtures("patient")
async def test_parts_are_embedded_in_the_bulk_lane() -> None:
    client = Client("a", "a", "a")
    found = await embedded_parts(client, PICTURE, model_id="a")
    assert [embedded.embedding.argmax() for embedded in found] == [1, 2, 3]
    assert client.lanes == ["bulk"] * 3


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "answer", ["b", UnavailableError("It is gone."), ArchiveError("It is gone.")]
)
async def test_what_fails_or_is_of_another_model_is_left_out(answer: str | Exception) -> None:
    client = Client("a", answer, "a")
    found = await embedded_parts(client, PICTURE, model_id="a")
    assert [embedded.model_id for embedded in found] == ["a", "a"]


@pytest.mark.usefixtures("patient")
async def test_a_fault_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        await embedded_parts(Client("a", ZeroDivisionError(), "a"), PICTURE, model_id="a")


@pytest.mark.usefixtures("patient")
async def test_without_parts_nothing_is_asked() -> None:
    assert await embedded_parts(Client(), b"no picture", model_id="a") == []


async def test_what_comes_late_is_left_out_and_called_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_PATIENCE_S", 2.0)
    client = Client("a", None, "a")
    found = await embedded_parts(client, PICTURE, model_id="a")
    assert [embedded.embedding.argmax() for embedded in found] == [1, 3]
    assert client.ended == 3


async def test_where_there_is_no_time_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_PATIENCE_S", 0.0)
    assert await embedded_parts(Client(), PICTURE, model_id="a") == []


@pytest.mark.usefixtures("patient")
async def test_who_gives_up_leaves_nothing_behind() -> None:
    client = Client(None, None, None)
    task = asyncio.create_task(embedded_parts(client, PICTURE, model_id="a"))
    await client.asked.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.ended == len(client.lanes) == 3
