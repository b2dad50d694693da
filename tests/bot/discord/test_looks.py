"""A picture that is looked at again: what the member sees, and what it costs the others."""

import io

import pytest
from PIL import Image

from bot import looks
from bot.answering.line import Line
from bot.looks import VARIANTS
from tests.bot.discord.conftest import Bot, encoded, map_art
from tests.bot.discord.loopback import Answer, Discord, Json
from tests.bot.discord.toy import ToyServer

BOB = 43
INTERACTIVE, BULK = 1, 2


def link(message: Json) -> str:
    return f"https://discord.com/channels/1/{message['channel_id']}/{message['id']}"


def beside(seed: int) -> bytes:
    """A map at the left, as in a screenshot that shows something else as well."""
    screenshot = Image.new("RGB", (200, 120), "orange")
    screenshot.paste(Image.open(io.BytesIO(map_art(seed))).resize((120, 120)), (0, 0))
    return encoded(screenshot, "PNG")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, nothing comes too late."""
    monkeypatch.setattr(looks, "_PATIENCE_S", 30.0)


async def press(discord: Discord, answer: Answer, label: str) -> Answer:
    return await discord.press(answer, label, member=BOB, channel_id=10)


async def test_a_map_that_is_only_seen_in_a_variant_is_found_and_gone_on_from(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in range(8)]
        await bot.settled(8)
        before = len(server.lanes)
        first = await discord.use_find(beside(5), member=BOB, channel_id=10)
        assert server.lanes[before:] == [INTERACTIVE, *[BULK] * len(VARIANTS)]
        second = await press(discord, first, "Show more")
        third = await press(discord, second, "Show more")
        again = await press(discord, third, "Back")
        shared = await press(discord, first, "Share")
        assert len(server.lanes) == before + 1 + len(VARIANTS), (
            "an answer goes on with the looks that it has"
        )
    assert first.links[0] == link(posts[5])
    heading, best, *_ = first.content.splitlines()
    assert heading == "**This map was posted before:**"
    # A look at a variant counts less.
    assert best.startswith("**1.** same map, similarity 0.9")
    pages = [first.links, second.links, third.links]
    assert {url for page in pages for url in page} == set(map(link, posts))
    assert sum(map(len, pages)) == 8
    assert again.links == second.links
    assert shared.links == first.links
    assert best.split(",")[1] in shared.content


async def test_where_the_first_look_suffices_there_is_no_other(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    async with bot.running():
        await discord.post(10, beside(5))
        await bot.settled(1)
        before = len(server.lanes)
        large = Image.open(io.BytesIO(beside(5))).resize((400, 240))
        await discord.use_find(encoded(large, "PNG"), member=BOB, channel_id=10)
        assert server.lanes[before:] == [INTERACTIVE]


async def test_a_picture_that_is_in_the_archive_is_not_looked_at_again(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    async with bot.running():
        other = await discord.post(10, map_art(5))
        asked = await discord.post(10, beside(5))
        await bot.settled(2)
        before = len(server.lanes)
        answer = await discord.use_message_command(asked, member=BOB)
        assert len(server.lanes) == before
    assert answer.links == [link(other)]
    assert not answer.content.startswith("**This map was posted before")


async def test_in_a_crowd_no_picture_is_looked_at_again(
    bot: Bot, discord: Discord, server: ToyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bot.running():
        post = await discord.post(10, map_art(5))
        await bot.settled(1)
        before = len(server.lanes)
        monkeypatch.setattr(Line, "is_crowded", True)
        answer = await discord.use_find(beside(5), member=BOB, channel_id=10)
        assert server.lanes[before:] == [INTERACTIVE]
        monkeypatch.setattr(Line, "is_crowded", False)
        await discord.use_find(beside(5), member=BOB, channel_id=10)
        assert server.lanes[before:] == [INTERACTIVE, INTERACTIVE, *[BULK] * len(VARIANTS)]
    assert answer.links == [link(post)]


async def test_variants_that_fail_or_come_late_are_done_without(
    bot: Bot, discord: Discord, server: ToyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = looks.variants
    monkeypatch.setattr(looks, "variants", lambda data: [b"no picture"] * len(VARIANTS))
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in (5, 6)]
        await bot.settled(2)
        failed = await discord.use_find(beside(5), member=BOB, channel_id=10)
        monkeypatch.setattr(looks, "variants", made)
        monkeypatch.setattr(looks, "_PATIENCE_S", 0.0)
        late = await discord.use_find(beside(6), member=BOB, channel_id=10)
    for answer in (failed, late):
        assert set(answer.links) == set(map(link, posts))
        assert not answer.content.startswith("**This map was posted before")
