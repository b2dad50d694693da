"""Looks at parts of a picture: a map that fills little of a screenshot fills more of a part.

Measured with `mapseek bench retrieval --views looks --views full` on 3,000 maps, poor pictures
among posts: the whole alone finds 0.584 of the maps first and 0.674 among the first three; with the
parts below it is 0.627 and 0.718. On the validation half, more parts or no discount were no better.
"""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from bot.archive.port import ArchiveError
from bot.framing import MOST_BYTES, MOST_PIXELS
from bot.importer.files import dimensions
from inference.client import Embedded, EmbeddingClient
from inference.containers import orientation, read_container
from inference.errors import EmbeddingError

PARTS = (
    (0.125, 0.125, 0.875, 0.875),  # the centre
    (0.0, 0.0, 0.6, 1.0),
    (0.4, 0.0, 1.0, 1.0),
)
"""Left, top, right, bottom of each part, as fractions of the upright picture."""

DISCOUNT = 0.05
"""By how much the similarities of a part count less: a part shows less, and more looks like it."""

# The parts of a smaller picture show nothing.
_LEAST_SIDE = 32
# Width and height that an upright picture keeps where it is decoded at a fraction: every part then
# has sides four times as long as the bundled model's input, from where on that changes little.
_ENOUGH = (1280, 1024)
_JPEG = {"quality": 95, "subsampling": "4:4:4"}
# For all parts of a picture together, from the cutting to the last vector.
_PATIENCE_S = 0.5

# Of its own, and of one thread: decoding takes the memory of several pictures, and a thread that is
# given up on goes on until it is done.
_cutter = ThreadPoolExecutor(1, thread_name_prefix="parts")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


async def embedded_parts(client: EmbeddingClient, image: bytes, *, model_id: str) -> list[Embedded]:
    """The vectors of a picture's parts, as many as are to be had soon.

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
            cut = await loop.run_in_executor(_cutter, parts, image)
            # The server is told the deadline, too.
            tasks = [
                asyncio.create_task(client.embed(part, lane="bulk", timeout_s=_PATIENCE_S))
                for part in cut
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


def parts(data: bytes) -> list[bytes]:
    """Cuts the parts out of an encoded picture: upright, of an animation the first frame.

    Returns:
        Encoded files, or none where the picture is too small, too large, or cannot be decoded:
        what is wrong with it, the first look says.
    """
    width, height = dimensions(data)
    if len(data) > MOST_BYTES or not 0 < width * height <= MOST_PIXELS:
        return []
    try:
        cut = _cut(_upright(data))
        if min(side for part in cut for side in part.size) < _LEAST_SIDE:
            return []
        return [_encoded(part) for part in cut]
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
        image.load()
        picture = _plain(image)
    return _reduced(picture.transpose(_UPRIGHT[turned]) if turned in _UPRIGHT else picture)


def _plain(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # Pillow itself would clip it at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _reduced(picture: Image.Image) -> Image.Image:
    factor = min(picture.width // _ENOUGH[0], picture.height // _ENOUGH[1])
    if factor <= 1:
        return picture
    if picture.mode != "RGBA":
        return picture.reduce(factor)
    # What a transparent pixel hides must not bleed into its neighbours.
    return picture.convert("RGBa").reduce(factor).convert("RGBA")


def _cut(picture: Image.Image) -> list[Image.Image]:
    width, height = picture.size
    return [
        picture.crop(
            (
                round(left * width),
                round(top * height),
                round(right * width),
                round(bottom * height),
            )
        )
        for left, top, right, bottom in PARTS
    ]


def _encoded(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    if picture.mode == "RGBA":
        picture.save(out, "PNG", compress_level=1)
    else:
        picture.save(out, "JPEG", **_JPEG)
    return out.getvalue()
