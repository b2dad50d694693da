"""What only the one-file archive has to cope with: files, locks, other processes."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from bot.archive.database import SCHEMA_VERSION
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import ArchiveError, Entry, Query, Selection

MODEL = "toy@000000000000"
MakeEntry = Callable[..., Entry]

QUERY = Query(embedding=np.array([1, 0], np.float32), model_id=MODEL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "maps.db"


async def fill(path: Path, *entries: Entry) -> None:
    async with EmbeddedArchive(path) as archive:
        await archive.upsert_many(entries)


async def count(path: Path) -> int:
    async with EmbeddedArchive(path, create=False) as archive:
        return (await archive.stats()).pictures


def assert_refused(path: Path, sentence: str, **options: Any) -> None:
    async def use() -> None:
        async with EmbeddedArchive(path, **options) as archive:
            await archive.stats()

    with pytest.raises(ArchiveError, match=sentence):
        asyncio.run(use())


async def test_one_file_remains_after_closing(path: Path, make_entry: MakeEntry) -> None:
    await fill(path, make_entry([1, 0]))
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_archive_is_not_made_for_a_reader(path: Path) -> None:
    assert_refused(path, "mapseek index", create=False)
    assert not path.exists()


def test_a_missing_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none" / "maps.db", "is its folder there")


def test_a_folder_is_no_archive(tmp_path: Path) -> None:
    assert_refused(tmp_path, r"is a folder, .* such as .*mapseek\.db")


def test_a_file_of_something_else(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    before = path.read_bytes()
    assert_refused(path, "no mapseek archive")
    assert path.read_bytes() == before


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE cookies (id)")
    other.close()
    before = path.read_bytes()
    assert_refused(path, "another program")
    assert path.read_bytes() == before


def test_an_archive_of_a_newer_mapseek(path: Path, make_entry: MakeEntry) -> None:
    asyncio.run(fill(path, make_entry([1, 0])))
    with sqlite3.connect(path) as later:
        later.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    later.close()
    assert_refused(path, "update mapseek")


def test_a_damaged_file(path: Path, make_entry: MakeEntry) -> None:
    asyncio.run(fill(path, *(make_entry() for _ in range(500))))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 8192))
    assert_refused(path, "damaged")


def test_a_file_that_was_cut_short(path: Path, make_entry: MakeEntry) -> None:
    asyncio.run(fill(path, *(make_entry() for _ in range(500))))
    os.truncate(path, path.stat().st_size // 2)
    assert_refused(path, "damaged")


async def test_a_writer_waits_for_another_process_and_readers_do_not(
    path: Path, make_entry: MakeEntry
) -> None:
    await fill(path, make_entry([1, 0], message="before"))
    async with EmbeddedArchive(path, busy_timeout_s=60) as archive:
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(archive.upsert_many([make_entry([1, 0], message="after")]))
        for _ in range(3):  # the event loop and the readers go on meanwhile
            (match,) = await archive.search(QUERY)
            assert match.picture.key.message_id == "before"
        assert not writing.done()
        other.execute("COMMIT")
        other.close()
        await writing
        assert len(await archive.search(QUERY)) == 2


async def test_a_lock_that_stays_is_a_sentence(path: Path, make_entry: MakeEntry) -> None:
    await fill(path, make_entry([1, 0]))
    async with EmbeddedArchive(path, busy_timeout_s=0.05) as archive:
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ArchiveError, match="locked by another process"):
            await archive.upsert_many([make_entry([1, 0])])
        other.close()
        await archive.upsert_many([make_entry([1, 0])])
    assert await count(path) == 2


async def test_two_archives_on_one_file_see_each_other(path: Path, make_entry: MakeEntry) -> None:
    async with EmbeddedArchive(path) as one, EmbeddedArchive(path) as two:
        await one.upsert_many([make_entry([1, 0], message="a")])
        await two.upsert_many([make_entry([1, 0], message="b")])
        for archive in (one, two):
            assert len(await archive.search(QUERY)) == 2
        await one.delete(Selection(message_ids=frozenset({"b"})))
        assert len(await two.search(QUERY)) == 1


async def test_many_may_make_the_file_at_once(path: Path, make_entry: MakeEntry) -> None:
    await asyncio.gather(*(fill(path, make_entry([1, 0])) for _ in range(8)))
    assert await count(path) == 8


async def test_a_full_disk_loses_nothing(path: Path, make_entry: MakeEntry) -> None:
    await fill(path, *(make_entry() for _ in range(10)))
    async with EmbeddedArchive(path) as archive:
        # The writer's own connection meets SQLite's own "full": it may grow by nothing.
        archive._connections[0].execute("PRAGMA max_page_count = 1")
        with pytest.raises(ArchiveError, match="no room left"):
            await archive.upsert_many([make_entry() for _ in range(500)])
        archive._connections[0].execute("PRAGMA max_page_count = 1000000")
        await archive.upsert_many([make_entry()])
    assert await count(path) == 11


async def test_thousands_of_equal_scores_still_come_oldest_first(
    path: Path, make_entry: MakeEntry
) -> None:
    # More than sqlite-vec gives in one query.
    async with EmbeddedArchive(path) as archive:
        await archive.upsert_many(
            [make_entry([1, 0], message=str(day), day=day) for day in range(4200, 0, -1)]
        )
        found = await archive.search(
            Query(
                embedding=np.array([1, 0], np.float32),
                model_id=MODEL,
                limit=3,
                channel_ids=frozenset({"200"}),
                include_spoilers=False,
                exclude_message_id="2",
            )
        )
        assert [match.picture.key.message_id for match in found] == ["1", "3", "4"]
        everything = await archive.search(
            Query(embedding=np.array([1, 0], np.float32), model_id=MODEL, limit=5000)
        )
        assert len(everything) == 4200


_WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
import numpy as np
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import Entry, Picture, PictureKey

def entry(batch, number):
    picture = Picture(
        key=PictureKey(message_id=f"{batch}", attachment_id=f"{number}"), guild_id="1",
        channel_id="2", user_id="3", message_link="", image_url="", width=1, height=1,
        posted_at=datetime.now(UTC), file_size=1, content_hash=f"{batch}-{number}",
    )
    return Entry(picture=picture, model_id="toy", embedding=np.eye(64, dtype=np.float32)[number])

async def main():
    async with EmbeddedArchive(Path(sys.argv[1]), exact_limit=int(sys.argv[2])) as archive:
        for batch in range(10**9):
            await archive.upsert_many([entry(batch, number) for number in range(50)])
            print(batch, flush=True)

asyncio.run(main())
"""


def written_until_killed(path: Path, *, exact_limit: int = 10_000) -> list[int]:
    """The batches that a process said to have stored before it was killed in the middle."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), str(exact_limit)],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(5)]
        writer.kill()
    return told


async def test_a_killed_writer_leaves_whole_batches(path: Path) -> None:
    told = written_until_killed(path)
    async with EmbeddedArchive(path, create=False) as archive:
        found: dict[str, int] = {}
        async for entry in archive.entries():
            batch = entry.picture.key.message_id
            found[batch] = found.get(batch, 0) + 1
        assert set(found.values()) == {50}  # no batch in part
        assert {str(batch) for batch in told} <= found.keys()  # what was told is kept
