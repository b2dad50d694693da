"""What only the Atlas adapter does: documents, the delay of the index, its silence."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bson.binary import Binary

from bot.archive.atlas import AtlasArchive
from bot.archive.atlas.documents import INDEXES
from bot.archive.atlas.recent import Recent
from bot.archive.port import (
    ArchiveError,
    EntriesRefusedError,
    Match,
    Query,
    Selection,
)
from tests.bot.archive.atlas.proxy import refusing
from tests.bot.archive.conftest import MODEL, MakeEntry, unit
from tests.bot.conftest import Atlas, asked_for, initialised, opened


def query(*vector: float, **scope: Any) -> Query:
    return Query(**{"embedding": unit(vector), "model_id": MODEL, **scope})


def messages(matches: list[Match]) -> list[str]:
    return [match.picture.key.message_id for match in matches]


async def test_a_document_is_that_of_the_first_bot_and_more(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    entry = make_entry([3, 4], message="7", attachment="9", spoiler=True)
    async with opened(atlas.settings(database)) as archive:
        await archive.upsert_many([entry])
    with atlas.collection(database) as collection:
        (document,) = collection.find()
    picture = entry.picture
    assert document["discord_message_id"] == "7"
    assert document["message_link"] == picture.message_link
    assert document["image_url"] == picture.image_url
    assert document["metadata"]["upload_timestamp"] == picture.posted_at
    assert document["metadata"]["image_dimensions"] == {"width": 128, "height": 256}
    assert document["metadata"]["file_size"] == picture.file_size
    assert document["metadata"]["channel_id"] == "200"
    assert document["metadata"]["user_id"] == "42"
    assert (document["attachment_id"], document["model_id"]) == ("9", MODEL)
    assert (document["guild_id"], document["spoiler"]) == ("100", True)
    assert isinstance(document["clip_embedding"], Binary)
    assert len(document["clip_embedding"]) == 2 + 2 * 4
    np.testing.assert_array_equal(
        document["clip_embedding"].as_vector().data, [np.float32(0.6), np.float32(0.8)]
    )


async def test_vectors_that_are_arrays_are_read_as_well(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database, atlas_lag_s=0)) as archive:
        await archive.upsert_many([make_entry([1, 0], message="array"), make_entry([0, 1])])
        with atlas.collection(database) as collection:
            collection.update_one(
                {"discord_message_id": "array"}, {"$set": {"clip_embedding": [30.0, 40.0]}}
            )
        (best,) = await archive.search(query(3, 4, limit=1))
        entries = [entry async for entry in archive.entries()]
    assert messages([best]) == ["array"]
    assert best.score == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        {e.picture.key.message_id: e for e in entries}["array"].embedding, [0.6, 0.8]
    )


@pytest.mark.parametrize("vector", [None, [], ["a"], [0.0, 0.0], Binary(b"\x03\x00\x01", 9)])
async def test_a_document_that_somebody_else_broke_is_named(
    atlas: Atlas, database: str, make_entry: MakeEntry, vector: Any
) -> None:
    async with opened(atlas.settings(database)) as archive:
        await archive.upsert_many([make_entry([1, 0])])
        with atlas.collection(database) as collection:
            collection.update_one({}, {"$set": {"clip_embedding": vector}})
            (document,) = collection.find()
        with pytest.raises(ArchiveError, match=str(document["_id"])):
            [entry async for entry in archive.entries()]


# The index is behind --------------------------------------------------------------------------


async def test_the_index_of_these_tests_can_be_behind(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database, atlas_lag_s=0)) as archive:
        atlas.proxy.freeze()
        await archive.upsert_many([make_entry([1, 0], message="new")])
        assert await archive.search(query(1, 0)) == []
        atlas.proxy.follow()
        assert messages(await archive.search(query(1, 0))) == ["new"]


async def test_what_was_just_written_is_found_where_it_is_now(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database)) as archive:
        old = make_entry([1, 0], message="moved", channel_id="10")
        await archive.upsert_many([old, make_entry([1, 0.1], message="near", channel_id="10")])
        atlas.proxy.freeze()
        await archive.upsert_many(
            [
                replace(old, picture=replace(old.picture, channel_id="20", spoiler=True)),
                make_entry([1, 0.2], message="new", channel_id="10"),
            ]
        )

        async def found(**scope: Any) -> list[str]:
            return messages(await archive.search(query(1, 0, **scope)))

        assert await found() == ["moved", "near", "new"]
        assert await found(channel_ids=frozenset({"10"})) == ["near", "new"]
        assert await found(channel_ids=frozenset({"20"})) == ["moved"]
        assert await found(include_spoilers=False) == ["near", "new"]
        assert await found(exclude_message_id="new") == ["moved", "near"]


async def test_what_another_model_says_of_a_picture_counts_before_the_index_knows(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database)) as archive:
        ours = make_entry([1, 0], message="m", channel_id="10")
        await archive.upsert_many([ours])
        atlas.proxy.freeze()
        moved = replace(ours.picture, channel_id="20")
        await archive.upsert_many([replace(ours, model_id="other@1", picture=moved)])
        assert await archive.search(query(1, 0, channel_ids=frozenset({"10"}))) == []
        (match,) = await archive.search(query(1, 0, channel_ids=frozenset({"20"})))
        assert match.picture == moved


async def test_what_was_just_deleted_leaves_room_for_the_next(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database)) as archive:
        await archive.upsert_many(
            [make_entry([1, 0], message=f"near {n}", user_id="7") for n in range(60)]
            + [make_entry([1, 1], message=f"far {n}", day=n) for n in range(3)]
        )
        atlas.proxy.freeze()
        assert await archive.delete(Selection(user_id="7")) == 60
        assert messages(await archive.search(query(1, 0))) == ["far 0", "far 1", "far 2"]


async def test_what_was_written_just_before_the_start_is_found(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    settings = atlas.settings(database)
    async with opened(settings) as archive:
        atlas.proxy.freeze()
        await archive.upsert_many([make_entry([1, 0], message="new"), make_entry([0, 1])])
    with atlas.collection(database) as collection:
        collection.update_one({"discord_message_id": "new"}, {"$set": {"metadata.user_id": "9"}})
        collection.insert_one({"model_id": MODEL, "discord_message_id": "broken"})
    async with AtlasArchive(settings) as restarted:
        (found,) = await restarted.search(query(1, 0, limit=1))
    assert (found.picture.key.message_id, found.picture.user_id) == ("new", "9")
    async with AtlasArchive(settings.model_copy(update={"atlas_lag_s": 0})) as other:
        assert await other.search(query(1, 0)) == []


def test_recent_entries_are_bounded_in_time_and_number(make_entry: MakeEntry) -> None:
    now_s = 100.0
    recent = Recent(keep_s=10, most=3, clock=lambda: now_s)
    entries = [make_entry(message=f"{n}") for n in range(5)]

    def kept() -> list[str]:
        return [entry.picture.key.message_id for entry in recent.entries(MODEL)]

    recent.stored(entries[:2])
    now_s = 105.0
    recent.stored(entries[2:])
    assert kept() == ["2", "3", "4"]
    recent.stored(entries[2:3])
    recent.deleted(Selection(message_ids=frozenset({"3"})), 1)
    assert kept() == ["4", "2"]
    assert recent.changes == 3
    now_s = 115.0
    assert (kept(), recent.changes) == ([], 0)


# How it is asked ------------------------------------------------------------------------------


async def test_a_small_collection_is_searched_exactly_and_a_large_one_by_candidates(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    entries = [make_entry([1, n / 50]) for n in range(40)]
    found = []
    for limit in (40, 39):
        name = f"{database}-{limit}"
        async with opened(atlas.settings(name, atlas_exact_limit=limit, atlas_lag_s=0)) as archive:
            await archive.upsert_many(entries)
            found.append(await archive.search(query(1, 0, limit=5, guild_id="100")))
    assert found[0] == found[1]
    exact, approximate = atlas.proxy.searches()
    assert exact["exact"] is True
    assert "numCandidates" not in exact
    assert "exact" not in approximate
    assert approximate["numCandidates"] == 20 * approximate["limit"]
    assert approximate["filter"] == {"model_id": MODEL, "guild_id": "100"}


async def test_the_vectors_stay_where_they_are(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database, atlas_lag_s=0)) as archive:
        await archive.upsert_many([make_entry([1, 0])])
        await archive.search(query(1, 0))
    (asked,) = [c for c in atlas.proxy.commands if "$vectorSearch" in str(c.get("pipeline"))[:20]]
    assert "clip_embedding" not in asked["pipeline"][1]["$project"]


async def test_what_atlas_rounded_is_put_into_order_by_the_true_vectors(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    settings = atlas.settings(
        database, atlas_quantization="scalar", atlas_exact_limit=0, atlas_lag_s=0
    )
    # In one byte all of these are the same; the worst are stored first, and so found first.
    vectors = [unit([1, n / 10_000]) for n in range(36)]
    async with opened(settings, [2]) as archive:
        await archive.upsert_many(
            [make_entry(vector, message=f"{n}") for n, vector in enumerate(vectors)]
        )
        atlas.proxy.calm()
        found = await archive.search(query(3, 4, limit=3))
        approximate = atlas.proxy.searches()
        async with AtlasArchive(settings.model_copy(update={"atlas_exact_limit": 36})) as exact:
            assert messages(await exact.search(query(3, 4, limit=3))) == messages(found)
    assert messages(found) == ["35", "34", "33"]
    np.testing.assert_allclose(
        [match.score for match in found],
        [vectors[n] @ unit([3, 4]) for n in (35, 34, 33)],
        atol=1e-6,
    )
    # The best were not among the first that it gave, and their scores could not rule that out.
    assert [asked["limit"] for asked in approximate] == [16, 128]
    asked = [c["pipeline"] for c in atlas.proxy.commands if "$vectorSearch" in str(c)[:99]]
    assert ["clip_embedding" in project["$project"] for _, project in asked] == [True, True, False]


async def test_scores_of_rounded_vectors_decide_where_they_can(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    settings = atlas.settings(
        database, atlas_quantization="scalar", atlas_exact_limit=0, atlas_lag_s=0
    )
    async with opened(settings, [2]) as archive:
        await archive.upsert_many([make_entry([1, n / 20], message=f"{n}") for n in range(40)])
        atlas.proxy.calm()
        assert messages(await archive.search(query(1, 0.0001))) == ["0", "1", "2"]
    assert [asked["limit"] for asked in atlas.proxy.searches()] == [16]


async def test_questions_about_one_model_may_use_the_partial_index(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database, atlas_lag_s=0)) as archive:
        await archive.upsert_many([make_entry()])
        atlas.proxy.calm()
        assert len([entry async for entry in archive.entries(MODEL)]) == 1
        assert await archive.drop_model(MODEL) == 1
    (read,) = [one["filter"] for one in atlas.proxy.commands if "find" in one]
    (deleted,) = [one["deletes"][0]["q"] for one in atlas.proxy.commands if "delete" in one]
    (entry,) = [one for one in INDEXES if one.document["name"] == "entry"]
    # MongoDB wants the filter itself, and draws no conclusions from a string.
    (condition,) = entry.document["partialFilterExpression"].items()
    for asked in (read, deleted):
        assert condition[1].items() <= asked[condition[0]].items()


# Silence --------------------------------------------------------------------------------------


async def test_without_an_index_it_does_not_answer_that_there_is_nothing(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    settings = atlas.settings(database, atlas_lag_s=0)
    await initialised(settings, [3])
    async with AtlasArchive(settings) as archive:
        await archive.upsert_many([make_entry([1, 0], message="m")])
        with pytest.raises(ArchiveError, match=r"of 2 numbers.*mapseek_3.*--dimensions 2"):
            await archive.search(query(1, 0))
        await initialised(settings, [2])
        assert messages(await archive.search(query(1, 0))) == ["m"]
        del atlas.proxy.indexes[f"{database}.images"]["mapseek_2"]
        with pytest.raises(ArchiveError, match="of 2 numbers"):
            await archive.search(query(1, 0))


async def test_an_index_of_another_name_is_found_by_what_it_is_for(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    await initialised(atlas.settings(database, atlas_index="vector-index"), [2])
    settings = atlas.settings(database, atlas_index="vectorindex", atlas_lag_s=0)
    async with AtlasArchive(settings) as archive:
        await archive.upsert_many([make_entry([1, 0], message="m")])
        assert messages(await archive.search(query(1, 0))) == ["m"]


async def test_an_index_that_is_being_built_is_said_to_be(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    settings = atlas.settings(database, atlas_lag_s=0)
    async with opened(settings, [3]) as archive:
        await archive.upsert_many([make_entry([1, 0], message="m")])
        atlas.proxy.building = True
        building = asyncio.create_task(initialised(settings, [2]))
        await asked_for(atlas, f"{database}.images", "mapseek_2", building)
        with pytest.raises(ArchiveError, match=r"mapseek_2 is still being built \(PENDING\)"):
            await archive.search(query(1, 0))
        atlas.proxy.finish()
        await building
        assert messages(await archive.search(query(1, 0))) == ["m"]


async def test_an_index_that_lacks_filters_is_asked_for_more(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    settings = atlas.settings(database, atlas_lag_s=0)
    async with opened(settings, [2]) as archive:
        await archive.upsert_many(
            [make_entry([1, 0], channel_id="crowd", model="other@1") for _ in range(60)]
            + [make_entry([0, 1], message="far", channel_id="quiet")]
        )
        index = atlas.proxy.indexes[f"{database}.images"]["mapseek_2"]
        fields = index["latestDefinition"]["fields"]
        index["serving"] = index["latestDefinition"] = {
            "fields": [f for f in fields if f["path"] in ("clip_embedding", "spoiler")]
        }
        atlas.proxy.calm()
        found = await archive.search(query(1, 0, limit=1, channel_ids=frozenset({"quiet"})))
    assert messages(found) == ["far"]
    assert all("filter" not in asked for asked in atlas.proxy.searches())
    assert len(atlas.proxy.searches()) > 1


async def test_where_indexes_may_not_be_listed_ours_is_taken_to_be_there(
    atlas: Atlas, database: str, make_entry: MakeEntry, caplog: pytest.LogCaptureFixture
) -> None:
    settings = atlas.settings(database, atlas_lag_s=0)
    await initialised(settings, [2])

    def no_listing(command: dict[str, Any]) -> dict[str, Any] | None:
        if "$listSearchIndexes" not in command["pipeline"][0]:
            return None
        return refusing(13, "not authorized on t to execute command", "Unauthorized")(command)

    atlas.proxy.fail("aggregate", times=1000, refusal=no_listing)
    async with AtlasArchive(settings) as archive:
        await archive.upsert_many([make_entry([1, 0], message="m")])
        with caplog.at_level(logging.WARNING):
            assert messages(await archive.search(query(1, 0))) == ["m"]
    assert "mapseek_2 is taken to be there" in caplog.text


# Bulks ----------------------------------------------------------------------------------------


async def test_one_entry_that_the_database_refuses_stops_no_other(
    atlas: Atlas, database: str, make_entry: MakeEntry, caplog: pytest.LogCaptureFixture
) -> None:
    settings = atlas.settings(database)
    async with opened(settings) as archive:
        with atlas.collection(database) as collection:
            collection.database.command(
                "collMod", "images", validator={"author": {"$ne": "Mallory"}}
            )
        entries = [make_entry(author="Mallory" if n == 7 else "Alice") for n in range(20)]
        with caplog.at_level(logging.DEBUG), pytest.raises(EntriesRefusedError) as caught:
            await archive.upsert_many(entries)
        assert caught.value.refused.keys() == {entries[7].key}
        stored = {entry.key async for entry in archive.entries()}
        assert stored == {entry.key for entry in entries} - {entries[7].key}
        # Nor is what was refused found by way of the memory of what was stored.
        found = await archive.search(query(*entries[7].embedding, limit=50))
        assert entries[7].picture not in [match.picture for match in found]
    told = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    for text in (told, caplog.text):
        assert "clip_embedding" not in text
        assert "Binary" not in text


async def test_writes_that_fail_for_a_passing_reason_are_done_again_and_only_those(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with opened(atlas.settings(database)) as archive:
        entries = [make_entry() for _ in range(6)]

        def some_step_down(command: dict[str, Any]) -> dict[str, Any]:
            return {
                "ok": 1.0,
                "n": 0,
                "nModified": 0,
                "writeErrors": [
                    {"index": index, "code": 189, "errmsg": "Primary stepped down"}
                    for index in range(len(command["updates"]))
                ],
            }

        atlas.proxy.fail("update", refusal=some_step_down)
        await archive.upsert_many(entries)
        assert [e.key async for e in archive.entries()] == sorted(e.key for e in entries)


async def test_an_upsert_that_loses_a_race_is_done_again(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    def overtaken(command: dict[str, Any]) -> dict[str, Any]:
        last = len(command["updates"]) - 1
        error = {"index": last, "code": 11000, "errmsg": "E11000 duplicate key error: entry"}
        return {"ok": 1.0, "n": 0, "nModified": 0, "writeErrors": [error]}

    # Even where nothing is tried again for a passing reason.
    async with opened(atlas.settings(database, atlas_retry_s=0)) as archive:
        entries = [make_entry() for _ in range(3)]
        await archive.upsert_many(entries)
        atlas.proxy.calm()
        atlas.proxy.fail("update", refusal=overtaken)
        await archive.upsert_many(entries)
        tried = [len(one["updates"]) for one in atlas.proxy.commands if "update" in one]
        assert tried == [3, 1]
        # A key that is taken again and again is no race.
        atlas.proxy.fail("update", times=2, refusal=overtaken)
        with pytest.raises(EntriesRefusedError, match="E11000") as caught:
            await archive.upsert_many([make_entry() for _ in range(2)])
        assert len(caught.value.refused) == 1


async def test_two_that_store_the_same_at_once_store_it_once(
    atlas: Atlas, database: str, make_entry: MakeEntry
) -> None:
    async with (
        opened(atlas.settings(database)) as one,
        AtlasArchive(atlas.settings(database)) as two,
    ):
        entries = [make_entry(message=f"{n % 5}", content_hash="a" * 64) for n in range(40)]
        await asyncio.gather(
            *(archive.upsert_many(entries[n : n + 8]) for archive in (one, two) for n in (0, 8, 16))
        )
        assert len([entry async for entry in one.entries()]) == 5
    with atlas.collection(database) as collection:
        assert collection.count_documents({}) == 5
