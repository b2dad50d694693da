"""What was posted before the bot came is indexed when an admin asks for it."""

import asyncio
from dataclasses import replace

import pytest

from bot.admin import progress
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import PictureKey, Selection
from bot.ingest.queue import Queue
from bot.ingest.queued import Lane
from bot.links import media_ids
from tests.bot.discord.backlog import ADMIN
from tests.bot.discord.conftest import Bot, map_art, until
from tests.bot.discord.loopback import APPLICATION, PRIVATE_THREAD, Discord
from tests.bot.discord.toy import ToyServer

READ_HISTORY, VIEW_CHANNEL, SEND_MESSAGES = 1 << 16, 1 << 10, 1 << 11
FORUM = 15


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.05)


async def shown(discord: Discord, words: str) -> str:
    """The progress message, once it says this."""

    def text() -> str:
        ours = [one for one in discord.messages.values() if one["author"]["id"] == str(APPLICATION)]
        return str(ours[-1]["content"]) if ours else ""

    async def says() -> bool:
        return words in text()

    await until(says)
    return text()


async def test_a_channel_is_indexed_to_its_beginning_with_its_progress_shown(
    bot: Bot, discord: Discord
) -> None:
    for number in range(230):
        await discord.post(10, *([map_art(number)] if number % 10 == 0 else []))
    posted = {one["id"] for one in discord.messages.values() if one["attachments"]}
    async with bot.running():
        answer = await discord.use("index", "start", {"channel": 10}, channel_id=10)
        assert answer.ephemeral
        assert answer.content == "Indexing one channel, newest posts first."
        text = await shown(discord, "Everything is indexed")
    assert "230 messages read · 23 pictures found, 0 of them waiting" in text
    assert await bot.indexed() == posted
    # Three pages and no more, the bot's own message among them.
    assert discord.pages == [10, 10, 10]


async def test_the_whole_server_with_forums_and_threads_of_all_kinds(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 11, kind=FORUM)
    discord.add_channel(1, 12)
    places = {20: 11, 21: 11, 22: 11, 23: 11, 24: 12, 25: 12}
    for thread, parent in places.items():
        kind = PRIVATE_THREAD if thread == 25 else 11
        discord.add_thread(1, thread, parent_id=parent, kind=kind)
    posts = [await discord.post(where, map_art(where)) for where in (10, 12, *places)]
    for thread in (21, 22, 23, 25):
        discord.put_away(thread)
    discord.lack(12, 1 << 34)
    discord.lack(10, READ_HISTORY)
    async with bot.running():
        answer = await discord.use("index", "start", channel_id=12)
        assert answer.content.splitlines() == [
            "Indexing 2 channels, newest posts first.",
            "The bot lacks **Read Message History** in <#10>.",
        ]
        await shown(discord, "Everything is indexed")
        with Queue(bot.settings.queue_file) as queue:
            threads = {one.thread_id: one.parent_id for one in queue.threads("1")}
    # Not in the channel that it may not read, nor in the private thread that it does not see.
    assert await bot.indexed() == {one["id"] for one in posts[1:-1]}
    assert threads == {"20": "11", "21": "11", "22": "11", "23": "11", "24": "12"}


async def test_private_threads_are_read_where_the_bot_may_manage_threads(
    bot: Bot, discord: Discord
) -> None:
    discord.add_thread(1, 25, parent_id=10, kind=PRIVATE_THREAD)
    post = await discord.post(25, map_art(1))
    discord.put_away(25)
    everyone = discord.guilds[1]["roles"][0]
    everyone["permissions"] = str(int(everyone["permissions"]) | 1 << 34)
    async with bot.running():
        await discord.use("index", "start", channel_id=10)
        await bot.settled(1)
        with Queue(bot.settings.queue_file) as queue:
            (thread,) = queue.threads("1")
    assert thread.private
    assert await bot.indexed() == {post["id"]}


async def test_it_goes_on_after_a_crash_where_it_was_and_stays_paused_over_restarts(
    bot: Bot, discord: Discord
) -> None:
    for number in range(250):
        await discord.post(10, *([map_art(number)] if number % 50 == 0 else []))
    discord.page_gate.clear()
    async with bot.running():
        await discord.use("index", "start", {"channel": 10}, channel_id=10)
        await discord.page_asked.wait()
        discord.page_asked.clear()
        answer = await discord.use("index", "pause", channel_id=10)
        assert answer.content.startswith("Paused")
        discord.page_gate.set()
        await shown(discord, "Indexing is paused")
    assert len(discord.pages) == 1, "the page that was being read, and no more"
    async with bot.running():
        status = await discord.use("index", "status", channel_id=10)
        assert "Indexing is paused" in status.content
        assert "100 messages read" in status.content
        discord.page_gate.clear()
        await discord.use("index", "resume", channel_id=10)
        await discord.page_asked.wait()
    # Ended in the middle of the second page.
    discord.page_gate.set()
    async with bot.running():
        text = await shown(discord, "Everything is indexed")
        await bot.settled(5)
    assert "250 messages read · 5 pictures found" in text, "nothing was read anew"


async def test_a_second_run_embeds_nothing_again_and_finds_what_is_new(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    await discord.post(10, map_art(1))
    async with bot.running():
        await discord.use("index", "start", channel_id=10)
        await shown(discord, "Everything is indexed")
        await discord.use("config", "everywhere", {"on": False}, channel_id=10)
        await discord.post(10, map_art(2))
        await discord.use("index", "start", {"channel": 10}, channel_id=10)
        await bot.settled(2)
    assert len(server.lanes) == 2
    assert len(discord.downloads) == 2


async def test_what_was_imported_from_html_gets_its_own_id(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    async with bot.running():
        post = await discord.post(10, map_art(1))
        await bot.settled(1)
    (entry,) = await bot.entries()
    by_file = PictureKey(
        message_id=post["id"], attachment_id=min(media_ids(post["attachments"][0]["url"]), key=len)
    )
    with Queue(bot.settings.queue_file) as queue:
        queue.db.execute("DELETE FROM sightings")
    async with EmbeddedArchive(bot.settings.archive) as archive:
        await archive.delete(Selection(guild_id="1"))
        await archive.upsert_many([replace(entry, picture=replace(entry.picture, key=by_file))])
    async with bot.running():
        # It is found under the name of its file, too.
        answer = await discord.use_find(map_art(1), member=42, channel_id=10)
        assert answer.links == [f"https://discord.com/channels/1/10/{post['id']}"]
        await discord.use("index", "start", channel_id=10)
        await shown(discord, "Everything is indexed")
    (merged,) = await bot.entries()
    assert merged.picture.key == entry.picture.key
    assert server.lanes == [2], "the bytes were embedded once, also for the question"


async def test_new_posts_of_all_guilds_go_before_a_long_past(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    discord.add_guild(2)
    discord.add_channel(2, 20)
    for number in range(150):
        await discord.post(10, map_art(number))
    server.gate.clear()
    async with bot.running():
        await discord.use("index", "start", channel_id=10)

        async def found() -> bool:
            with Queue(bot.settings.queue_file) as queue:
                return queue.waiting("1", Lane.BACKFILL) == 150

        await until(found)
        await server.asked.wait()
        new = await discord.post(20, map_art(900))
        also = await discord.post(10, map_art(901))

        async def written_down() -> bool:
            return {new["id"], also["id"]} <= bot.queued()

        await until(written_down)
        with Queue(bot.settings.queue_file) as queue:
            due = [one.sighting.message_id for one in queue.due(now_s=2**40, limit=16)]
        assert set(due[:2]) == {new["id"], also["id"]}
        server.gate.set()
        await bot.settled(152)


async def test_rate_limits_are_waited_for_and_lost_access_is_named(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 11)
    post = await discord.post(10, map_art(1))
    await discord.post(11, map_art(2))
    discord.refuse_pages = 2
    # Discord says 403, whatever the permissions promised.
    discord.hidden_from_bot.add(11)
    async with bot.running():
        await discord.use("index", "start", channel_id=10)
        text = await shown(discord, "Everything is indexed")
    assert await bot.indexed() == {post["id"]}
    assert "<#11> was left out: Discord does not let the bot read there" in text


async def test_what_is_missing_is_named(bot: Bot, discord: Discord) -> None:
    discord.lack(10, VIEW_CHANNEL | READ_HISTORY)
    async with bot.running():
        answer = await discord.use("index", "start", {"channel": 10}, channel_id=10)
    assert answer.content == ("The bot lacks **View Channel and Read Message History** in <#10>.")
    assert discord.pages == []


async def test_without_the_intent_nothing_is_begun(bot: Bot, discord: Discord) -> None:
    discord.application_flags = 0
    async with bot.running():
        answer = await discord.use("index", "start", channel_id=10)
    assert "must turn on **Message Content Intent** on the Bot page" in answer.content
    assert discord.pages == []


async def test_where_the_bot_may_not_write_the_progress_is_in_the_status(
    bot: Bot, discord: Discord
) -> None:
    discord.lack(10, SEND_MESSAGES)
    await discord.post(10, map_art(1))
    async with bot.running():
        answer = await discord.use("index", "start", channel_id=10)
        assert "`/index status`: the bot lacks **Send Messages** here" in answer.content
        await bot.settled(1)
    assert discord.sent == []


async def test_a_deletion_that_overtakes_a_page_wins(bot: Bot, discord: Discord) -> None:
    doomed, kept = [await discord.post(10, map_art(number)) for number in range(2)]
    edited = await discord.post(10, map_art(2), map_art(3))
    discord.page_gate.clear()
    async with bot.running():
        await discord.use("index", "start", {"channel": 10}, channel_id=10)
        await discord.page_asked.wait()
        await discord.delete(doomed)
        await discord.edit(edited, attachments=edited["attachments"][:1])
        # Posted after both: when it is indexed, they have been told.
        await discord.post(10, map_art(4))
        await bot.settled(2)
        discord.page_gate.set()
        await shown(discord, "Everything is indexed")
        await bot.settled(3)
    entries = await bot.entries()
    keys = {entry.picture.key.message_id for entry in entries}
    assert doomed["id"] not in keys
    assert kept["id"] in keys
    assert len(entries) == 3


async def test_failures_are_listed_with_their_reason_and_tried_again(
    bot: Bot, discord: Discord
) -> None:
    broken = await discord.post(10, b"no picture")
    async with bot.running():
        await discord.use("index", "start", channel_id=10)
        text = await shown(discord, "Everything is indexed")
        assert "1 pictures failed: see `/index failed`" in text
        failed = await discord.use("index", "failed", channel_id=10)
        assert f"https://discord.com/channels/1/10/{broken['id']} The file is no picture" in (
            failed.content
        )
        # Discord mends it.
        discord.files[int(broken["attachments"][0]["id"])] = map_art(1)
        answer = await discord.use("index", "retry", channel_id=10)
        assert answer.content == "1 pictures are tried again."
        await bot.settled(1)
        failed = await discord.use("index", "failed", channel_id=10)
        assert failed.content == "No picture has failed."


async def test_only_admins_are_offered_the_commands(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        pass
    offered = {one["name"]: one.get("default_member_permissions") for one in discord.commands}
    assert offered["index"] == offered["config"] == str(1 << 5)
    assert offered["forget"] is None


async def test_other_bots_are_left_out_if_the_admin_says_so(bot: Bot, discord: Discord) -> None:
    mine = await discord.post(10, map_art(1))
    theirs = await discord.post(10, map_art(2))
    theirs["author"] |= {"bot": True}
    async with bot.running():
        await discord.use("config", "bots", {"on": False}, channel_id=10)
        await discord.use("index", "start", channel_id=10)
        await shown(discord, "Everything is indexed")
        await discord.edit(theirs)
        await asyncio.sleep(0)
        await discord.use("index", "status", channel_id=10, member=ADMIN)
        await bot.settled(1)
    assert await bot.indexed() == {mine["id"]}
