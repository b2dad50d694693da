"""The bot's indexing without Discord's gateway: the real parts, on files that outlive them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from bot.archive.port import ImageArchive
from bot.fetch import Fetcher, FetchError
from bot.ingest.queue import Queue
from bot.ingest.worker import Ingest
from bot.pictures import Sighting
from inference.client import ClientSettings, EmbeddingClient
from tests.bot.discord.loopback import Discord
from tests.bot.discord.toy import ToyServer

_Archive = TypeVar("_Archive", bound=ImageArchive)


class Workshop:
    """What an `Ingest` needs, on files that outlive it."""

    def __init__(self, folder: Path, discord: Discord, server: ToyServer) -> None:
        self.folder = folder
        self.discord = discord
        self.server = server
        self.now_s = 1_000.0
        self.refreshed: list[Sighting] = []
        self.fresh: Sighting | FetchError | None = None

    def sighting(self, message: int, data: bytes) -> Sighting:
        attachment = self.discord.sign(self.discord.upload(10, data))
        return Sighting(
            message_id=str(message),
            attachment_id=attachment["id"],
            guild_id="1",
            channel_id="10",
            user_id="42",
            fetch_url=attachment["url"],
            image_url=attachment["url"],
            posted_at="2024-01-01T00:00:00+00:00",
        )

    async def refresh(self, sighting: Sighting) -> Sighting | None:
        self.refreshed.append(sighting)
        if isinstance(self.fresh, FetchError):
            raise self.fresh
        return self.fresh

    @asynccontextmanager
    async def open(
        self,
        archive: AbstractAsyncContextManager[_Archive],
        *,
        timeout_s: float = 5,
        attempts: int = 1,
    ) -> AsyncIterator[tuple[Ingest, Queue, _Archive]]:
        """The bot's indexing, from its queue into an archive."""
        client = ClientSettings(server=self.server.address, timeout_s=timeout_s, attempts=attempts)
        with Queue(self.folder / "queue.db") as queue:
            async with (
                archive as opened,
                EmbeddingClient(client) as embedder,
                Fetcher(
                    trusted_origins=[self.discord.origin], max_bytes=1 << 20, timeout_s=30
                ) as fetcher,
            ):
                ingest = Ingest(
                    queue=queue,
                    archive=opened,
                    client=embedder,
                    fetcher=fetcher,
                    refresh=self.refresh,
                    clock=lambda: self.now_s,
                )
                yield ingest, queue, opened


@asynccontextmanager
async def working(ingest: Ingest) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(ingest.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
