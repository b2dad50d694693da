"""Looks at a picture again: at parts of it, in other light, turned, within a border.

A map that fills little of a screenshot fills more of a part. And where the model takes something
else for the map, it often does so by a hair: shown the same in another way, it finds the map.

Measured with `mapseek bench retrieval --views looks --views full` on 3,000 maps, poor pictures
among posts: the whole alone finds 0.829 of the maps first and 0.873 among the first three; with the
variants below it is 0.882 and 0.925. How they were chosen is in docs/retrieval.md.
"""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from bot.archive.port import ArchiveError
from bot.framing import is_bearable
from inference.client import Embedded, EmbeddingClient
from inference.containers import orientation, read_container
from inference.errors import EmbeddingError
from inference.plain import blendable, plain, upright

Box = tuple[float, float, float, float]

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to show a picture again.

    Attributes:
        box: Left, top, right, bottom of the part that is shown, as fractions of the picture.
        border: Width of a black border on each side, as a fraction of the part's own.
        evened: If not zero, light and shadow over more than this share of the width are evened out.
        stretched: Whether each colour's levels are stretched over the whole range.
        degrees: How far it is turned, counter-clockwise; nothing is cut off.
    """

    box: Box = _WHOLE
    border: float = 0.0
    evened: float = 0.0
    stretched: bool = False
    degrees: float = 0.0

    def of(self, picture: Image.Image) -> Image.Image:
        """Show a picture, of mode L, RGB or RGBA, in this way."""
        left, top, right, bottom = self.box
        width, height = picture.size
        shown = picture.crop(
            (round(left * width), round(top * height), round(right * width), round(bottom * height))
        )
        if self.border:
            sides = round(self.border * shown.width), round(self.border * shown.height)
            shown = ImageOps.expand(shown, sides, "black")
        if self.stretched or self.evened:
            shown = self._levelled(shown)
        if self.degrees:
            shown = shown.rotate(self.degrees, Image.Resampling.BILINEAR, expand=True)
        return shown

    def _levelled(self, picture: Image.Image) -> Image.Image:
        levelled = picture.convert("RGB") if picture.mode == "RGBA" else picture
        if self.evened:
            levelled = _evened(levelled, self.evened)
        if self.stretched:  # but for the darkest and the lightest in a hundred
            levelled = ImageOps.autocontrast(levelled, cutoff=1)
        if picture.mode == "RGBA":
            levelled.putalpha(picture.getchannel("A"))
        return levelled


VARIANTS: tuple[Variant, ...] = (
    Variant((0.125, 0.125, 0.875, 0.875)),
    Variant((0.175, 0.0, 0.825, 1.0)),
    Variant((0.0, 0.0, 0.6, 1.0)),
    Variant((0.4, 0.0, 1.0, 1.0)),
    Variant(stretched=True),
    Variant(degrees=15.0),
    Variant(border=0.15, stretched=True),
    Variant(evened=0.25, stretched=True),
    Variant(evened=0.125, stretched=True),
    Variant((0.25, 0.25, 0.75, 0.75)),
)
"""What is looked at after the picture as it is."""

DISCOUNT = 0.03
"""By how much the similarities of a variant count less: most show less, and more looks like it."""

SHARPNESS = 25.0
"""How much more the best look counts than those that come near; see `agreed`."""

# What is around a pixel is seen in a picture of this width; what is as light as all around becomes
# of this level; and this is added to the light around, so that black stays black.
_AROUND = 64
_MIDDLE = 110.0
_DARKEST = 12.0

# The variants of a smaller picture show nothing.
_LEAST_SIDE = 32
# Least width and height of an upright picture that is made smaller, for parts of it and for the
# whole: every variant then has sides twice as long as the bundled model's input or more, from where
# on that changes little.
_ENOUGH = (1280, 768)
_ENOUGH_WHOLE = (640, 384)
# Longest side, whatever the other: turned, a strip takes the area of a square.
_LONGEST = 3072
_JPEG = {"quality": 95, "subsampling": "4:4:4"}
# For all variants of a picture together, from the cutting to the last vector.
_PATIENCE_S = 0.5

# Of its own, and of one thread: decoding takes the memory of several pictures, and a thread that is
# given up on goes on until it is done.
_cutter = ThreadPoolExecutor(1, thread_name_prefix="looks")

_SIDEWAYS = (5, 6, 7, 8)


def agreed(similarities: NDArray[np.floating[Any]], axis: int = 0) -> NDArray[np.floating[Any]]:
    """How similar something is by several looks: as the best of them says, or a little more.

    The more looks come near to the best, the more: up to 0.1 for eleven that say the same, since
    those that are mistaken seldom are in the same way. One look alone is left as it is.

    Args:
        similarities: Those of each look, less its discount.
        axis: Along which the looks lie; it disappears.
    """
    together: NDArray[np.floating[Any]] = np.log(np.exp(SHARPNESS * similarities).sum(axis))
    return together / SHARPNESS


async def embedded_variants(
    client: EmbeddingClient, image: bytes, *, model_id: str
) -> list[Embedded]:
    """The vectors of a picture's variants, as many as are to be had soon.

    They go in the bulk lane, so that nobody's first look waits for them. What fails, comes late or
    from another model is left out.

    Args:
        client: Embeds.
        image: The encoded file.
        model_id: The model whose vectors count.
    """
    tasks: list[asyncio.Task[Embedded]] = []
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            shown = await loop.run_in_executor(_cutter, variants, image)
            # The server is told the deadline, too.
            tasks = [
                asyncio.create_task(client.embed(one, lane="bulk", timeout_s=_PATIENCE_S))
                for one in shown
            ]
            if tasks:
                await asyncio.wait(tasks)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    found = []
    for outcome in outcomes:
        if isinstance(outcome, Embedded):
            if outcome.model_id == model_id:
                found.append(outcome)
        elif not isinstance(outcome, EmbeddingError | ArchiveError | asyncio.CancelledError):
            raise outcome
    return found


def variants(data: bytes) -> list[bytes]:
    """Makes the variants of an encoded picture: upright, of an animation the first frame.

    Returns:
        Encoded files, or none where the picture is too small, too large, or cannot be decoded:
        what is wrong with it, the first look says.
    """
    if not is_bearable(data):
        return []
    try:
        picture = _upright(data)
        smaller = _reduced(picture, _ENOUGH_WHOLE)
        shown = [one.of(smaller if one.box == _WHOLE else picture) for one in VARIANTS]
        if min(side for one in shown for side in one.size) < _LEAST_SIDE:
            return []
        return [_encoded(one) for one in shown]
    except Exception:  # noqa: BLE001 - decoders raise anything over a hostile file
        return []


def _upright(data: bytes) -> Image.Image:
    """The picture as the server sees it, in mode L, RGB or RGBA."""
    # Nothing of the file reaches Pillow but what the server's own Pillow is shown.
    container = read_container(data)
    with Image.open(io.BytesIO(container.data), formats=[container.format]) as image:
        turned = orientation(container.exif or image.info.get("exif", b""))
        # Does nothing but for JPEG.
        image.draft(None, _ENOUGH[::-1] if turned in _SIDEWAYS else _ENOUGH)
        picture = plain(image)
    return _reduced(upright(picture, turned), _ENOUGH)


def _reduced(picture: Image.Image, least: tuple[int, int]) -> Image.Image:
    enough = min(picture.width / least[0], picture.height / least[1])
    factor = max(enough, max(picture.size) / _LONGEST)
    if factor <= 1:
        return picture
    size = round(picture.width / factor), round(picture.height / factor)
    return plain(blendable(picture).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _evened(picture: Image.Image, share: float) -> Image.Image:
    """Divide each colour by its mean around there (D. Jobson et al., "Retinex", 1997)."""
    width, height = picture.size
    small = picture.resize((_AROUND, max(1, round(_AROUND * height / width))), Image.Resampling.BOX)
    around = small.filter(ImageFilter.GaussianBlur(_AROUND * share))
    light = np.asarray(around.resize(picture.size, Image.Resampling.BILINEAR), np.float32)
    evened = np.asarray(picture, np.float32) * (_MIDDLE / (light + _DARKEST))
    return Image.fromarray(evened.clip(0, 255).astype(np.uint8))


def _encoded(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    if picture.mode == "RGBA":
        picture.save(out, "PNG", compress_level=1)
    else:
        picture.save(out, "JPEG", **_JPEG)
    return out.getvalue()
