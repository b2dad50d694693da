"""The memory of answers: what it answers, what it forgets, and how it is counted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from bot.archive import cached
from bot.archive.cached import CachedArchive
from bot.archive.embedded import EmbeddedArchive
from bot.archive.opening import open_archive
from bot.archive.port import Match, Query, Selection
from bot.settings import BotSettings
from tests.bot.archive.conftest import MODEL, MakeEntry, unit


class Counting(EmbeddedArchive):
    """The real archive, which counts searches and can be held in one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.searches = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    async def search(self, query: Query) -> list[Match]:
        self.searches += 1
        found = await super().search(query)
        self.asked.set()
        await self.gate.wait()
        return found


def query(*vector: float, **scope: object) -> Query:
    return Query(**{"embedding": unit(vector), "model_id": MODEL, **scope})  # type: ignore[arg-type]


@pytest.fixture
async def counting(tmp_path: Path, make_entry: MakeEntry) -> AsyncIterator[Counting]:
    async with Counting(tmp_path / "a.db") as archive:
        await archive.upsert_many([make_entry([1, n / 9], message=f"{n}") for n in range(9)])
        yield archive


async def test_the_same_question_is_answered_once(counting: Counting) -> None:
    archive = CachedArchive(counting, most=100)
    first = await archive.search(query(1, 0, channel_ids=frozenset({"200", "300"})))
    first_answer = list(first)
    first.clear()
    assert await archive.search(query(1, 0, channel_ids=frozenset({"300", "200"}))) == first_answer
    assert counting.searches == 1


@pytest.mark.parametrize(
    "other",
    [
        query(1, 0.001),
        query(1, 0, limit=4),
        query(1, 0, guild_id="100"),
        query(1, 0, channel_ids=frozenset()),
        query(1, 0, channel_ids=frozenset({"200"})),
        query(1, 0, include_spoilers=False),
        query(1, 0, exclude_message_id="3"),
        query(1, 0, model_id="other@1"),
    ],
)
async def test_another_question_is_asked(counting: Counting, other: Query) -> None:
    archive = CachedArchive(counting, most=100)
    await archive.search(query(1, 0))
    assert await archive.search(other) == await counting.search(other)
    assert counting.searches == 3


async def test_a_write_makes_it_ask_again(counting: Counting, make_entry: MakeEntry) -> None:
    archive = CachedArchive(counting, most=100)
    await archive.search(query(1, 0, limit=1))
    await archive.upsert_many([make_entry([1, 0], message="new", day=0)])
    (found,) = await archive.search(query(1, 0, limit=1))
    assert found.picture.key.message_id == "new"
    await archive.delete(Selection(message_ids=frozenset({"new"})))
    (found,) = await archive.search(query(1, 0, limit=1))
    assert found.picture.key.message_id == "0"


async def test_an_answer_from_before_a_write_is_not_kept(
    counting: Counting, make_entry: MakeEntry
) -> None:
    archive = CachedArchive(counting, most=100)
    counting.gate.clear()
    asking = asyncio.create_task(archive.search(query(1, 0, limit=1)))
    await counting.asked.wait()
    await archive.upsert_many([make_entry([1, 0], message="new", day=0)])
    counting.gate.set()
    (old,) = await asking
    (now,) = await archive.search(query(1, 0, limit=1))
    assert (old.picture.key.message_id, now.picture.key.message_id) == ("0", "new")


async def test_it_is_bounded_in_number_and_time(counting: Counting) -> None:
    now_s = 0.0
    archive = CachedArchive(counting, most=2, clock=lambda: now_s)
    one, two, three = (query(1, n / 10) for n in range(3))
    for asked in (one, two, one, three, one):
        await archive.search(asked)
    assert counting.searches == 3
    await archive.search(two)  # was the oldest when the third came
    assert counting.searches == 4
    now_s = 1e6
    await archive.search(two)
    assert counting.searches == 5


async def test_hits_and_misses_are_counted(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    counter = provider.get_meter("test").create_counter("mapseek.archive.cache")
    monkeypatch.setattr(cached, "_searches", counter)
    archive = CachedArchive(counting, most=2)
    for _ in range(3):
        await archive.search(query(1, 0))
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    points = {dict(point.attributes or {})["outcome"]: point for point in metric.data.data_points}
    assert {name: getattr(point, "value", None) for name, point in points.items()} == {
        "hit": 2,
        "miss": 1,
    }
    provider.shutdown()


async def test_the_settings_choose_it(tmp_path: Path) -> None:
    settings = BotSettings(_env_file=None, archive=tmp_path / "a.db")  # type: ignore[call-arg]
    async with open_archive(None, settings) as archive:
        assert isinstance(archive, CachedArchive)
        assert (await archive.stats()).pictures == 0
    plain = settings.model_copy(update={"search_cache": 0})
    async with open_archive(None, plain) as archive:
        assert isinstance(archive, EmbeddedArchive)
