"""What is posted, edited and deleted on Discord reaches the archive."""

from datetime import datetime, timedelta

import pytest

from bot.ingest.queue import Queue
from tests.bot.discord.conftest import Bot, map_art, until
from tests.bot.discord.loopback import APPLICATION, Discord, Json
from tests.bot.discord.toy import ToyServer


def linked(discord: Discord, data: bytes) -> Json:
    """A link to a picture elsewhere, with Discord's own copy of it."""
    copy = discord.sign(discord.upload(10, data))
    media = {"url": "https://maps.example/a.png", "proxy_url": copy["url"], "width": 8, "height": 8}
    return {"type": "image", "url": media["url"], "thumbnail": media}


async def test_everything_that_a_picture_was_posted_with_is_kept(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1), spoiler=True)
        await bot.settled(1)
    (entry,) = await bot.entries()
    attachment = message["attachments"][0]
    picture = entry.picture
    assert picture.key.message_id == message["id"]
    assert picture.key.attachment_id == attachment["id"]
    assert (picture.guild_id, picture.channel_id, picture.user_id) == ("1", "10", "42")
    assert picture.message_link == f"https://discord.com/channels/1/10/{message['id']}"
    assert picture.image_url == attachment["url"], "an unsigned link, which does not expire"
    posted_at = datetime.fromisoformat(message["timestamp"])
    assert abs(picture.posted_at - posted_at) < timedelta(milliseconds=2)
    assert (picture.width, picture.height) == (64, 64)
    assert picture.file_size == len(map_art(1))
    assert picture.spoiler
    assert (picture.author, picture.channel) == ("Member *42*", "channel-10")


async def test_the_bots_own_pictures_and_other_files_are_left_alone(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        own = await discord.post(10, map_art(1), author=APPLICATION)
        await discord.edit(own)
        video = await discord.post(10, b"video")
        video["attachments"][0]["content_type"] = "video/mp4"
        await discord.edit(video)
        theirs = await discord.post(10, map_art(2))
        await bot.settled(1)
    assert await bot.indexed() == {theirs["id"]}


async def test_a_link_that_is_unfurled_late_is_indexed(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        message = await discord.post(10)
        await discord.edit(message, embeds=[linked(discord, map_art(1))])
        await bot.settled(1)
    (entry,) = await bot.entries()
    assert entry.picture.key.attachment_id.startswith("embed-")
    assert entry.picture.image_url == "https://maps.example/a.png"


async def test_an_edit_drops_the_pictures_that_it_removed(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1), map_art(2))
        await bot.settled(1)
        assert len(await bot.entries()) == 2
        kept = message["attachments"][1]
        await discord.edit(message, attachments=[kept])

        async def dropped() -> bool:
            return len(await bot.entries()) == 1

        await until(dropped)
    (entry,) = await bot.entries()
    assert entry.picture.key.attachment_id == kept["id"]


async def test_an_edit_drops_a_picture_that_an_import_knows_and_the_queue_does_not(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1), map_art(2))
        await bot.settled(1)
        with Queue(bot.settings.queue_file) as queue:
            queue.db.execute("DELETE FROM sightings")
        kept = message["attachments"][1]
        await discord.edit(message, attachments=[kept])

        async def dropped() -> bool:
            return len(await bot.entries()) == 1

        await until(dropped)
    (entry,) = await bot.entries()
    assert entry.picture.key.attachment_id == kept["id"]


async def test_an_edit_of_the_text_embeds_nothing_again(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1))
        await bot.settled(1)
        await discord.edit(message, content="now with words")
        other = await discord.post(10, map_art(2))
        await bot.settled(2)
    assert await bot.indexed() == {message["id"], other["id"]}
    assert len(server.lanes) == 2
    assert len(discord.downloads) == 2


async def test_deleted_messages_leave_the_archive(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in range(5)]
        await bot.settled(5)
        await discord.delete(posts[0])
        await discord.delete(posts[1], posts[2])
        await bot.settled(2)
    assert await bot.indexed() == {posts[3]["id"], posts[4]["id"]}


async def test_a_deleted_channel_leaves_with_its_threads(bot: Bot, discord: Discord) -> None:
    discord.add_channel(1, 11)
    discord.add_thread(1, 30, parent_id=11)
    discord.add_thread(1, 31, parent_id=11)
    discord.add_thread(1, 32, parent_id=10)
    async with bot.running():
        posts = [await discord.post(where, map_art(where)) for where in (10, 11, 30, 31, 32)]
        await bot.settled(5)
        await discord.delete_thread(31)
        await bot.settled(4)
    # After the restart the bot knows one of the threads by its own records only.
    discord.archive_thread(30)
    async with bot.running():
        await discord.delete_channel(11)
        await bot.settled(2)
    assert await bot.indexed() == {posts[0]["id"], posts[4]["id"]}


async def test_an_outage_deletes_nothing_and_a_farewell_everything(
    bot: Bot, discord: Discord
) -> None:
    discord.add_guild(2)
    discord.add_channel(2, 20)
    async with bot.running():
        here = await discord.post(10, map_art(1))
        there = await discord.post(20, map_art(2))
        await bot.settled(2)
        await discord.fail(1)
        await discord.remove_bot(2)
        await bot.settled(1)
    assert await bot.indexed() == {here["id"]}
    assert there["id"] not in await bot.indexed()


async def test_what_is_deleted_before_it_was_indexed_never_is(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    server.gate.clear()
    async with bot.running():
        doomed = await discord.post(10, map_art(1))
        await server.asked.wait()
        await discord.delete(doomed)
        kept = await discord.post(10, map_art(2))

        async def noted() -> bool:
            with Queue(bot.settings.queue_file) as queue:
                return queue.depth().deletions == 0 and queue.depth().waiting == 1

        await until(noted)
        server.gate.set()
        await bot.settled(1)
    assert await bot.indexed() == {kept["id"]}


@pytest.mark.parametrize("deleted", [False, True])
async def test_links_that_expired_in_the_queue_are_renewed(
    bot: Bot, discord: Discord, server: ToyServer, *, deleted: bool
) -> None:
    await server.stop()
    discord.links_expire_at_s = 1
    async with bot.running():
        message = await discord.post(10, map_art(1))

        async def written_down() -> bool:
            return bot.waiting() == 1

        await until(written_down)
    discord.links_expire_at_s = 0x7FFFFFFF
    if deleted:
        # While the bot was away, so that it is not told.
        del discord.messages[int(message["id"])]
    await server.start()
    async with bot.running():
        await bot.settled(0 if deleted else 1)
    assert len(discord.downloads) == (0 if deleted else 1)
