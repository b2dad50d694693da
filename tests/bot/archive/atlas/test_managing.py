"""`mapseek archive init`, `status`, `migrate` and `verify`, as they are typed."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bot.archive.atlas import AtlasArchive, managing, migrating
from bot.archive.atlas.driver import Driver
from bot.archive.port import ArchiveError, PictureKey, Query
from bot.cli.main import app
from tests.bot.archive.atlas.proxy import Refusal, refusing
from tests.bot.archive.conftest import MODEL, MakeEntry, unit
from tests.bot.conftest import Atlas, asked_for, opened

LEGACY = {
    "mappings": {
        "dynamic": True,
        "fields": {
            "clip_embedding": {"dimensions": 2, "similarity": "cosine", "type": "knnVector"}
        },
    }
}


@pytest.fixture
def typed(atlas: Atlas, database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `mapseek archive` with what follows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAPSEEK_ATLAS_URI", atlas.proxy.uri)
    monkeypatch.setenv("MAPSEEK_ATLAS_DATABASE", database)
    monkeypatch.setenv("MAPSEEK_ATLAS_TIMEOUT_S", "60")
    # Nobody serves there, so nobody says how long vectors are.
    monkeypatch.setenv("MAPSEEK_SERVER", "127.0.0.1:1")

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["archive", *words])

    return run


async def filled(atlas: Atlas, database: str, make_entry: MakeEntry) -> None:
    async with AtlasArchive(atlas.settings(database)) as archive:
        await archive.upsert_many([make_entry([1, n / 10]) for n in range(5)])


def indexes_of(atlas: Atlas, database: str) -> dict[str, Any]:
    return atlas.proxy.indexes[f"{database}.images"]


def forbid_search_commands(atlas: Atlas, refused: Refusal) -> None:
    """As on a cluster that makes search indexes on its page only."""

    def no_listing(command: dict[str, Any]) -> dict[str, Any] | None:
        return refused(command) if "$listSearchIndexes" in command["pipeline"][0] else None

    atlas.proxy.fail("aggregate", times=1000, refusal=no_listing)
    atlas.proxy.fail("createSearchIndexes", times=10, refusal=refused)


def first_bots_document(number: int, vector: list[float], **fields: Any) -> dict[str, Any]:
    """A document exactly as the first bot stored it."""
    url = f"https://cdn.discordapp.com/attachments/20{number % 2}/9{number}/map.png"
    return {
        "discord_message_id": f"{1000 + number}",
        "message_link": f"https://discord.com/channels/77/20{number % 2}/{1000 + number}",
        "image_url": url,
        "clip_embedding": vector,
        "metadata": {
            "upload_timestamp": datetime(2023, 1, 1, tzinfo=UTC) + timedelta(days=number),
            "image_dimensions": {"width": 128, "height": 128},
            "file_size": 4096,
            "channel_id": f"20{number % 2}",
            "user_id": "42",
        },
        **fields,
    }


def test_init_makes_everything_and_may_be_run_again(
    typed: Any, atlas: Atlas, database: str
) -> None:
    first = typed("init", "--dimensions", "2", "--dimensions", "768")
    assert first.exit_code == 0, first.output
    assert "mapseek_2 answers" in first.output
    (index,) = [one for one in indexes_of(atlas, database).values() if one["name"] == "mapseek_2"]
    assert index["type"] == "vectorSearch"
    vector, *filters = index["latestDefinition"]["fields"]
    assert vector == {
        "type": "vector",
        "path": "clip_embedding",
        "numDimensions": 2,
        "similarity": "cosine",
    }
    assert {one["path"] for one in filters} == {
        *("model_id", "guild_id", "metadata.channel_id", "spoiler", "metadata.upload_timestamp")
    }
    atlas.proxy.calm()
    assert typed("init", "--dimensions", "2").exit_code == 0
    assert not [one for one in atlas.proxy.commands if "createSearchIndexes" in one]
    with atlas.collection(database) as collection:
        (unique,) = [one for one in collection.list_indexes() if one.get("unique")]
    assert list(unique["key"]) == ["model_id", "discord_message_id", "attachment_id"]


async def test_init_takes_the_lengths_of_what_is_stored(
    typed: Any, atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    await filled(atlas, database, make_entry)
    assert (await asyncio.to_thread(typed, "init")).exit_code == 0
    assert list(indexes_of(atlas, database)) == ["mapseek_2"]


def test_init_brings_an_old_definition_up_to_date(
    typed: Any, atlas: Atlas, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("init", "--dimensions", "8")
    monkeypatch.setenv("MAPSEEK_ATLAS_QUANTIZATION", "binary")
    assert typed("init", "--dimensions", "8").exit_code == 0
    vector = indexes_of(atlas, database)["mapseek_8"]["serving"]["fields"][0]
    assert vector["quantization"] == "binary"


async def test_the_old_definition_answers_while_the_new_one_is_built(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    settings = atlas.settings(database, atlas_lag_s=0)
    await filled(atlas, database, make_entry)
    driver = Driver(settings)
    try:
        vector = {"type": "vector", "path": "clip_embedding", "numDimensions": 2}
        await driver.create_search_index(
            "mapseek_2", {"fields": [vector | {"similarity": "cosine"}]}
        )
        atlas.proxy.building = True
        updated = asyncio.Event()

        def tell(line: str) -> None:
            if "brought up to date" in line:
                updated.set()

        init = asyncio.create_task(managing.init(driver, settings, [2], tell=tell, wait_s=60))
        await updated.wait()
        async with AtlasArchive(settings) as archive:
            asked = Query(embedding=unit([1, 0]), model_id=MODEL)
            assert len(await archive.search(asked)) == 3
            assert "filter" not in atlas.proxy.searches()[-1]
            atlas.proxy.finish()
            await init
        async with AtlasArchive(settings) as archive:
            assert len(await archive.search(asked)) == 3
            assert "filter" in atlas.proxy.searches()[-1]
    finally:
        atlas.proxy.finish()
        await driver.close()


def test_init_says_how_far_it_is_and_when_to_stop_waiting(typed: Any, atlas: Atlas) -> None:
    atlas.proxy.building = True
    result = typed("init", "--dimensions", "2", "--wait", "0.5")
    assert result.exit_code == 1
    assert "mapseek_2: PENDING" in result.output
    assert "goes on building" in result.output


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (59, "no such command: 'createSearchIndexes'"),
        (8000, "createSearchIndexes is not allowed or the syntax is incorrect, see the Atlas docs"),
        (13, "not authorized on mapseek to execute command"),
    ],
)
async def test_where_commands_are_not_allowed_init_prints_what_to_type(
    typed: Any, atlas: Atlas, database: str, make_entry: MakeEntry, code: int, words: str
) -> None:
    await filled(atlas, database, make_entry)
    forbid_search_commands(atlas, refusing(code, words))
    result = await asyncio.to_thread(typed, "init")
    assert result.exit_code == 1
    page = result.stdout
    assert "mapseek_2" in page
    # For what is stored, though the indexes cannot be listed.
    assert json.loads(page[page.index("{") :])["fields"][0]["numDimensions"] == 2
    status = await asyncio.to_thread(typed, "status")
    assert "Atlas does not tell which search indexes there are" in status.output
    # Once somebody has typed it in, it answers, and that is enough.
    atlas.proxy.type_in(f"{database}.images", "mapseek_2", json.loads(page[page.index("{") :]))
    again = await asyncio.to_thread(typed, "init")
    assert again.exit_code == 0, again.output
    assert "The index mapseek_2 answers queries." in again.output


async def test_where_commands_are_not_allowed_migrate_prints_what_to_type_and_goes_on(
    typed: Any, atlas: Atlas, first_bots: str
) -> None:
    forbid_search_commands(atlas, refusing(59, "no such command"))
    first = await asyncio.to_thread(typed, "migrate", "--model", MODEL)
    assert first.exit_code == 1
    page = first.stdout
    atlas.proxy.type_in(f"{first_bots}.images", "mapseek_2", json.loads(page[page.index("{") :]))
    again = await asyncio.to_thread(typed, "migrate")
    assert again.exit_code == 0, again.output
    assert "30 vectors packed" in again.stdout


def test_what_to_type_can_be_had_without_a_cluster(typed: Any, atlas: Atlas) -> None:
    atlas.proxy.calm()
    page = typed("init", "--print").stdout
    assert json.loads(page[page.index("{") :])["fields"][0]["numDimensions"] == 512
    assert atlas.proxy.commands == []


async def test_status_tells_what_atlas_keeps_silent_about(
    typed: Any, atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    def status() -> tuple[int, dict[str, Any]]:
        result = typed("status", "--json")
        return result.exit_code, json.loads(result.stdout)

    code, health = await asyncio.to_thread(status)
    assert (code, health["problems"]) == (0, [])
    assert "run `mapseek archive init`" in health["hints"][0]
    await filled(atlas, database, make_entry)
    code, health = await asyncio.to_thread(status)
    assert code == 1
    assert "no vector search index for vectors of 2 numbers" in health["problems"][0]
    await asyncio.to_thread(typed, "init", "--dimensions", "2", "--dimensions", "3")
    code, health = await asyncio.to_thread(status)
    assert (code, health["problems"]) == (0, [])
    assert health["models"] == [{"id": MODEL, "entries": 5, "dimensions": 2}]
    assert "mapseek_3 indexes vectors of 3 numbers, and there are none" in health["hints"][0]
    index = indexes_of(atlas, database)["mapseek_2"]
    index.update(status="STALE")
    code, health = await asyncio.to_thread(status)
    assert code == 1
    assert "no longer follows" in health["problems"][0]
    again = await asyncio.to_thread(typed, "init", "--dimensions", "2")
    assert "no longer follows" in again.output
    index.update(status="FAILED", queryable=False)
    code, health = await asyncio.to_thread(status)
    assert code == 1
    assert "failed to build the vector search index mapseek_2" in health["problems"][0]
    shown = await asyncio.to_thread(typed, "status")
    assert "problem: Atlas failed" in shown.stdout


def test_status_on_a_server_without_search(
    typed: Any, atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPSEEK_ATLAS_URI", atlas.server.uri)
    result = typed("status")
    assert result.exit_code == 1
    assert "has no Vector Search" in result.output
    assert "Traceback" not in result.output


def test_the_file_needs_none_of_this(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSEEK_ARCHIVE_KIND", "embedded")
    result = typed("status")
    assert result.exit_code == 1
    assert "MAPSEEK_ATLAS_URI" in result.output


async def test_verify_reads_everything_and_looks_for_some(
    typed: Any, atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database), [2]) as archive:
        await archive.upsert_many([make_entry([1, n / 10]) for n in range(20)])
    good = await asyncio.to_thread(typed, "verify")
    assert good.exit_code == 0, good.output
    assert "20 entries read, 20 of them looked for, 0 problems" in good.stdout
    with atlas.collection(database) as collection:
        collection.update_one({}, {"$set": {"clip_embedding": [1.0, 0.0, 0.0]}})
    bad = await asyncio.to_thread(typed, "verify")
    assert bad.exit_code == 1
    assert "has" in bad.stdout
    assert "numbers, and others of its model" in bad.stdout


# The first bot's collection -------------------------------------------------------------------


@pytest.fixture
def first_bots(atlas: Atlas, database: str) -> str:
    """A collection as the first bot left it, with its search index."""
    with atlas.collection(database) as collection:
        collection.insert_many(
            [first_bots_document(n, [10.0, float(n)]) for n in range(30)]
            + [first_bots_document(3, [10.0, 3.0])]  # stored twice, as it could happen then
            + [first_bots_document(99, [0.0, 0.0]), {"discord_message_id": "no picture"}]
        )
        collection.database.command({"ping": 1})
    atlas.proxy.indexes[f"{database}.images"]["default"] = {
        "id": "1",
        "name": "default",
        "type": "search",
        "status": "READY",
        "queryable": True,
        "latestDefinition": LEGACY,
        "serving": LEGACY,
    }
    return database


def test_status_tells_what_the_first_bot_left(typed: Any, first_bots: str) -> None:
    result = typed("status", "--json")
    health = json.loads(result.stdout)
    assert result.exit_code == 1
    assert "name no model" in health["problems"][0]
    refused = typed("migrate")
    assert refused.exit_code == 1
    assert "--model" in refused.output


async def test_the_old_index_serves_and_is_left_without_a_moment_of_silence(
    atlas: Atlas, first_bots: str
) -> None:
    settings = atlas.settings(first_bots, atlas_lag_s=0)
    proxy = atlas.proxy
    driver = Driver(settings)
    told: list[str] = []
    proxy.building = True
    migration = asyncio.create_task(
        migrating.migrate(driver, settings, MODEL, tell=told.append, wait_s=600)
    )
    try:
        await asked_for(atlas, f"{first_bots}.images", "mapseek_2", migration)
        async with AtlasArchive(settings) as archive:

            async def found(**scope: Any) -> list[str]:
                asked = Query(embedding=unit([10, 3]), model_id=MODEL, limit=2, **scope)
                matches = await archive.search(asked)
                return [match.picture.key.message_id for match in matches]

            # Strings cannot be filtered by in the old index, so it is asked for more.
            assert await found() == ["1003", "1004"]
            assert await found(channel_ids=frozenset({"200"})) == ["1004", "1002"]
            assert await found(guild_id="77", include_spoilers=False) == ["1003", "1004"]
            (asked, *_) = proxy.searches()
            assert asked["index"] == "default"
            health = await managing.inspect(driver, settings)
            assert any("of the old kind" in hint for hint in health.hints)
            proxy.finish()
            while not migration.done():
                assert await found() == ["1003", "1004"]
                await asyncio.sleep(0)
            done = migration.result()
            assert await found(channel_ids=frozenset({"201"})) == ["1003", "1005"]
            assert proxy.searches()[-1]["index"] == "mapseek_2"
            assert (await managing.inspect(driver, settings)).problems == []
            entries = {entry.picture.key: entry async for entry in archive.entries()}
    finally:
        proxy.finish()
        migration.cancel()
        await asyncio.gather(migration, return_exceptions=True)
        await driver.close()
    assert list(proxy.indexes[f"{first_bots}.images"]) == ["mapseek_2"]
    assert (done.claimed, done.doubles, done.packed, done.dropped) == (30, 1, 30, 1)
    entry = entries[PictureKey(message_id="1003", attachment_id="93")]
    assert entry.picture.guild_id == "77"
    assert entry.embedding == pytest.approx(unit([10, 3]))
    assert len(entries) == 30
    with atlas.collection(first_bots) as collection:
        # What is no picture was left as it was.
        assert collection.count_documents({"model_id": {"$exists": False}}) == 2
    assert any("30 documents say now" in line for line in told)


async def test_a_migration_that_was_interrupted_goes_on(atlas: Atlas, first_bots: str) -> None:
    settings = atlas.settings(first_bots, atlas_retry_s=0)
    driver = Driver(settings)
    try:
        atlas.proxy.fail("createSearchIndexes", refusal=refusing(8000, "no luck today"))
        with pytest.raises(ArchiveError, match="no luck"):
            await migrating.migrate(driver, settings, MODEL, tell=lambda _: None, wait_s=60)
        again = await migrating.migrate(driver, settings, MODEL, tell=lambda _: None, wait_s=60)
    finally:
        await driver.close()
    assert (again.claimed, again.packed, again.dropped) == (0, 30, 1)
