"""Looks at parts of a picture: a map that fills little of a screenshot fills more of a part.

Measured with `mapseek bench retrieval --views looks --views full` on 3,000 maps, poor pictures
among posts: the whole alone finds 0.822 of the maps first and 0.871 among the first three; with the
parts below it is 0.860 and 0.904. On the validation half, more parts or no discount were no better.
"""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from bot.archive.port import ArchiveError
from bot.framing import is_bearable
from inference.client import Embedded, EmbeddingClient
from inference.containers import orientation, read_container
from inference.errors import EmbeddingError
from inference.plain import blendable, plain, upright

Box = tuple[float, float, float, float]

PARTS: tuple[Box, ...] = (
    (0.125, 0.125, 0.875, 0.875),  # the centre
    (0.0, 0.0, 0.6, 1.0),
    (0.4, 0.0, 1.0, 1.0),
)
"""Left, top, right, bottom of each part, as fractions of the upright picture."""

DISCOUNT = 0.07
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
                asyncio.create_task(client.embed(one, lane="bulk", timeout_s=_PATIENCE_S))
                for one in cut
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
    if not is_bearable(data):
        return []
    try:
        picture = _upright(data)
        cut = [part(picture, box) for box in PARTS]
        if min(side for one in cut for side in one.size) < _LEAST_SIDE:
            return []
        return [_encoded(one) for one in cut]
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
    return _reduced(upright(picture, turned))


def _reduced(picture: Image.Image) -> Image.Image:
    factor = min(picture.width // _ENOUGH[0], picture.height // _ENOUGH[1])
    return plain(blendable(picture).reduce(factor)) if factor > 1 else picture


def part(picture: Image.Image, box: Box) -> Image.Image:
    """Cuts out what is between left, top, right and bottom, as fractions of the picture."""
    left, top, right, bottom = box
    width, height = picture.size
    return picture.crop(
        (round(left * width), round(top * height), round(right * width), round(bottom * height))
    )


def _encoded(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    if picture.mode == "RGBA":
        picture.save(out, "PNG", compress_level=1)
    else:
        picture.save(out, "JPEG", **_JPEG)
    return out.getvalue()
