"""What is kept for a moment of messages and their pictures: never longer than it is true."""

import asyncio
import io
from dataclasses import replace

import pytest
from PIL import Image

from bot.answering.confirmed import Confirmed
from bot.answering.thumbnails import Thumbnails
from bot.archive.port import Selection
from bot.fetch import GoneError
from bot.pictures import Sighting
from tests.bot.discord.conftest import Bot, encoded, map_art, photographed
from tests.bot.discord.loopback import Discord

BOB, EVE = 43, 44
PLACE = ("10", "5")


def sighting(attachment_id: str = "7", fetch_url: str = "https://cdn/7") -> Sighting:
    return Sighting(
        message_id="5",
        attachment_id=attachment_id,
        guild_id="1",
        channel_id="10",
        user_id="42",
        fetch_url=fetch_url,
        image_url=fetch_url,
        posted_at="2024-05-01T00:00:00+00:00",
    )


class Asked:
    """Stands for Discord: counts, and waits at a gate."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer: list[Sighting] | None = [sighting()]
        self.error: Exception | None = None
        self.now_s = 100.0

    async def __call__(self, *ids: str) -> list[Sighting] | None:
        self.count += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.answer

    def kept(self) -> Confirmed:
        return Confirmed(self, life_s=10, clock=lambda: self.now_s)


async def test_a_message_is_asked_for_once_for_all_who_wait_and_for_a_moment() -> None:
    asked = Asked()
    asked.gate.clear()
    kept = asked.kept()
    waiting = [asyncio.create_task(kept.pictures("1", PLACE)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    asked.gate.set()
    assert [await one for one in waiting[1:]] == [[sighting()]] * 2, "one who gives up is alone"
    await kept.pictures("1", PLACE)
    assert asked.count == 1
    asked.now_s += 10
    await kept.pictures("1", PLACE)
    assert asked.count == 2


@pytest.mark.parametrize(
    "selection",
    [
        Selection(message_ids=frozenset({"5"})),
        Selection(guild_id="1"),
        Selection(user_id="42"),
    ],
)
async def test_what_the_gateway_tells_is_newer(selection: Selection) -> None:
    asked = Asked()
    kept = asked.kept()
    await kept.pictures("1", PLACE)
    kept.deleted(selection)
    await kept.pictures("1", PLACE)
    assert asked.count == 2
    kept.touched("5")
    await kept.pictures("1", PLACE)
    assert asked.count == 3
    kept.touched("6")
    kept.deleted(Selection(message_ids=frozenset({"6"})))
    await kept.pictures("1", PLACE)
    assert asked.count == 3, "another message is another message"


async def test_an_answer_that_the_gateway_overtook_is_not_kept() -> None:
    asked = Asked()
    asked.gate.clear()
    kept = asked.kept()
    waiting = asyncio.create_task(kept.pictures("1", PLACE))
    await asyncio.sleep(0)
    kept.touched("5")
    asked.gate.set()
    await waiting
    await kept.pictures("1", PLACE)
    assert asked.count == 2


async def test_neither_absence_nor_failure_is_kept() -> None:
    asked = Asked()
    kept = asked.kept()
    asked.answer = None
    assert await kept.pictures("1", PLACE) is None
    asked.answer, asked.error = [sighting()], OSError("away")
    with pytest.raises(OSError, match="away"):
        await kept.pictures("1", PLACE)
    asked.error = None
    assert await kept.pictures("1", PLACE) == [sighting()]
    assert asked.count == 3


async def test_a_message_is_never_shown_from_a_channel_that_it_is_not_in() -> None:
    asked = Asked()
    kept = asked.kept()
    await kept.pictures("1", PLACE)
    asked.answer = None
    assert await kept.pictures("1", ("11", "5")) is None


async def test_messages_take_no_more_memory_than_they_may() -> None:
    kept = Asked().kept()
    for number in range(2_500):
        await kept.pictures("1", ("10", str(number)))
    assert len(kept._known) == 2_000
    assert kept._asking == {}


async def test_a_thumbnail_is_fetched_once_and_the_oldest_make_room() -> None:
    fetched: list[str] = []
    screenshot = encoded(Image.open(io.BytesIO(map_art(1))).resize((2000, 1000)), "PNG")

    async def fetch(url: str) -> bytes:
        fetched.append(url)
        return screenshot

    one, other = sighting("1", "https://cdn/1"), sighting("2", "https://cdn/2")
    thumbnails = Thumbnails(fetch, most_bytes=16 * 1024)
    first = await thumbnails.of(one)
    assert first is not None
    assert 8 * 1024 < len(first) <= 16 * 1024, "one has room, two have not"
    with Image.open(io.BytesIO(first)) as picture:
        assert picture.size == (256, 128)
    assert await thumbnails.of(replace(one, fetch_url="https://cdn/1?fresh")) is first
    await thumbnails.of(other)
    await thumbnails.of(one)
    assert fetched == ["https://cdn/1", "https://cdn/2", "https://cdn/1"]


async def test_the_file_of_a_single_map_is_small_enough_as_it_is() -> None:
    async def fetch(_: str) -> bytes:
        return map_art(1)

    assert await Thumbnails(fetch).of(sighting("1")) == map_art(1)


async def test_a_linked_picture_may_change_and_a_dead_one_is_dead_every_time() -> None:
    fetched = 0

    async def fetch(url: str) -> bytes:
        nonlocal fetched
        fetched += 1
        if url == "dead":
            raise GoneError("gone")
        return map_art(fetched)

    thumbnails = Thumbnails(fetch)
    linked = sighting("embed-0123456789abcdef")
    assert await thumbnails.of(linked) != await thumbnails.of(linked)
    for _ in range(2):
        with pytest.raises(GoneError):
            await thumbnails.of(sighting("9", "dead"))


async def test_a_hit_that_was_shown_is_not_fetched_again_and_a_deleted_one_is_not_shown(
    bot: Bot, discord: Discord
) -> None:
    async with bot.running():
        message = await discord.post(10, map_art(1))
        await discord.post(10, map_art(2))
        await bot.settled(2)
        picture = photographed(map_art(1))
        first = await discord.use_find(picture, member=BOB, channel_id=10)
        before = len(discord.downloads)
        second = await discord.use_find(picture, member=EVE, channel_id=10)
        assert len(first.links) == len(second.links) == 2
        assert len(discord.downloads) == before + 1, "what was asked about alone"
        await discord.delete(message)
        await bot.settled(1)
        third = await discord.use_find(picture, member=EVE, channel_id=10)
        assert len(third.links) == 1
        assert message["id"] not in third.links[0]
