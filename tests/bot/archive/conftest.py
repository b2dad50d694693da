"""The adapters that the contract runs against, and pictures to put into them."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import Entry, ImageArchive, Picture, PictureKey, Vector

MODEL = "toy@000000000000"

# Opens the archive of that name; the same name opens the same archive again.
OpenArchive = Callable[[str], AbstractAsyncContextManager[ImageArchive]]


def _embedded(folder: Path) -> OpenArchive:
    return lambda name: EmbeddedArchive(folder / f"{name}.db")


def _coded(folder: Path) -> OpenArchive:
    """The embedded one as it is when it is large: with codes, and few proposals."""
    return lambda name: EmbeddedArchive(folder / f"{name}.db", exact_limit=0, proposals=1)


# Another adapter joins the contract by one line here.
ADAPTERS: dict[str, Callable[[Path], OpenArchive]] = {
    "embedded": _embedded,
    "embedded, coded": _coded,
}


@pytest.fixture(params=ADAPTERS)
def open_archive(request: pytest.FixtureRequest, tmp_path: Path) -> OpenArchive:
    return ADAPTERS[request.param](tmp_path)


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
