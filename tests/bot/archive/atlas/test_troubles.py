"""Every trouble is one sentence that says what to do, and only passing ones are tried again."""

import asyncio
import logging
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from bot.archive.atlas import AtlasArchive
from bot.archive.atlas.driver import Driver
from bot.archive.atlas.troubles import trouble_of
from bot.archive.port import ArchiveError, ForbiddenError, Query, Selection
from bot.settings import BotSettings
from inference.errors import StartupError
from tests.bot.archive.atlas.proxy import refusing
from tests.bot.archive.atlas.secantus import MISSING, Secantus
from tests.bot.archive.conftest import MODEL, MakeEntry, unit
from tests.bot.conftest import Atlas, opened

SMALL = "is not allowed or the syntax is incorrect, see the Atlas documentation"
QUOTA = "you are over your space quota, using 513 MB of 512 MB"


def query(*vector: float) -> Query:
    return Query(embedding=unit(vector), model_id=MODEL)


def settings_of(uri: str, **others: Any) -> BotSettings:
    known: dict[str, Any] = {"atlas_timeout_s": 2, "atlas_retry_s": 0}
    return BotSettings(atlas_uri=SecretStr(uri), _env_file=None, **known | others)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("postgres://host/db", "no connection string"),
        ("mongodb://user:pa/ss@host/", "no connection string"),
        ("mongodb://user:secret@host:port/", "no connection string"),
        ("not a uri, secret", "no connection string"),
        ("mongodb+srv://user:secret@cluster.invalid/", "There is no host of that name|DNS"),
    ],
)
async def test_a_connection_string_that_leads_nowhere_stops_the_start(
    uri: str, sentence: str
) -> None:
    with pytest.raises(ArchiveError, match=sentence) as caught:
        async with AtlasArchive(settings_of(uri, atlas_timeout_s=30)):
            pass
    assert "secret" not in str(caught.value)
    assert "pa/ss" not in str(caught.value)


async def test_without_a_connection_string_the_sentence_names_the_setting() -> None:
    settings = BotSettings(_env_file=None, archive_kind="atlas")  # type: ignore[call-arg]
    with pytest.raises(StartupError, match="MAPSEEK_ATLAS_URI"):
        async with AtlasArchive(settings):
            pass


async def test_a_host_that_does_not_answer_is_waited_for_by_the_first_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        settings = settings_of(uri, atlas_timeout_s=0.5)
        with caplog.at_level(logging.WARNING):
            async with AtlasArchive(settings) as archive:
                assert "away at the start" in caplog.text
                with pytest.raises(ArchiveError, match="Atlas does not answer"):
                    await archive.stats()


async def test_a_name_that_means_no_host_is_told_from_a_host_that_is_away() -> None:
    async with AtlasArchive(
        settings_of("mongodb://no-such-host.invalid/", atlas_timeout_s=1)
    ) as archive:
        with pytest.raises(ArchiveError, match="no host of that name"):
            await archive.stats()


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
async def test_a_wrong_password_and_missing_rights(tmp_path: Path) -> None:
    with Secantus(tmp_path) as server:
        client: MongoClient[dict[str, Any]] = MongoClient(server.uri)
        with client:
            for user, roles in (("writer", ["readWriteAnyDatabase"]), ("nobody", [])):
                client.admin.command("createUser", user, pwd="right", roles=roles)
    with Secantus(tmp_path, "--auth") as server:

        def login(user: str, password: str) -> BotSettings:
            host = f"{server.address}/?directConnection=true&authSource=admin"
            return settings_of(f"mongodb://{user}:{password}@{host}", atlas_timeout_s=30)

        async with AtlasArchive(login("writer", "right")) as archive:
            assert (await archive.stats()).pictures == 0
        with pytest.raises(ArchiveError, match="refuses the user or the password"):
            async with AtlasArchive(login("writer", "wrong")):
                pass
        with pytest.raises(ForbiddenError, match="role readWrite"):
            async with AtlasArchive(login("nobody", "right")) as archive:
                await archive.stats()


async def test_a_server_without_search_says_so(atlas: Atlas, make_entry: MakeEntry) -> None:
    settings = settings_of(atlas.server.uri, atlas_database="plain", atlas_timeout_s=30)
    async with AtlasArchive(settings) as archive:
        await archive.upsert_many([make_entry([1, 0])])
        with pytest.raises(ArchiveError, match="has no Vector Search"):
            await archive.search(query(1, 0))


async def test_a_search_server_that_is_down_is_told_and_comes_back(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database, atlas_retry_s=0, atlas_lag_s=0)) as archive:
        await archive.upsert_many([make_entry([1, 0])])
        atlas.proxy.searching = False
        with pytest.raises(ArchiveError, match="search server behind MongoDB is down"):
            await archive.search(query(1, 0))
        atlas.proxy.searching = True
        assert len(await archive.search(query(1, 0))) == 1


async def test_a_full_cluster_is_not_asked_again(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database)) as archive:
        stored = make_entry([1, 0])
        await archive.upsert_many([stored])
        atlas.proxy.calm()
        atlas.proxy.fail("update", times=1000, refusal=refusing(8000, QUOTA))
        with pytest.raises(ArchiveError, match="cluster is full"):
            await archive.upsert_many([make_entry([0, 1])])
        assert len([one for one in atlas.proxy.commands if "update" in one]) == 1
        assert len(await archive.search(query(1, 0))) == 1


async def test_a_full_cluster_that_says_so_for_each_document_is_not_asked_again(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database)) as archive:
        atlas.proxy.calm()
        full = {
            "ok": 1.0,
            "n": 0,
            "nModified": 0,
            "writeErrors": [{"index": 0, "code": 8000, "errmsg": QUOTA}],
        }
        atlas.proxy.fail("update", times=1000, refusal=lambda _: full)
        with pytest.raises(ArchiveError, match="cluster is full") as caught:
            await archive.upsert_many([make_entry([0, 1])])
        assert len([one for one in atlas.proxy.commands if "update" in one]) == 1
        assert "clip_embedding" not in f"{caught.value.__cause__!r}{caught.value.__context__!r}"


@pytest.mark.parametrize(
    ("code", "words"),
    [(10107, "not primary"), (489, "overloaded"), (50, "exceeded")],
)
async def test_passing_troubles_are_lived_through(
    atlas: Atlas, database: str, make_entry: MakeEntry, code: int, words: str
) -> None:
    async with opened(atlas.settings(database, atlas_lag_s=0)) as archive:
        for command in ("update", "aggregate", "find"):
            atlas.proxy.fail(command, times=2, refusal=refusing(code, words))
        await archive.upsert_many([make_entry([1, 0])])
        assert len(await archive.search(query(1, 0))) == 1
        assert (await archive.stats()).pictures == 1


@pytest.mark.parametrize("drop", ["before", "after"])
async def test_connections_that_break_leave_no_trace(
    atlas: Atlas, database: str, make_entry: MakeEntry, drop: str
) -> None:
    entries = [make_entry() for _ in range(30)]
    async with opened(atlas.settings(database)) as archive:
        atlas.proxy.fail("update", times=4, drop=drop)
        await archive.upsert_many(entries)
        with atlas.collection(database) as collection:
            assert collection.count_documents({}) == 30
            atlas.proxy.fail("delete", times=3, drop=drop)
            gone = frozenset(one.picture.key.message_id for one in entries[:10])
            assert await archive.delete(Selection(message_ids=gone)) == 10
            assert collection.count_documents({}) == 20


async def test_the_budget_ends_what_does_not_pass(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database)) as archive:
        await archive.upsert_many([make_entry([1, 0])])
    async with AtlasArchive(atlas.settings(database, atlas_retry_s=0.5)) as archive:
        atlas.proxy.calm()
        atlas.proxy.fail("aggregate", times=10_000, refusal=refusing(489, "overloaded"))
        with pytest.raises(ArchiveError, match="Atlas does not answer: overloaded"):
            await archive.stats()
        assert 1 < len([one for one in atlas.proxy.commands if "aggregate" in one]) < 20


async def test_a_server_that_says_nothing_is_not_waited_for_for_ever(
    atlas: Atlas, database: str
) -> None:
    async with opened(atlas.settings(database, atlas_retry_s=0, atlas_timeout_s=0.5)) as archive:
        how = {"failCommands": ["aggregate"], "blockConnection": True, "blockTimeMS": 3000}
        atlas.server.command("configureFailPoint", "failCommand", mode={"times": 1}, data=how)
        try:
            with pytest.raises(ArchiveError, match=r"MAPSEEK_ATLAS_TIMEOUT_S|does not answer"):
                await archive.embeddings(["a" * 64], MODEL)
        finally:
            atlas.server.command("configureFailPoint", "failCommand", mode="off")


async def test_what_reads_the_whole_collection_gets_its_time(atlas: Atlas, database: str) -> None:
    settings = atlas.settings(database, atlas_retry_s=0, atlas_timeout_s=0.5)
    async with opened(settings) as archive:
        how = {"failCommands": ["aggregate"], "blockConnection": True, "blockTimeMS": 1500}
        atlas.server.command("configureFailPoint", "failCommand", mode={"times": 1}, data=how)
        try:
            assert (await archive.stats()).pictures == 0
        finally:
            atlas.server.command("configureFailPoint", "failCommand", mode="off")


async def test_a_closed_archive_has_no_connections_left(atlas: Atlas, database: str) -> None:
    async with opened(atlas.settings(database)) as archive:
        await asyncio.gather(*(archive.stats() for _ in range(5)))
        assert atlas.proxy.connected > 1
    async with asyncio.timeout(30):
        while atlas.proxy.connected:  # noqa: ASYNC110 (they end in threads)
            await asyncio.sleep(0.01)
    with pytest.raises(ArchiveError, match="not open"):
        await archive.stats()


async def test_the_driver_is_set_up_for_a_bot() -> None:
    driver = Driver(settings_of("mongodb://127.0.0.1:1/", atlas_connections=7, atlas_timeout_s=3))
    options = driver._client.options
    assert options.pool_options.max_pool_size == 7
    assert options.pool_options.appname == "mapseek"
    assert options.server_selection_timeout == 3
    assert options.timeout == 3
    compression = options.pool_options._PoolOptions__compression_settings
    assert compression.compressors == ["zlib"]
    await driver.close()


@pytest.mark.parametrize(
    ("code", "reason", "sentence"),
    [
        (31082, "Using $search and ... requires additional configuration.", "no Vector Search"),
        (6047401, "$vectorSearch stage is only allowed on MongoDB Atlas", "no Vector Search"),
        (115, "anything", "no Vector Search"),
        (40324, "Unrecognized pipeline stage name: '$vectorSearch'", "no Vector Search"),
        (59, "no such command: 'createSearchIndexes'", "cluster's page"),
        (8000, f"createSearchIndexes {SMALL}", "cluster's page"),
        (6, "Error connecting to localhost:28000 :: caused by", "search server .* is down"),
        (125, "Error connecting to Search Index Management service.", "search server .* is down"),
        (8, "cannot query vector index x while in state INITIAL_SYNC", "still being built"),
        (8, "Index x not initialized", "still being built"),
        (8, "clip_embedding is not indexed as vector", "archive status"),
        (8, 'clip_embedding must be indexed as "vector".', "archive status"),
        (8, "vector field is indexed with 512 dimensions but queried with 768", "another length"),
        (8, "Path 'guild_id' needs to be indexed as filter", "archive init"),
        (8, "Path 'metadata.channel_id' needs to be indexed as token", "archive init"),
        (8000, "bad auth : authentication failed", "user or the password"),
        (18, "Authentication failed.", "user or the password"),
        (8000, QUOTA, "cluster is full"),
        (8000, "user is not allowed to do action [find] on [a.b]", "role readWrite"),
        (13, "not authorized on a to execute command", "role readWrite"),
        (8000, "The maximum number of FTS indexes has been reached", "no more search indexes"),
        (26, "Collection 'a.b' does not exist.", "archive init"),
        (12345, "something new", r"something new \(code 12345\)"),
    ],
)
def test_each_trouble_has_its_sentence(code: int, reason: str, sentence: str) -> None:
    with pytest.raises(ArchiveError, match=sentence):
        raise trouble_of(code, reason).error()


def test_the_sentences_that_the_docs_explain_are_the_ones_that_are_said() -> None:
    root = Path(__file__).resolve().parents[4]
    table = (root / "docs" / "atlas.md").read_text().partition("| what you read |")[2]
    explained = re.findall(r"^\| \*(.+?)\*", table, re.MULTILINE)
    assert len(explained) > 12
    code = "".join(file.read_text() for file in sorted((root / "bot").rglob("*.py")))
    said = re.sub(r'"\s*\n\s*f?"', "", code)
    assert [sentence for sentence in explained if sentence not in said] == []
