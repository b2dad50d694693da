"""The archive's commands, between their options (`bot.cli.main`) and their use cases."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bot.archive.opening import name_of, open_archive
from bot.archive.port import ArchiveError, ImageArchive, Match
from bot.archive.verifying import verify as verify_archive
from bot.cli import console
from bot.cli.bar import Bar
from bot.cli.waiting import ready
from bot.current import CurrentClient
from bot.importer.files import FORMATS_IN_WORDS, UnreadableError, read
from bot.importer.found import Source, SourceError
from bot.importer.source import Kind, open_source
from bot.importer.wanted import wanted
from bot.index import Indexer, Progress
from bot.search import Scope, Verdict, find_text, judge
from bot.search import find as find_image
from bot.settings import BotSettings
from bot.sheet import MOST_TILES, Tile, draw_sheet
from inference import telemetry
from inference.client import ClientSettings, EmbeddingClient, ModelInfo
from inference.errors import InvalidInputError


def index(
    path: Path,
    *,
    kind: Kind,
    media: Path | None,
    guild: str | None,
    archive: Path | None,
    server: str | None,
) -> int:
    """Runs `mapseek index` and returns its exit code."""
    settings = BotSettings.load(archive=archive)

    def source() -> Source:
        return wanted(open_source(path, kind=kind, media=media, guild=guild), settings.queue_file)

    return _run(_index(path, source, settings, ClientSettings.load(server=server)))


async def _index(
    path: Path,
    make_source: Callable[[], Source],
    settings: BotSettings,
    client_settings: ClientSettings,
) -> int:
    source = await asyncio.to_thread(make_source)
    async with EmbeddingClient(client_settings) as client:
        model = await ready(client, client_settings)
        async with open_archive(None, settings) as archive:
            current = await archive.current_model()
            with Bar() as bar:
                indexer = Indexer(
                    source=source,
                    client=client,
                    archive=archive,
                    model=model,
                    report=partial(_show, bar, time.monotonic()),
                )
                try:
                    await indexer.run()
                except BaseException:
                    bar.stop()
                    console.print_indexed(indexer, archive=name_of(None, settings), stopped=True)
                    raise
    progress = indexer.progress
    if not progress.done:
        raise SourceError(_why_no_pictures(path))
    console.print_indexed(indexer, archive=name_of(None, settings))
    if current not in (None, model.id):
        console.print_other_model(current=str(current), served=model.id)
    return 0 if progress.stored or progress.known else 1


def _show(bar: Bar, began_s: float, progress: Progress) -> None:
    took_s = max(time.monotonic() - began_s, 1e-3)
    rate = f"{progress.stored / took_s:.0f}/s" if progress.stored else ""
    failures = f"{progress.set_aside} set aside" if progress.set_aside else ""
    note = ", ".join(filter(None, (rate, failures)))
    bar.show("Indexing", progress.done, note, total=progress.total)


def _why_no_pictures(path: Path) -> str:
    if path.is_file() and path.suffix.lower() not in {".json", ".html", ".htm"}:
        return f"{path} is no picture ({FORMATS_IN_WORDS}) and no export of DiscordChatExporter."
    return f"There are no pictures ({FORMATS_IN_WORDS}) in {path}."


def find(
    query: Path | str,
    *,
    scope: Scope,
    sheet: Path | None,
    as_json: bool,
    archive: Path | None,
    server: str | None,
) -> int:
    """Runs `mapseek find` for a picture file or for words, and returns its exit code."""
    settings = BotSettings.load(archive=archive)
    return _run(
        _find(query, scope, sheet, settings, ClientSettings.load(server=server), as_json=as_json)
    )


async def _find(
    query: Path | str,
    scope: Scope,
    sheet: Path | None,
    settings: BotSettings,
    client_settings: ClientSettings,
    *,
    as_json: bool,
) -> int:
    async with (
        open_archive(None, settings, create=False) as archive,
        CurrentClient(client_settings, archive, next_server=settings.next_server) as client,
    ):
        await ready(client, client_settings)
        model = await client.model()
        verdicts: list[Verdict | None]
        asked: bytes | str
        if isinstance(query, Path):
            asked = await asyncio.to_thread(_query, query, model.limits.max_image_bytes)
            try:
                matches = await find_image(
                    client, archive, asked, scope, thresholds=model.thresholds
                )
            except InvalidInputError as error:
                raise InvalidInputError(f"{query}: {error}") from None
            verdicts = [judge(match.score, model.thresholds) for match in matches]
        else:
            asked = query
            matches = await find_text(client, archive, asked, scope)
            verdicts = [None for _ in matches]
        if not matches:
            raise ArchiveError(await _why_nothing(archive, name_of(None, settings), model))
    if as_json:
        console.print_json(
            {
                "model": model.id,
                "sheet": None if sheet is None else str(sheet),
                "matches": [
                    console.match_json(rank, match, verdict)
                    for rank, (match, verdict) in enumerate(zip(matches, verdicts, strict=True), 1)
                ],
            }
        )
    else:
        console.print_matches(matches, verdicts)
    if sheet is None:
        return 0
    tiles = await asyncio.to_thread(_tiles, matches, verdicts, model.limits.max_image_bytes)
    drawn = await draw_sheet(asked, tiles)
    try:
        await asyncio.to_thread(sheet.write_bytes, drawn)
    except OSError as error:
        raise SourceError(
            f"The sheet cannot be written to {sheet}: {error.strerror or error}."
        ) from error
    if not as_json:
        console.print_sheet(sheet)
    return 0


def _query(path: Path, max_bytes: int) -> bytes:
    try:
        return read(path, max_bytes=max_bytes).data
    except UnreadableError as error:
        raise InvalidInputError(f"{path} {error}.") from None


def _tiles(
    matches: Sequence[Match], verdicts: Sequence[Verdict | None], max_bytes: int
) -> list[Tile]:
    tiles = []
    for match, verdict in zip(matches[:MOST_TILES], verdicts, strict=False):
        data, note = None, "on Discord"
        if "://" not in match.picture.image_url:
            try:
                data = read(Path(match.picture.image_url), max_bytes=max_bytes).data
            except UnreadableError:
                note = "the file is gone"
        tiles.append(Tile(match=match, verdict=verdict, data=data, note=note))
    return tiles


async def _why_nothing(archive: ImageArchive, name: str, model: ModelInfo) -> str:
    stats = await archive.stats()
    if not stats.pictures:
        return f"{name} is empty: put pictures in with `mapseek index PATH`."
    if model.id in stats.by_model:
        return "There is no picture in that part of the archive: see `mapseek stats`."
    others = ", ".join(stats.by_model)
    return (
        f"{name} has no pictures that were embedded by {model.id}, only by {others}: run "
        "`mapseek index PATH` with this server, or serve that model."
    )


def stats(*, archive: Path | None, as_json: bool) -> int:
    """Runs `mapseek stats` and returns its exit code."""
    return _run(_stats(BotSettings.load(archive=archive), as_json=as_json))


async def _stats(settings: BotSettings, *, as_json: bool) -> int:
    async with open_archive(None, settings, create=False) as archive:
        counted = await archive.stats()
    if as_json:
        console.print_json(console.stats_json(counted))
    else:
        console.print_stats(counted, archive=name_of(None, settings))
    return 0


def verify(*, samples: int) -> int:
    """Runs `mapseek archive verify` and returns its exit code."""
    return _run(_verify(BotSettings.load(), samples))


async def _verify(settings: BotSettings, samples: int) -> int:
    async with open_archive(None, settings, create=False) as archive:
        found = await verify_archive(archive, samples=samples, report=console.print_read)
    console.print_verified(found, archive=name_of(None, settings))
    return 1 if found.problems else 0


def _run(work: Coroutine[Any, Any, int]) -> int:
    with telemetry.set_up("mapseek-cli", telemetry.TelemetrySettings.load()):
        return asyncio.run(work)
