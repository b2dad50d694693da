"""What people want to be forgotten, is, and does not come back."""

from datetime import UTC, datetime

import pytest

from bot.archive.port import Selection
from bot.ingest.forgotten import Forgotten
from bot.ingest.queue import Queue
from tests.bot.discord.backlog import ADMIN
from tests.bot.discord.conftest import Bot, map_art, until
from tests.bot.discord.loopback import Answer, Discord, Json

ALICE, BOB = 42, 43


def link(message: Json) -> str:
    return f"https://discord.com/channels/1/{message['channel_id']}/{message['id']}"


async def press(
    discord: Discord, answer: Answer, label: str, *, member: int, custom_id: str | None = None
) -> str:
    pressed = await discord.press(answer, label, member=member, channel_id=10, custom_id=custom_id)
    return pressed.content


async def index_again(bot: Bot, discord: Discord) -> None:
    await discord.use("index", "start", channel_id=10)

    async def done() -> bool:
        status = await discord.use("index", "status", channel_id=10)
        return "Everything is indexed" in status.content

    await until(done)


async def test_members_forget_messages_of_their_own_and_no_others(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        mine = await discord.post(10, map_art(1), author=ALICE)
        other = await discord.post(10, map_art(2), author=BOB)
        await bot.settled(2)
        for message, words in ((other, "Only members with **Manage Server**"), (mine, "forgotten")):
            asked = await discord.use(
                "forget", "message", {"link": link(message)}, channel_id=10, member=ALICE
            )
            assert asked.ephemeral
            assert len(await bot.indexed()) == 2, "nothing happens before it is confirmed"
            assert words in await press(discord, asked, "Forget them", member=ALICE)
        await bot.settled(1)
        await index_again(bot, discord)
        assert await bot.indexed() == {other["id"]}
        # An edit does not bring it back either.
        await discord.edit(mine, content="new words")
        third = await discord.post(10, map_art(3), author=ALICE)
        await bot.settled(2)
    assert await bot.indexed() == {other["id"], third["id"]}


async def test_admins_forget_any_message_of_their_server(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        post = await discord.post(10, map_art(1), author=BOB)
        await bot.settled(1)
        wrong = await discord.use(
            "forget", "message", {"link": link(post).replace("/1/", "/2/")}, channel_id=10
        )
        assert "no link to a message of this server" in wrong.content
        asked = await discord.use("forget", "message", {"link": link(post)}, channel_id=10)
        await press(discord, asked, "Forget them", member=ADMIN)
        await bot.settled(0)


async def test_forgetting_oneself_keeps_older_posts_out_and_takes_new_ones(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        await discord.post(10, map_art(1), author=ALICE)
        other = await discord.post(10, map_art(2), author=BOB)
        await bot.settled(2)
        asked = await discord.use("forget", "user", channel_id=10, member=ALICE)
        await press(discord, asked, "Cancel", member=ALICE)
        assert len(await bot.indexed()) == 2
        await press(discord, asked, "Forget the posts so far", member=ALICE)
        await bot.settled(1)
        await index_again(bot, discord)
        new = await discord.post(10, map_art(3), author=ALICE)
        await bot.settled(2)
    assert await bot.indexed() == {other["id"], new["id"]}


async def test_an_opt_out_holds_for_live_posts_backfills_and_absences_until_it_is_taken_back(
    bot: Bot, discord: Discord
) -> None:
    discord.add_guild(2)
    discord.add_channel(2, 20)
    async with bot.running():
        for where in (10, 20):
            await discord.post(where, map_art(where), author=ALICE)
        other = await discord.post(10, map_art(2), author=BOB)
        await bot.settled(3)
        asked = await discord.use("privacy", "opt-out", channel_id=10, member=ALICE)
        await press(discord, asked, "Opt out", member=ALICE)
        await bot.settled(1)
        await discord.post(10, map_art(3), author=ALICE)
        await index_again(bot, discord)
        shown = await discord.use("privacy", "show", channel_id=10, member=ALICE)
        assert "You have **opted out**" in shown.content
    await discord.post(10, map_art(4), author=ALICE)
    missed = await discord.post(10, map_art(5), author=BOB)
    async with bot.running():
        await bot.settled(2)
        assert await bot.indexed() == {other["id"], missed["id"]}
        await discord.use("privacy", "opt-in", channel_id=10, member=ALICE)
        back = await discord.post(10, map_art(6), author=ALICE)
        await bot.settled(3)
        assert back["id"] in await bot.indexed()
        await index_again(bot, discord)
        await bot.settled(6)


async def test_an_admin_forgets_a_channel_with_its_threads_until_it_is_indexed_again(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 11)
    discord.add_thread(1, 30, parent_id=11)
    async with bot.running():
        kept = await discord.post(10, map_art(1))
        for where in (11, 30):
            await discord.post(where, map_art(where))
        await bot.settled(3)
        options = {"channel": 11}
        refused = await discord.use("forget", "channel", options, channel_id=10, member=ALICE)
        assert "Only members with **Manage Server**" in refused.content
        asked = await discord.use("forget", "channel", options, channel_id=10)
        await press(discord, asked, "Forget the channel", member=ADMIN)
        await bot.settled(1)
        await discord.post(11, map_art(5))
        await index_again(bot, discord)
        assert await bot.indexed() == {kept["id"]}, "it is watched no longer"
        await discord.use("index", "start", options, channel_id=10)
        await bot.settled(4)


@pytest.mark.parametrize(
    "forged",
    ["user:43", "out:43", "channel:10", "message:10:{other}", "user", "everything", "message:x:y"],
)
async def test_a_press_that_was_made_up_changes_nothing(
    bot: Bot, discord: Discord, forged: str
) -> None:
    async with bot.running():
        other = await discord.post(10, map_art(1), author=BOB)
        await bot.settled(1)
        asked = await discord.use("forget", "user", channel_id=10, member=ALICE)
        custom_id = f"mapseek:forget:{forged.format(other=other['id'])}"
        said = await press(
            discord, asked, "Forget the posts so far", member=ALICE, custom_id=custom_id
        )
        assert said.startswith(("Only members with", "This button is not yours"))
        await discord.post(10, map_art(2), author=BOB)
        await bot.settled(2)


async def test_an_admin_of_one_server_has_no_say_in_another(bot: Bot, discord: Discord) -> None:
    discord.add_guild(2)
    discord.add_channel(2, 20)
    async with bot.running():
        here = await discord.post(10, map_art(1), author=ALICE)
        there = await discord.post(20, map_art(2), author=BOB)
        await bot.settled(2)
        asked = await discord.use("forget", "user", channel_id=10)
        for forged in (f"message:20:{there['id']}", "channel:20", "user:43"):
            await press(
                discord,
                asked,
                "Forget the posts so far",
                member=ADMIN,
                custom_id=f"mapseek:forget:{forged}",
            )
        await discord.edit(there, content="still here")
        await discord.post(20, map_art(3), author=BOB)
        await bot.settled(3)
    assert {here["id"], there["id"]} <= await bot.indexed()


def test_wishes_are_kept_over_restarts_and_by_server(bot: Bot) -> None:
    from tests.bot.discord.test_queue import sighting  # noqa: PLC0415

    with Queue(bot.settings.queue_file) as queue:
        wishes = Forgotten(queue.db)
        wishes.message("10", guild_id="1")
        wishes.opt_out("30")
    with Queue(bot.settings.queue_file) as queue:
        wishes = Forgotten(queue.db)
        assert not wishes.allows(sighting(10))
        assert wishes.allows(sighting(10, guild_id="2"))
        assert not wishes.allows(sighting(11, user_id="30", guild_id="9"))
        queue.delete(Selection(guild_id="1"))
        queue.forget_guild("1")
        assert not wishes.allows(sighting(10)), "the bot may be invited again"
        assert wishes.everyone_out() == {"30"}


async def test_forgetting_a_channel_takes_what_was_imported_of_its_threads(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 11)
    discord.add_thread(1, 30, parent_id=11)
    old = discord.remember(30, map_art(1), sent_at=datetime(2024, 1, 1, tzinfo=UTC))
    await bot.imports(old, map_art(1))
    async with bot.running():
        asked = await discord.use("forget", "channel", {"channel": 11}, channel_id=10)
        await press(discord, asked, "Forget the channel", member=ADMIN)
        await bot.settled(0)


async def test_a_thread_can_be_forgotten_alone(bot: Bot, discord: Discord) -> None:
    discord.add_thread(1, 30, parent_id=10)
    async with bot.running():
        kept = await discord.post(10, map_art(1))
        await discord.post(30, map_art(2))
        await bot.settled(2)
        asked = await discord.use("forget", "channel", {"channel": 30}, channel_id=10)
        await press(discord, asked, "Forget the channel", member=ADMIN)
        await bot.settled(1)
    assert await bot.indexed() == {kept["id"]}


async def test_a_category_is_no_channel_to_forget(bot: Bot, discord: Discord) -> None:
    discord.add_channel(1, 15, kind=4)
    async with bot.running():
        asked = await discord.use("forget", "channel", {"channel": 10}, channel_id=10)
        forged = asked.buttons()["Forget the channel"]["custom_id"].replace("10", "15")
        said = await press(discord, asked, "Forget the channel", member=ADMIN, custom_id=forged)
        assert "no such channel" in said


async def test_a_backup_brings_nothing_back_of_who_opted_out(bot: Bot, discord: Discord) -> None:
    with Queue(bot.settings.queue_file) as queue:
        Forgotten(queue.db).opt_out(str(ALICE))
    for author, seed in ((ALICE, 1), (BOB, 2)):
        old = discord.remember(10, map_art(seed), sent_at=datetime(2024, 1, seed, tzinfo=UTC))
        old["author"]["id"] = str(author)
        await bot.imports(old, map_art(seed))
    async with bot.running():
        await bot.settled(1)
    assert await bot.indexed() == {old["id"]}
