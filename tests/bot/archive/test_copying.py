"""Copying archives: complete, verified, and whatever happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import ArchiveError, EntriesRefusedError, Entry, EntryKey, Selection
from bot.cli.main import app
from bot.moving.comparing import Checksum, digest
from bot.moving.copying import Copied, Copier
from tests.bot.conftest import Atlas, opened

MakeEntry = Callable[..., Entry]
OTHER = "other@111111111111"


@pytest.fixture
def entries(make_entry: MakeEntry) -> list[Entry]:
    vectors = np.random.default_rng(0).standard_normal((700, 4))
    made = [make_entry(vector, message=f"{n:04}") for n, vector in enumerate(vectors)]
    return made + [replace(entry, model_id=OTHER) for entry in made[:50]]


async def fill(path: Path, entries: Sequence[Entry]) -> None:
    async with EmbeddedArchive(path) as archive:
        await archive.upsert_many(entries)


async def stored(path: Path) -> dict[EntryKey, bytes]:
    async with EmbeddedArchive(path) as archive:
        return {entry.key: digest(entry) async for entry in archive.entries()}


async def copy(source: EmbeddedArchive, target: EmbeddedArchive, **options: Any) -> Copied:
    async with source, target:
        copier = Copier(source, target, **options)
        await copier.run()
        return copier.copied


async def test_everything_is_copied_once_and_verified(tmp_path: Path, entries: list[Entry]) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one, entries)
    steps: list[tuple[str, int]] = []
    copied = await copy(
        EmbeddedArchive(one), EmbeddedArchive(other), report=lambda *step: steps.append(step)
    )
    assert (copied.stored, copied.there, copied.verified) == (750, 0, True)
    assert copied.sums.source == copied.sums.target
    assert copied.sums.target.count == 750
    assert {step for step, _ in steps} == {"copying", "comparing"}
    assert steps[-1] == ("comparing", 750)
    assert await stored(other) == await stored(one)
    again = await copy(EmbeddedArchive(one), EmbeddedArchive(other))
    assert (again.stored, again.there, again.changed, again.verified) == (0, 750, 0, True)
    assert str(again.sums.source) == str(copied.sums.source)


async def test_to_atlas_and_back(
    tmp_path: Path, atlas: Atlas, database: str, entries: list[Entry]
) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one, entries)
    settings = atlas.settings(database)
    async with opened(settings) as there:
        # Half of it was copied by a run that was killed.
        await there.upsert_many(entries[:300])
        async with EmbeddedArchive(one) as source:
            out = await Copier(source, there).run()
        assert (out.stored, out.there, out.verified) == (450, 300, True)
        async with EmbeddedArchive(other) as target:
            back = await Copier(there, target).run()
        assert (back.stored, back.verified) == (750, True)
    assert str(back.sums.source) == str(out.sums.source)
    assert await stored(other) == await stored(one)


class _Dying(EmbeddedArchive):
    """Goes away after two batches."""

    batches = 0

    async def upsert_many(self, entries: Sequence[Entry]) -> None:
        self.batches += 1
        if self.batches > 2:
            raise ArchiveError("The archive is gone.")
        await super().upsert_many(entries)


async def test_an_interrupted_copy_goes_on(tmp_path: Path, entries: list[Entry]) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one, entries)
    with pytest.raises(ArchiveError, match="gone"):
        await copy(EmbeddedArchive(one), _Dying(other))
    half = len(await stored(other))
    assert 0 < half < 750
    copied = await copy(EmbeddedArchive(one), EmbeddedArchive(other))
    assert (copied.stored, copied.there, copied.verified) == (750 - half, half, True)


async def test_what_differs_is_stored_again(tmp_path: Path, entries: list[Entry]) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one, entries)
    author = replace(entries[60], picture=replace(entries[60].picture, author="Mallory"))
    vector = replace(entries[61], embedding=-entries[61].embedding)
    await fill(other, [*entries[:60], author, vector])
    copied = await copy(EmbeddedArchive(one), EmbeddedArchive(other))
    assert (copied.changed, copied.verified) == (2, True)
    assert await stored(other) == await stored(one)


async def test_what_only_the_target_has_is_told_and_deleted_on_request(
    tmp_path: Path, entries: list[Entry], make_entry: MakeEntry
) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one, entries[:100])
    own, second_model = make_entry(message="own"), replace(entries[3], model_id="third@2")
    await fill(other, [own, second_model])
    copied = await copy(EmbeddedArchive(one), EmbeddedArchive(other))
    assert (copied.verified, copied.extra, copied.deleted) == (True, 2, 0)
    assert set(copied.extra_keys) == {own.key, second_model.key}
    copied = await copy(EmbeddedArchive(one), EmbeddedArchive(other), delete=True)
    assert (copied.verified, copied.deleted) == (True, 1)
    # The source has this picture, if not of this model: it stays.
    assert (await stored(other)).keys() == {e.key for e in entries[:100]} | {second_model.key}


class _Live(EmbeddedArchive):
    """Deletes a picture that was read already, and gets a new one, while it is read."""

    new: Entry
    gone = "0001"
    changes = 1

    async def entries(
        self, model_id: str | None = None, *, after: EntryKey | None = None
    ) -> AsyncIterator[Entry]:
        read = 0
        async for entry in super().entries(model_id, after=after):
            yield entry
            read += 1
            if read == 400 and self.changes:
                self.changes -= 1
                await self.delete(Selection(message_ids=frozenset({self.gone})))
                await self.upsert_many([self.new])


async def test_changes_of_the_source_meanwhile(
    tmp_path: Path, entries: list[Entry], make_entry: MakeEntry
) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one, entries)
    live = _Live(one)
    live.new = make_entry([1, 0, 0, 0], message="0000-new")
    copied = await copy(live, EmbeddedArchive(other), delete=True)
    assert copied.verified
    assert copied.deleted == 1
    assert await stored(other) == await stored(one)


async def test_a_source_that_never_rests_is_not_verified(
    tmp_path: Path, entries: list[Entry]
) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one, entries)

    class Restless(_Live):
        changes = 10**9

        async def upsert_many(self, entries: Sequence[Entry]) -> None:
            picture = replace(entries[0].picture, file_size=self.changes)
            await super().upsert_many([replace(entries[0], picture=picture)])

    restless = Restless(one)
    restless.new, restless.gone = entries[-1], "nothing"
    copied = await copy(restless, EmbeddedArchive(other))
    assert not copied.verified
    assert copied.different == 2  # of both models
    assert copied.sums.source != copied.sums.target


async def test_what_the_target_refuses_is_told(tmp_path: Path, entries: list[Entry]) -> None:
    class Refusing(EmbeddedArchive):
        async def upsert_many(self, entries: Sequence[Entry]) -> None:
            bad = {e.key: "too large" for e in entries if e.picture.key.message_id == "0007"}
            await super().upsert_many([e for e in entries if e.key not in bad])
            if bad:
                raise EntriesRefusedError(bad)

    one, other = tmp_path / "one.db", tmp_path / "other.db"
    await fill(one, entries[:20])
    copied = await copy(EmbeddedArchive(one), Refusing(other))
    assert copied.refused == {entries[7].key: "too large"}
    assert not copied.verified
    assert copied.stored == 19


@pytest.mark.parametrize(
    "fields",
    [
        {"guild_id": "x"},
        {"channel_id": "x"},
        {"user_id": "x"},
        {"message_link": "x"},
        {"image_url": "x"},
        {"posted_at": datetime(2020, 1, 1, 0, 0, 0, 1, tzinfo=UTC)},
        {"width": 1},
        {"height": 1},
        {"file_size": 1},
        {"content_hash": "x"},
        {"spoiler": True},
        {"author": "x"},
        {"channel": "x"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_the_checksum_covers_every_field(make_entry: MakeEntry, fields: dict[str, Any]) -> None:
    entry = make_entry()
    assert digest(replace(entry, picture=replace(entry.picture, **fields))) != digest(entry)


def test_the_checksum_is_of_the_entries_and_not_of_their_order(make_entry: MakeEntry) -> None:
    digests = [digest(make_entry()) for _ in range(5)]

    def sum_of(*some: bytes) -> Checksum:
        checksum = Checksum()
        for one in some:
            checksum.add(one)
        return checksum

    assert sum_of(*digests) == sum_of(*reversed(digests))
    assert sum_of(*digests) != sum_of(*digests[:4])
    assert sum_of(*digests[:4], digests[0]) != sum_of(*digests)
    assert sum_of(digests[0], digests[0]) != sum_of()  # nothing cancels out


async def choose(path: Path, model_id: str) -> None:
    async with EmbeddedArchive(path) as archive:
        await archive.choose_model(model_id)


async def current(path: Path) -> str | None:
    async with EmbeddedArchive(path) as archive:
        return await archive.current_model()


def mapseek(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in ("archive", *arguments)])


def test_the_command(
    tmp_path: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch, make_entry: MakeEntry
) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(fill(tmp_path / "mapseek.db", entries))
    asyncio.run(choose(tmp_path / "mapseek.db", OTHER))
    done = mapseek("copy", "--from", "embedded", "--to", "copy.db")
    assert done.exit_code == 0, done.output
    assert asyncio.run(current(tmp_path / "copy.db")) == OTHER
    assert "750 copied, 0 there already" in done.stdout
    assert "Verified: 750 entries" in done.stdout
    asyncio.run(fill(tmp_path / "copy.db", [make_entry(message="own")]))
    done = mapseek("copy", "--from", "embedded", "--to", "copy.db")
    assert done.exit_code == 0
    assert "--delete" in done.stdout
    assert "own/1" in done.stdout
    same = mapseek("copy", "--from", "embedded", "--to", "mapseek.db")
    assert same.exit_code == 2
    assert "both" in same.stderr
    misspelt = mapseek("copy", "--from", "embedded", "--to", "atlass")
    assert misspelt.exit_code == 2
    assert "no archive called atlass" in misspelt.stderr
    assert not (tmp_path / "atlass").exists()
    missing = mapseek("copy", "--from", "none.db", "--to", "other.db")
    assert missing.exit_code == 1
    assert not (tmp_path / "none.db").exists()
