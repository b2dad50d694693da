"""MongoDB Atlas for the tests of everything that keeps pictures in it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.collection import Collection

from bot.archive.atlas import AtlasArchive, managing
from bot.archive.atlas.driver import Driver
from bot.settings import BotSettings
from tests.bot.archive.atlas.proxy import AtlasProxy
from tests.bot.archive.atlas.secantus import MISSING, Secantus

# The lengths of the contract's vectors.
_LENGTHS = (2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """A MongoDB server and, before it, what makes it an Atlas."""

    server: Secantus
    proxy: AtlasProxy

    def settings(self, name: str, **others: Any) -> BotSettings:
        """Settings for a database of that name."""
        known: dict[str, Any] = {
            "atlas_uri": SecretStr(self.proxy.uri),
            "atlas_database": name,
            "atlas_timeout_s": 30,
            "atlas_retry_s": 30,
        }
        return BotSettings(_env_file=None, **known | others)  # type: ignore[call-arg]

    @contextmanager
    def collection(self, name: str) -> Iterator[Collection[dict[str, Any]]]:
        """The pictures of a database of that name, behind mapseek's back."""
        client: MongoClient[dict[str, Any]] = MongoClient(self.server.uri, tz_aware=True)
        with client:
            yield client[name]["images"]


@pytest.fixture(scope="session")
def atlas_of_the_session() -> Iterator[Atlas]:
    if MISSING:
        pytest.skip(MISSING)
    with Secantus() as server, AtlasProxy(server.address) as proxy:
        yield Atlas(server=server, proxy=proxy)


@pytest.fixture
def atlas(atlas_of_the_session: Atlas) -> Iterator[Atlas]:
    """The session's Atlas as it was in the beginning."""
    yield atlas_of_the_session
    proxy = atlas_of_the_session.proxy
    proxy.follow()
    proxy.calm()
    proxy.building, proxy.searching = False, True


@pytest.fixture
def database() -> str:
    """The name of a database that nobody has used."""
    return f"t{next(_databases)}"


_databases = itertools.count()


@asynccontextmanager
async def opened(
    settings: BotSettings, lengths: Sequence[int] = _LENGTHS
) -> AsyncIterator[AtlasArchive]:
    """An archive in Atlas with its indexes built."""
    await initialised(settings, lengths)
    async with AtlasArchive(settings) as archive:
        yield archive


async def initialised(settings: BotSettings, lengths: Sequence[int]) -> None:
    driver = Driver(settings)
    try:
        await managing.init(driver, settings, lengths, tell=lambda _: None, wait_s=600)
    finally:
        await driver.close()


async def asked_for(atlas: Atlas, namespace: str, index: str, by: asyncio.Task[Any]) -> None:
    """Returns when a task has asked for an index; raises what it failed with before."""
    while index not in atlas.proxy.indexes[namespace]:
        if by.done():
            raise AssertionError(f"{by!r} did not ask for {index}")
        await asyncio.sleep(0.01)
