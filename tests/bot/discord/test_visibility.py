"""What members may see, worked out on Discord's permissions at the moment they ask."""

import pytest

from bot.settings import BotSettings
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


CLOSED = overwrite(EVERYONE, deny=VIEW_CHANNEL)
OPENED = overwrite(ARTIST, allow=VIEW_CHANNEL)
NO_ENTRY = overwrite(EVERYONE, deny=CONNECT)
# What a channel says, and whether Bob, who is an artist, can read it.
CHANNELS: dict[str, tuple[int, list[Json], bool]] = {
    "open": (TEXT, [], True),
    "closed": (TEXT, [CLOSED], False),
    "without history": (TEXT, [overwrite(EVERYONE, deny=READ_HISTORY)], False),
    "opened by a role": (TEXT, [CLOSED, OPENED], True),
    "closed to the member": (
        TEXT,
        [CLOSED, OPENED, overwrite(BOB, deny=VIEW_CHANNEL, member=True)],
        False,
    ),
    "opened to the member": (
        TEXT,
        [overwrite(ARTIST, deny=VIEW_CHANNEL), overwrite(BOB, allow=VIEW_CHANNEL, member=True)],
        True,
    ),
    "voice": (VOICE, [], True),
    "voice without entry": (VOICE, [NO_ENTRY], False),
    "stage without entry": (STAGE, [NO_ENTRY], False),
    "text needs no entry": (TEXT, [NO_ENTRY], True),
}


async def test_a_channel_is_seen_by_whom_discord_lets_in(bot: Bot, discord: Discord) -> None:
    add_role(discord, ARTIST)
    discord.member_roles[BOB] = [ARTIST]
    for number, (kind, overwrites, _) in enumerate(CHANNELS.values(), 100):
        add_closed(discord, number, *overwrites, kind=kind)
    bot.settings = BotSettings(**(bot.settings.model_dump() | {"results": len(CHANNELS)}))
    async with bot.running():
        posts = {
            link(await discord.post(number, map_art(1))): name
            for number, name in enumerate(CHANNELS, 100)
        }
        await bot.settled(len(CHANNELS))
        for_bob = await ask(discord, BOB)
        for_owner = await ask(discord, OWNER)
    assert {posts[url] for url in for_bob.links} == {
        name for name, (_, _, seen) in CHANNELS.items() if seen
    }
    assert {posts[url] for url in for_owner.links} == set(CHANNELS), "the owner sees everything"


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
        monkeypatch.setattr("bot.answering.visibility._PATIENCE_S", 0.0)
        untold = await ask(discord, BOB)
    assert told.links == [link(post)]
    assert untold.links == []


async def test_only_so_many_private_threads_are_asked_about(
    bot: Bot, discord: Discord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.answering.visibility._MOST_PRIVATE_THREADS", 2)
    for thread_id in (31, 32, 33, 34):
        discord.add_thread(1, thread_id, parent_id=10, kind=PRIVATE_THREAD)
    async with bot.running():
        await ask(discord, BOB)
    assert sorted(discord.memberships_asked) == [33, 34], "the newest"
