"""Which pictures the server has to embed, and which the archive knows."""

import asyncio
from pathlib import Path

import pytest

from bot.archive.embedded import EmbeddedArchive
from bot.embedder import Embedder
from inference.client import ClientSettings, EmbeddingClient
from inference.errors import UnavailableError
from tests.bot.discord.conftest import Bot, map_art
from tests.bot.discord.loopback import Discord
from tests.bot.discord.toy import MODEL_ID, ToyServer

BOB, EVE = 43, 44


async def test_a_picture_that_is_indexed_is_looked_up_without_the_model(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    async with bot.running():
        first = await discord.post(10, map_art(1))
        again = await discord.post(10, map_art(1))
        await bot.settled(2)
        before = list(server.lanes)
        answer = await discord.use_message_command(first, member=BOB)
        assert server.lanes == before
        assert again["id"] in answer.links[0]
        assert answer.content.startswith("**This map was posted before:**"), "scores mean the same"
        await discord.use_find(map_art(2), member=EVE, channel_id=10)
        assert server.lanes[: len(before) + 1] == [*before, 1]


async def test_a_file_is_embedded_once_for_all_who_wait_and_who_gives_up_stops_nobody(
    server: ToyServer, tmp_path: Path
) -> None:
    settings = ClientSettings(server=server.address, timeout_s=30, attempts=1)
    async with EmbeddedArchive(tmp_path / "a.db") as archive, EmbeddingClient(settings) as client:
        embedder = Embedder(client, archive)

        def ask(data: bytes, name: str) -> "asyncio.Task[object]":
            return asyncio.create_task(
                embedder.embed(data, content_hash=name, model_id=MODEL_ID, lane="interactive")
            )

        server.gate.clear()
        asked = [ask(map_art(1), "1") for _ in range(3)]
        await server.asked.wait()
        asked[0].cancel()
        bad = ask(b"no picture", "2")
        server.gate.set()
        assert await asked[1] is await asked[2]
        with pytest.raises(Exception, match="no readable image"):
            await bad
        assert len(server.lanes) == 1
        assert embedder._under_way == {}


async def test_what_is_served_is_believed_for_a_moment(server: ToyServer, tmp_path: Path) -> None:
    now_s = 0.0
    settings = ClientSettings(server=server.address, timeout_s=30, attempts=1)
    async with EmbeddedArchive(tmp_path / "a.db") as archive, EmbeddingClient(settings) as client:
        embedder = Embedder(client, archive, keep_s=5, clock=lambda: now_s)
        first = await embedder.model()
        await server.stop()
        now_s = 4.9
        assert await embedder.model() is first
        now_s = 5
        with pytest.raises(UnavailableError):
            await embedder.model()
