import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from inference.artifact import Preprocessing
from inference.errors import InvalidInputError
from inference.preprocess import GROUND, MAX_SIDE, Pixels, reference
from tests.inference.core.pictures import SIDE, encoded, preprocessing, preprocessor, scene

ORIENTATION = 0x0112


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises much and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG, its frame header telling another size."""
    frame = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:frame] + struct.pack(">HH", height, width) + jpeg[frame + 4 :]


def assert_close(found: Pixels, wanted: Pixels, *, mean: float = 2.0, worst: int = 24) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == np.uint8
    error = np.abs(found.astype(int) - wanted.astype(int))
    assert error.mean() <= mean
    assert error.max() <= worst


PHOTO = scene(96, 80)
TURNED = PHOTO.rotate(90)
FILES = {
    "baseline JPEG": encoded(PHOTO, "JPEG"),
    "progressive JPEG": encoded(PHOTO, "JPEG", progressive=True),
    "PNG": encoded(PHOTO, "PNG"),
    "animated PNG": encoded(PHOTO, "PNG", save_all=True, append_images=[TURNED]),
    "GIF": encoded(scene(96, 80, "P"), "GIF", comment=b"hello"),
    "animated GIF": encoded(scene(96, 80, "P"), "GIF", save_all=True, append_images=[TURNED]),
    "WebP": encoded(PHOTO, "WEBP"),
    "lossless WebP": encoded(PHOTO, "WEBP", lossless=True),
    "animated WebP": encoded(PHOTO, "WEBP", save_all=True, append_images=[TURNED]),
    "AVIF": encoded(PHOTO, "AVIF", exif=oriented(6)),
    "AVIF with transparency": encoded(scene(96, 80, "RGBA"), "AVIF", subsampling="4:4:4"),
    "JPEG of CMYK": encoded(scene(96, 80, "CMYK"), "JPEG"),
    "grey JPEG": encoded(scene(96, 80, "L"), "JPEG"),
    "grey PNG": encoded(scene(96, 80, "L"), "PNG"),
    "PNG of 16 bits": encoded(scene(96, 80, "I;16"), "PNG"),
    "PNG of 1 bit": encoded(scene(96, 80, "1"), "PNG"),
    "PNG with a palette": encoded(scene(96, 80, "P"), "PNG"),
    "PNG with transparency": encoded(scene(96, 80, "RGBA"), "PNG"),
    "grey PNG with transparency": encoded(scene(96, 80, "LA"), "PNG"),
    "PNG with a transparent palette": encoded(
        scene(96, 80, "P"), "PNG", transparency=bytes(range(0, 256, 4))
    ),
    "PNG with a transparent colour": encoded(PHOTO, "PNG", transparency=(10, 20, 30)),
    "WebP with transparency": encoded(scene(96, 80, "RGBA"), "WEBP"),
    "GIF with transparency": encoded(scene(96, 80, "P"), "GIF", transparency=3),
}
EVERY_FILE = st.sampled_from(sorted(FILES))


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_picture_comes_out_as_the_plain_path_makes_it(
    name: str, interpolation: str, resize: str
) -> None:
    how = preprocessing(resize, interpolation)

    found = preprocessor(how)(FILES[name])

    assert found.shape == (SIDE, SIDE, 3)
    # What is transparent is averaged premultiplied here, and straight there after the blending.
    assert_close(found, reference(FILES[name], how))


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 420),
    height=st.integers(1, 420),
    turned=st.integers(1, 8),
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    resize=st.sampled_from(["crop", "squash"]),
    side=st.sampled_from([5, 16, 24]),
)
@example(width=97, height=97, turned=1, kind="JPEG", resize="squash", side=8)  # 1/8 is 13 pixels
def test_any_size_and_turn_stays_close_to_the_plain_path(
    width: int, height: int, turned: int, kind: str, resize: str, side: int
) -> None:
    how = preprocessing(resize, side=side)
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    data = encoded(scene(width, height), kind, exif=oriented(turned), **options)

    assert_close(preprocessor(how)(data), reference(data, how), mean=4.0, worst=48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    ("turned", "corner"),
    [(1, "top left"), (3, "bottom right"), (6, "top right"), (8, "bottom left")],
)
def test_a_picture_is_turned_upright(kind: str, turned: int, corner: str) -> None:
    stored = Image.new("RGB", (64, 64), "white")
    stored.paste("black", (0, 0, 32, 32))

    pixels = preprocessor()(encoded(stored, kind, exif=oriented(turned)))

    corners = {
        "top left": pixels[4, 4],
        "top right": pixels[4, -5],
        "bottom left": pixels[-5, 4],
        "bottom right": pixels[-5, -5],
    }
    assert [name for name, colour in corners.items() if colour.mean() < 64] == [corner]


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
        b"\0" * 40,
    ],
)
def test_nonsense_in_place_of_exif_leaves_a_picture_as_it_is(exif: bytes) -> None:
    preprocess = preprocessor()

    assert np.array_equal(
        preprocess(encoded(PHOTO, "JPEG", exif=exif)), preprocess(FILES["baseline JPEG"])
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "AVIF"])
def test_what_is_transparent_shows_neutral_grey_and_never_what_it_hides(kind: str) -> None:
    hidden = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}

    pixels = preprocessor()(encoded(hidden, kind, **options))

    assert np.unique(pixels).tolist() == [GROUND]


def test_a_hidden_colour_does_not_bleed_over_an_edge() -> None:
    picture = Image.new("RGBA", (66, 66), (255, 0, 0, 0))
    picture.paste((GROUND, GROUND, GROUND, 255), (0, 0, 33, 66))

    pixels = preprocessor()(encoded(picture, "PNG"))

    assert np.abs(pixels.astype(int) - GROUND).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]

    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)

    red, green, blue = preprocessor()(data).reshape(-1, 3).mean(axis=0)
    assert red > 240
    assert max(green, blue) < 15


def test_what_no_pixel_depends_on_changes_nothing() -> None:
    preprocess, jpeg, png = preprocessor(), FILES["baseline JPEG"], FILES["PNG"]
    comment = b"\xff\xfe\x00\x06junk"
    text = png_chunk(b"tEXt", b"Comment\0junk")
    after_header = 8 + 25

    loaded_jpeg = jpeg[:2] + 400 * comment + jpeg[2:] + b"a video"
    loaded_png = png[:after_header] + 9_000 * text + png[after_header:] + b"a zip"

    assert np.array_equal(preprocess(loaded_jpeg), preprocess(jpeg))
    assert np.array_equal(preprocess(loaded_png), preprocess(png))


def test_many_threads_may_share_one() -> None:
    preprocess = preprocessor()
    wanted = {name: preprocess(data) for name, data in FILES.items()}

    with ThreadPoolExecutor(4) as threads:
        names = sorted(FILES) * 3
        found = threads.map(preprocess, [FILES[name] for name in names])
        assert all(
            np.array_equal(pixels, wanted[name]) for name, pixels in zip(names, found, strict=True)
        )


GIF_BOMB = b"GIF89a" + struct.pack("<HH", 50_000, 50_000) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\x08"
MANY_SCANS = FILES["progressive JPEG"][:-2] + 80 * b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty: send the bytes of an image file"),
        (b"\0" * 64, "no image in a format that is accepted here: JPEG, PNG, WebP, GIF or AVIF"),
        (b"<html><body>Not found</body></html>", "no image in a format"),
        (b"%PDF-1.7 picture.png", "no image in a format"),
        (encoded(PHOTO, "BMP"), "no image in a format"),
        (encoded(PHOTO, "TIFF"), "no image in a format"),
        (encoded(PHOTO, "ICO"), "no image in a format"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "no image in a format"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "no image in a format"),
        (b"\0" * 1_000_001, "1,000,001 bytes, and at most 1,000,000 are accepted: send a smaller"),
        (png_header(50_000, 50_000), "more than 4,000,000 pixels: send a smaller one"),
        (with_size(FILES["baseline JPEG"], 50_000, 50_000), "more than 4,000,000 pixels"),
        (GIF_BOMB, "more than 4,000,000 pixels"),
        (png_header(2_001, 2_000), r"2001 x 2000 pixels, and at most 4,000,000 in all"),
        (with_size(FILES["baseline JPEG"], 2_001, 2_000), "2001 x 2000 pixels"),
        (png_header(MAX_SIDE + 1, 1), "32769 x 1 pixels, and no side may be longer than 32,768"),
        (b"\x89PNG\r\n\x1a\n" + FILES["baseline JPEG"], "PNG image is damaged or cut short"),
        (b"GIF89a" + FILES["PNG"], "GIF image is damaged or cut short: send the whole file"),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 ", "WEBP image is damaged"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "AVIF image is damaged"),
        (
            b"\xff\xd8\xff\xc0\0\x0b\x08\0\x10\0\x10\x01\1\x11\0\xff\xda\0\2",
            "JPEG image is damaged",
        ),
        (png_header(0, 0), "PNG image is damaged"),
        (png_header(64, 64), "PNG image is damaged or cut short"),
        (b"\xff\xd8" + 1_100 * b"\xff\xfe\0\2", "more than 1000 header segments: save it anew"),
        (MANY_SCANS + b"\xff\xd9", "more than 64 scans: save it anew"),
        (png_header(8, 8)[:33] + 21_000 * png_chunk(b"IDAT", b""), "more than 20000 chunks"),
        (b"GIF89a" + b"\1\0\1\0\0\0\0" + 11_000 * b"!\xfe\1x\0", "more than 20000 blocks"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "data",
)
def test_what_is_no_acceptable_picture_is_refused_with_the_reason(
    data: bytes, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        preprocessor()(data)


def test_a_picture_at_the_very_limits_is_accepted() -> None:
    data = encoded(PHOTO, "PNG")

    exact = preprocessor(max_image_bytes=len(data), max_image_pixels=PHOTO.width * PHOTO.height)
    assert exact(data).shape == (SIDE, SIDE, 3)
    line = encoded(Image.new("L", (MAX_SIDE, 1)), "PNG")
    assert preprocessor()(line).shape == (SIDE, SIDE, 3)


def test_pillows_own_limit_does_not_undercut_a_higher_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    preprocess = preprocessor(max_image_pixels=200_000_000)
    # Pillow by itself refuses 180 million, whatever is allowed, and so tells nothing of the size.
    with pytest.raises(InvalidInputError, match="has 20000 x 15000 pixels, and at most 200,000,0"):
        preprocess(png_header(20_000, 15_000))


@settings(max_examples=400, deadline=None)
@given(name=EVERY_FILE, part=st.floats(0, 1, exclude_max=True))
def test_a_picture_that_is_cut_short_is_refused_or_loses_nothing(name: str, part: float) -> None:
    data, preprocess = FILES[name], preprocessor()
    try:
        pixels = preprocess(data[: int(part * len(data))])
    except InvalidInputError:
        return

    assert np.array_equal(pixels, preprocess(data))


def _gives_pixels_or_the_typed_error(data: bytes, how: Preprocessing | None = None) -> None:
    try:
        pixels = preprocessor(how)(data)
    except InvalidInputError as error:
        assert str(error).endswith((".", ")"))  # noqa: PT017 - either end is fine
    else:
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.dtype == np.uint8


@settings(max_examples=400, deadline=None)
@given(
    name=EVERY_FILE,
    # Headers are short, so most damage goes where the parsers look.
    damage=st.lists(
        st.tuples(st.integers(0, 60) | st.integers(0, 4_000), st.integers(0, 255)), max_size=6
    ),
    resize=st.sampled_from(["crop", "squash"]),
)
def test_any_damage_gives_pixels_or_the_typed_error(
    name: str, damage: list[tuple[int, int]], resize: str
) -> None:
    data = bytearray(FILES[name])
    for position, value in damage:
        data[position % len(data)] = value

    _gives_pixels_or_the_typed_error(bytes(data), preprocessing(resize))


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from(
        [
            b"",
            b"\xff\xd8\xff",
            b"\xff\xd8\xff\xc0\0\x0b\x08\0\x10\0\x10\x01\1\x11\0\xff\xda",
            b"\x89PNG\r\n\x1a\n",
            png_header(16, 16)[:33],
            b"GIF89a",
            b"GIF89a\x10\0\x10\0\0\0\0,",
            b"RIFF\x40\0\0\0WEBPVP8X",
            b"\0\0\0\x18ftypavif\0\0\0\0avif",
        ]
    ),
    rest=st.binary(max_size=80),
)
def test_any_bytes_at_all_give_pixels_or_the_typed_error(start: bytes, rest: bytes) -> None:
    _gives_pixels_or_the_typed_error(start + rest)
