import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from inference.client import EmbeddingClient
from inference.server import LoadedModel, RunningServer, serve
from inference.settings import ServerSettings
from tests.inference.server.fakes import (
    GatedEngine,
    LetterCounter,
    Start,
    Stub,
    client_of,
    decode,
    manifest,
    stub_of,
)


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    engine = GatedEngine()
    yield engine
    engine.gate.set()  # no thread outlives its test


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine reaches a test."""
    for name in os.environ:
        if name.startswith(("MAPSEEK_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def _is_of_this_test(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not ("PollerCompletionQueue" in record.msg and str(error) == "Event loop is closed")


@pytest.fixture(autouse=True)
def no_news_of_earlier_tests() -> Iterator[None]:
    """gRPC hands late events, of which it has one queue for all loops, to loops that are closed.

    What a channel left to itself when its test ended is then in the log of a later test.
    """
    logger = logging.getLogger("asyncio")
    logger.addFilter(_is_of_this_test)
    yield
    logger.removeFilter(_is_of_this_test)


@pytest.fixture
def start(engine: GatedEngine) -> Start:
    """Starts a server around the fake engine: `async with start(queue_size=1) as server`."""

    def start(
        *, name: str = "fake", text: bool = False, load: Any = None, **settings: Any
    ) -> AbstractAsyncContextManager[RunningServer]:
        settings = {"listen": "127.0.0.1:0", "decode_threads": 2, "drain_s": 30.0} | settings
        model = LoadedModel(
            manifest=manifest(name, text=text),
            images=engine,
            texts=LetterCounter() if text else None,
            preprocess=decode,
        )
        return serve(ServerSettings.load(**settings), load=load or (lambda _: model))

    return start


@pytest.fixture
async def server(start: Start) -> AsyncIterator[RunningServer]:
    async with start() as server:
        await server.ready()
        yield server


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[EmbeddingClient]:
    async with client_of(server.address) as client:
        yield client


@pytest.fixture
async def stub(server: RunningServer) -> AsyncIterator[Stub]:
    async with stub_of(server) as stub:
        yield stub
