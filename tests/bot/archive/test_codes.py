"""The codes of a large embedded archive: they agree with the vectors, whatever happens."""
# ruff: noqa: S608 - the names of tables are made from numbers

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from bot.archive import codes
from bot.archive.database import connect, rows, snapshot, spaces
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import Entry, Match, Query, Selection, Vector
from tests.bot.archive.test_embedded import written_until_killed

MODEL = "toy@000000000000"
MakeEntry = Callable[..., Entry]
EVERYTHING = codes.Visible(
    channels=None, spoilers=True, from_us=None, before_us=None, excluded=frozenset()
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "maps.db"


def crowd(count: int, dimensions: int = 100) -> Vector:
    """Unit vectors in a cone and in clusters, as embeddings of pictures lie."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, dimensions)) * rng.uniform(0.1, 1, dimensions) + 1.5
    values = centres[rng.integers(40, size=count)]
    values = values + 0.3 * rng.standard_normal((count, dimensions))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


def proposed(path: Path, vector: Vector, count: int, visible: codes.Visible = EVERYTHING) -> int:
    """How many pictures the codes propose."""
    connection = connect(path, create=False, busy_timeout_s=1)
    with snapshot(connection):
        (space,) = spaces(connection)
        found = codes.nearest(connection, space, vector, visible, count)
    connection.close()
    return len(found)


def assert_codes_agree(path: Path) -> None:
    """Every vector has the code and the marks that it must have, and nothing else has any."""
    connection = connect(path, create=False, busy_timeout_s=1)
    assert rows(connection, "SELECT * FROM stale") == []
    for space in spaces(connection):
        assert space.centre is not None
        width = -(-space.dimensions // 64) * 8
        expected = {}
        for id_, posted_us, channel, spoiler, blob in rows(
            connection,
            "SELECT p.id, p.posted_at_us, p.channel, p.spoiler, v.embedding FROM picture AS p "
            f"CROSS JOIN vectors_{space.id} AS v ON v.picture = p.id",
        ):
            above = np.frombuffer(blob, np.float32) > space.centre
            bits = np.packbits(above).tobytes().ljust(width, b"\0")
            expected[id_] = (posted_us, channel, spoiler, bits)
        found = {}
        for block, marks, bits in rows(connection, f"SELECT * FROM codes_{space.id}"):
            table = np.frombuffer(marks, "<i8,<i4,<i4")
            assert table["f1"].any(), "an empty block was kept"
            for place in np.flatnonzero(table["f1"]).tolist():
                code = bits[place * width : (place + 1) * width]
                found[block * 4096 + place] = (*table[place].tolist(), code)
        assert found == expected
    connection.close()


async def ask(archive: EmbeddedArchive, vector: Vector, **scope: Any) -> list[Match]:
    return await archive.search(Query(embedding=vector, model_id=MODEL, **scope))


def keys(matches: list[Match]) -> list[str]:
    return [match.picture.key.message_id for match in matches]


async def test_the_nearest_are_among_few_proposals(path: Path, make_entry: MakeEntry) -> None:
    vectors = crowd(3000)
    entries = [make_entry(vector, message=str(n)) for n, vector in enumerate(vectors)]
    rng = np.random.default_rng(1)
    asked = vectors[::60] + 0.02 * rng.standard_normal((50, 100))
    asked = np.asarray(asked / np.linalg.norm(asked, axis=1, keepdims=True), np.float32)
    async with EmbeddedArchive(path, exact_limit=1000, proposals=150) as archive:
        await archive.upsert_many(entries)
        found = [keys(await ask(archive, vector)) for vector in asked]
    true = np.argsort(-(asked @ vectors.T), axis=1)[:, :3]
    right = sum(str(n) in some for some, best in zip(found, true, strict=True) for n in best)
    assert right >= 0.99 * true.size
    assert proposed(path, asked[0], 150) < 400  # of 3000
    assert_codes_agree(path)


async def test_filters_choose_before_the_codes_do(path: Path, make_entry: MakeEntry) -> None:
    vectors = crowd(3000)
    entries = [
        make_entry(
            vector,
            message=str(n),
            day=n,
            channel_id="quiet" if n % 100 == 7 else "crowd",
            spoiler=n % 200 == 7,
        )
        for n, vector in enumerate(vectors)
    ]
    posted = entries[2000].picture.posted_at
    async with EmbeddedArchive(path, exact_limit=0, proposals=1) as archive:
        await archive.upsert_many(entries)
        for scope, visible in (
            ({"channel_ids": frozenset({"quiet"})}, range(7, 3000, 100)),
            (
                {"channel_ids": frozenset({"quiet"}), "include_spoilers": False},
                range(107, 3000, 200),
            ),
            (
                {"posted_from": posted, "posted_before": posted + timedelta(days=3)},
                range(2000, 2003),
            ),
            (
                {"channel_ids": frozenset({"quiet"}), "exclude_message_id": "7"},
                range(107, 3000, 100),
            ),
        ):
            asked = vectors[7]
            best = sorted(visible, key=lambda n: -float(vectors[n] @ asked))
            assert keys(await ask(archive, asked, limit=3, **scope)) == [str(n) for n in best[:3]]
            assert len(await ask(archive, asked, limit=50, **scope)) == len(visible)


async def test_changes_and_deletions_reach_the_codes(path: Path, make_entry: MakeEntry) -> None:
    entries = [make_entry(vector, message=str(n)) for n, vector in enumerate(crowd(300))]
    async with EmbeddedArchive(path, exact_limit=0) as archive:
        await archive.upsert_many(entries)
        moved = replace(entries[5].picture, channel_id="else", spoiler=True)
        other = replace(moved, posted_at=moved.posted_at + timedelta(days=900))
        turned = replace(entries[5], picture=other, embedding=-entries[5].embedding)
        await archive.upsert_many([turned])
        new_bytes = replace(entries[6].picture, content_hash="f" * 64)
        await archive.upsert_many([replace(entries[6], picture=new_bytes, model_id="other@1")])
        await archive.delete(Selection(message_ids=frozenset({"7", "8"})))
        assert keys(await ask(archive, turned.embedding, limit=1)) == ["5"]
        assert len(await ask(archive, entries[0].embedding, limit=400)) == 297
    assert_codes_agree(path)


async def test_emptied_blocks_go(path: Path, make_entry: MakeEntry) -> None:
    async with EmbeddedArchive(path, exact_limit=0) as archive:
        await archive.upsert_many([make_entry(vector) for vector in crowd(9000, 8)])
        await archive.delete(Selection(guild_id="100"))
        assert await ask(archive, crowd(1, 8)[0]) == []
        await archive.upsert_many([make_entry(vector) for vector in crowd(10, 8)])
        assert len(await ask(archive, crowd(1, 8)[0], limit=20)) == 10
    assert_codes_agree(path)


def test_a_killed_writer_leaves_codes_that_agree(path: Path) -> None:
    written_until_killed(path, exact_limit=0)
    assert_codes_agree(path)


def downgrade(path: Path) -> None:
    """Makes the file what the first mapseek wrote."""
    connection = apsw.Connection(str(path))
    for trigger in ("picture_added", "picture_changed", "picture_gone"):
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.execute(
        "DROP TABLE stale; DROP TABLE serving; ALTER TABLE space DROP COLUMN centre;"
        "PRAGMA user_version = 1"
    )
    connection.close()


async def test_a_file_of_the_first_version_is_brought_up_to_date(
    path: Path, make_entry: MakeEntry
) -> None:
    vectors = crowd(500)
    async with EmbeddedArchive(path) as archive:
        await archive.upsert_many([make_entry(vector) for vector in vectors])
        before = [await ask(archive, vector) for vector in vectors[:20]]
    downgrade(path)
    for exact_limit in (10_000, 100):  # small as before, and now with codes
        async with EmbeddedArchive(path, create=False, exact_limit=exact_limit) as archive:
            after = [await ask(archive, vector) for vector in vectors[:20]]
            assert [keys(matches) for matches in after] == [keys(matches) for matches in before]
    assert_codes_agree(path)


async def test_an_interrupted_step_is_taken_again(path: Path, make_entry: MakeEntry) -> None:
    vectors = crowd(300)
    async with EmbeddedArchive(path) as archive:
        await archive.upsert_many([make_entry(vector) for vector in vectors])
    downgrade(path)
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE serving (something)")  # so that the step fails half-way
    connection.close()
    with pytest.raises(Exception, match="already exists"):
        connect(path, create=False, busy_timeout_s=1)
    connection = apsw.Connection(str(path))
    assert rows(connection, "PRAGMA user_version") == [(1,)]
    assert rows(connection, "SELECT name FROM sqlite_master WHERE name = 'stale'") == []
    connection.execute("DROP TABLE serving")
    connection.close()
    async with EmbeddedArchive(path, exact_limit=0) as archive:
        assert len(await ask(archive, vectors[0], limit=400)) == 300
    assert_codes_agree(path)


async def test_what_an_older_mapseek_writes_beside_is_found(
    path: Path, make_entry: MakeEntry
) -> None:
    vectors = crowd(400)
    entries = [make_entry(vector, message=str(n)) for n, vector in enumerate(vectors)]
    async with EmbeddedArchive(path, exact_limit=0, proposals=1) as archive:
        await archive.upsert_many(entries[:398])
        # What it writes: the rows, and no codes.
        older = connect(path, create=False, busy_timeout_s=1)
        older.execute(
            "BEGIN; INSERT INTO picture SELECT 9999, 'new', attachment_id, channel, user_id, "
            "message_link, image_url, posted_at_us, width, height, file_size, content_hash, "
            "spoiler, author, channel_name FROM picture LIMIT 1"
        )
        older.execute(
            "INSERT INTO vectors_1 (picture, embedding, channel, spoiler) VALUES (9999, ?, 1, 0)",
            (entries[399].embedding.tobytes(),),
        )
        older.execute("DELETE FROM vectors_1 WHERE picture = 3")
        older.execute("DELETE FROM picture WHERE id = 3")
        older.execute("UPDATE picture SET spoiler = 1 WHERE id = 5; COMMIT")
        older.close()
        assert keys(await ask(archive, entries[399].embedding, limit=1)) == ["new"]
        assert "2" not in keys(await ask(archive, vectors[2], limit=400))
        assert "4" not in keys(await ask(archive, vectors[4], limit=1, include_spoilers=False))
        await archive.upsert_many([entries[398]])
    assert_codes_agree(path)
