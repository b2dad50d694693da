"""The loopback Discord is as strict as the real one: what it lets pass proves something."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import disnake
import pytest

from tests.bot.discord.conftest import map_art
from tests.bot.discord.limits import FILE_BYTES, IS_COMPONENTS_V2, problem_of
from tests.bot.discord.loopback import BOT_USER, TOKEN, Discord, _Pending

TEXT = {"type": 10, "content": "words"}


def button(**parts: Any) -> dict[str, Any]:
    return {"type": 2, "style": 2, "label": "a", "custom_id": "b", **parts}


def rows(*components: dict[str, Any]) -> dict[str, Any]:
    return {"components": [{"type": 1, "components": [one]} for one in components]}


@pytest.mark.parametrize(
    "payload",
    [
        {"content": "x" * 2001},
        {"embeds": [{}] * 11},
        {"embeds": [{"title": "x" * 257}]},
        {"embeds": [{"description": "x" * 4097}]},
        {"embeds": [{"description": "x" * 3001}] * 2},
        {"embeds": [{"fields": [{"name": "a", "value": "b"}] * 26}]},
        {"embeds": [{"fields": [{"name": "a", "value": "x" * 1025}]}]},
        {"embeds": [{"footer": {"text": "x" * 2049}}]},
        {"components": [TEXT]},
        {"flags": IS_COMPONENTS_V2, "components": [TEXT], "content": "a"},
        {"flags": IS_COMPONENTS_V2, "components": [TEXT], "embeds": [{"title": "a"}]},
        {"flags": IS_COMPONENTS_V2, "components": [TEXT] * 41},
        rows(*(button(custom_id=str(number)) for number in range(6))),
        rows(button(), button()),
        rows(button(custom_id="x" * 101)),
        rows(button(label="x" * 81)),
        rows(button(url="https://a.example")),
        rows({"type": 2, "style": 5, "label": "a", "url": "javascript:alert(1)"}),
        {"components": [{"type": 1, "components": []}]},
        rows({"type": 3, "custom_id": "a", "options": []}),
        rows({"type": 3, "custom_id": "a", "options": [{"label": "x", "value": "x"}] * 2}),
    ],
)
def test_a_message_that_discord_would_refuse_is_refused(payload: dict[str, Any]) -> None:
    assert problem_of(payload, {}) is not None


@pytest.mark.parametrize(
    "payload",
    [
        {"content": "x" * 2000, "embeds": [{"title": "x" * 256}] * 10},
        {"flags": IS_COMPONENTS_V2, "components": [TEXT] * 40},
        rows(button(), {"type": 2, "style": 5, "label": "a", "url": "https://a.example"}),
    ],
)
def test_a_message_at_its_limits_is_taken(payload: dict[str, Any]) -> None:
    assert problem_of(payload, {"a.png": bytes(FILE_BYTES)}) is None


def test_files_have_a_limit() -> None:
    assert problem_of({}, {"a.png": bytes(FILE_BYTES + 1)}) is not None


async def test_an_interaction_is_acknowledged_once_and_in_time(discord: Discord) -> None:
    now_s = asyncio.get_running_loop().time()
    discord._pending["late"] = _Pending(now_s - 4)
    discord._pending["good"] = _Pending(now_s)
    hook = f"{discord.api}/webhooks/900/good/messages/@original"
    async with aiohttp.ClientSession() as session:

        async def ask(method: str, url: str, body: dict[str, Any]) -> tuple[int, int]:
            async with session.request(method, url, json=body) as response:
                answer = await response.json() if response.status != 204 else {}
                return response.status, answer.get("code", 0)

        async def callback(token: str) -> tuple[int, int]:
            return await ask("POST", f"{discord.api}/interactions/1/{token}/callback", {"type": 5})

        assert await callback("late") == (404, 10062)
        assert await ask("PATCH", hook, {"content": "a"}) == (404, 10015)
        assert await callback("good") == (204, 0)
        assert await callback("good") == (400, 40060)
        assert await ask("PATCH", hook, {"content": "x" * 2001}) == (400, 50035)
        assert await ask("PATCH", hook, {"content": "a"}) == (200, 0)
        discord.tokens_live_s = 0.0
        assert await ask("PATCH", hook, {"content": "a"}) == (401, 50027)


@asynccontextmanager
async def client(intents: disnake.Intents) -> AsyncIterator[disnake.Client]:
    client = disnake.Client(intents=intents)
    running = asyncio.create_task(client.start(TOKEN))
    try:
        yield client
    finally:
        await client.close()
        await running


@pytest.mark.parametrize("allowed", [True, False])
async def test_without_the_intent_content_is_blank(discord: Discord, *, allowed: bool) -> None:
    intents = disnake.Intents(guilds=True, guild_messages=True, message_content=allowed)
    seen: asyncio.Queue[disnake.Message] = asyncio.Queue()
    async with client(intents) as reader, asyncio.timeout(30):
        reader.add_listener(seen.put, "on_message")
        await discord.ready.wait()
        posted = await discord.post(10, map_art(1), content="a map")
        live = await seen.get()
        fetched = await reader.get_partial_messageable(10).fetch_message(int(posted["id"]))
        posted["mentions"] = [BOT_USER]
        mentioned = await reader.get_partial_messageable(10).fetch_message(int(posted["id"]))
    for message in (live, fetched):
        assert (message.content, len(message.attachments)) == (("a map", 1) if allowed else ("", 0))
    assert len(mentioned.attachments) == 1


async def test_links_expire(discord: Discord) -> None:
    upload = discord.upload(10, map_art(1))
    async with aiohttp.ClientSession() as session:

        async def status(url: str) -> int:
            async with session.get(url) as response:
                return response.status

        assert await status(discord.sign(upload)["url"]) == 200
        assert await status(upload["url"]) == 404, "unsigned links are for Discord itself"
        discord.links_expire_at_s = 1
        assert await status(discord.sign(upload)["url"]) == 404
