"""What every `ImageArchive` promises. See `ADAPTERS` in conftest.py for which ones are asked."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.archive.fitting import MOST_NUMBER, MOST_TEXT
from bot.archive.port import (
    ArchiveError,
    EntriesRefusedError,
    Entry,
    EntryKey,
    ImageArchive,
    Match,
    PictureKey,
    Query,
    Selection,
    Stats,
)
from tests.bot.archive.conftest import REAL_ATLAS

MODEL = "toy@000000000000"
OTHER = "other@111111111111"

# Sorts before every entry of MODEL.
_EARLY = EntryKey(model_id="a", message_id="b", attachment_id="c")

MakeEntry = Callable[..., Entry]
OpenArchive = Callable[[str], AbstractAsyncContextManager[ImageArchive]]


def query(*vector: float, **scope: Any) -> Query:
    values = np.asarray(vector, dtype=np.float32)
    unit = np.asarray(values / np.linalg.norm(values), dtype=np.float32)
    return Query(**{"embedding": unit, "model_id": MODEL, **scope})


def messages(matches: list[Match]) -> list[str]:
    return [match.picture.key.message_id for match in matches]


def ordered(entries: list[Entry]) -> list[Entry]:
    return sorted(
        entries,
        key=lambda entry: (
            entry.model_id,
            entry.picture.key.message_id,
            entry.picture.key.attachment_id,
        ),
    )


def assert_same(found: list[Entry], expected: list[Entry]) -> None:
    found, expected = ordered(found), ordered(expected)
    assert [(entry.model_id, entry.picture) for entry in found] == [
        (entry.model_id, entry.picture) for entry in expected
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.embedding, other.embedding)


async def stored(archive: ImageArchive, model_id: str | None = None) -> list[Entry]:
    return [entry async for entry in archive.entries(model_id)]


def test_the_contract_is_asked_of_a_real_cluster_as_well() -> None:
    if not REAL_ATLAS:
        pytest.skip("MAPSEEK_TEST_ATLAS_URI names no cluster")


async def test_every_field_comes_back(archive: ImageArchive, make_entry: MakeEntry) -> None:
    entry = make_entry(
        spoiler=True,
        author="Zoë 🗺 O'Hara; DROP TABLE picture --",
        channel="地图",
        posted_at=datetime(2021, 2, 3, 4, 5, 6, 789_123, tzinfo=timezone(timedelta(hours=5.5))),
        width=12_345,
        height=1,
        file_size=2**40,
    )
    await archive.upsert_many([entry])
    assert_same(await stored(archive), [entry])
    (match,) = await archive.search(query(*entry.embedding))
    assert match.picture == entry.picture
    assert match.score == pytest.approx(1, abs=1e-6)


async def test_the_best_come_first_and_no_more_than_asked(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    await archive.upsert_many(
        [make_entry([math.cos(a), math.sin(a)], message=f"{a:.1f}") for a in (0.5, 0.1, 1.5, 3.1)]
    )
    matches = await archive.search(query(1, 0, limit=3))
    assert messages(matches) == ["0.1", "0.5", "1.5"]
    assert [match.score for match in matches] == pytest.approx(
        [math.cos(0.1), math.cos(0.5), math.cos(1.5)], abs=1e-6
    )
    assert len(await archive.search(query(1, 0, limit=50))) == 4
    (worst,) = [m for m in await archive.search(query(1, 0, limit=9)) if m.score < -0.9]
    assert messages([worst]) == ["3.1"]


async def test_equal_scores_come_oldest_first(archive: ImageArchive, make_entry: MakeEntry) -> None:
    days = [7, 3, 9, 1, 8, 2, 6, 4, 5]
    await archive.upsert_many([make_entry([1, 1], message=f"day {day}", day=day) for day in days])
    await archive.upsert_many([make_entry([1, -1], message="other", day=0)])
    assert messages(await archive.search(query(1, 1, limit=3))) == ["day 1", "day 2", "day 3"]
    assert messages(await archive.search(query(1, 1, limit=9))) == [
        f"day {d}" for d in range(1, 10)
    ]


async def test_a_tie_that_crosses_the_limit_takes_the_oldest(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    await archive.upsert_many(
        [make_entry([1, 1], message=f"{d}", day=d) for d in range(300, 1, -1)]
    )
    await archive.upsert_many([make_entry([1, 0.9], message="best", day=500)])
    assert messages(await archive.search(query(1, 0.9, limit=4))) == ["best", "2", "3", "4"]


async def test_guild_and_channels_bound_the_search(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    for guild in ("1", "2"):
        for channel in ("10", "20", "30"):
            name = f"{guild}/{channel}"
            await archive.upsert_many(
                [make_entry([1, 0], message=name, guild_id=guild, channel_id=channel)]
            )

    async def found(**scope: Any) -> set[str]:
        return set(messages(await archive.search(query(1, 0, limit=10, **scope))))

    assert await found(guild_id="1") == {"1/10", "1/20", "1/30"}
    assert await found(channel_ids=frozenset({"10"})) == {"1/10", "2/10"}
    assert await found(guild_id="2", channel_ids=frozenset({"10", "30", "99"})) == {"2/10", "2/30"}
    assert await found(channel_ids=frozenset()) == set()
    assert await found(guild_id="3") == set()


async def test_the_filter_works_inside_the_search(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    # A filter after the search would find nothing: the nearest are all elsewhere.
    await archive.upsert_many([make_entry([1, 0], channel_id="crowd") for _ in range(200)])
    await archive.upsert_many([make_entry([0, 1], message="far", channel_id="quiet")])
    matches = await archive.search(query(1, 0, limit=1, channel_ids=frozenset({"quiet"})))
    assert messages(matches) == ["far"]


async def test_spoilers_can_be_left_out(archive: ImageArchive, make_entry: MakeEntry) -> None:
    await archive.upsert_many(
        [make_entry([1, 0], message="open"), make_entry([1, 0], message="hidden", spoiler=True)]
    )
    assert messages(await archive.search(query(1, 0, include_spoilers=False))) == ["open"]
    assert messages(await archive.search(query(1, 0))) == ["open", "hidden"]


async def test_the_message_that_is_asked_about_can_be_left_out(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    await archive.upsert_many(
        [make_entry([1, 0], message="asked", attachment=str(n)) for n in range(20)]
        + [make_entry([1, 0.1], message="near"), make_entry([1, 0.2], message="next")]
    )
    matches = await archive.search(query(1, 0, limit=2, exclude_message_id="asked"))
    assert messages(matches) == ["near", "next"]


async def test_vectors_of_different_models_never_meet(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    await archive.upsert_many(
        [
            make_entry([1, 0], message="ours"),
            make_entry([1, 0], message="same length", model=OTHER),
            make_entry([1, 0, 0], message="longer", model="third@222222222222"),
        ]
    )
    assert messages(await archive.search(query(1, 0))) == ["ours"]
    assert messages(await archive.search(query(1, 0, model_id=OTHER))) == ["same length"]
    assert await archive.search(query(1, 0, model_id="unknown@3")) == []


async def test_an_empty_archive_finds_nothing(archive: ImageArchive) -> None:
    assert await archive.search(query(1, 0)) == []
    stats = await archive.stats()
    assert stats == Stats(pictures=0, size_bytes=stats.size_bytes)
    assert await stored(archive) == []


async def test_the_same_key_and_model_is_replaced(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    await archive.upsert_many([make_entry([1, 0], message="m", author="before")])
    after = make_entry([0, 1], message="m", author="after", channel_id="elsewhere")
    await archive.upsert_many([after])
    assert_same(await stored(archive), [after])
    (match,) = await archive.search(query(1, 0, channel_ids=frozenset({"elsewhere"})))
    assert match.score == pytest.approx(0, abs=1e-6)
    assert await archive.search(query(1, 0, channel_ids=frozenset({"200"}))) == []


async def test_the_last_of_the_same_key_in_one_call_counts(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    last = make_entry([0, 1], message="m")
    await archive.upsert_many([make_entry([1, 0], message="m"), last])
    assert_same(await stored(archive), [last])


async def test_one_message_holds_many_pictures(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    entries = [make_entry(message="m", attachment=str(n)) for n in range(3)]
    await archive.upsert_many(entries)
    assert_same(await stored(archive), entries)


async def test_models_share_what_is_known_about_a_picture(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    entry = make_entry([1, 0], message="m")
    hidden = replace(
        entry, model_id=OTHER, picture=replace(entry.picture, spoiler=True, channel_id="moved")
    )
    await archive.upsert_many([entry])
    await archive.upsert_many([hidden])
    assert await archive.search(query(1, 0, include_spoilers=False)) == []
    (match,) = await archive.search(query(1, 0, channel_ids=frozenset({"moved"})))
    assert match.picture == hidden.picture
    assert (await archive.stats()).pictures == 1


async def test_vectors_of_bytes_that_are_gone_go_too(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    entry = make_entry([1, 0], message="m")
    changed = replace(entry, model_id=OTHER, picture=replace(entry.picture, content_hash="f" * 64))
    await archive.upsert_many([entry])
    await archive.upsert_many([changed])
    assert await archive.search(query(1, 0)) == []
    assert await archive.seen([entry.picture.key], MODEL) == set()
    assert_same(await stored(archive), [changed])


async def test_bytes_that_nobody_wrote_down_are_not_taken_for_others(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    first_bots = make_entry([1, 0], message="m", content_hash="")
    known = replace(first_bots.picture, content_hash="f" * 64)
    await archive.upsert_many([first_bots])
    await archive.upsert_many([replace(first_bots, model_id=OTHER, picture=known)])
    assert [match.picture for match in await archive.search(query(1, 0))] == [known]
    assert {entry.model_id for entry in await stored(archive)} == {MODEL, OTHER}


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param([1, 0, 0], id="wrong length for its model"),
        pytest.param([0.6, 0.7], id="not of unit length"),
        pytest.param([0, 0], id="zero"),
        pytest.param([math.nan, 1], id="not a number"),
        pytest.param([math.inf, 0], id="infinite"),
        pytest.param([[1, 0]], id="a matrix"),
        pytest.param([], id="empty"),
    ],
)
async def test_bad_vectors_are_refused(
    archive: ImageArchive, make_entry: MakeEntry, vector: list[Any]
) -> None:
    before = make_entry([1, 0])
    await archive.upsert_many([before])
    bad = np.asarray(vector, dtype=np.float32)
    good = make_entry([0, 1])
    with pytest.raises(ArchiveError, match="vector of picture"):
        await archive.upsert_many([good, replace(make_entry([0, 1]), embedding=bad)])
    assert_same(await stored(archive), [before])  # all or nothing
    with pytest.raises(ArchiveError, match="vector of the query"):
        await archive.search(Query(embedding=bad, model_id=MODEL))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"author": "\ud800"}, "its author holds half a character"),
        ({"message": "\udfff"}, "its message_id holds half a character"),
        ({"file_size": 2**63}, "its file_size is 9223372036854775808"),
        ({"width": -1}, "its width is -1"),
        ({"image_url": "https://example.org/" + "x" * 17_000_000}, "its image_url has 17,000,020"),
        ({"posted_at": datetime(2024, 1, 1)}, "has no timezone"),  # noqa: DTZ001 - the point
        (
            {"posted_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=10)))},
            "lies beyond the calendar",
        ),
    ],
)
async def test_an_entry_that_no_database_takes_stops_no_other(
    archive: ImageArchive, make_entry: MakeEntry, fields: dict[str, Any], reason: str
) -> None:
    before, bad, after = make_entry(), make_entry(**fields), make_entry()
    with pytest.raises(EntriesRefusedError, match="refused 1 of the pictures") as caught:
        await archive.upsert_many([before, bad, after])
    assert caught.value.refused.keys() == {bad.key}
    assert reason in caught.value.refused[bad.key]
    assert_same(await stored(archive), [before, after])


async def test_the_largest_that_fits_comes_back(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    entry = make_entry(
        author="地" * MOST_TEXT,
        image_url="\0" * MOST_TEXT,
        width=0,
        height=MOST_NUMBER,
        posted_at=datetime.max.replace(tzinfo=UTC),
    )
    await archive.upsert_many([entry])
    assert_same(await stored(archive), [entry])


async def test_a_search_for_nothing_is_refused(archive: ImageArchive) -> None:
    with pytest.raises(ArchiveError, match="1 or more"):
        await archive.search(query(1, 0, limit=0))


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(guild_id="1"), {"c", "d"}),
        (Selection(channel_id="10"), {"b", "d"}),
        (Selection(guild_id="1", channel_id="10"), {"b", "c", "d"}),
        (Selection(user_id="7"), {"a", "b", "c"}),
        (Selection(message_ids=frozenset({"a", "d", "none"})), {"b", "c"}),
        (Selection(message_ids=frozenset({"a"}), user_id="7"), {"a", "b", "c", "d"}),
        (Selection(message_ids=frozenset()), {"a", "b", "c", "d"}),
        (Selection(attachment_ids=frozenset({"2"})), {"a", "b", "d"}),
    ],
)
async def test_deleting(
    archive: ImageArchive, make_entry: MakeEntry, selection: Selection, left: set[str]
) -> None:
    entries = [
        make_entry([1, 0], message="a", guild_id="1", channel_id="10"),
        make_entry([1, 0], message="b", guild_id="1", channel_id="20"),
        make_entry([1, 0], message="c", guild_id="2", channel_id="10", attachment="2"),
        make_entry([1, 0], message="d", guild_id="2", channel_id="20", user_id="7"),
    ]
    await archive.upsert_many(entries)
    await archive.upsert_many([replace(entry, model_id=OTHER) for entry in entries])
    assert await archive.delete(selection) == 4 - len(left)
    for model_id in (MODEL, OTHER):
        assert set(messages(await archive.search(query(1, 0, limit=9, model_id=model_id)))) == left
    keys = [entry.picture.key for entry in entries]
    assert {key.message_id for key in await archive.seen(keys, MODEL)} == left
    stats = await archive.stats()
    assert (stats.pictures, sum(stats.by_channel.values())) == (len(left), len(left))


async def test_deleting_everything_by_accident_is_refused(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    await archive.upsert_many([make_entry()])
    with pytest.raises(ArchiveError, match="needs a guild"):
        await archive.delete(Selection())
    assert (await archive.stats()).pictures == 1


async def test_what_was_deleted_can_come_back(archive: ImageArchive, make_entry: MakeEntry) -> None:
    entry = make_entry([1, 0], message="m")
    await archive.upsert_many([entry])
    await archive.delete(Selection(message_ids=frozenset({"m"})))
    await archive.upsert_many([entry])
    assert messages(await archive.search(query(1, 0))) == ["m"]


async def test_seen_is_per_model(archive: ImageArchive, make_entry: MakeEntry) -> None:
    ours, theirs = make_entry(), make_entry(model=OTHER)
    await archive.upsert_many([ours, theirs])
    keys = [ours.picture.key, theirs.picture.key, PictureKey(message_id="x", attachment_id="1")]
    assert await archive.seen(keys, MODEL) == {ours.picture.key}
    assert await archive.seen(keys, OTHER) == {theirs.picture.key}
    assert await archive.seen(keys, "unknown@3") == set()
    assert await archive.seen([], MODEL) == set()


async def test_embeddings_of_known_bytes(archive: ImageArchive, make_entry: MakeEntry) -> None:
    entry = make_entry([1, 2], content_hash="a" * 64)
    await archive.upsert_many([entry, make_entry(model=OTHER, content_hash="b" * 64)])
    found = await archive.embeddings(["a" * 64, "b" * 64, "c" * 64], MODEL)
    assert found.keys() == {"a" * 64}
    np.testing.assert_array_equal(found["a" * 64], entry.embedding)
    assert await archive.embeddings(["a" * 64], "unknown@3") == {}


async def test_stats(archive: ImageArchive, make_entry: MakeEntry) -> None:
    await archive.upsert_many(
        [
            make_entry(message="a", channel_id="10", channel="old name", day=1),
            make_entry(message="b", channel_id="10", channel="new name", day=5),
            make_entry(message="c", channel_id="20", channel="", day=3),
            make_entry(message="c", channel_id="20", channel="", day=3, model=OTHER),
        ]
    )
    stats = await archive.stats()
    assert stats.pictures == 3
    assert stats.by_model == {MODEL: 2, OTHER: 1}
    assert stats.by_channel == {("100", "10"): 2, ("100", "20"): 1}
    assert stats.channel_names == {("100", "10"): "new name"}
    assert stats.newest == datetime(2024, 1, 6, tzinfo=UTC)


async def test_entries_stream_all_or_those_of_one_model(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    ours = [make_entry() for _ in range(600)]
    theirs = [make_entry(model=OTHER) for _ in range(3)]
    await archive.upsert_many(ours + theirs)
    assert_same(await stored(archive), ours + theirs)
    assert_same(await stored(archive, MODEL), ours)
    assert_same(await stored(archive, OTHER), theirs)
    assert await stored(archive, "unknown@3") == []


async def test_entries_come_in_the_order_of_their_keys_and_go_on_from_any_of_them(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    entries = [
        make_entry(message=message, attachment=attachment, model=model, content_hash="a" * 64)
        for model in (MODEL, OTHER)
        for message in ("10", "9", "é", "Z", "a", "\U0001f5fa", "\uffee")
        for attachment in ("2", "10")
    ]
    await archive.upsert_many(entries)
    keys = [entry.key for entry in await stored(archive)]
    assert keys == sorted(entry.key for entry in entries)
    for place, key in enumerate(keys):
        assert [entry.key async for entry in archive.entries(after=key)] == keys[place + 1 :]
    of_model = [key for key in keys if key.model_id == MODEL]
    assert [entry.key async for entry in archive.entries(MODEL, after=of_model[3])] == of_model[4:]
    assert [e.key async for e in archive.entries(MODEL, after=_EARLY)] == of_model
    gone = keys[5]
    await archive.delete(Selection(message_ids=frozenset({gone.message_id})))
    left = [key for key in keys[6:] if key.message_id != gone.message_id]
    assert [entry.key async for entry in archive.entries(after=gone)] == left


async def test_dates_bound_the_search(archive: ImageArchive, make_entry: MakeEntry) -> None:
    noon = datetime(2024, 5, 1, 12, 0, 0, 123_456, tzinfo=UTC)
    moments = [noon + timedelta(microseconds=n) for n in (-1, 0, 1)]
    await archive.upsert_many(
        [make_entry([1, 0], message=f"{n}", posted_at=when) for n, when in enumerate(moments)]
    )

    async def found(**dates: datetime) -> list[str]:
        return messages(await archive.search(query(1, 0, **dates)))

    assert await found(posted_from=noon) == ["1", "2"]
    assert await found(posted_before=noon) == ["0"]
    assert await found(posted_from=noon, posted_before=moments[2]) == ["1"]
    assert await found(posted_from=noon.astimezone(timezone(timedelta(hours=-7)))) == ["1", "2"]
    assert await found(posted_from=noon, posted_before=noon) == []
    with pytest.raises(ArchiveError, match="timezone"):
        await found(posted_from=datetime(2024, 5, 1))  # noqa: DTZ001 - the point


async def test_the_current_model_is_the_only_one_or_the_chosen_one(
    open_archive: OpenArchive, make_entry: MakeEntry
) -> None:
    async with open_archive("archive") as archive:
        assert await archive.current_model() is None
        entry = make_entry([1, 0])
        await archive.upsert_many([entry])
        assert await archive.current_model() == MODEL
        await archive.upsert_many([replace(entry, model_id=OTHER)])
        assert await archive.current_model() is None
        await archive.choose_model(OTHER)
        assert await archive.current_model() == OTHER
        await archive.choose_model(MODEL)
    async with open_archive("archive") as archive:
        assert await archive.current_model() == MODEL
        assert len(await stored(archive)) == 2  # what is remembered is no entry


async def test_dropping_a_model_leaves_the_others(
    archive: ImageArchive, make_entry: MakeEntry
) -> None:
    both, only = make_entry([1, 0], message="both"), make_entry([1, 0], message="only")
    await archive.upsert_many([both, only, replace(both, model_id=OTHER)])
    assert await archive.drop_model("none@0") == 0
    assert await archive.drop_model(MODEL) == 2
    assert_same(await stored(archive), [replace(both, model_id=OTHER)])
    assert await archive.search(query(1, 0)) == []
    assert messages(await archive.search(query(1, 0, model_id=OTHER))) == ["both"]
    assert await archive.seen([only.picture.key, both.picture.key], None) == {both.picture.key}
    assert (await archive.stats()).pictures == 1
    assert await archive.current_model() == OTHER
    longer = make_entry([1, 0, 0], message="again")  # nothing of the old vectors is left
    await archive.upsert_many([longer])
    assert messages(await archive.search(query(1, 0, 0))) == ["again"]


async def test_what_is_stored_outlives_the_process(
    open_archive: OpenArchive, make_entry: MakeEntry
) -> None:
    entry = make_entry([1, 0])
    async with open_archive("kept") as archive:
        await archive.upsert_many([entry])
    async with open_archive("kept") as archive:
        assert_same(await stored(archive), [entry])


async def test_a_closed_archive_says_so(open_archive: OpenArchive) -> None:
    archive = open_archive("closed")
    async with archive as opened:
        pass
    with pytest.raises(ArchiveError, match="not open"):
        await opened.stats()


async def test_many_at_once(archive: ImageArchive, make_entry: MakeEntry) -> None:
    batches = [[make_entry() for _ in range(20)] for _ in range(10)]
    work: list[Awaitable[Any]] = []
    for batch in batches:
        work += [archive.upsert_many(batch), archive.search(query(1, 1, 0, 0)), archive.stats()]
    await asyncio.gather(*work)
    assert_same(await stored(archive), [entry for batch in batches for entry in batch])


# Few different vectors and dates, so that ties are common.
_VECTORS = [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 0.05), (-1, 0, 0), (0.3, 0.2, 0.9)]
_posts = st.lists(
    st.fixed_dictionaries(
        {
            "vector": st.sampled_from(_VECTORS),
            "message": st.sampled_from("abcdefgh"),
            "attachment": st.sampled_from("12"),
            "day": st.integers(1, 4),
            "guild_id": st.sampled_from(["1", "2"]),
            "channel_id": st.sampled_from(["10", "20", "30"]),
            "spoiler": st.booleans(),
            "user_id": st.sampled_from(["7", "8"]),
        }
    ),
    max_size=25,
)
_days = st.integers(1, 5).map(lambda day: datetime(2024, 1, 1 + day, tzinfo=UTC))
_scopes = st.fixed_dictionaries(
    {
        "limit": st.integers(1, 12),
        "guild_id": st.none() | st.sampled_from(["1", "2", "3"]),
        "channel_ids": st.none() | st.frozensets(st.sampled_from(["10", "20", "40"])),
        "include_spoilers": st.booleans(),
        "exclude_message_id": st.none() | st.sampled_from("abz"),
        "posted_from": st.none() | _days,
        "posted_before": st.none() | _days,
    }
)


def oracle(entries: dict[PictureKey, Entry], asked: Query) -> list[tuple[PictureKey, float]]:
    """The same search by brute force."""
    allowed = [
        entry
        for entry in entries.values()
        if asked.guild_id in (None, entry.picture.guild_id)
        and (asked.channel_ids is None or entry.picture.channel_id in asked.channel_ids)
        and (asked.include_spoilers or not entry.picture.spoiler)
        and entry.picture.key.message_id != asked.exclude_message_id
        and (asked.posted_from is None or entry.picture.posted_at >= asked.posted_from)
        and (asked.posted_before is None or entry.picture.posted_at < asked.posted_before)
    ]
    scored = [
        (float(np.dot(entry.embedding.astype(np.float64), asked.embedding)), entry.picture)
        for entry in allowed
    ]
    scored.sort(
        key=lambda item: (
            -round(item[0], 5),
            item[1].posted_at,
            item[1].key.message_id,
            item[1].key.attachment_id,
        )
    )
    return [(picture.key, score) for score, picture in scored[: asked.limit]]


@settings(
    max_examples=60,
    deadline=None,
    # The fixtures only name an adapter; every example opens an archive of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    posts=_posts,
    gone=st.none() | st.sampled_from("abc"),
    scope=_scopes,
    asked=st.sampled_from(_VECTORS),
)
def test_it_finds_what_brute_force_finds(
    open_archive: OpenArchive,
    make_entry: MakeEntry,
    posts: list[dict[str, Any]],
    gone: str | None,
    scope: dict[str, Any],
    asked: tuple[float, ...],
) -> None:
    async def check() -> None:
        kept: dict[PictureKey, Entry] = {}
        async with open_archive(f"example-{id(posts)}-{next(_examples)}") as archive:
            for post in posts:
                entry = make_entry(
                    post["vector"], **{k: v for k, v in post.items() if k != "vector"}
                )
                kept[entry.picture.key] = entry
                await archive.upsert_many([entry])
            if gone is not None:
                await archive.delete(Selection(message_ids=frozenset({gone})))
                kept = {key: entry for key, entry in kept.items() if key.message_id != gone}
            wanted = query(*asked, **scope)
            matches = await archive.search(wanted)
            expected = oracle(kept, wanted)
            assert [match.picture.key for match in matches] == [key for key, _ in expected]
            assert [match.score for match in matches] == pytest.approx(
                [score for _, score in expected], abs=1e-5
            )
            assert_same(await stored(archive), list(kept.values()))

    asyncio.run(check())


_examples = iter(range(10**9))
