"""How much may be asked: token buckets, turns, and what a member is told."""

import pytest

from bot.answering.limits import Buckets, Limits
from bot.settings import BotSettings
from tests.bot.discord.conftest import Bot, map_art, photographed
from tests.bot.discord.loopback import Discord
from tests.bot.discord.toy import ToyServer

BOB, EVE = 43, 44


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def take(buckets: Buckets, key: int) -> float:
    wait_s = buckets.wait_s(key)
    if not wait_s:
        buckets.take(key)
    return wait_s


def test_a_bucket_gives_a_burst_and_then_what_flows_in() -> None:
    clock = Clock()
    buckets = Buckets(20, clock=clock)
    assert [take(buckets, 1) for _ in range(10)] == [0] * 10
    assert take(buckets, 1) == pytest.approx(3)
    assert take(buckets, 2) == 0, "another key has a bucket of its own"
    clock.now_s += 2
    assert take(buckets, 1) == pytest.approx(1)
    clock.now_s += 1
    assert take(buckets, 1) == 0
    assert take(buckets, 1) == pytest.approx(3)
    clock.now_s += 3600
    assert [take(buckets, 1) for _ in range(10)] == [0] * 10
    assert take(buckets, 1) > 0, "a bucket does not grow beyond its size"


def test_a_slow_flow_still_gives_one() -> None:
    clock = Clock()
    buckets = Buckets(1, clock=clock)
    assert take(buckets, 1) == 0
    assert take(buckets, 1) == pytest.approx(60)


def test_no_limit_is_no_limit() -> None:
    buckets = Buckets(0)
    assert [take(buckets, 1) for _ in range(1000)] == [0] * 1000


def test_buckets_take_no_more_memory_than_they_may() -> None:
    buckets = Buckets(20, most=100, clock=Clock())
    for key in range(100, 1100):
        take(buckets, key)
        take(buckets, 7)
    assert len(buckets._buckets) == 100


def test_a_member_who_is_refused_costs_the_guild_nothing() -> None:
    limits = Limits(per_member=2, per_guild=4, clock=Clock())
    assert limits.admit(member_id=1, guild_id=9) is None
    for _ in range(50):
        said = limits.admit(member_id=1, guild_id=9)
        assert said == "That was a lot at once; ask again in 30 seconds."
    assert limits.admit(member_id=2, guild_id=9) is None
    said = limits.admit(member_id=3, guild_id=9)
    assert said == "This server is asking a lot right now; try again in 15 seconds."
    assert limits.admit(member_id=3, guild_id=10) is None, "another guild is not held up"


async def test_who_asks_too_much_is_told_to_wait_and_others_are_answered(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    bot.settings = BotSettings(**(bot.settings.model_dump() | {"searches_per_member": 2}))
    async with bot.running():
        await discord.post(10, map_art(1))
        await bot.settled(1)
        picture = photographed(map_art(1))
        first = await discord.use_find(picture, member=BOB, channel_id=10)
        embedded = len(server.lanes)
        second = await discord.use_find(picture, member=BOB, channel_id=10)
        of_eve = await discord.use_find(picture, member=EVE, channel_id=10)
        pressed = await discord.press(first, "Share", member=BOB, channel_id=10)
    assert first.links == of_eve.links != []
    assert second.ephemeral
    assert second.content.startswith("That was a lot at once; ask again in ")
    assert len(server.lanes) == embedded + 1, "what is refused costs no work"
    assert pressed.how == "beside", "the answer stays"
    assert pressed.content.startswith("That was a lot at once")
