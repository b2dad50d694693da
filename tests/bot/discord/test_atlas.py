"""Fault runs: through the real queue into Atlas, while everything that can break breaks."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from benchmarks import mongo
from bot.archive.opening import open_archive
from bot.archive.port import ImageArchive
from bot.ingest.queue import Queue
from bot.ingest.worker import Ingest
from bot.settings import BotSettings
from tests.bot.archive.atlas.proxy import AtlasProxy, refusing
from tests.bot.archive.atlas.secantus import MISSING, Secantus
from tests.bot.conftest import Atlas
from tests.bot.discord.conftest import map_art, until
from tests.bot.discord.workshop import Workshop, working

PICTURES = 24
QUOTA = "you are over your space quota, using 513 MB of 512 MB"

FAULTS: dict[str, list[dict[str, Any]]] = {
    "connections break before the write": [{"command": "update", "times": 5, "drop": "before"}],
    "connections break after the write": [{"command": "update", "times": 5, "drop": "after"}],
    "the primary steps down": [
        {"command": name, "times": 2, "refusal": refusing(10107, "not primary", "NotPrimary")}
        for name in ("update", "find", "createIndexes")
    ],
    "the cluster is full": [{"command": "update", "times": 2, "refusal": refusing(8000, QUOTA)}],
    "the password is wrong for a while": [
        {"command": "find", "times": 2, "refusal": refusing(18, "Authentication failed.")}
    ],
    "half of a bulk is done": [{"command": "update", "times": 3, "half": True}],
}


@asynccontextmanager
async def at_work(
    shop: Workshop, settings: BotSettings
) -> AsyncIterator[tuple[Ingest, Queue, ImageArchive]]:
    """The bot's indexing into the archive that the settings choose."""
    async with (
        shop.open(open_archive(None, settings), timeout_s=30, attempts=3) as parts,
        working(parts[0]),
    ):
        yield parts


def assert_exactly_once(uri: str, database: str, count: int) -> None:
    """What lies in the database itself, without mapseek in between."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    with client:
        stored = Counter(one["discord_message_id"] for one in client[database]["images"].find())
    assert set(stored) == {str(number) for number in range(count)}
    assert set(stored.values()) == {1}


async def worked_off(queue: Queue) -> None:
    async def empty() -> bool:
        return queue.depth().waiting == 0

    await until(empty, patience_s=120)


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_picture_is_there_once_after(
    shop: Workshop, atlas: Atlas, database: str, fault: str
) -> None:
    # A short budget, so that some faults outlast it and the queue has to wait.
    settings = atlas.settings(database, atlas_retry_s=0.3)
    async with at_work(shop, settings) as (ingest, queue, archive):
        ingest.add([shop.sighting(number, map_art(number)) for number in range(4)])
        await worked_off(queue)
        for one in FAULTS[fault]:
            atlas.proxy.fail(**one)
        ingest.add([shop.sighting(number, map_art(number)) for number in range(4, PICTURES)])
        await worked_off(queue)
        assert queue.depth().set_aside == 0
        assert (await archive.stats()).pictures == PICTURES
    assert_exactly_once(atlas.server.uri, database, PICTURES)


async def test_what_the_database_refuses_is_set_aside_and_stops_nothing(
    shop: Workshop, atlas: Atlas, database: str
) -> None:
    async with at_work(shop, atlas.settings(database)) as (ingest, queue, _):
        ingest.add([shop.sighting(0, map_art(0))])
        await worked_off(queue)
        with atlas.collection(database) as collection:
            rule = {"discord_message_id": {"$ne": "5"}}
            collection.database.command("collMod", "images", validator=rule)
        ingest.add([shop.sighting(number, map_art(number)) for number in range(1, 9)])
        await worked_off(queue)
        (aside,) = queue.set_aside_list()
        assert aside.sighting.message_id == "5"
        assert "The archive refuses it" in aside.reason
    with atlas.collection(database) as collection:
        assert collection.count_documents({}) == 8


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Secantus, AtlasProxy]]:
    """A server of this test's own, with files that outlive it."""
    if MISSING:
        pytest.skip(MISSING)
    with mongo.atlas(tmp_path / "mongodb") as server_and_proxy:
        yield server_and_proxy


async def test_a_server_that_dies_under_load_and_comes_back(
    shop: Workshop, own: tuple[Secantus, AtlasProxy]
) -> None:
    server, proxy = own
    settings = BotSettings(
        atlas_uri=SecretStr(proxy.uri),
        atlas_database="faults",
        atlas_retry_s=0.5,
        atlas_timeout_s=10,
        _env_file=None,  # type: ignore[call-arg]
    )
    async with at_work(shop, settings) as (ingest, queue, archive):
        for start in range(0, PICTURES, 8):
            ingest.add(
                [shop.sighting(number, map_art(number)) for number in range(start, start + 8)]
            )
            proxy.calm()
            # In the middle of whatever it does for these.
            await until(lambda: written(proxy), patience_s=120)
            await asyncio.to_thread(server.kill)
            assert queue.depth().waiting > 0 or start == 0
            await asyncio.to_thread(server.start)
        await worked_off(queue)
        assert (await archive.stats()).pictures == PICTURES
    assert_exactly_once(server.uri, "faults", PICTURES)


async def written(proxy: AtlasProxy) -> bool:
    return any("update" in one for one in proxy.commands)
