"""The work between queue and archive, step by step, on real files and real sockets."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import ArchiveError, Entry, Selection
from bot.fetch import FetchError
from bot.ingest.entries import link_expired
from bot.ingest.forgotten import Forgotten
from bot.ingest.queue import Queue
from bot.ingest.queued import Lane
from bot.ingest.worker import Ingest
from inference.logs import correlation_id
from tests.bot.discord.conftest import map_art, until
from tests.bot.discord.toy import MODEL_ID
from tests.bot.discord.workshop import Workshop, working


class Archive(EmbeddedArchive):
    """The real archive, which can be made to fail and to stop before and after a write."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.away = False
        self.reached = asyncio.Event()
        self.stop_before = self.stop_after = False

    async def upsert_many(self, entries: Sequence[Entry]) -> None:
        if self.away:
            self.reached.set()
            raise ArchiveError("The archive is away.")
        if self.stop_before:
            self.reached.set()
            await asyncio.Event().wait()
        await super().upsert_many(entries)
        if self.stop_after:
            self.reached.set()
            await asyncio.Event().wait()

    async def delete(self, selection: Selection) -> int:
        if self.away:
            self.reached.set()
            raise ArchiveError("The archive is away.")
        return await super().delete(selection)

    async def keys(self) -> list[str]:
        return [entry.picture.key.message_id async for entry in self.entries()]


Opened = AbstractAsyncContextManager[tuple[Ingest, Queue, Archive]]


def opened(shop: Workshop) -> Opened:
    return shop.open(Archive(shop.folder / "maps.db"))


async def test_old_posts_give_way_to_members_and_new_ones_do_not(
    shop: Workshop, tmp_path: Path
) -> None:
    given: list[float] = []

    async def give_way(longest_s: float) -> None:
        given.append(longest_s)

    async with opened(shop) as (ingest, queue, _):
        ingest._give_way = give_way
        async with working(ingest):
            ingest.add([shop.sighting(1, map_art(1))])
            await until_worked_off(queue)
            assert given == []
            ingest.add([shop.sighting(2, map_art(2))], lane=Lane.BACKFILL)
            await until_worked_off(queue)
    assert len(given) == 1
    assert given[0] > 0


async def test_a_new_post_does_not_wait_for_old_ones_that_give_way(shop: Workshop) -> None:
    giving = asyncio.Event()

    async def give_way(_: float) -> None:
        giving.set()
        await asyncio.Event().wait()

    async with opened(shop) as (ingest, queue, _):
        ingest._give_way = give_way
        async with working(ingest):
            ingest.add([shop.sighting(1, map_art(1))], lane=Lane.BACKFILL)
            await giving.wait()
            ingest.add([shop.sighting(2, map_art(2))], lane=Lane.BACKFILL)
            for _ in range(10):
                await asyncio.sleep(0)
            assert queue.depth().backfill == 1, "an old post is no reason to go on"
            ingest.add([shop.sighting(3, map_art(3))])
            await until_worked_off(queue)


async def until_worked_off(queue: Queue) -> None:
    async def empty() -> bool:
        return queue.depth().waiting + queue.depth().deletions == 0

    await until(empty)


@pytest.mark.parametrize("step", ["download", "embedding", "before write", "after write"])
async def test_ended_at_any_step_it_goes_on_and_does_nothing_twice(
    shop: Workshop, step: str
) -> None:
    first, second = shop.sighting(1, map_art(1)), shop.sighting(2, map_art(2))
    async with opened(shop) as (ingest, queue, archive):
        ingest.add([first, second])
        archive.stop_before = step == "before write"
        archive.stop_after = step == "after write"
        reached = archive.reached
        if step == "download":
            shop.discord.download_gate.clear()
            reached = shop.discord.download_started
        elif step == "embedding":
            shop.server.gate.clear()
            reached = shop.server.asked
        async with working(ingest):
            await reached.wait()
        assert queue.depth().waiting == 2
    shop.discord.download_gate.set()
    shop.server.gate.set()
    embedded_before = len(shop.server.lanes)
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            await until_worked_off(queue)
        assert await archive.keys() == ["1", "2"]
        assert await archive.seen([first.key, second.key], MODEL_ID) == {first.key, second.key}
    if step == "after write":
        assert len(shop.server.lanes) == embedded_before == 2


async def test_a_deletion_that_crosses_the_write_wins(shop: Workshop) -> None:
    crossed = shop.sighting(1, map_art(1))
    async with opened(shop) as (ingest, queue, archive):
        archive.stop_after = True
        async with working(ingest):
            ingest.add([crossed])
            await archive.reached.wait()
            assert await archive.keys() == ["1"]
            ingest.delete(Selection(message_ids=frozenset({"1"})))
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            await until_worked_off(queue)
        assert await archive.keys() == []


async def test_what_is_posted_after_a_deletion_survives_it(shop: Workshop) -> None:
    async with opened(shop) as (ingest, queue, archive):
        ingest.add([shop.sighting(1, map_art(1))])
        ingest.delete(Selection(guild_id="1"))
        ingest.add([shop.sighting(2, map_art(2))])
        async with working(ingest):
            await until_worked_off(queue)
        assert await archive.keys() == ["2"]


async def test_while_the_archive_is_away_nothing_is_blamed_or_lost(shop: Workshop) -> None:
    async with opened(shop) as (ingest, queue, archive):
        ingest.add([shop.sighting(1, map_art(1)), shop.sighting(2, map_art(2))])
        archive.away = True
        async with working(ingest):
            await archive.reached.wait()
            ingest.delete(Selection(message_ids=frozenset({"1"})))
            assert queue.depth().waiting == 1
            (item,) = queue.due(now_s=shop.now_s, limit=9)
            assert item.attempts == 0
            archive.away = False
            await until_worked_off(queue)
        assert await archive.keys() == ["2"]


async def test_while_the_server_is_away_nothing_is_downloaded(shop: Workshop) -> None:
    await shop.server.stop()
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            ingest.add([shop.sighting(1, map_art(1))])
            await shop.server.start()
            await until_worked_off(queue)
        assert await archive.keys() == ["1"]
    assert len(shop.discord.downloads) == 1


async def test_what_is_no_picture_is_set_aside_at_once_and_stops_nobody(shop: Workshop) -> None:
    # The second has a picture's first bytes, so that it is the server that refuses it.
    wrong = shop.sighting(1, b"hello"), shop.sighting(2, map_art(1)[:40])
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            ingest.add([*wrong, shop.sighting(3, map_art(3))])
            await until_worked_off(queue)
        assert {entry.sighting.message_id: entry.reason for entry in queue.set_aside_list()} == {
            "1": "The file is no picture of a known format.",
            "2": "The file is no readable image.",
        }
        assert await archive.keys() == ["3"]


async def test_what_the_archive_cannot_store_is_set_aside_and_stops_nobody(shop: Workshop) -> None:
    wide = replace(shop.sighting(1, map_art(1)), width=2**64)
    named = replace(shop.sighting(2, map_art(2)), author="\ud800")
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            ingest.add([wide, named, shop.sighting(3, map_art(3))])
            await until_worked_off(queue)
        reasons = {one.sighting.message_id: one.reason for one in queue.set_aside_list()}
        assert reasons.keys() == {"1", "2"}
        assert reasons["1"].startswith("The archive refuses it: its width is 18446744073709551616")
        assert reasons["2"].startswith("The archive refuses it: its author holds half")
        assert await archive.keys() == ["3"]


async def test_a_picture_that_cannot_be_had_is_tried_later_and_later_then_set_aside(
    shop: Workshop,
) -> None:
    shop.fresh = FetchError("Discord gives no fresh link: 500.")
    lost = shop.sighting(1, map_art(1))
    shop.discord.files.clear()
    waits = []
    async with opened(shop) as (ingest, queue, _archive):
        ingest.add([lost])
        for attempt in range(1, 9):
            async with working(ingest):

                async def tried(number: int = attempt) -> bool:
                    return len(shop.refreshed) == number and not queue.due(
                        now_s=shop.now_s, limit=1
                    )

                await until(tried)
            if (due_at_s := queue.next_due_at_s()) is not None:
                waits.append(due_at_s - shop.now_s)
                shop.now_s = due_at_s
        assert waits == [5, 10, 20, 40, 80, 160, 320]
        (entry,) = queue.set_aside_list()
        assert entry.reason == "Discord gives no fresh link: 500."


async def test_the_same_bytes_are_embedded_once_however_often_they_come(shop: Workshop) -> None:
    async with opened(shop) as (ingest, queue, archive):
        ingest.add([shop.sighting(number, map_art(1)) for number in (1, 2, 3)])
        async with working(ingest):
            await until_worked_off(queue)
            ingest.add([shop.sighting(4, map_art(1)), shop.sighting(5, map_art(2))])
            await until_worked_off(queue)
        assert sorted(await archive.keys()) == ["1", "2", "3", "4", "5"]
    assert len(shop.server.lanes) == 2


async def test_each_picture_has_an_id_of_its_own_in_the_logs(
    shop: Workshop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []

    def note(record: logging.LogRecord) -> bool:
        ids.append(correlation_id())
        return True

    wrong = [shop.sighting(number, b"hello") for number in (1, 2)]
    logger = logging.getLogger("mapseek.bot")
    monkeypatch.setattr(logger, "filters", [note])
    async with opened(shop) as (ingest, queue, _):
        async with working(ingest):
            ingest.add(wrong)
            await until_worked_off(queue)
    assert sorted(filter(None, ids)) == [f"{one.message_id}-{one.attachment_id}" for one in wrong]


async def test_a_forgotten_post_is_not_even_written_down(shop: Workshop) -> None:
    async with opened(shop) as (ingest, queue, _):
        Forgotten(queue.db).opt_out("42")
        ingest.add([shop.sighting(1, map_art(1))])
        assert queue.depth().waiting == 0


async def test_a_link_that_died_early_is_renewed(shop: Workshop) -> None:
    dead = shop.sighting(1, map_art(1))
    del shop.discord.files[int(dead.attachment_id)]
    shop.fresh = replace(dead, fetch_url=shop.sighting(1, map_art(1)).fetch_url)
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            ingest.add([dead])
            await until_worked_off(queue)
        assert await archive.keys() == ["1"]
    assert shop.refreshed == [dead]


async def test_a_picture_whose_message_is_gone_is_dropped(shop: Workshop) -> None:
    dead = shop.sighting(1, map_art(1))
    shop.discord.files.clear()
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            ingest.add([dead])
            await until_worked_off(queue)
        assert queue.depth().set_aside == 0
        assert await archive.keys() == []


async def test_a_fault_of_ours_with_one_picture_stops_no_other(
    shop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    broken = replace(shop.sighting(1, map_art(1)), posted_at="yesterday")
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            ingest.add([broken, shop.sighting(2, map_art(2))])

            async def put_off() -> bool:
                return not queue.due(now_s=shop.now_s, limit=1)

            await until(put_off)
            assert await archive.keys() == ["2"]
        assert queue.depth().waiting == 1
    assert "Picture" in caplog.text


@pytest.mark.parametrize(
    ("query", "expired"),
    [
        ("?ex=64&is=1&hm=0", True),
        ("?ex=65&is=1&hm=0", False),
        ("", False),
        ("?ex=soon", False),
        ("?ex=", False),
    ],
)
def test_a_link_tells_when_it_expires(query: str, expired: bool) -> None:  # noqa: FBT001 (pytest's way)
    assert link_expired("https://cdn.discordapp.com/a.png" + query, now_s=100) is expired


async def test_a_picture_that_comes_back_before_it_is_deleted_stays(shop: Workshop) -> None:
    one = shop.sighting(1, map_art(1))
    async with opened(shop) as (ingest, queue, archive):
        async with working(ingest):
            ingest.add([one])
            await until_worked_off(queue)
        # An edit takes it out of its message and another puts it back, while the archive is away.
        archive.away = True
        async with working(ingest):
            ingest.delete(Selection(message_ids=frozenset({"1"})))
            await archive.reached.wait()
            ingest.add([one, shop.sighting(2, map_art(2))])
            archive.away = False
            await until_worked_off(queue)
        assert await archive.keys() == ["1", "2"]
