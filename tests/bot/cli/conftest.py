import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.bot.cli.toy import ToyProcess, ToyServer, toy_server


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine reaches a test, and no test writes into the checkout."""
    for name in os.environ:
        if name.startswith(("MAPSEEK_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def server() -> AsyncIterator[ToyServer]:
    """A running server in the test's event loop."""
    async with toy_server() as server:
        yield server


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyProcess]:
    """A running server in a process of its own, which commands find by MAPSEEK_SERVER."""
    process = ToyProcess()
    monkeypatch.setenv("MAPSEEK_SERVER", process.address)
    yield process
    process.close()
