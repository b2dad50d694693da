"""Going on from an answer: further pages, sharing, taking back; and presses that are made up."""

from bot.settings import BotSettings
from tests.bot.discord.conftest import Bot, map_art, photographed
from tests.bot.discord.loopback import (
    APPLICATION,
    EVERYONE_MAY,
    MANAGE_MESSAGES,
    PRIVATE_THREAD,
    READ_HISTORY,
    SEND_MESSAGES,
    VIEW_CHANNEL,
    Answer,
    Discord,
    Json,
)
from tests.bot.discord.test_visibility import add_role, overwrite

ALICE, BOB, EVE = 42, 43, 44


def link(message: Json) -> str:
    return f"https://discord.com/channels/1/{message['channel_id']}/{message['id']}"


async def ask(discord: Discord, seed: int, *, member: int = BOB, channel_id: int = 10) -> Answer:
    return await discord.use_find(photographed(map_art(seed)), member=member, channel_id=channel_id)


async def press(discord: Discord, answer: Answer, label: str, **more: object) -> Answer:
    who: dict[str, object] = {"member": BOB, "channel_id": 10}
    return await discord.press(answer, label, **(who | more))  # type: ignore[arg-type]


async def test_further_pages_show_each_map_once_and_lead_back(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in range(8)]
        await bot.settled(8)
        first = await ask(discord, 1)
        second = await press(discord, first, "Show more")
        third = await press(discord, second, "Show more")
        again = await press(discord, third, "Back")
    assert first.links[0] == link(posts[1])
    pages = [first.links, second.links, third.links]
    assert [len(page) for page in pages] == [3, 3, 2]
    assert {url for page in pages for url in page} == set(map(link, posts))
    assert second.ephemeral
    assert second.content.splitlines()[1].startswith("**4.** ")
    assert "Back" not in first.buttons()
    assert "Show more" not in third.buttons()
    assert again.links == second.links


async def test_a_page_makes_up_for_what_was_deleted_meanwhile(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in range(9)]
        await bot.settled(9)
        first = await ask(discord, 1)
        shown = set(first.links)
        hidden = [post for post in posts if link(post) not in shown]
        for gone in hidden[:3]:  # and the bot is not told
            del discord.messages[int(gone["id"])]
        second = await press(discord, first, "Show more")
    assert set(second.links) == set(map(link, hidden[3:]))


async def test_ten_deleted_maps_before_it_do_not_hide_the_eleventh(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        gone = [await discord.post(10, map_art(1)) for _ in range(25)]
        kept = [await discord.post(10, map_art(seed)) for seed in (2, 3, 4)]
        await bot.settled(28)
        for message in gone:
            del discord.messages[int(message["id"])]
        answer = await ask(discord, 1)
        await bot.settled(3)
    assert set(answer.links) == set(map(link, kept))


async def test_sharing_shows_only_what_everybody_here_may_see(bot: Bot, discord: Discord) -> None:
    discord.add_channel(1, 11, hidden_from=EVE)
    discord.add_channel(1, 12)
    discord.add_thread(1, 31, parent_id=10, kind=PRIVATE_THREAD)
    discord.thread_members[31] = {BOB}
    async with bot.running():
        hidden = await discord.post(11, map_art(1))
        private = await discord.post(31, map_art(1))
        visible = await discord.post(12, map_art(1))
        await bot.settled(3)
        answer = await ask(discord, 1)
        shared = await press(discord, answer, "Share")
        own = await shared.then()
    assert set(answer.links) == {link(hidden), link(private), link(visible)}
    assert not shared.ephemeral
    assert shared.how == "beside"
    assert shared.links == [link(visible)]
    assert "<#11>" not in shared.content
    assert "<#31>" not in shared.content
    assert shared.content.startswith(r"Member \*43\* looked up a map:")
    assert list(shared.files) == ["maps.jpg"]
    assert shared.allowed_mentions is not None
    assert shared.allowed_mentions["parse"] == []
    assert set(shared.buttons()) == {"Remove"}
    # The member's own answer stays, and says that it is shared.
    assert own.how == "edit"
    assert own.links == answer.links
    assert own.buttons()["Shared"]["disabled"]


async def test_nothing_is_shared_where_nothing_is_for_everybody(bot: Bot, discord: Discord) -> None:
    discord.add_channel(1, 11, hidden_from=EVE)
    async with bot.running():
        await discord.post(11, map_art(1))
        await bot.settled(1)
        answer = await ask(discord, 1)
        refused = await press(discord, answer, "Share")
        again = await press(discord, answer, "Share")
    assert refused.ephemeral
    assert refused.content.startswith("Not everybody who can see this channel can see these maps")
    assert not refused.links
    assert again.content == refused.content


async def test_age_restricted_maps_are_shared_in_age_restricted_channels_only(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 18, nsfw=True)
    async with bot.running():
        await discord.post(18, map_art(1))
        await bot.settled(1)
        inside = await ask(discord, 1, channel_id=18)
        shared = await press(discord, inside, "Share", channel_id=18)
        # Between the answer and the press the channel was opened to all ages.
        again = await ask(discord, 1, channel_id=18)
        discord.channels[18]["nsfw"] = False
        await discord.dispatch("CHANNEL_UPDATE", discord.channels[18])
        discord.add_channel(1, 19, nsfw=True)
        await discord.dispatch("CHANNEL_CREATE", discord.channels[19])
        await discord.post(19, map_art(1))
        await bot.settled(2)
        opened = await press(discord, again, "Share", channel_id=18)
    assert len(shared.links) == 1
    assert not shared.ephemeral
    assert all("/18/" in url for url in opened.links)


async def test_who_may_not_write_here_may_not_let_the_bot_do_it(bot: Bot, discord: Discord) -> None:
    everyone = discord.guilds[1]["roles"][0]
    everyone["permissions"] = str(EVERYONE_MAY & ~SEND_MESSAGES)
    async with bot.running():
        await discord.post(10, map_art(1))
        await bot.settled(1)
        answer = await ask(discord, 1)
        refused = await press(discord, answer, "Share")
    assert refused.ephemeral
    assert refused.content.startswith("You may not post pictures in this channel")


async def test_a_shared_answer_is_removed_by_who_shared_it_or_a_moderator(
    bot: Bot, discord: Discord
) -> None:
    discord.member_permissions[ALICE] = EVERYONE_MAY | MANAGE_MESSAGES
    async with bot.running():
        await discord.post(10, map_art(1))
        await bot.settled(1)
        shared = await press(discord, await ask(discord, 1), "Share")
        by_eve = await press(discord, shared, "Remove", member=EVE)
        made_up = await press(
            discord, shared, "Remove", member=EVE, custom_id=f"mapseek:find:remove:{EVE}:0"
        )
        by_bob = await press(discord, shared, "Remove", member=BOB)
        by_alice = await press(discord, shared, "Remove", member=ALICE)
    assert by_eve.content == "Only who shared this, or a moderator, can remove it."
    assert by_eve.ephemeral
    assert made_up.content.startswith("That is no answer of this bot")
    assert by_bob.how == by_alice.how == "delete"


async def test_a_spoiler_is_shared_as_a_spoiler(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        await discord.post(10, map_art(2))
        asked = await discord.post(10, map_art(1))
        await bot.settled(2)
        answer = await discord.use_message_command(asked, member=BOB)
        asked["attachments"][0]["flags"] = 1 << 3  # since then
        shared = await press(discord, answer, "Share")
    assert list(answer.files) == ["maps.jpg"]
    assert list(shared.files) == ["SPOILER_maps.jpg"]


async def test_a_question_that_was_deleted_is_not_shared(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        await discord.post(10, map_art(2))
        asked = await discord.post(10, map_art(1))
        await bot.settled(2)
        answer = await discord.use_message_command(asked, member=BOB)
        await discord.delete(asked)
        refused = await press(discord, answer, "Share")
    assert refused.content == "The picture that you asked about was deleted, so nothing was shared."


async def test_another_members_press_and_one_from_elsewhere_are_refused(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 12)
    discord.add_guild(2)
    discord.add_channel(2, 20)
    async with bot.running():
        for seed in range(5):
            await discord.post(10, map_art(seed))
        await bot.settled(5)
        answer = await ask(discord, 1)
        for label in ("Show more", "Share"):
            by_eve = await press(discord, answer, label, member=EVE)
            elsewhere = await press(discord, answer, label, channel_id=12)
            abroad = await press(discord, answer, label, channel_id=20)
            assert by_eve.content.startswith("This answer belongs to somebody else.")
            assert elsewhere.content == abroad.content
            assert elsewhere.content == "This answer is too old to go on from. Ask again."
            for refused in (by_eve, elsewhere, abroad):
                assert refused.ephemeral
                assert refused.how == "beside"
                assert not refused.links
                assert not refused.files


async def test_a_page_that_was_not_reached_is_refused(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        for seed in range(5):
            await discord.post(10, map_art(seed))
        await bot.settled(5)
        answer = await ask(discord, 1)
        token = answer.buttons()["Share"]["custom_id"].split(":")[3]
        for action in ("page", "share"):
            for page in (2, 19, 20, 999):
                made_up = f"mapseek:find:{action}:{token}:{page}"
                refused = await press(discord, answer, "Share", custom_id=made_up)
                assert refused.content == "This answer is too old to go on from. Ask again."
                assert not refused.links


async def test_a_press_that_is_made_up_is_refused_with_a_sentence(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        await discord.post(10, map_art(1))
        await bot.settled(1)
        answer = await ask(discord, 1)
        for custom_id in (
            "mapseek:find:page:unknown:1",
            "mapseek:find:page:unknown:-1",
            "mapseek:find:pick:10:11",
            "mapseek:find:open:x:0",
            "mapseek:find:",
            "mapseek:find:share:../..:0",
            f"mapseek:find:page:{'x' * 70}:0",
        ):
            refused = await press(discord, answer, "Share", custom_id=custom_id)
            assert refused.ephemeral
            assert refused.content.endswith("Ask again.")
            assert not refused.links


async def test_after_a_restart_a_button_says_that_the_answer_is_too_old(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        for seed in range(5):
            await discord.post(10, map_art(seed))
        await bot.settled(5)
        answer = await ask(discord, 1)
    async with bot.running():
        late = await press(discord, answer, "Show more")
    assert late.content == "This answer is too old to go on from. Ask again."
    assert late.how == "beside", "the answer itself stays"


async def test_a_channel_that_was_closed_meanwhile_is_not_shown_on_the_next_page(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 11)
    async with bot.running():
        for seed in range(3):
            await discord.post(10, map_art(1), author=50 + seed)
        for seed in range(3):
            await discord.post(11, map_art(2), author=50 + seed)
        await bot.settled(6)
        answer = await ask(discord, 1)
        closed = discord.channels[11]
        closed["permission_overwrites"] = [
            {"id": str(BOB), "type": 1, "allow": "0", "deny": str(1 << 10)}
        ]
        await discord.dispatch("CHANNEL_UPDATE", closed)
        more = await press(discord, answer, "Show more")
    assert all("/10/" in url for url in answer.links)
    assert more.content == "There are no further maps where you can read."
    assert not more.files


async def test_a_choice_is_refused_once_its_channel_is_closed(bot: Bot, discord: Discord) -> None:
    discord.add_channel(1, 11)
    async with bot.running():
        both = await discord.post(11, map_art(1), map_art(2))
        other = await discord.post(10, map_art(2))
        await bot.settled(2)
        url = link(both)
        answer = await discord.use_find(url=url, member=BOB, channel_id=10)
        select = answer.select
        values = [option["value"] for option in select["options"]]
        chosen = await discord.choose(select["custom_id"], values[1], member=BOB, channel_id=10)
        by_eve = await discord.choose(select["custom_id"], values[1], member=EVE, channel_id=10)
        unknown = await discord.choose(select["custom_id"], "12345", member=BOB, channel_id=10)
        closed = discord.channels[11]
        closed["permission_overwrites"] = [
            {"id": str(BOB), "type": 1, "allow": "0", "deny": str(1 << 10)}
        ]
        await discord.dispatch("CHANNEL_UPDATE", closed)
        late = await discord.choose(select["custom_id"], values[0], member=BOB, channel_id=10)
    assert chosen.links == [link(other)]
    assert by_eve.content.startswith("This answer belongs to somebody else.")
    assert unknown.content == "This answer is too old to go on from. Ask again."
    assert late.content == "That message is gone, or is not for you to read."


async def test_in_a_closed_channel_its_own_maps_and_those_of_its_threads_are_shared(
    bot: Bot, discord: Discord
) -> None:
    """Who can see a thread can see its channel, and the other threads of it that are public."""
    discord.add_channel(1, 11, hidden_from=EVE)
    discord.add_thread(1, 30, parent_id=11)
    discord.add_thread(1, 31, parent_id=11)
    discord.add_thread(1, 32, parent_id=11, kind=PRIVATE_THREAD)
    discord.add_channel(1, 12, hidden_from=EVE)
    discord.thread_members[32] = {BOB}
    bot.settings = BotSettings(**(bot.settings.model_dump() | {"results": 5}))
    async with bot.running():
        posts = {where: await discord.post(where, map_art(1)) for where in (11, 30, 31, 32, 12)}
        await bot.settled(5)
        answer = await ask(discord, 1, channel_id=30)
        shared = await press(discord, answer, "Share", channel_id=30)
    assert set(answer.links) == set(map(link, posts.values()))
    assert set(shared.links) == {link(posts[where]) for where in (11, 30, 31)}


async def test_what_could_not_be_shared_can_be_shared_again(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        await discord.post(10, map_art(1))
        await bot.settled(1)
        answer = await ask(discord, 1)
        discord.fail_once.add("beside")
        failed = await press(discord, answer, "Share")
        shared = await press(discord, answer, "Share")
        again = await press(discord, answer, "Share")
    assert failed.ephemeral
    assert failed.content.startswith("Discord is not answering the bot right now.")
    assert not shared.ephemeral
    assert shared.links == answer.links
    assert again.content == "This is shared already."


async def test_what_was_posted_since_does_not_push_out_what_is_shared(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        await discord.post(10, map_art(2))
        await bot.settled(1)
        answer = await ask(discord, 1)
        for _ in range(3):
            await discord.post(10, map_art(1))
        await bot.settled(4)
        shared = await press(discord, answer, "Share")
    assert shared.links == answer.links


async def assert_found_and_not_shared(bot: Bot, discord: Discord, *, posted_in: int) -> None:
    async with bot.running():
        await discord.post(posted_in, map_art(1))
        await bot.settled(1)
        answer = await ask(discord, 1)
        assert len(answer.links) == 1
        shared = await press(discord, answer, "Share")
    assert shared.content.startswith("Not everybody")


async def test_a_channel_that_only_a_role_opens_is_not_shared(bot: Bot, discord: Discord) -> None:
    everyone = discord.guilds[1]["roles"][0]
    everyone["permissions"] = str(EVERYONE_MAY & ~VIEW_CHANNEL)
    add_role(discord, 5, VIEW_CHANNEL)
    discord.member_roles[BOB] = [5]
    discord.guilds[1]["members"][0]["roles"] = ["5"]
    discord.add_channel(1, 11)
    discord.channels[10]["permission_overwrites"] = [overwrite(1, allow=VIEW_CHANNEL)]
    await assert_found_and_not_shared(bot, discord, posted_in=11)


async def test_old_posts_are_not_shared_with_people_who_may_not_read_what_was_before(
    bot: Bot, discord: Discord
) -> None:
    discord.channels[10]["permission_overwrites"] = [
        overwrite(1, deny=READ_HISTORY),
        overwrite(APPLICATION, allow=READ_HISTORY, member=True),
        overwrite(BOB, allow=READ_HISTORY, member=True),
    ]
    await assert_found_and_not_shared(bot, discord, posted_in=10)
