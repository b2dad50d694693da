"""What happens while the bot does not listen is made up for."""

from datetime import UTC, datetime

import pytest

from bot.ingest.queue import Queue
from tests.bot.discord.conftest import Bot, map_art, until
from tests.bot.discord.loopback import BOT_USER, PRIVATE_THREAD, Discord, Json, snowflake
from tests.bot.discord.toy import ToyServer

READ_HISTORY = 1 << 16
MANAGE_THREADS = 1 << 34
PATIENCE_S = 30


async def test_what_was_posted_meanwhile_is_caught_up_and_nothing_older(
    bot: Bot, discord: Discord
) -> None:
    discord.add_thread(1, 30, parent_id=10)
    discord.add_thread(1, 31, parent_id=10)
    old = await discord.post(10, map_art(0))
    async with bot.running():
        live = await discord.post(10, map_art(1))
        in_thread = await discord.post(30, map_art(2))
        await bot.settled(2)
    missed = [await discord.post(10, map_art(10 + number)) for number in range(120)]
    missed.append(await discord.post(31, map_art(5)))
    # Archived by the time that the bot comes back.
    missed.append(await discord.post(30, map_art(6)))
    discord.put_away(30)
    # Made while it was away.
    discord.add_channel(1, int(snowflake(datetime.now(UTC), 0)))
    new_channel = max(discord.channels)
    missed.append(await discord.post(new_channel, map_art(7)))
    async with bot.running():
        await bot.settled(2 + len(missed))
    assert await bot.indexed() == {one["id"] for one in (live, in_thread, *missed)}
    assert old["id"] not in await bot.indexed()


async def test_after_a_lost_session_nothing_is_missing(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        first = await discord.post(10, map_art(1))
        await bot.settled(1)
        await discord.cut_off(resumable=False)
        missed = await discord.post(10, map_art(2))
        await discord.ready.wait()
        after = await discord.post(10, map_art(3))
        await bot.settled(3)
    assert discord.sessions == 2
    assert await bot.indexed() == {one["id"] for one in (first, missed, after)}


async def test_a_resumed_session_tells_itself_what_was_missed(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        first = await discord.post(10, map_art(1))
        await bot.settled(1)
        asked = len(discord.pages)
        await discord.cut_off(resumable=True)
        missed = await discord.post(10, map_art(2))
        await discord.delete(first)

        async def true() -> bool:
            return await bot.indexed() == {missed["id"]}

        await until(true)
    assert (discord.sessions, discord.resumes) == (1, 1)
    assert len(discord.pages) == asked


async def test_deletions_and_edits_that_nobody_told_of_are_found(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    discord.add_channel(1, 11)
    discord.add_thread(1, 30, parent_id=10)
    async with bot.running():
        kept = await discord.post(10, map_art(1))
        gone = await discord.post(10, map_art(2))
        halved = await discord.post(10, map_art(3), map_art(4))
        hidden = await discord.post(10, map_art(5))
        also_gone = [await discord.post(where, map_art(where)) for where in (11, 30)]
        await bot.settled(6)
        embedded = len(server.lanes)
    del discord.messages[int(gone["id"])]
    halved["attachments"].pop(0)
    hidden["attachments"][0]["flags"] = 1 << 3
    discord.archive_thread(30)
    del discord.channels[30]
    discord.guilds[1]["channels"] = [
        one for one in discord.guilds[1]["channels"] if one["id"] == "10"
    ]
    del discord.channels[11]
    async with bot.running():

        async def true() -> bool:
            entries = await bot.entries()
            return (
                len(entries) == 3
                and {one.picture.key.message_id for one in entries}
                == {kept["id"], halved["id"], hidden["id"]}
                and [one.picture.key.message_id for one in entries if one.picture.spoiler]
                == [hidden["id"]]
            )

        await until(true)
    assert len(server.lanes) == embedded, "the same bytes are not embedded again"
    assert also_gone


async def test_a_history_that_the_bot_may_not_read_is_no_proof_of_deletion(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        post = await discord.post(10, map_art(1))
        await bot.settled(1)
    # Told at the next start; and a lack that shows in the answers alone.
    for lack in (discord.lack, discord.hidden_from_bot.add):
        if lack == discord.lack:
            discord.lack(10, READ_HISTORY)
        else:
            discord.channels[10]["permission_overwrites"].clear()
            discord.hidden_from_bot.add(10)
        async with bot.running():
            discord.add_channel(1, 12)
            await discord.dispatch("CHANNEL_CREATE", discord.channels[12])
            other = await discord.post(12, map_art(2))

            async def indexed(message: Json = other) -> bool:
                return message["id"] in await bot.indexed()

            await until(indexed)
            await discord.delete(other)
            await bot.settled(1)
    assert await bot.indexed() == {post["id"]}


async def test_without_the_intent_blank_messages_delete_nothing(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        post = await discord.post(10, map_art(1))
        await bot.settled(1)
    discord.blank_pages = True
    async with bot.running():
        await discord.page_asked.wait()
        other = await discord.post(10, map_art(2))
        await bot.settled(2)
    assert await bot.indexed() == {post["id"], other["id"]}


async def test_a_guild_that_the_bot_was_removed_from_meanwhile_is_forgotten(
    bot: Bot, discord: Discord
) -> None:
    discord.add_guild(2)
    discord.add_channel(2, 20)
    async with bot.running():
        here = await discord.post(10, map_art(1))
        await discord.post(20, map_art(2))
        await bot.settled(2)
    gone = discord.guilds.pop(2)
    async with bot.running():
        await bot.settled(1)
    assert await bot.indexed() == {here["id"]}
    assert gone


async def test_another_application_forgets_no_guild(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        here = await discord.post(10, map_art(1))
        await bot.settled(1)
    with Queue(bot.settings.queue_file) as queue:
        queue.db.execute("UPDATE facts SET value = '77' WHERE name = 'application_id'")
    discord.guilds.pop(1)
    discord.add_guild(3)
    discord.add_channel(3, 33)
    async with bot.running():
        there = await discord.post(33, map_art(2))
        await bot.settled(2)
    assert await bot.indexed() == {here["id"], there["id"]}


@pytest.mark.parametrize("everywhere", [True, False])
async def test_only_watched_channels_are_taken_in_live_and_caught_up(
    bot: Bot, discord: Discord, *, everywhere: bool
) -> None:
    discord.add_channel(1, 11)
    discord.add_thread(1, 30, parent_id=11)
    async with bot.running():
        if not everywhere:
            await discord.use("config", "everywhere", {"on": False}, channel_id=10)
            await discord.use("config", "watch", {"channel": 10, "on": True}, channel_id=10)
        answer = await discord.use("config", "watch", {"channel": 11, "on": False}, channel_id=10)
        assert "`/forget channel` removes it" in answer.content
        wanted = [await discord.post(10, map_art(1))]
        for where in (11, 30):
            await discord.post(where, map_art(where))
        await bot.settled(1)
    wanted.append(await discord.post(10, map_art(2)))
    for where in (11, 30):
        await discord.post(where, map_art(50 + where))
    async with bot.running():
        await bot.settled(2)
        answer = await discord.use("config", "show", channel_id=10)
    assert await bot.indexed() == {one["id"] for one in wanted}
    assert answer.content.startswith(
        "**Watched for new pictures:** every channel that the bot can read, but not <#11>"
        if everywhere
        else "**Watched for new pictures:** no channel, and <#10>"
    )


async def test_to_watch_one_channel_less_loses_nothing_of_the_others(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 11)
    async with bot.running():
        seen = [await discord.post(channel, map_art(channel)) for channel in (10, 11)]
        await bot.settled(2)
    missed = [await discord.post(channel, map_art(50 + channel)) for channel in (10, 11)]
    discord.add_channel(1, 12)
    discord.page_gate.clear()
    discord.page_asked.clear()
    async with bot.running():
        await discord.page_asked.wait()
        await discord.use("config", "watch", {"channel": 12, "on": False}, channel_id=10)
        discord.page_gate.set()
        await bot.settled(4)
    assert await bot.indexed() == {one["id"] for one in (*seen, *missed)}


async def test_a_private_thread_that_was_archived_meanwhile_is_caught_up(
    bot: Bot, discord: Discord
) -> None:
    discord.add_thread(1, 31, parent_id=10, kind=PRIVATE_THREAD)
    discord.channels[10]["permission_overwrites"] = [
        {"id": BOT_USER["id"], "type": 1, "allow": str(MANAGE_THREADS), "deny": "0"}
    ]
    async with bot.running():
        first = await discord.post(31, map_art(1))
        await bot.settled(1)
    missed = await discord.post(31, map_art(2))
    discord.put_away(31)
    async with bot.running():
        await bot.settled(2)
    assert await bot.indexed() == {first["id"], missed["id"]}
