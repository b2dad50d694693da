"""A repost gets a quiet reply where an admin wants it, and never a link that leaks."""

import asyncio

import pytest
from mapseek.v1 import embedding_pb2 as pb

from bot.archive.port import Entry
from bot.ingest.reposts import Reposts
from tests.bot.discord.conftest import Bot, map_art, photographed, until
from tests.bot.discord.loopback import Discord, Json
from tests.bot.discord.toy import ToyServer

ALICE = 42
SUPPRESSED = 1 << 2 | 1 << 12


def link(message: Json) -> str:
    return f"https://discord.com/channels/1/{message['channel_id']}/{message['id']}"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[str]:
    """The messages that were looked at, when that is over."""
    seen: asyncio.Queue[str] = asyncio.Queue()
    look = Reposts._look_at

    async def note(self: Reposts, entry: Entry) -> None:
        try:
            await look(self, entry)
        finally:
            seen.put_nowait(entry.picture.key.message_id)

    monkeypatch.setattr(Reposts, "_look_at", note)
    return seen


async def turn_on(discord: Discord, channel_id: int = 10) -> str:
    answer = await discord.use(
        "config", "reposts", {"channel": channel_id, "on": True}, channel_id=10
    )
    return answer.content


async def until_looked_at(seen: "asyncio.Queue[str]", message: Json) -> None:
    async with asyncio.timeout(30):
        while await seen.get() != message["id"]:
            pass


async def post(discord: Discord, bot: Bot, seen: "asyncio.Queue[str]", seed: int) -> Json:
    message = await discord.post(10, photographed(map_art(seed)))
    await until_looked_at(seen, message)
    return message


async def test_a_repost_gets_one_quiet_reply_with_the_link_to_the_first(
    bot: Bot, discord: Discord, looked_at: "asyncio.Queue[str]"
) -> None:
    async with bot.running():
        first = await discord.post(10, map_art(1))
        await discord.post(10, map_art(1))
        await bot.settled(2)
        assert discord.sent == []
        assert "**Reposts are pointed out in:** <#10>" in await turn_on(discord)
        other = await post(discord, bot, looked_at, 2)
        repost = await post(discord, bot, looked_at, 1)
        (notice,) = discord.sent
        await discord.edit(repost, content="again")
        # Twice the same picture is one repost.
        double = await discord.post(10, map_art(1), photographed(map_art(1)))
        assert {await looked_at.get(), await looked_at.get()} == {double["id"]}
    assert notice["content"].endswith(link(first))
    assert notice["message_reference"]["message_id"] in {repost["id"], int(repost["id"])}
    assert notice["allowed_mentions"]["parse"] == []
    assert not notice["allowed_mentions"].get("replied_user")
    assert notice["flags"] & SUPPRESSED == SUPPRESSED
    assert len(discord.sent) == 2
    assert other["id"] not in str(discord.sent)


async def test_no_link_leads_where_others_here_cannot_see(
    bot: Bot, discord: Discord, looked_at: "asyncio.Queue[str]"
) -> None:
    discord.add_channel(1, 11, hidden_from=ALICE)
    discord.add_channel(1, 12, nsfw=True)
    discord.add_channel(1, 13)
    async with bot.running():
        await turn_on(discord)
        for where in (11, 12):
            await discord.post(where, map_art(1))
        await bot.settled(2)
        await post(discord, bot, looked_at, 1)
        assert discord.sent == []
        elsewhere = await discord.post(13, map_art(2))
        await bot.settled(4)
        await post(discord, bot, looked_at, 2)
    (notice,) = discord.sent
    assert notice["content"].endswith(link(elsewhere))


async def test_a_first_post_that_is_gone_is_no_first_post(
    bot: Bot, discord: Discord, looked_at: "asyncio.Queue[str]"
) -> None:
    async with bot.running():
        await turn_on(discord)
        gone = await discord.post(10, map_art(1))
        await looked_at.get()
        # Nobody is told.
        del discord.messages[int(gone["id"])]
        await post(discord, bot, looked_at, 1)
        await bot.settled(1)
    assert discord.sent == []


async def test_after_a_restart_nothing_is_said_twice(
    bot: Bot, discord: Discord, looked_at: "asyncio.Queue[str]"
) -> None:
    async with bot.running():
        await turn_on(discord)
        await discord.post(10, map_art(1))
        await looked_at.get()
        await post(discord, bot, looked_at, 1)
    async with bot.running():
        await discord.use("index", "start", channel_id=10)

        async def done() -> bool:
            status = await discord.use("index", "status", channel_id=10)
            return "Everything is indexed" in status.content

        await until(done)
    notices = [one for one in discord.sent if "posted before" in one["content"]]
    assert len(notices) == 1


async def test_without_a_measured_threshold_it_cannot_be_turned_on(
    bot: Bot, discord: Discord, server: ToyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ToyServer.GetModel

    async def without(self: ToyServer, request: object, context: object) -> pb.GetModelResponse:
        response = await told(self, request, context)  # type: ignore[arg-type]
        response.model.ClearField("thresholds")
        return response

    monkeypatch.setattr(ToyServer, "GetModel", without)
    await server.stop()
    await server.start()
    async with bot.running():
        said = await turn_on(discord)
        assert said.startswith("This cannot be turned on: for the model that is served (toy)")
        shown = await discord.use("config", "show", channel_id=10)
        assert "**Reposts are pointed out in:** no channel" in shown.content


async def test_where_the_bot_may_not_write_it_says_so(bot: Bot, discord: Discord) -> None:
    discord.add_channel(1, 11)
    discord.lack(11, 1 << 11)
    async with bot.running():
        said = await turn_on(discord, 11)
    assert said == "The bot lacks **Send Messages** in <#11>."


async def test_stats_count_as_searches(bot: Bot, discord: Discord) -> None:
    bot.settings = bot.settings.model_copy(update={"searches_per_member": 4})
    async with bot.running():
        said = [
            (await discord.use_plain("stats", channel_id=10, member=ALICE)).content
            for _ in range(3)
        ]
    assert ["at once" in one for one in said] == [False, False, True]


async def test_stats_tell_only_of_channels_that_the_asker_can_read(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 11, hidden_from=ALICE)
    async with bot.running():
        for where in (10, 10, 11):
            await discord.post(where, map_art(where))
        await bot.settled(3)
        asked = [
            await discord.use_plain("stats", channel_id=10, member=member) for member in (ALICE, 43)
        ]
    assert asked[0].content.splitlines() == [
        "**2 pictures can be found in channels that you can read:**",
        "<#10>: 2",
    ]
    assert "<#11>: 1" in asked[1].content


async def test_the_first_of_many_is_the_first_though_ten_are_closer(
    bot: Bot, discord: Discord, looked_at: "asyncio.Queue[str]"
) -> None:
    async with bot.running():
        first = await discord.post(10, photographed(map_art(1)))
        await bot.settled(1)
        for _ in range(10):
            await discord.post(10, map_art(1))
        await bot.settled(11)
        await turn_on(discord)
        again = await discord.post(10, map_art(1))
        await until_looked_at(looked_at, again)
    (said,) = discord.sent
    assert said["content"].endswith(link(first))


async def test_a_repost_behind_a_spoiler_is_a_repost(
    bot: Bot, discord: Discord, looked_at: "asyncio.Queue[str]"
) -> None:
    async with bot.running():
        first = await discord.post(10, map_art(1))
        await bot.settled(1)
        await turn_on(discord)
        again = await discord.post(10, map_art(1), spoiler=True)
        await until_looked_at(looked_at, again)
    (said,) = discord.sent
    assert said["content"].endswith(link(first))
