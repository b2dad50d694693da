"""Pictures as Pillow decodes them, made plain: eight bits, true colours, upright."""

import numpy as np
from PIL import Image

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def plain(image: Image.Image) -> Image.Image:
    """The picture in mode L, RGB or, where anything is transparent, RGBA."""
    image.load()  # some decoders tell the mode only then
    if image.mode == "I;16":
        return eight_bits(image)
    if image.has_transparency_data and image.mode != "RGBA":
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "RGBA"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def blendable(image: Image.Image) -> Image.Image:
    """The picture in a mode whose pixels may be averaged: L, RGB or RGBa."""
    picture = plain(image)
    # Premultiplied: what a transparent pixel hides must not bleed into its neighbours.
    return picture.convert("RGBa") if picture.mode == "RGBA" else picture


def eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture at 8 bits; Pillow itself would clip it at 255."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it is meant to be seen, by its EXIF orientation, 1 to 8."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
