"""Encoded pictures to the pixels that the image tower reads; everything hostile ends here."""

import threading
import warnings
from contextlib import nullcontext
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

# Only the plug-ins that are allowed here: otherwise Pillow loads all of them at the first format
# that it does not know yet.
from PIL import (
    AvifImagePlugin,  # noqa: F401 - imported to be registered
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from inference.artifact import Preprocessing
from inference.containers import FORMATS, orientation, read_container
from inference.errors import InvalidInputError
from inference.fields import Buffer
from inference.plain import blendable, plain, upright
from inference.renders import framed

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]

# What shows through transparent places: mid grey is about the mean of CLIP's training pictures,
# so it says neither light nor dark.
GROUND = 128

# A picture this long needs a resampling filter of gigabytes, however few its pixels are.
MAX_SIDE = 32_768

# JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that still leaves this many times the
# tower's size, and other pictures are averaged down by whole factors to no less than this many
# times before the exact filter is applied. Chosen by `mapseek bench preprocess`.
_JPEG_GAP = 4.0
_REDUCING_GAP = 8.0

# Of pictures larger than this, when decoded, so many are decoded at once: each takes up to 8 bytes
# a pixel, and there are more decoding threads than such pictures should have memory.
_LARGE_PIXELS = 8_000_000
_LARGE_AT_ONCE = 2

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# EXIF orientations whose stored columns, or rows, run against those of the upright picture.
_COLUMNS_REVERSED = (2, 3, 7, 8)
_ROWS_REVERSED = (3, 4, 6, 7)


class Preprocessor:
    """Decodes a picture straight to the tower's size; safe to call from many threads.

    Of an animation it takes the first frame. EXIF orientation is applied, transparency is laid
    over mid grey, and 16-bit, palette, grey and CMYK pictures become RGB. A picture that is cut
    short is refused, never filled up.

    Args:
        preprocessing: What the tower expects.
        max_image_bytes: Longest encoded file.
        max_image_pixels: Most pixels (width times height), checked before any is decoded. They
            need up to 8 bytes of memory each; two such pictures are decoded at a time.
    """

    def __init__(
        self, preprocessing: Preprocessing, *, max_image_bytes: int, max_image_pixels: int
    ) -> None:
        # Pillow reports oddities of a file as warnings, and Python keeps every distinct text for
        # ever: memory that a hostile sender would fill.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        # Pillow has a limit of its own, for the whole process: it must not be the lower one.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_image_pixels)
        self._side = preprocessing.image_size
        self._crop = preprocessing.resize == "crop"
        self._filter = _FILTERS[preprocessing.interpolation]
        self._render_margin = preprocessing.render_margin
        self._max_image_bytes = max_image_bytes
        self._max_image_pixels = max_image_pixels
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)

    def __call__(self, data: Buffer) -> Pixels:
        """Returns uint8 [S, S, 3] (RGB), S being the tower's `image_size`.

        Raises:
            InvalidInputError: The data is no picture that the server takes; the message says why.
        """
        if not data:
            raise InvalidInputError("The image is empty: send the bytes of an image file.")
        if len(data) > self._max_image_bytes:
            raise InvalidInputError(
                f"The image file has {len(data):,} bytes, and at most {self._max_image_bytes:,} "
                "are accepted: send a smaller one."
            )
        container = read_container(bytes(data))
        try:
            with Image.open(BytesIO(container.data), formats=[container.format]) as image:
                self._check_size(*image.size)
                exif = container.exif or image.info.get("exif", b"")
                return self._decode(image, orientation(exif))
        except InvalidInputError:
            raise
        except UnidentifiedImageError as error:
            raise InvalidInputError(
                f"The {container.format} image is damaged: its header cannot be read."
            ) from error
        except Image.DecompressionBombError as error:
            raise InvalidInputError(
                f"The image has more than {self._max_image_pixels:,} pixels: send a smaller one."
            ) from error
        except MemoryError as error:
            raise InvalidInputError(
                "The image needs more memory than there is: send a smaller one."
            ) from error
        except Exception as error:  # damaged files make Pillow raise nearly anything
            raise InvalidInputError(
                f"The {container.format} image is damaged or cut short ({error})."
            ) from error

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_image_pixels:
            raise InvalidInputError(
                f"The image has {width} x {height} pixels, and at most "
                f"{self._max_image_pixels:,} in all are accepted: send a smaller one."
            )
        if max(width, height) > MAX_SIDE:
            raise InvalidInputError(
                f"The image has {width} x {height} pixels, and no side may be longer than "
                f"{MAX_SIDE:,}: send a smaller one."
            )

    def _decode(self, image: Image.Image, turned: int) -> Pixels:
        width, height = image.size
        gap = int(self._side * _JPEG_GAP)
        drafted = image.draft(None, (gap, gap))  # does nothing but for JPEG
        # Decoded at 1/n, the last pixel may stand for less than n: positions scale by n exactly.
        scale = round(width / drafted[1][2]) if drafted else 1
        large = image.width * image.height > _LARGE_PIXELS
        with self._large if large else nullcontext():
            # JPEG keeps no colour exactly.
            if not drafted:
                image = framed(plain(image), self._render_margin)
                width, height = image.size
            left, upper, right, lower = self._box(width, height, turned)
            image = blendable(image).resize(
                (self._side, self._side),
                self._filter,
                box=(left / scale, upper / scale, right / scale, lower / scale),
                reducing_gap=_REDUCING_GAP,
            )
        image = upright(image, turned)
        if image.mode == "RGBa":
            return _over_ground(np.asarray(image))
        return np.asarray(image.convert("RGB"))

    def _box(self, width: int, height: int, turned: int) -> Box:
        """The part of the stored picture that is seen: all of it, or the square in its centre."""
        if not self._crop:
            return 0, 0, width, height
        # CLIP's own order is: upright, scale the shorter side, cut the centre out. Cutting first,
        # by the same whole pixels of the scaled picture, gives the same result for less.
        scaled_width, scaled_height = _scaled(width, height, self._side)
        left, top = (scaled_width - self._side) // 2, (scaled_height - self._side) // 2
        if turned in _COLUMNS_REVERSED:
            left = scaled_width - self._side - left
        if turned in _ROWS_REVERSED:
            top = scaled_height - self._side - top
        return (
            left * width / scaled_width,
            top * height / scaled_height,
            min(width, (left + self._side) * width / scaled_width),
            min(height, (top + self._side) * height / scaled_height),
        )


def reference(data: bytes, preprocessing: Preprocessing) -> Pixels:
    """The plain path that the fast one is compared to: full decode, exact filter, no limits.

    The steps and their rounding are those of `CLIPImageProcessor` of Hugging Face transformers,
    after the margin of a clean render.

    Returns:
        uint8 [S, S, 3] (RGB).
    """
    side, resampling = preprocessing.image_size, _FILTERS[preprocessing.interpolation]
    with Image.open(BytesIO(data), formats=FORMATS) as opened:
        image = ImageOps.exif_transpose(opened)
    image = framed(plain(image), preprocessing.render_margin)
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, (GROUND, GROUND, GROUND, 255))
        image = Image.alpha_composite(ground, image)
    image = image.convert("RGB")
    if preprocessing.resize == "squash":
        return np.asarray(image.resize((side, side), resampling))
    image = image.resize(_scaled(image.width, image.height, side), resampling)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _scaled(width: int, height: int, side: int) -> tuple[int, int]:
    """The size at which the shorter side is `side`, rounded as transformers does."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _over_ground(premultiplied: Pixels) -> Pixels:
    """Lays premultiplied RGBA [S, S, 4] over the ground; returns RGB [S, S, 3]."""
    hidden = 255 - premultiplied[..., 3:].astype(np.uint16)
    blended = premultiplied[..., :3] + (GROUND * hidden + 127) // 255
    rgb: Pixels = np.minimum(blended, 255).astype(np.uint8)
    return rgb
