"""HTML, JSON and the bot meet in one archive: each picture is there once, by Discord's own id."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import PictureKey
from bot.importer import discord, discord_html
from bot.importer.found import Found, SetAside, Source
from bot.importer.source import open_source
from bot.importer.wanted import wanted
from bot.ingest.forgotten import Forgotten
from bot.ingest.state import open_state
from bot.links import media_ids
from tests.bot.cli.test_index import entries, index
from tests.bot.cli.toy import ToyServer
from tests.bot.importer import pages
from tests.bot.importer.exports import attachment, media, message, picture_bytes, write

URL = "https://cdn.discordapp.com/attachments/200/5001/map.png"
FILE = f"map-{max(media_ids(URL), key=len)[6:]}.png"


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    url = media(tmp_path, FILE, picture_bytes(1))
    json = write(tmp_path / "export.json", [message(1, attachments=[attachment(1, url)])])
    html = pages.write(tmp_path, [pages.group(pages.message(1, pages.picture(url)))])
    return {"json": partial(discord.scan, json), "html": partial(discord_html.scan, html)}


@pytest.mark.parametrize("order", [("html", "json"), ("json", "html"), ("html", "html", "json")])
async def test_exports_of_both_kinds_are_one_picture(
    server: ToyServer, sources: dict[str, Source], order: Sequence[str]
) -> None:
    for kind in order:
        await index(server, sources[kind])
    (entry,) = await entries()
    assert entry.picture.key.attachment_id == "5001"
    assert server.engine.pictures == 1, "the bytes were embedded once"


@pytest.mark.parametrize("order", ["html json", "json html", "html json html"])
async def test_exports_of_both_kinds_in_one_run_are_one_picture_each(
    server: ToyServer, tmp_path: Path, order: str
) -> None:
    count = 200
    urls = [
        media(tmp_path, f"map-{number:016x}.png", picture_bytes(number)) for number in range(count)
    ]
    json = write(
        tmp_path / "export.json",
        [message(number, attachments=[attachment(number, url)]) for number, url in enumerate(urls)],
    )
    html = pages.write(
        tmp_path,
        [pages.group(pages.message(number, pages.picture(url))) for number, url in enumerate(urls)],
    )
    scans = {"json": partial(discord.scan, json), "html": partial(discord_html.scan, html)}

    def source() -> Iterator[Found | SetAside]:
        for kind in order.split():
            yield from scans[kind]()

    run = await index(server, source)
    assert sorted(int(one.picture.key.attachment_id) for one in await entries()) == [
        5000 + number for number in range(count)
    ]
    assert run.progress.done == run.progress.total == count * len(order.split())


async def test_exports_in_folders_of_folders_are_one_picture_each_and_the_next_run_knows_them(
    server: ToyServer, tmp_path: Path
) -> None:
    for year in ("2024", "2025"):
        folder = tmp_path / "exports" / "Map guild" / year
        folder.mkdir(parents=True)
        url = media(folder, FILE, picture_bytes(1))
        media(folder, "avatar-0123456789abcdef.png", picture_bytes(2))
        write(folder / "export.json", [message(1, attachments=[attachment(1, url)])])
        pages.write(folder, [pages.group(pages.message(1, pages.picture(url)))])
    source = open_source(tmp_path / "exports")
    run = await index(server, source)
    assert run.progress.done == run.progress.total == 4
    assert [one.picture.key.attachment_id for one in await entries()] == ["5001"]
    again = await index(server, source)
    assert (again.progress.stored, again.progress.known, server.engine.pictures) == (0, 4, 1)


async def test_an_interrupted_merge_is_finished_by_the_next_run(
    server: ToyServer, sources: dict[str, Source]
) -> None:
    await index(server, sources["html"])
    async with EmbeddedArchive(Path("maps.db")) as archive:
        (entry,) = [one async for one in archive.entries()]
        own = PictureKey(message_id=entry.picture.key.message_id, attachment_id="5001")
        # Ended between storing it by its own id and dropping the other.
        await archive.upsert_many([replace(entry, picture=replace(entry.picture, key=own))])
    await index(server, sources["json"])
    assert [one.picture.key for one in await entries()] == [own]


async def test_an_import_leaves_out_what_the_bot_was_asked_to_forget(
    server: ToyServer, sources: dict[str, Source], tmp_path: Path
) -> None:
    state = tmp_path / "state.db"
    assert wanted(sources["json"], state) is sources["json"]
    db = open_state(state)
    wishes = Forgotten(db)
    wishes.opt_out("42")
    for source in sources.values():
        await index(server, wanted(source, state))
    async with EmbeddedArchive(Path("maps.db")) as archive:
        assert [one async for one in archive.entries()] == []
    wishes.opt_in("42")
    db.close()
    await index(server, wanted(sources["json"], state))
    assert len(await entries()) == 1


def test_a_thread_of_a_forgotten_channel_is_left_out(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    (found,) = sources["json"]()
    assert isinstance(found, Found)
    db = open_state(tmp_path / "state.db")
    # What the export of a thread names as its category is the channel that the thread belongs to.
    Forgotten(db).posts_in(found.parent_id, guild_id=found.guild_id)
    db.close()
    assert list(wanted(sources["json"], tmp_path / "state.db")()) == []
