"""Where the bytes of pictures that are in an archive may be had again.

A media folder first (by what is in the files, whatever their names), then the path or link that
the archive remembers. Discord signs links for a day only, and the archive keeps them unsigned: with
the bot's token, Discord is asked for the message and its fresh links.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bot.archive.port import Picture
from bot.importer.files import UnreadableError, is_picture, read, tree
from bot.links import signature_missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bot.fetch import Fetcher

# Gives a picture's fresh link; None where its message says that it is gone.
Refresh = Callable[[Picture], Awaitable[str | None]]


class MissingError(Exception):
    """The bytes of a picture are not to be had; the message says why."""


class Sources:
    """Fetches the bytes of pictures.

    Args:
        max_bytes: Longest file.
        media: Files by the hex SHA-256 of their bytes.
        fetcher: Downloads links; None where nothing is downloaded.
        refresh: Asks Discord for a fresh link; None without the bot's token.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        media: dict[str, Path],
        fetcher: "Fetcher | None",
        refresh: Refresh | None,
    ) -> None:
        self._max_bytes = max_bytes
        self._media = media
        self._fetcher = fetcher
        self._refresh = refresh

    async def fetch(self, picture: Picture) -> bytes:
        """The bytes that the archive's vectors of this picture were made of.

        Raises:
            MissingError: They are not to be had.
        """
        path = self._media.get(picture.content_hash)
        if path is None and "://" not in picture.image_url:
            path = Path(picture.image_url)
        data = await (self._download(picture) if path is None else self._read(path))
        if picture.content_hash and hashlib.sha256(data).hexdigest() != picture.content_hash:
            raise MissingError("has other bytes now than when it was indexed: index it again")
        return data

    async def _read(self, path: Path) -> bytes:
        try:
            return (await asyncio.to_thread(read, path, max_bytes=self._max_bytes)).data
        except UnreadableError as error:
            raise MissingError(f"its file {error}") from None

    async def _download(self, picture: Picture) -> bytes:
        from bot.fetch import FetchError, GoneError  # noqa: PLC0415 - comes with the bot extra

        if self._fetcher is None:
            raise MissingError("lies behind a link, and --no-links was given")
        try:
            if not signature_missing(picture.image_url):
                try:
                    return await self._fetcher.fetch(picture.image_url)
                except GoneError:
                    pass
            if self._refresh is None:
                raise MissingError(
                    "Discord gives it out by a signed link only: set MAPSEEK_DISCORD_TOKEN, so "
                    "that one can be asked for, or give --media"
                )
            link = await self._refresh(picture)
            if link is None:
                raise MissingError("was deleted on Discord")
            return await self._fetcher.fetch(link)
        except FetchError as error:
            raise MissingError(str(error).rstrip(".")) from None


def files_by_content(folder: Path, report: Callable[[int], None]) -> dict[str, Path]:
    """The pictures of a folder and those below it, by the hex SHA-256 of their bytes.

    Args:
        folder: Where to look.
        report: Is told how many were read.
    """
    found: dict[str, Path] = {}
    for path in tree(folder, hidden=True):
        try:
            if path.is_file() and is_picture(path):
                with path.open("rb") as file:
                    found.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), path)
                report(len(found))
        except OSError:
            continue  # another source may have it; if none has, the picture is named
    return found


@asynccontextmanager
async def discord_links(token: str) -> "AsyncIterator[Refresh]":
    """Logs in to Discord, without going online, to ask for fresh links.

    Raises:
        StartupError: Discord refused the token.
    """
    import aiohttp  # noqa: PLC0415 - comes with the bot extra, as do the next
    import disnake  # noqa: PLC0415

    from bot.fetch import FetchError  # noqa: PLC0415
    from bot.pictures import in_channel  # noqa: PLC0415
    from inference.errors import StartupError  # noqa: PLC0415

    disnake.VoiceClient.warn_nacl = disnake.VoiceClient.warn_dave = False
    client = disnake.Client(intents=disnake.Intents.none())

    async def refresh(picture: Picture) -> str | None:
        try:
            now = await in_channel(
                client,
                guild_id=picture.guild_id,
                channel_id=picture.channel_id,
                message_id=picture.key.message_id,
            )
        except disnake.Forbidden:
            raise FetchError("The bot may not read its channel any more") from None
        except (disnake.HTTPException, aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchError(f"Discord gives no fresh link: {error}") from error
        if now == []:
            # No proof that it is gone: without the intent, Discord keeps the content from the bot.
            raise FetchError("Discord shows no picture in its message any more")
        fresh = [one.fetch_url for one in now or () if one.key == picture.key]
        return fresh[0] if fresh else None

    try:
        await client.login(token)
        yield refresh
    except disnake.LoginFailure:
        raise StartupError(
            "Discord refused the token: put a valid one into MAPSEEK_DISCORD_TOKEN, or none."
        ) from None
    finally:
        await client.close()
