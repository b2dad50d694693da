"""The adapters that the contract runs against, and pictures to put into them."""

import itertools
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from bot.archive.cached import CachedArchive
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import Entry, ImageArchive, Picture, PictureKey, Vector
from bot.settings import BotSettings
from tests.bot.conftest import Atlas, opened

MODEL = "toy@000000000000"

# Opens the archive of that name; the same name opens the same archive again.
OpenArchive = Callable[[str], AbstractAsyncContextManager[ImageArchive]]

# The real thing: a cluster in Atlas, or mongodb/mongodb-atlas-local.
REAL_ATLAS = os.environ.get("MAPSEEK_TEST_ATLAS_URI", "")
_REAL_COLLECTION = "mapseek_contract"


def _embedded(request: pytest.FixtureRequest) -> OpenArchive:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda name: EmbeddedArchive(folder / f"{name}.db")


def _coded(request: pytest.FixtureRequest) -> OpenArchive:
    """The embedded one as it is when it is large: with codes, and few proposals."""
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda name: EmbeddedArchive(folder / f"{name}.db", exact_limit=0, proposals=1)


def _cached(request: pytest.FixtureRequest) -> OpenArchive:
    embedded = _embedded(request)
    # One answer is kept, so that some are dropped as well.
    return lambda name: CachedArchive(embedded(name), most=1)  # type: ignore[arg-type]


def _atlas(request: pytest.FixtureRequest, **others: Any) -> OpenArchive:
    atlas: Atlas = request.getfixturevalue("atlas")
    prefix, numbers = request.getfixturevalue("database"), itertools.count()
    databases: defaultdict[str, str] = defaultdict(lambda: f"{prefix}-{next(numbers)}")
    return lambda name: opened(atlas.settings(databases[name], **others))


def _searched(request: pytest.FixtureRequest) -> OpenArchive:
    """What is found comes from the search index, which is never behind."""
    return _atlas(request, atlas_lag_s=0)


def _remembered(request: pytest.FixtureRequest) -> OpenArchive:
    """The search index never learns anything: what is found was kept in memory."""
    atlas: Atlas = request.getfixturevalue("atlas")
    atlas.proxy.freeze()
    return _atlas(request)


def _real_atlas(request: pytest.FixtureRequest) -> OpenArchive:
    settings = BotSettings(
        atlas_uri=SecretStr(REAL_ATLAS),
        atlas_collection=_REAL_COLLECTION,
        atlas_timeout_s=60,
        _env_file=None,  # type: ignore[call-arg]
    )
    used: list[str] = []

    @asynccontextmanager
    async def open_(name: str) -> AsyncIterator[ImageArchive]:
        # Three indexes are all that a free cluster allows: one collection serves all archives.
        if used[-1:] != [name]:
            used.append(name)
            client: MongoClient[dict[str, Any]] = MongoClient(REAL_ATLAS)
            with client:
                for collection in (_REAL_COLLECTION, f"{_REAL_COLLECTION}_state"):
                    client[settings.atlas_database][collection].delete_many({})
        async with opened(settings) as archive:
            yield archive

    return open_


# Another adapter joins the contract by one line here.
ADAPTERS: dict[str, Callable[[pytest.FixtureRequest], OpenArchive]] = {
    "embedded": _embedded,
    "embedded, coded": _coded,
    "embedded, cached": _cached,
    "atlas": _searched,
    "atlas, index behind": _remembered,
    **({"real atlas": _real_atlas} if REAL_ATLAS else {}),
}


@pytest.fixture(params=ADAPTERS)
def open_archive(request: pytest.FixtureRequest) -> OpenArchive:
    return ADAPTERS[request.param](request)


@pytest.fixture
async def archive(open_archive: OpenArchive) -> AsyncIterator[ImageArchive]:
    async with open_archive("archive") as opened:
        yield opened


class MakeEntry(Protocol):
    """Makes an entry; what is not given is made up, and is different every time."""

    def __call__(
        self,
        vector: Any = None,
        /,
        *,
        message: str | None = None,
        attachment: str = "1",
        model: str = MODEL,
        day: int | None = None,
        **fields: Any,
    ) -> Entry: ...


def unit(vector: Any) -> Vector:
    values = np.asarray(vector, dtype=np.float32)
    return np.asarray(values / np.linalg.norm(values), dtype=np.float32)


@pytest.fixture
def make_entry() -> MakeEntry:
    numbers = itertools.count(1)

    def make(
        vector: Any = None,
        /,
        *,
        message: str | None = None,
        attachment: str = "1",
        model: str = MODEL,
        day: int | None = None,
        **fields: Any,
    ) -> Entry:
        number = next(numbers)
        known: dict[str, Any] = {
            "key": PictureKey(message_id=message or f"m{number}", attachment_id=attachment),
            "guild_id": "100",
            "channel_id": "200",
            "user_id": "42",
            "message_link": f"https://discord.com/channels/100/200/{number}",
            "image_url": f"https://cdn.discordapp.com/attachments/200/{number}/map.png",
            "posted_at": datetime(2024, 1, 1, tzinfo=UTC)
            + timedelta(days=number if day is None else day),
            "width": 128,
            "height": 256,
            "file_size": 1000 + number,
            "content_hash": f"{number:064x}",
            "author": "Alice",
            "channel": "map-archive",
        }
        return Entry(
            picture=Picture(**known | fields),
            model_id=model,
            embedding=unit([1.0, number, 0.0, 0.0] if vector is None else vector),
        )

    return make
