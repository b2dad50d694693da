"""What members may see, worked out on Discord's permissions at the moment they ask."""

import pytest

from tests.bot.discord.conftest import Bot, map_art, photographed
from tests.bot.discord.loopback import (
    CONNECT,
    OWNER,
    PRIVATE_THREAD,
    READ_HISTORY,
    TEXT,
    VIEW_CHANNEL,
    VOICE,
    Answer,
    Discord,
    Json,
)

BOB, EVE = 43, 44
ARTIST = 5
FORUM, STAGE = 15, 13


def link(message: Json) -> str:
    return f"https://discord.com/channels/1/{message['channel_id']}/{message['id']}"


def overwrite(target: int, *, allow: int = 0, deny: int = 0, member: bool = False) -> Json:
    return {"id": str(target), "type": int(member), "allow": str(allow), "deny": str(deny)}


def add_role(discord: Discord, role: int, permissions: int = 0) -> None:
    everyone = discord.guilds[1]["roles"][0]
    named = {"id": str(role), "name": "artist", "permissions": str(permissions), "position": 1}
    discord.guilds[1]["roles"].append(everyone | named)


def add_closed(discord: Discord, channel_id: int, *overwrites: Json, kind: int = TEXT) -> None:
    discord.add_channel(1, channel_id, kind=kind)
    discord.channels[channel_id]["permission_overwrites"] = list(overwrites)


async def ask(discord: Discord, member: int, channel_id: int = 10) -> Answer:
    picture = photographed(map_art(1))
    return await discord.use_find(picture, member=member, channel_id=channel_id)


EVERYONE = 1


@pytest.mark.parametrize(
    ("kind", "overwrites", "seen"),
    [
        pytest.param(TEXT, [], True, id="open"),
        pytest.param(TEXT, [overwrite(EVERYONE, deny=VIEW_CHANNEL)], False, id="closed to all"),
        pytest.param(TEXT, [overwrite(EVERYONE, deny=READ_HISTORY)], False, id="no history"),
        pytest.param(
            TEXT,
            [overwrite(EVERYONE, deny=VIEW_CHANNEL), overwrite(ARTIST, allow=VIEW_CHANNEL)],
            True,
            id="opened by a role",
        ),
        pytest.param(
            TEXT,
            [
                overwrite(EVERYONE, deny=VIEW_CHANNEL),
                overwrite(ARTIST, allow=VIEW_CHANNEL),
                overwrite(BOB, deny=VIEW_CHANNEL, member=True),
            ],
            False,
            id="closed to the member",
        ),
        pytest.param(
            TEXT,
            [overwrite(ARTIST, deny=VIEW_CHANNEL), overwrite(BOB, allow=VIEW_CHANNEL, member=True)],
            True,
            id="opened to the member",
        ),
        pytest.param(VOICE, [], True, id="voice"),
        pytest.param(VOICE, [overwrite(EVERYONE, deny=CONNECT)], False, id="voice without entry"),
        pytest.param(STAGE, [overwrite(EVERYONE, deny=CONNECT)], False, id="stage without entry"),
        pytest.param(TEXT, [overwrite(EVERYONE, deny=CONNECT)], True, id="text needs no entry"),
    ],
)
async def test_a_channel_is_seen_by_whom_discord_lets_in(
    bot: Bot, discord: Discord, kind: int, overwrites: list[Json], *, seen: bool
) -> None:
    add_role(discord, ARTIST)
    discord.member_roles[BOB] = [ARTIST]
    add_closed(discord, 11, *overwrites, kind=kind)
    async with bot.running():
        there = await discord.post(11, map_art(1))
        here = await discord.post(10, map_art(2))
        await bot.settled(2)
        for_bob = await ask(discord, BOB)
        for_owner = await ask(discord, OWNER)
    assert for_bob.links == ([link(there)] if seen else []) + [link(here)]
    assert for_owner.links == [link(there), link(here)], "the owner sees everything"


async def test_a_role_that_is_taken_away_counts_at_once(bot: Bot, discord: Discord) -> None:
    add_role(discord, ARTIST)
    add_closed(
        discord,
        11,
        overwrite(EVERYONE, deny=VIEW_CHANNEL),
        overwrite(ARTIST, allow=VIEW_CHANNEL),
    )
    discord.member_roles[BOB] = [ARTIST]
    async with bot.running():
        await discord.post(11, map_art(1))
        await bot.settled(1)
        before = await ask(discord, BOB)
        discord.member_roles[BOB] = []
        after = await ask(discord, BOB)
    assert len(before.links) == 1
    assert after.links == []


async def test_posts_of_a_forum_go_with_the_forum(bot: Bot, discord: Discord) -> None:
    add_closed(discord, 15, overwrite(EVE, deny=VIEW_CHANNEL, member=True), kind=FORUM)
    discord.add_thread(1, 40, parent_id=15)
    async with bot.running():
        post = await discord.post(40, map_art(1))
        await bot.settled(1)
        for_bob, for_eve = await ask(discord, BOB), await ask(discord, EVE)
    assert for_bob.links == [link(post)]
    assert for_eve.links == []


async def test_a_private_thread_that_discord_will_not_tell_about_is_left_out(
    bot: Bot, discord: Discord, monkeypatch: pytest.MonkeyPatch
) -> None:
    discord.add_thread(1, 31, parent_id=10, kind=PRIVATE_THREAD)
    discord.thread_members[31] = {BOB}
    async with bot.running():
        post = await discord.post(31, map_art(1))
        await bot.settled(1)
        told = await ask(discord, BOB)
        monkeypatch.setattr("bot.visibility._PATIENCE_S", 0.0)
        untold = await ask(discord, BOB)
    assert told.links == [link(post)]
    assert untold.links == []


async def test_only_so_many_private_threads_are_asked_about(
    bot: Bot, discord: Discord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.visibility._MOST_PRIVATE_THREADS", 2)
    for thread_id in (31, 32, 33, 34):
        discord.add_thread(1, thread_id, parent_id=10, kind=PRIVATE_THREAD)
    async with bot.running():
        await ask(discord, BOB)
    assert sorted(discord.memberships_asked) == [33, 34], "the newest"
