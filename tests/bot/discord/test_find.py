"""What a member sees, from the command to the picture sheet."""

import io

import disnake
import numpy as np
import pytest
from disnake.webhook.async_ import async_context
from PIL import Image

from bot.ingest.queue import Queue
from tests.bot.discord.conftest import Bot, map_art, photographed, until
from tests.bot.discord.loopback import (
    APPLICATION,
    PRIVATE_THREAD,
    VOICE,
    Answer,
    Discord,
    Json,
)
from tests.bot.discord.toy import ToyServer

ALICE, BOB = 42, 43


def link(message: Json) -> str:
    return f"https://discord.com/channels/1/{message['channel_id']}/{message['id']}"


async def ask(discord: Discord, seed: int, *, member: int = BOB, channel_id: int = 10) -> Answer:
    """Asks by the slash command, so that the question is in no message."""
    return await discord.use_find(photographed(map_art(seed)), member=member, channel_id=channel_id)


async def test_a_photographed_map_is_found_with_its_author_and_link(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in range(4)]
        await bot.settled(4)
        asked = await discord.post(10, photographed(map_art(2)), author=BOB)
        answer = await discord.use_message_command(asked, member=BOB)
    assert answer.ephemeral
    assert answer.links[0] == link(posts[2])
    assert len(answer.links) == 3
    heading, first, *_ = answer.content.splitlines()
    assert heading == "**This map was posted before:**"
    assert first.startswith("**1.** same map, similarity 0.9")
    assert r"by Member \*42\*" in first
    assert "in <#10>" in first
    ((name, sheet),) = answer.files.items()
    assert name == "maps.jpg"
    assert Image.open(io.BytesIO(sheet)).format == "JPEG"
    assert answer.allowed_mentions is not None
    assert answer.allowed_mentions["parse"] == []


async def test_commands_are_for_guilds_only_and_indexing_leaves_the_lane_to_members(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    async with bot.running():
        await discord.post(10, map_art(1))
        await bot.settled(1)
        await ask(discord, 1)
    assert {command["name"] for command in discord.commands} >= {"Find similar map", "find"}
    for command in discord.commands:
        assert command["integration_types"] == [0]
        assert command["contexts"] == [0]
    assert server.lanes == [2, 1]


async def test_the_message_that_is_asked_about_is_no_answer(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        asked = await discord.post(10, map_art(1))
        other = await discord.post(10, map_art(2))
        await bot.settled(2)
        answer = await discord.use_message_command(asked, member=BOB)
    assert answer.links == [link(other)]
    assert answer.content.startswith("**Nothing close to this picture")


async def test_before_the_guilds_have_come_the_bot_says_that_it_is_starting(
    bot: Bot, discord: Discord
) -> None:
    discord.introduces_guilds = False
    async with bot.running():
        answer = await ask(discord, 1)
    assert answer.content == "The bot is still starting; try again in a moment."


async def test_content_that_is_kept_from_the_bot_is_not_taken_for_deleted(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1))
        await bot.settled(1)
        message["attachments"].clear()
        answer = await ask(discord, 1)
    assert answer.links == []
    assert await bot.indexed() == {message["id"]}


async def test_an_empty_archive_and_a_message_without_pictures_are_said(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        bare = await discord.post(10)
        nothing = await discord.use_message_command(bare, member=BOB)
        empty = await ask(discord, 1)
    assert nothing.content == "There is no picture in that message."
    assert empty.content.startswith("Nothing found")
    assert not empty.files


async def test_a_map_of_a_hidden_channel_is_never_shown(bot: Bot, discord: Discord) -> None:
    discord.add_channel(1, 11, hidden_from=BOB)
    discord.add_channel(1, 12, kind=VOICE)
    async with bot.running():
        for seed in range(5):
            await discord.post(11, map_art(1), author=seed + 100)
        visible = [await discord.post(10, map_art(seed)) for seed in (2, 3)]
        visible.append(await discord.post(12, map_art(4)))
        await bot.settled(8)
        for_bob = await ask(discord, 1, member=BOB)
        for_alice = await ask(discord, 1, member=ALICE)
    # All that Bob may see comes back, although five better matches are hidden from him.
    assert set(for_bob.links) == set(map(link, visible))
    assert "<#11>" not in for_bob.content
    assert all("/11/" in url for url in for_alice.links)


async def test_another_guild_stays_another_guild(bot: Bot, discord: Discord) -> None:
    discord.add_guild(2)
    discord.add_channel(2, 20)
    async with bot.running():
        await discord.post(20, map_art(1))
        here = await discord.post(10, map_art(2))
        await bot.settled(2)
        answer = await ask(discord, 1)
    assert answer.links == [link(here)]


async def test_age_restricted_maps_stay_in_age_restricted_channels(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 18, nsfw=True)
    async with bot.running():
        adult = await discord.post(18, map_art(1))
        await bot.settled(1)
        outside = await ask(discord, 1)
        inside = await ask(discord, 1, channel_id=18)
    assert outside.links == []
    assert inside.links == [link(adult)]


async def test_threads_go_with_their_channel_and_private_ones_with_their_members(
    bot: Bot, discord: Discord
) -> None:
    discord.add_thread(1, 30, parent_id=10)
    discord.add_thread(1, 31, parent_id=10, kind=PRIVATE_THREAD)
    discord.add_channel(1, 11, hidden_from=BOB)
    discord.add_thread(1, 32, parent_id=11)
    discord.thread_members[31] = {ALICE}
    async with bot.running():
        posts = {thread: await discord.post(thread, map_art(thread)) for thread in (30, 31, 32)}
        await bot.settled(3)
        for_bob = await ask(discord, 31, member=BOB)
        for_alice = await ask(discord, 31, member=ALICE)
    assert for_bob.links == [link(posts[30])]
    assert set(for_alice.links) == set(map(link, posts.values()))


async def test_archived_threads_are_known_after_a_restart(bot: Bot, discord: Discord) -> None:
    discord.add_thread(1, 30, parent_id=10)
    discord.add_thread(1, 31, parent_id=10, kind=PRIVATE_THREAD)
    discord.thread_members[31] = {ALICE}
    async with bot.running():
        public = await discord.post(30, map_art(1))
        private = await discord.post(31, map_art(2))
        await bot.settled(2)
    discord.archive_thread(30)
    discord.archive_thread(31)
    async with bot.running():
        for_alice = await ask(discord, 1, member=ALICE)
        for_bob = await ask(discord, 1, member=BOB)
    assert set(for_alice.links) == {link(public), link(private)}
    assert for_bob.links == [link(public)]


async def test_spoilers_stay_spoilers(bot: Bot, discord: Discord) -> None:
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    white[:32] = (250, 0, 0)
    file = io.BytesIO()
    Image.fromarray(white).save(file, "PNG")
    async with bot.running():
        hidden = await discord.post(10, file.getvalue(), spoiler=True)
        await bot.settled(1)
        answer = await discord.use_find(map_art(1), member=BOB, channel_id=10)
        question = await discord.use_message_command(hidden, member=BOB)
        shown = await discord.post(10, map_art(2))
        await bot.settled(2)
        from_spoiler = await discord.use_message_command(hidden, member=BOB)
    assert answer.links == [link(hidden)]
    assert "(spoiler)" in answer.content
    sheet = np.asarray(Image.open(io.BytesIO(answer.files["maps.jpg"])).convert("RGB"), int)
    red = np.abs(sheet - (250, 0, 0)).max(axis=-1) < 40
    assert not red.any(), "the spoiler is on the sheet"
    assert question.files == {}
    assert from_spoiler.links == [link(shown)]
    assert list(from_spoiler.files) == ["SPOILER_maps.jpg"]


async def test_a_map_that_became_a_spoiler_is_one(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1))
        await bot.settled(1)
        message["attachments"][0]["flags"] = 1 << 3
        answer = await ask(discord, 1)
    assert "(spoiler)" in answer.content


async def test_a_message_with_several_pictures_lets_one_choose(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        first, second = [await discord.post(10, map_art(seed)) for seed in (1, 2)]
        both = await discord.post(10, map_art(1), map_art(2))
        await bot.settled(3)
        answer = await discord.use_message_command(both, member=BOB)
        select = answer.select
        other = await discord.choose(
            select["custom_id"], select["options"][1]["value"], member=BOB, channel_id=10
        )
    assert [option["default"] for option in select["options"]] == [True, False]
    assert answer.links[0] == link(first)
    assert other.ephemeral
    assert other.links[0] == link(second)
    assert [option["default"] for option in other.select["options"]] == [False, True]


async def test_what_was_deleted_unseen_falls_away_and_leaves_the_archive(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        gone = await discord.post(10, map_art(1))
        lost = await discord.post(10, map_art(1), map_art(2))
        kept = [await discord.post(10, map_art(seed)) for seed in (3, 4, 5)]
        await bot.settled(5)
        # The bot is not told of either.
        del discord.messages[int(gone["id"])]
        del lost["attachments"][0]
        answer = await ask(discord, 1)
        await bot.settled(4)
    assert len(answer.links) == 3
    assert link(gone) not in answer.links
    assert set(answer.links) <= {link(lost), *map(link, kept)}


async def test_a_channel_that_the_bot_may_not_read_gives_links_without_pictures(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1))
        await bot.settled(1)
        discord.hidden_from_bot.add(10)
        answer = await ask(discord, 1)
    assert answer.links == [link(message)]
    assert await bot.indexed() == {message["id"]}


async def test_discords_rate_limits_are_waited_for(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in (1, 2, 3)]
        await bot.settled(3)
        discord.refuse_messages = 3
        answer = await ask(discord, 1)
    assert discord.refuse_messages == 0
    assert set(answer.links) == set(map(link, posts))


async def test_discord_is_not_asked_where_the_bot_is_known_to_be_shut_out(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1))
        await bot.settled(1)
        closed = discord.channels[10]
        closed["permission_overwrites"] = [
            {"id": str(APPLICATION), "type": 1, "allow": "0", "deny": str(1 << 10)}
        ]
        await discord.dispatch("CHANNEL_UPDATE", closed)
        discord.refuse_messages = 1
        answer = await ask(discord, 1)
    assert discord.refuse_messages == 1, "refusals count against a bot"
    assert answer.links == [link(message)]


async def test_a_spoiler_that_is_uploaded_gives_an_answer_that_is_one(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        await discord.post(10, map_art(1))
        await bot.settled(1)
        answer = await discord.use_find(
            map_art(1), member=BOB, channel_id=10, name="SPOILER_map.png"
        )
    assert list(answer.files) == ["SPOILER_maps.jpg"]


async def test_old_links_are_renewed_for_the_sheet(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1))
        await bot.settled(1)
        discord.downloads.clear()
        answer = await ask(discord, 1)
    assert int(message["attachments"][0]["id"]) in discord.downloads
    assert answer.links == [link(message)]


async def test_a_forwarded_map_is_a_question_and_an_answer(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        forwarded = await discord.post(10, map_art(1), forwarded=True)
        await bot.settled(1)
        answer = await ask(discord, 1)
        question = await discord.use_message_command(forwarded, member=BOB)
    assert answer.links == [link(forwarded)]
    assert question.content.startswith("Nothing found")


@pytest.mark.parametrize("forwarded", [False, True])
async def test_maps_in_a_gallery_are_questions_and_answers(
    bot: Bot, discord: Discord, *, forwarded: bool
) -> None:
    gallery = discord.gallery(10, map_art(1), map_art(2))
    container = {"type": 17, "id": 2, "components": [gallery], "spoiler": False}
    async with bot.running():
        laid_out = await discord.post(10, components=[container], forwarded=forwarded)
        await bot.settled(1)
        answer = await ask(discord, 2)
        question = await discord.use_message_command(laid_out, member=BOB)
    # Two pictures of one message.
    assert answer.links == [link(laid_out)] * 2
    assert answer.content.splitlines()[1].startswith("**1.** same map")
    assert question.content.startswith("Nothing found")
    assert len(question.select["options"]) == 2


async def test_a_file_that_is_no_picture_is_said_with_a_reference(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        answer = await discord.use_find(b"hello", member=BOB, channel_id=10)
    assert answer.ephemeral
    assert answer.content.startswith(
        "This picture cannot be used: The file is no picture of a known format. (Reference: `"
    )


async def test_without_the_embedding_server_members_are_told_and_posts_wait(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    await server.stop()
    async with bot.running():
        message = await discord.post(10, map_art(1))
        answer = await ask(discord, 1)
        with Queue(bot.settings.queue_file) as queue:
            assert queue.depth().waiting == 1
            assert queue.depth().set_aside == 0
        await server.start()
        await bot.settled(1)
        found = await ask(discord, 1)
    assert answer.content.startswith("The embedding server is not answering")
    assert "(Reference: `" in answer.content
    assert found.links == [link(message)]


async def test_a_fault_of_ours_is_owned_up_to(
    bot: Bot, discord: Discord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: object, **kwargs: object) -> frozenset[str]:
        raise RuntimeError("boom")

    monkeypatch.setattr("bot.answering.answers.readable_channels", broken)
    async with bot.running():
        answer = await ask(discord, 1)
    assert answer.content.startswith("Something went wrong in mapseek.")
    assert "boom" not in answer.content
    assert "boom" in caplog.text


async def test_nothing_is_kept_of_an_interaction_that_was_answered(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1))
        await bot.settled(1)
        for member in range(3):
            await discord.use_message_command(message, member=BOB + member)
        locks = async_context.get()._locks  # one for each, while it is under way

        async def gone() -> bool:
            return not locks  # the bot reads what Discord said to its last words first

        await until(gone)


async def test_a_404_that_is_not_discords_word_on_the_message_deletes_nothing(
    bot: Bot, discord: Discord, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Response:
        status, reason = 404, "Not Found"

    async def on_the_way(*_: object) -> None:
        raise disnake.NotFound(Response(), {"code": 0, "message": "404: Not Found"})  # type: ignore[arg-type]

    async with bot.running():
        await discord.post(10, map_art(1))
        await bot.settled(1)
        monkeypatch.setattr(disnake.http.HTTPClient, "get_message", on_the_way)
        answer = await discord.use_find(photographed(map_art(1)), member=43, channel_id=10)
        assert len(answer.links) == 1
        await bot.settled(1)
