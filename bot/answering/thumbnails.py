"""The pictures of maps that were shown lately, as small as a sheet has room for."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from bot.pictures import Sighting
from bot.sheet import keepable

# Some thousand files of single maps, or some hundred screenshots.
_MOST_BYTES = 16 * 1024 * 1024


class Thumbnails:
    """Fetches pictures and makes them small, and keeps the latest used in bounded memory.

    A file of Discord never changes; a linked picture may, so it is fetched every time.

    Args:
        fetch: Downloads a picture.
        most_bytes: How much is kept, encoded.
    """

    def __init__(
        self, fetch: Callable[[str], Awaitable[bytes]], *, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._fetch = fetch
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    async def of(self, sighting: Sighting) -> bytes | None:
        """The picture as a small encoded file; None where it cannot be drawn.

        Raises:
            FetchError: It cannot be fetched.
        """
        id_ = sighting.attachment_id
        if (kept := self._kept.get(id_)) is not None:
            self._kept.move_to_end(id_)
            return kept
        picture = await keepable(await self._fetch(sighting.fetch_url))
        if picture is not None and id_.isdecimal():
            self._keep(id_, picture)
        return picture

    def _keep(self, id_: str, picture: bytes) -> None:
        if id_ in self._kept:
            return  # somebody else was quicker
        self._kept[id_] = picture
        self._bytes += len(picture)
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._kept.popitem(last=False)[1])
