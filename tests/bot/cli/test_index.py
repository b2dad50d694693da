"""The indexing use case, with the real client, server and archive."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import ArchiveError, Entry
from bot.importer import folder
from bot.importer.found import Found, SetAside, Source
from bot.index import Indexer, Progress
from inference.client import ClientSettings, EmbeddingClient
from inference.errors import ModelChangedError, UnavailableError
from tests.bot.cli.toy import ToyServer, toy_server
from tests.bot.importer.exports import picture_bytes

ARCHIVE = Path("maps.db")


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    path = tmp_path / "maps"
    path.mkdir()
    return path


def fill(maps: Path, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        (maps / f"{number:04}.png").write_bytes(picture_bytes(number))


def client_of(server: ToyServer, **settings: float) -> AbstractAsyncContextManager[EmbeddingClient]:
    return EmbeddingClient(ClientSettings.load(server=server.address, **settings))


async def index(
    server: ToyServer, source: Source, reports: list[Progress] | None = None
) -> Indexer:
    async with client_of(server) as client, EmbeddedArchive(ARCHIVE) as archive:
        indexer = Indexer(
            source=source,
            client=client,
            archive=archive,
            model=await client.model(),
            report=reports.append if reports is not None else lambda _: None,
        )
        await indexer.run()
    return indexer


async def entries() -> list[Entry]:
    async with EmbeddedArchive(ARCHIVE, create=False) as archive:
        return [entry async for entry in archive.entries()]


async def test_a_folder_goes_into_the_archive(server: ToyServer, maps: Path) -> None:
    fill(maps, 200)
    reports: list[Progress] = []
    run = await index(server, partial(folder.scan, maps), reports)
    assert run.progress == Progress(total=200, stored=200, embedded=200)
    assert reports[-1] == run.progress
    stored = await entries()
    assert sorted(Path(one.picture.image_url).name for one in stored) == [
        f"{number:04}.png" for number in range(200)
    ]
    assert {one.model_id for one in stored} == {server.model_id}
    assert {(one.picture.width, one.picture.height) for one in stored} == {(16, 16)}


async def test_the_next_run_does_only_what_is_new(server: ToyServer, maps: Path) -> None:
    fill(maps, 100)
    await index(server, partial(folder.scan, maps))
    fill(maps, 5, start=100)
    run = await index(server, partial(folder.scan, maps))
    assert run.progress == Progress(total=105, known=100, stored=5, embedded=5)
    assert server.engine.pictures == 105


async def test_the_same_bytes_are_embedded_once(server: ToyServer, maps: Path) -> None:
    for number in range(150):
        (maps / f"{number}.png").write_bytes(picture_bytes(number % 3))
    run = await index(server, partial(folder.scan, maps))
    assert run.progress == Progress(total=150, stored=150, embedded=3)
    assert server.engine.pictures == 3
    vectors = {one.picture.content_hash: one.embedding.tobytes() for one in await entries()}
    assert len(vectors) == 3
    assert len(set(vectors.values())) == 3
    # ... and in later runs, too: their vectors are in the archive.
    (maps / "copy.png").write_bytes(picture_bytes(1))
    run = await index(server, partial(folder.scan, maps))
    assert (run.progress.stored, run.progress.embedded) == (1, 0)


async def test_bad_files_are_set_aside_and_stop_nothing(server: ToyServer, maps: Path) -> None:
    fill(maps, 20)
    (maps / "page.png").write_text("404")
    (maps / "cut.png").write_bytes(picture_bytes(99)[:60])
    (maps / "huge.png").write_bytes(picture_bytes(98) + bytes(20 * 1024 * 1024))
    run = await index(server, partial(folder.scan, maps))
    assert run.progress == Progress(total=23, stored=20, embedded=20, set_aside=3)
    reasons = {Path(aside.name).name: aside.reason for aside in run.set_aside}
    assert reasons.keys() == {"page.png", "cut.png", "huge.png"}
    assert "at most" in reasons["huge.png"]
    assert "damaged" in reasons["cut.png"]
    # Being told the same again costs nothing and changes nothing.
    run = await index(server, partial(folder.scan, maps))
    assert run.progress == Progress(total=23, known=20, set_aside=3)


async def test_a_picture_on_which_the_model_fails_is_set_aside(
    server: ToyServer, maps: Path
) -> None:
    fill(maps, 20)
    server.engine.refuses_first = True
    run = await index(server, partial(folder.scan, maps))
    assert (run.progress.stored, run.progress.set_aside) == (19, 1)
    server.engine.refuses_first = False
    run = await index(server, partial(folder.scan, maps))  # another try may help
    assert (run.progress.stored, run.progress.set_aside) == (1, 0)


async def test_a_file_that_goes_while_it_is_indexed(server: ToyServer, maps: Path) -> None:
    fill(maps, 3)

    found = list(folder.scan(maps))
    (maps / "0001.png").unlink()
    run = await index(server, lambda: iter(found))
    assert run.progress.stored + run.progress.set_aside == 3
    assert [Path(aside.name).name for aside in run.set_aside] == ["0001.png"]


async def test_a_changed_file_replaces_its_old_version(server: ToyServer, maps: Path) -> None:
    fill(maps, 3)
    async with toy_server(name="other") as other:
        await index(server, partial(folder.scan, maps))
        await index(other, partial(folder.scan, maps))
        assert len(await entries()) == 6  # the same files for another model replace nothing
        (maps / "0001.png").write_bytes(picture_bytes(50))
        os.utime(maps / "0001.png", (1, 1))
        run = await index(server, partial(folder.scan, maps))
    assert run.progress == Progress(total=3, known=2, stored=1, embedded=1)
    stored = await entries()
    versions = [one for one in stored if one.picture.image_url.endswith("0001.png")]
    assert len(versions) == 1
    assert versions[0].model_id == server.model_id
    assert len(stored) == 5


async def test_a_key_that_comes_twice_is_one_picture(server: ToyServer, maps: Path) -> None:
    fill(maps, 100)

    def twice() -> Iterator[Found | SetAside]:
        yield from folder.scan(maps)
        yield from folder.scan(maps)

    run = await index(server, twice)
    assert (run.progress.stored, run.progress.known, run.progress.total) == (100, 100, 200)
    assert len(await entries()) == 100


async def test_stopping_keeps_what_is_embedded(server: ToyServer, maps: Path) -> None:
    fill(maps, 100)
    server.engine.limit(40)
    run = asyncio.create_task(index(server, partial(folder.scan, maps)))
    await asyncio.to_thread(server.engine.spent.wait, 60)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    kept = len(await entries())
    # Fewer than a whole batch, so only stopping can have stored them.
    assert 0 < kept <= 48
    server.engine.go_on()
    again = await index(server, partial(folder.scan, maps))
    assert (again.progress.known, again.progress.stored) == (kept, 100 - kept)
    assert len(await entries()) == 100


async def test_a_server_that_stays_away_ends_the_run_and_keeps_the_rest(maps: Path) -> None:
    fill(maps, 100)
    async with toy_server() as server:
        server.engine.limit(40)
        async with (
            client_of(server, outage_s=0.5) as client,
            EmbeddedArchive(ARCHIVE) as archive,
        ):
            indexer = Indexer(
                source=partial(folder.scan, maps),
                client=client,
                archive=archive,
                model=await client.model(),
            )
            run = asyncio.create_task(indexer.run())
            await asyncio.to_thread(server.engine.spent.wait, 60)
            await server.stop()
            with pytest.raises(UnavailableError):
                await run
    assert 0 < indexer.progress.stored < 100
    assert len(await entries()) == indexer.progress.stored


async def test_another_model_on_the_server_ends_the_run(server: ToyServer, maps: Path) -> None:
    fill(maps, 3)
    async with toy_server(name="other") as other, client_of(other) as client:
        expected = await client.model()
    async with client_of(server) as client, EmbeddedArchive(ARCHIVE) as archive:
        indexer = Indexer(
            source=partial(folder.scan, maps), client=client, archive=archive, model=expected
        )
        with pytest.raises(ModelChangedError):
            await indexer.run()
        assert (await archive.stats()).pictures == 0


async def test_an_archive_that_fails_ends_the_run(
    server: ToyServer, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(maps, 70)
    async with client_of(server) as client, EmbeddedArchive(ARCHIVE) as archive:
        archive._connections[0].execute("PRAGMA max_page_count = 1")
        indexer = Indexer(
            source=partial(folder.scan, maps),
            client=client,
            archive=archive,
            model=await client.model(),
        )
        with pytest.raises(ArchiveError, match="no room left"):
            await indexer.run()
    assert indexer.progress.stored == 0
