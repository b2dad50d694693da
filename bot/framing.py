"""Brings pictures of strangers into the box that a sheet has for each."""

import io

from PIL import Image, ImageOps

from bot.importer.files import FORMATS, dimensions

BOX = 256  # side of a picture on a sheet, in pixels: twice a map
WELL = "#17181a"  # what is seen where there is no picture
# Sharp enough for the edges of blocks, in a third of the time that a PNG takes.
JPEG = {"quality": 90, "subsampling": "4:4:4"}

# Pictures come from strangers: what is larger, or of a format that the server does not read,
# becomes a placeholder.
_MOST_BYTES = 32 * 1024 * 1024
_MOST_PIXELS = 40_000_000

# What is no larger than this is kept as the file that it is, as most renders of single maps.
_SMALL_BYTES = 16 * 1024
_SMALL_SIDE = 2 * BOX

# A picture that is longer than this many times its width is cut: as a thread it shows nothing.
_LONGEST = 4
_FADE = 32


def is_small(data: bytes) -> bool:
    """Whether a file is small enough to be kept as it is; what it holds may yet be damaged."""
    return len(data) <= _SMALL_BYTES and 0 < max(dimensions(data)) <= _SMALL_SIDE


def is_bearable(data: bytes) -> bool:
    """Whether a file of a stranger may be decoded, by its length and by the size it claims."""
    width, height = dimensions(data)
    return len(data) <= _MOST_BYTES and 0 < width * height <= _MOST_PIXELS


def small(data: bytes) -> bytes | None:
    """What a sheet shows of a picture, as a JPEG; None if it must not or cannot be drawn."""
    picture = decoded(data)
    if picture is None:
        return None
    out = io.BytesIO()
    picture.save(out, "JPEG", **JPEG)
    return out.getvalue()


def decoded(data: bytes) -> Image.Image | None:
    """A picture that fits the box, or None where the file must not or cannot be drawn."""
    if not is_bearable(data):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            opened.draft("RGB", (2 * BOX, 2 * BOX))  # JPEG only: decodes at a fraction
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off
                picture = picture.point(lambda value: value / 256).convert("L")
            return _framed(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
    except Exception:  # noqa: BLE001 - decoders raise anything over a hostile file
        return None


def _framed(picture: Image.Image) -> Image.Image:
    """Scales a picture to the box; pixel art keeps its hard edges."""
    whole = picture.size
    picture = _shortened(picture)
    longest = max(picture.size)
    factor = BOX // longest
    if longest == BOX:
        pass
    elif factor > 1:
        picture = picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    else:
        picture = picture.resize(
            (
                max(1, round(picture.width * BOX / longest)),
                max(1, round(picture.height * BOX / longest)),
            ),
            Image.Resampling.LANCZOS,
            reducing_gap=2.0,
        )
    if picture.mode == "RGBA":
        ground = Image.new("RGBA", picture.size, WELL)
        picture = Image.alpha_composite(ground, picture).convert("RGB")
    return picture if max(whole) <= _LONGEST * min(whole) else _faded(picture)


def _shortened(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is far longer than wide."""
    width = min(picture.width, _LONGEST * picture.height)
    height = min(picture.height, _LONGEST * picture.width)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _faded(picture: Image.Image) -> Image.Image:
    """Lets both ends fade away, where the picture goes on."""
    upright = picture.height > picture.width
    length, across = sorted(picture.size, reverse=True)
    fade = min(_FADE, length // 2)
    mask = Image.new("L", (across, length), 255)
    ramp = Image.linear_gradient("L").resize((across, fade))
    mask.paste(ramp, (0, 0))
    mask.paste(ramp.transpose(Image.Transpose.FLIP_TOP_BOTTOM), (0, length - fade))
    if not upright:
        mask = mask.transpose(Image.Transpose.ROTATE_90)
    return Image.composite(picture, Image.new("RGB", picture.size, WELL), mask)
