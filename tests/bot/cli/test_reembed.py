"""Moving an archive to another model, with real servers for the old one and the new one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import EntriesRefusedError, Entry, Selection
from bot.cli.main import app
from bot.current import CurrentClient, OtherModelError
from bot.importer import folder
from bot.index import Indexer
from bot.moving import models
from bot.moving.reembedding import Reembedded, Reembedder
from bot.moving.sources import Refresh, Sources, files_by_content
from bot.search import find
from inference.client import ClientSettings, EmbeddingClient
from inference.errors import StartupError
from tests.bot.cli.toy import ToyProcess, ToyServer, toy_server
from tests.bot.importer.exports import picture_bytes
from tests.inference.server.fakes import until

ARCHIVE = Path("mapseek.db")
OLD, NEW = "toy@43602d44172a", "new@43602d44172a"


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    path = tmp_path / "maps"
    path.mkdir()
    return path


@pytest.fixture
async def new_server() -> AsyncIterator[ToyServer]:
    async with toy_server(name="new") as server:
        yield server


def fill(maps: Path, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        (maps / f"{number:04}.png").write_bytes(picture_bytes(number))


def rename_all(maps: Path) -> None:
    for file in list(maps.iterdir()):
        file.rename(maps / f"renamed-{file.name}.bin")
    (maps / "notes.txt").write_text("no picture")


def client_of(server: ToyServer) -> AbstractAsyncContextManager[EmbeddingClient]:
    return EmbeddingClient(ClientSettings.load(server=server.address))


async def index(server: ToyServer, maps: Path) -> None:
    async with client_of(server) as client, EmbeddedArchive(ARCHIVE) as archive:
        source = partial(folder.scan, maps)
        model = await client.model()
        await Indexer(source=source, client=client, archive=archive, model=model).run()


def sources(
    media: dict[str, Path] | None = None,
    *,
    max_bytes: int = 1 << 20,
    refresh: Refresh | None = None,
) -> Sources:
    return Sources(max_bytes=max_bytes, media=media or {}, fetcher=None, refresh=refresh)


async def reembedder(
    archive: EmbeddedArchive, client: EmbeddingClient, from_: Sources | None = None
) -> Reembedder:
    return Reembedder(
        archive=archive, client=client, model=await client.model(), sources=from_ or sources()
    )


async def entries(archive: EmbeddedArchive, model_id: str) -> dict[str, Entry]:
    return {entry.picture.key.message_id: entry async for entry in archive.entries(model_id)}


async def test_every_picture_gets_a_vector_of_the_new_model(
    server: ToyServer, new_server: ToyServer, maps: Path
) -> None:
    fill(maps, 90)
    (maps / "copy.png").write_bytes(picture_bytes(5))
    await index(server, maps)
    async with client_of(new_server) as client, EmbeddedArchive(ARCHIVE) as archive:
        run = await reembedder(archive, client)
        assert await run.run() is True
        assert run.progress.stored == 91
        old, new = await entries(archive, OLD), await entries(archive, NEW)
        assert {key: one.picture for key, one in new.items()} == {
            key: one.picture for key, one in old.items()
        }
        before = new_server.engine.pictures
        again = await reembedder(archive, client)
        assert await again.run() is True
        assert again.progress == Reembedded(looked_at=91, known=91)
        assert new_server.engine.pictures == before


async def test_stopping_keeps_what_is_embedded(
    server: ToyServer, new_server: ToyServer, maps: Path
) -> None:
    fill(maps, 100)
    await index(server, maps)
    new_server.engine.limit(40)
    async with client_of(new_server) as client, EmbeddedArchive(ARCHIVE) as archive:
        first = await reembedder(archive, client)
        run = asyncio.create_task(first.run())
        await asyncio.to_thread(new_server.engine.spent.wait, 60)
        await until(lambda: first.progress.embedded > 0)  # the answers may still be on their way
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        kept = len(await entries(archive, NEW))
        assert 0 < kept <= 48
        new_server.engine.go_on()
        again = await reembedder(archive, client)
        assert await again.run() is True
        assert again.progress.stored == 100 - kept


async def test_what_is_deleted_meanwhile_does_not_come_back_and_what_is_posted_is_embedded(
    server: ToyServer, new_server: ToyServer, maps: Path
) -> None:
    fill(maps, 30)
    await index(server, maps)
    new_server.engine.limit(8)
    async with client_of(new_server) as client, EmbeddedArchive(ARCHIVE) as archive:
        run = await reembedder(archive, client)
        running = asyncio.create_task(run.run())
        await asyncio.to_thread(new_server.engine.spent.wait, 60)
        old = await entries(archive, OLD)
        gone, kept = sorted(old)[:5], sorted(old)[5:]
        await archive.delete(Selection(message_ids=frozenset(gone)))
        # Before the first key, so that this pass does not meet it.
        late = old[kept[0]]
        key = replace(late.picture.key, message_id="0-late")
        await archive.upsert_many([replace(late, picture=replace(late.picture, key=key))])
        new_server.engine.go_on()
        assert await running is True
        assert (await entries(archive, NEW)).keys() == {*kept, "0-late"}
        assert (await archive.stats()).pictures == 26


async def test_a_deletion_between_the_last_look_and_the_write_is_carried_out(
    server: ToyServer, new_server: ToyServer, maps: Path
) -> None:
    class Racing(EmbeddedArchive):
        async def upsert_many(self, entries: Sequence[Entry]) -> None:
            await self.delete(Selection(message_ids=frozenset({victim})))
            await super().upsert_many(entries)

    fill(maps, 10)
    await index(server, maps)
    async with EmbeddedArchive(ARCHIVE) as archive:
        victim = sorted(await entries(archive, OLD))[3]
    async with client_of(new_server) as client, Racing(ARCHIVE) as racing:
        run = await reembedder(racing, client)
        await run.run()
        assert victim not in await entries(racing, NEW)
        assert run.progress.stored == 9
        assert (await racing.stats()).pictures == 9


async def test_what_cannot_be_embedded_is_named(
    server: ToyServer, new_server: ToyServer, maps: Path
) -> None:
    fill(maps, 12)
    await index(server, maps)
    (maps / "0001.png").unlink()
    (maps / "0002.png").write_bytes(picture_bytes(77))
    (maps / "0003.png").write_bytes(picture_bytes(3) + bytes(1 << 20))
    async with client_of(new_server) as client, EmbeddedArchive(ARCHIVE) as archive:
        linked = (await entries(archive, OLD)).popitem()[1]
        url = "https://cdn.discordapp.com/attachments/1/2/map.png"
        picture = replace(
            linked.picture, image_url=url, key=replace(linked.picture.key, message_id="l")
        )
        await archive.upsert_many(
            [replace(linked, picture=replace(picture, content_hash="0" * 64))]
        )
        run = await reembedder(archive, client)
        assert await run.run() is False
        assert run.progress.missing == 4
        assert len(await entries(archive, NEW)) == 9
        words = " ".join(run.reasons)
        for part in ("cannot be read", "takes at most", "other bytes now", "--no-links"):
            assert words.count(part) == 1
        assert {aside.name for aside in run.set_aside} >= {picture.message_link}


async def test_what_the_archive_refuses_is_named(
    server: ToyServer, new_server: ToyServer, maps: Path
) -> None:
    class Refusing(EmbeddedArchive):
        async def upsert_many(self, entries: Sequence[Entry]) -> None:
            bad = {one.key: "too large" for one in entries if one.picture.key.message_id == victim}
            await super().upsert_many([one for one in entries if one.key not in bad])
            if bad:
                raise EntriesRefusedError(bad)

    fill(maps, 10)
    await index(server, maps)
    async with client_of(new_server) as client, Refusing(ARCHIVE) as archive:
        victim = sorted(await entries(archive, OLD))[3]
        run = await reembedder(archive, client)
        assert await run.run() is False
        assert (run.progress.stored, run.progress.missing) == (9, 1)
        assert run.reasons == {"the archive refused it: too large": 1}
        assert victim in await entries(archive, OLD)


async def test_a_media_folder_has_what_lies_behind_links(
    server: ToyServer, new_server: ToyServer, maps: Path
) -> None:
    fill(maps, 20)
    await index(server, maps)
    async with client_of(new_server) as client, EmbeddedArchive(ARCHIVE) as archive:
        url = "https://cdn.discordapp.com/attachments/1/2/map.png"
        await archive.upsert_many(
            [
                replace(one, picture=replace(one.picture, image_url=url))
                for one in (await entries(archive, OLD)).values()
            ]
        )
        rename_all(maps)
        counts: list[int] = []
        found = files_by_content(maps, counts.append)
        assert counts[-1] == len(found) == 20
        run = await reembedder(archive, client, sources(found))
        assert await run.run() is True
        assert len(await entries(archive, NEW)) == 20


async def test_the_current_model_decides_which_server_is_asked(
    server: ToyServer, new_server: ToyServer, maps: Path
) -> None:
    fill(maps, 5)
    await index(server, maps)
    settings = ClientSettings.load(server=server.address)
    async with EmbeddedArchive(ARCHIVE) as archive:
        both = CurrentClient(settings, archive, next_server=new_server.address, keep_s=0)
        only_old = CurrentClient(settings, archive, keep_s=0)
        async with both, only_old:
            assert (await both.model()).id == OLD
            assert (await both.embed(picture_bytes(1))).model_id == OLD
            async with client_of(new_server) as client:
                await (await reembedder(archive, client)).run()
            # Two models, and nothing was chosen: as ever, the server's own counts.
            assert (await only_old.model()).id == OLD
            await archive.choose_model(NEW)
            assert (await both.model()).id == NEW
            assert (await both.embed(picture_bytes(1))).model_id == NEW
            assert (await both.embed_text("red")).model_id == NEW
            assert len(await find(both, archive, picture_bytes(1))) == 3
            for call in (only_old.model(), only_old.embed(picture_bytes(1))):
                with pytest.raises(OtherModelError, match=f"searched with {NEW}"):
                    await call
            await server.stop()
            assert (await both.wait_ready(0.5)).id == NEW
            assert (await both.model()).id == NEW
            assert (await both.embed(picture_bytes(1))).model_id == NEW


@pytest.mark.parametrize(
    ("next_server", "sentence"),
    [
        ("example.org:50051", "the token would go to example.org:50051 in the clear"),
        ("http://127.0.0.1:1", "'http://127.0.0.1:1' is no address"),
    ],
)
def test_the_next_server_is_checked_like_the_first(next_server: str, sentence: str) -> None:
    settings = ClientSettings.load(server="127.0.0.1:1", token="0123456789abcdef")
    with pytest.raises(StartupError, match=f"^MAPSEEK_NEXT_SERVER: {sentence}"):
        CurrentClient(settings, EmbeddedArchive(ARCHIVE), next_server=next_server)
    elsewhere = ClientSettings.load(server="127.0.0.1:1", token="0123456789abcdef", tls=True)
    assert elsewhere.at("example.org:50051").secure


def mapseek(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(process: ToyProcess, maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_LATE_POSTS_S", 0.0)
    fill(maps, 6)
    query = maps / "0003.png"
    assert mapseek("index", maps).exit_code == 0
    new = ToyProcess("--name", "new")
    reembed = ("archive", "reembed", "--server", new.address)
    kept = query.read_bytes()
    query.unlink()
    done = mapseek(*reembed)
    assert done.exit_code == 1
    assert f"Searches go on on {OLD}" in done.stderr
    assert "Not embedded (1): its file cannot be read" in done.stdout
    assert f"Searches stay on {OLD}" in done.stdout
    query.write_bytes(kept)
    # Two models are in the archive, and the server of the new one is refused all the same.
    monkeypatch.setenv("MAPSEEK_SERVER", new.address)
    refused = mapseek("find", query)
    assert refused.exit_code == 1
    assert f"searched with {OLD}" in refused.stderr
    monkeypatch.setenv("MAPSEEK_SERVER", process.address)
    assert mapseek("find", query).exit_code == 0
    done = mapseek(*reembed)
    assert done.exit_code == 0, done.output
    assert "1 pictures have got a vector" in done.stdout
    assert f"Searches use {NEW} from now on" in done.stdout
    assert f"searched with {NEW}" in mapseek("find", query).stderr
    monkeypatch.setenv("MAPSEEK_NEXT_SERVER", new.address)
    found = mapseek("find", query, "--json", "--limit", 1)
    assert f'"model": "{NEW}"' in found.stdout
    assert mapseek("archive", "drop", NEW).exit_code == 2
    assert mapseek("archive", "switch", "none@1").exit_code == 2
    assert mapseek("archive", "switch", OLD).exit_code == 0
    assert f'"model": "{OLD}"' in mapseek("find", query, "--json").stdout
    done = mapseek("archive", "drop", NEW)
    assert done.exit_code == 0
    assert "Dropped 6 vectors" in done.stderr
    done = mapseek(*reembed, "--drop-old")
    assert "Dropped 6 vectors of toy@" in done.stderr
    assert mapseek("stats").stdout.count("@") == 1
    new.close()


def test_mistakes_are_sentences(process: ToyProcess, maps: Path) -> None:
    assert mapseek("archive", "reembed").exit_code == 1  # no archive
    fill(maps, 1)
    assert mapseek("index", maps).exit_code == 0
    assert "no folder" in mapseek("archive", "reembed", "--media", "none").stderr
    away = mapseek("archive", "reembed", "--server", "127.0.0.1:1")
    assert away.exit_code == 1
    assert "No server answers" in away.stderr
    done = mapseek("archive", "reembed")  # with the server of the model that is there
    assert done.exit_code == 0
    assert "0 pictures" in done.stdout
