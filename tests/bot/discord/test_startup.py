"""How `mapseek bot` starts, fails to start, and ends: as a process, by its exit status."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.bot.discord.conftest import Bot, map_art, until
from tests.bot.discord.loopback import TOKEN, Discord, Json
from tests.bot.discord.toy import ToyServer

ROOT = Path(__file__).resolve().parents[3]
# The real command, with another address for Discord.
PROGRAM = (
    "import sys, disnake.http; disnake.http.Route.BASE = sys.argv.pop(1);"
    "from bot.cli.main import main; main()"
)


class Process:
    """`mapseek bot` against the loopback Discord."""

    def __init__(
        self, bot: Bot, *, api: str | None = None, token: str = TOKEN, **environment: str
    ) -> None:
        self._api = api or bot.discord.api
        self._environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}",
            "MAPSEEK_ARCHIVE": str(bot.settings.archive),
            "MAPSEEK_SERVER": bot.client.server,
            "MAPSEEK_DISCORD_TOKEN": token,
            "MAPSEEK_DOWNLOAD_ORIGINS": bot.discord.origin,
            **environment,
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, self._api, "bot"),
            env=self._environment,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def ends(self) -> tuple[int, str]:
        async with self.running() as process, asyncio.timeout(60):
            _, errors = await process.communicate()
            assert process.returncode is not None
            return process.returncode, errors.decode()


async def test_no_token_is_said_before_anything_else(bot: Bot) -> None:
    status, errors = await Process(bot, token="").ends()
    assert status == 2
    assert errors.startswith("error: There is no Discord token: put MAPSEEK_DISCORD_TOKEN=")
    assert not bot.settings.archive.exists()


async def test_a_wrong_token_is_said_and_not_shown(bot: Bot) -> None:
    process = Process(bot, token="wrong.secret.token")
    status, errors = await process.ends()
    assert status == 2
    assert "error: Discord refused the token" in errors
    assert "secret" not in errors
    assert "Traceback" not in errors


async def test_a_missing_intent_is_named(bot: Bot, discord: Discord) -> None:
    discord.content_intent_enabled = False
    status, errors = await Process(bot).ends()
    assert status == 2
    assert "turn on Message Content Intent" in errors
    assert "Traceback" not in errors


async def test_an_unreachable_discord_is_said(bot: Bot) -> None:
    status, errors = await Process(bot, api="http://127.0.0.1:1/api/v10").ends()
    assert status == 1
    assert "Discord cannot be reached" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("MAPSEEK_DOWNLOAD_ORIGINS", "a.example", "error: MAPSEEK_DOWNLOAD_ORIGINS: a.example is"),
        ("MAPSEEK_DOWNLOAD_S", "soon", "error: MAPSEEK_DOWNLOAD_S: "),
        ("MAPSEEK_QUEUE", "/dev/null/queue.db", "error: The queue /dev/null/queue.db cannot be"),
    ],
)
async def test_a_wrong_setting_is_named(bot: Bot, variable: str, value: str, sentence: str) -> None:
    status, errors = await Process(bot, **{variable: value}).ends()
    assert status == 2
    assert errors.startswith(sentence)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly(bot: Bot, discord: Discord, number: signal.Signals) -> None:
    async with Process(bot).running() as process:
        await discord.introduced()
        process.send_signal(number)
        _, errors = await process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in errors.decode()


async def _written_down(bot: Bot, post: Json) -> bool:
    return post["id"] in bot.queued()


async def test_killed_again_and_again_it_indexes_everything_once(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    posts = []
    # The process dies while it downloads, then while it waits for embeddings, each time with
    # work done and work left; in between, one of the posts is deleted.
    for round_ in range(4):
        (discord.download_gate if round_ % 2 else server.gate).clear()
        discord.download_started.clear()
        server.asked.clear()
        discord.ready.clear()
        async with Process(bot).running() as process:
            await discord.introduced()
            posts += [await discord.post(10, map_art(10 * round_ + n)) for n in range(5)]
            await (discord.download_started if round_ % 2 else server.asked).wait()

            await until(partial(_written_down, bot, posts[-1]))
            process.kill()
            await process.wait()
        discord.download_gate.set()
        server.gate.set()
    async with Process(bot).running() as process:
        await bot.settled(20)
        await discord.introduced()
        await discord.delete(posts[7])
        await bot.settled(19)
        process.terminate()
        assert await process.wait() == 0
    entries = await bot.entries()
    keys = [entry.picture.key for entry in entries]
    assert len(keys) == len(set(keys)) == 19
    assert {key.message_id for key in keys} == {
        post["id"] for number, post in enumerate(posts) if number != 7
    }
