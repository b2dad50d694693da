"""A bot that runs, between a Discord and an embedding server on this machine."""

import asyncio
import hashlib
import io
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

import disnake.http
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from pydantic import SecretStr

from bot import app
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import Entry, Picture, PictureKey
from bot.ingest.queue import Queue
from bot.settings import BotSettings
from inference.client import ClientSettings
from tests.bot.discord.loopback import TOKEN, Discord, Json
from tests.bot.discord.toy import MODEL_ID, ToyServer, embed
from tests.bot.discord.workshop import Workshop

PATIENCE_S = 30


def map_art(seed: int) -> bytes:
    """A picture of coloured squares, another one for every seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((128, 128), Image.Resampling.NEAREST)
    return encoded(image, "PNG")


def photographed(data: bytes) -> bytes:
    """The same map as somebody sees it in the game: cut a little, darker, and a JPEG."""
    image = Image.open(io.BytesIO(data)).crop((3, 2, 126, 125)).resize((200, 200))
    return encoded(ImageEnhance.Brightness(image).enhance(0.6), "JPEG")


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("MAPSEEK_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def discord(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Discord]:
    async with Discord() as discord:
        discord.add_guild(1)
        discord.add_channel(1, 10)
        monkeypatch.setattr(disnake.http.Route, "BASE", discord.api)
        yield discord


@pytest.fixture
async def server() -> AsyncIterator[ToyServer]:
    async with ToyServer() as server:
        yield server


class Server(Protocol):
    """An embedding server of whatever kind."""

    @property
    def address(self) -> str: ...


class Bot:
    """The bot with its files, to be run once or several times."""

    def __init__(self, folder: Path, discord: Discord, server: Server) -> None:
        self.discord = discord
        self.settings = BotSettings(
            archive=folder / "maps.db",
            discord_token=SecretStr(TOKEN),
            download_origins=discord.origin,
            searches_per_member=0,
            searches_per_guild=0,
        )
        self.client = ClientSettings(server=server.address, timeout_s=10, attempts=2)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs it as `mapseek bot` does, and ends it as a supervisor does."""
        self.discord.ready.clear()
        task = asyncio.create_task(app._run(self.settings, self.client, TOKEN))
        try:
            async with asyncio.timeout(PATIENCE_S):
                introduced = asyncio.create_task(self.discord.introduced())
                await asyncio.wait({task, introduced}, return_when=asyncio.FIRST_COMPLETED)
                introduced.cancel()
            if task.done():
                pytest.fail(f"the bot ended: {task!r}")
            yield
        finally:
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            assert await task == 0

    async def entries(self) -> list[Entry]:
        """What is in the archive."""
        async with EmbeddedArchive(self.settings.archive) as archive:
            return [entry async for entry in archive.entries()]

    async def indexed(self) -> set[str]:
        """The ids of the messages in the archive."""
        return {entry.picture.key.message_id for entry in await self.entries()}

    async def imports(self, message: Json, data: bytes) -> None:
        """Puts a message's picture into the archive as an import does: past the queue."""
        picture = Picture(
            key=PictureKey(message_id=message["id"], attachment_id=message["attachments"][0]["id"]),
            guild_id="1",
            channel_id=message["channel_id"],
            user_id=message["author"]["id"],
            message_link="",
            image_url="map.png",
            posted_at=datetime.fromisoformat(message["timestamp"]),
            width=1,
            height=1,
            file_size=len(data),
            content_hash=hashlib.sha256(data).hexdigest(),
        )
        async with EmbeddedArchive(self.settings.archive) as archive:
            await archive.upsert_many(
                [Entry(picture=picture, model_id=MODEL_ID, embedding=embed(data))]
            )

    def waiting(self) -> int:
        """How much is still to be done."""
        with Queue(self.settings.queue_file) as queue:
            return queue.depth().waiting + queue.depth().deletions

    def queued(self) -> set[str]:
        """The ids of the messages in the queue."""
        with Queue(self.settings.queue_file) as queue:
            return {item.sighting.message_id for item in queue.due(now_s=2**40, limit=1000)}

    async def settled(self, count: int) -> None:
        """Returns when everything is worked off and so many messages are in the archive."""

        async def done() -> bool:
            return self.waiting() == 0 and len(await self.indexed()) == count

        await until(done)


async def until(
    condition: Callable[[], Awaitable[bool]], *, patience_s: float = PATIENCE_S
) -> None:
    """Looks again and again at files that the bot writes, for as long as a slow machine takes."""
    async with asyncio.timeout(patience_s):
        while not await condition():  # noqa: ASYNC110 (another process cannot set an event)
            await asyncio.sleep(0.01)


@pytest.fixture
def bot(tmp_path: Path, discord: Discord, server: ToyServer) -> Bot:
    return Bot(tmp_path, discord, server)


@pytest.fixture
def shop(tmp_path: Path, discord: Discord, server: ToyServer) -> Workshop:
    return Workshop(tmp_path, discord, server)
