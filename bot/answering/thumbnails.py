"""The pictures of maps that were shown lately, as small as a sheet has room for."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from PIL import Image

from bot.pictures import Sighting
from bot.sheet import frame

_MOST_BYTES = 16 * 1024 * 1024


class Thumbnails:
    """Fetches and frames pictures, and keeps the latest used in bounded memory.

    A file of Discord never changes; a linked picture may, so it is fetched every time.

    Args:
        fetch: Downloads a picture.
        most_bytes: How much is kept, as pixels in memory.
    """

    def __init__(
        self, fetch: Callable[[str], Awaitable[bytes]], *, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._fetch = fetch
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()

    async def of(self, sighting: Sighting) -> Image.Image | None:
        """The picture in the box of a sheet; None where it cannot be drawn.

        Raises:
            FetchError: It cannot be fetched.
        """
        id_ = sighting.attachment_id
        if (kept := self._kept.get(id_)) is not None:
            self._kept.move_to_end(id_)
            return kept
        picture = await frame(await self._fetch(sighting.fetch_url))
        if picture is not None and id_.isdecimal():
            self._keep(id_, picture)
        return picture

    def _keep(self, id_: str, picture: Image.Image) -> None:
        if id_ in self._kept:
            return  # somebody else was quicker
        self._kept[id_] = picture
        self._bytes += _bytes(picture)
        while self._bytes > self._most_bytes:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(picture: Image.Image) -> int:
    return 3 * picture.width * picture.height
