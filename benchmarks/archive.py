"""`mapseek bench archive`: filling and searching an archive, by its size."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.latency import Latency
from benchmarks.machine import this_machine
from benchmarks.memory import MB
from benchmarks.report import Progress, Report, Table, Target
from benchmarks.vectors import MATCHES, Maps, Truth, draw_maps
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import (
    ArchiveError,
    Entry,
    ImageArchive,
    Picture,
    PictureKey,
    Query,
    Vector,
)
from bot.settings import BotSettings

_GUILD = "1"
_CHANNELS = 8
_BATCH = 1000
_FIRST_POST = datetime(2025, 1, 1, tzinfo=UTC)
_MIN_RECALL = 0.99
_MAX_P50_MS = 300.0
_INDEX_WAIT_S = 600.0
_INDEX_LOOK_S = 0.5
# So many of the latest must be found before the index is taken to have followed.
_LATEST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveBenchOptions:
    """What to measure.

    Attributes:
        archive: Which adapter.
        sizes: Archives of how many pictures.
        model: Folder of the model whose vectors are stored.
        maps: How many maps are drawn and embedded; the other vectors are grown from theirs.
        searches: Searches at each size and of each kind.
    """

    archive: Literal["embedded", "atlas"]
    sizes: Sequence[int]
    model: Path
    maps: int
    searches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured at one size, for one kind of search.

    Attributes:
        pictures: The size.
        searched: Where was searched: "everything" or "one channel".
        latency: Of the searches.
        recall: Share of the true three nearest that were found.
        inserts_per_s: Pictures stored per second on the way to this size.
        disk_mb: Size of the archive; None where it is not known.
        memory_mb: The process's own memory: without mapped pages of the file, which the system
            takes back whenever it needs them.
    """

    pictures: int
    searched: str
    latency: Latency
    recall: float
    inserts_per_s: float
    disk_mb: float | None
    memory_mb: float


def bench_archive(options: ArchiveBenchOptions, progress: Progress) -> tuple[Report, list[Row]]:
    """Fills one archive step by step, and searches it at each size.

    What is found is compared with the nearest among all vectors, which are computed while they are
    stored.
    """
    maps = draw_maps(options.model, maps=options.maps, queries=options.searches, progress=progress)
    rows: list[Row] = []
    complete = True
    try:
        asyncio.run(_measure(options, maps, rows, progress))
    except KeyboardInterrupt:
        complete = False
    report = Report(
        command=f"mapseek bench archive --archive {options.archive}",
        machine=this_machine(),
        model_id=maps.model_id,
        settings=asdict(options),
        tables=[_table(options, rows, maps)],
        targets=_targets(rows),
        data={"rows": rows},
        complete=complete,
    )
    return report, rows


async def _measure(
    options: ArchiveBenchOptions, maps: Maps, rows: list[Row], progress: Progress
) -> None:
    sizes = sorted(set(options.sizes))
    truth = {"everything": Truth(maps.queries), "one channel": Truth(maps.queries)}
    async with _opened(options, maps.drawn.shape[1]) as place:
        for filled, size in pairwise((0, *sizes)):
            seconds = 0.0
            for start in range(filled, size, _BATCH):
                progress(f"storing {size:,} pictures", start / sizes[-1])
                vectors = maps.vectors(start, min(_BATCH, size - start))
                entries = [
                    _entry(number, maps.model_id, vector)
                    for number, vector in enumerate(vectors, start)
                ]
                began = time.perf_counter()
                await place.archive.upsert_many(entries)
                seconds += time.perf_counter() - began
                truth["everything"].add(vectors)
                truth["one channel"].add(vectors[-start % _CHANNELS :: _CHANNELS])
            size_bytes = (await place.archive.stats()).size_bytes
            progress(f"waiting until {size:,} pictures are found", size / sizes[-1])
            async with _followed(place, entries[-_LATEST:]) as archive:
                for searched, best in truth.items():
                    progress(f"searching {searched} among {size:,} pictures", size / sizes[-1])
                    latency, recall = await _search(archive, maps, searched, best)
                    row = Row(
                        pictures=size,
                        searched=searched,
                        latency=latency,
                        recall=recall,
                        inserts_per_s=(size - filled) / seconds,
                        disk_mb=None if size_bytes is None else size_bytes / MB,
                        memory_mb=_own_memory() / MB,
                    )
                    rows.append(row)


async def _search(
    archive: ImageArchive, maps: Maps, searched: str, truth: Truth
) -> tuple[Latency, float]:
    seconds: list[float] = []
    found: list[list[float]] = []
    for vector in maps.queries:
        query = Query(
            embedding=vector,
            model_id=maps.model_id,
            limit=MATCHES,
            guild_id=_GUILD,
            channel_ids=None if searched == "everything" else frozenset({"0"}),
        )
        began = time.perf_counter()
        matches = await archive.search(query)
        seconds.append(time.perf_counter() - began)
        found.append([match.score for match in matches])
    return Latency.of(seconds), truth.recall(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where is stored; the settings are those of an archive in Atlas."""

    archive: ImageArchive
    settings: BotSettings | None = None


@asynccontextmanager
async def _opened(options: ArchiveBenchOptions, dimensions: int) -> AsyncIterator[_Place]:
    """An empty archive that goes away afterwards."""
    if options.archive == "atlas":
        async with _atlas(dimensions) as place:
            yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedArchive(Path(folder) / "archive.db") as archive:
            yield _Place(archive=archive)


@asynccontextmanager
async def _followed(place: _Place, latest: Sequence[Entry]) -> AsyncIterator[ImageArchive]:
    """The archive to search in, once it finds the latest entries.

    Raises:
        ArchiveError: Atlas's search index takes too long to follow.
    """
    if place.settings is None:
        yield place.archive
        return
    from bot.archive.atlas import AtlasArchive  # noqa: PLC0415 - with the bot extra

    query = Query(
        embedding=latest[-1].embedding,
        model_id=latest[-1].model_id,
        limit=len(latest),
        posted_from=latest[0].picture.posted_at,
    )
    until_s = time.monotonic() + _INDEX_WAIT_S
    # Another one than has stored: it counts the documents anew, and searches by their number.
    async with AtlasArchive(place.settings) as archive:
        while len(await archive.search(query)) < len(latest):
            if time.monotonic() > until_s:
                raise ArchiveError(
                    f"Atlas's search index has not followed within {_INDEX_WAIT_S:g} s: is the "
                    "cluster busy with something else?"
                )
            await asyncio.sleep(_INDEX_LOOK_S)
        yield archive


@asynccontextmanager
async def _atlas(dimensions: int) -> AsyncIterator[_Place]:
    """A collection of its own beside the real one, with its search index."""
    from bot.archive.atlas import AtlasArchive, managing  # noqa: PLC0415 - with the bot extra
    from bot.archive.atlas.driver import Driver  # noqa: PLC0415

    name = f"mapseek_bench_{secrets.token_hex(4)}"
    # Its index is to answer, not this process's memory of what was just stored.
    settings = BotSettings.load(archive_kind="atlas", atlas_collection=name, atlas_lag_s=0.0)
    driver = Driver(settings)
    try:
        await managing.init(
            driver, settings, [dimensions], tell=lambda _: None, wait_s=_INDEX_WAIT_S
        )
        async with AtlasArchive(settings) as archive:
            yield _Place(archive=archive, settings=settings)
    finally:
        await driver.drop_collection()
        await driver.close()


def _own_memory() -> int:
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def _entry(number: int, model_id: str, vector: Vector) -> Entry:
    picture = Picture(
        key=PictureKey(message_id=str(number), attachment_id="0"),
        guild_id=_GUILD,
        channel_id=str(number % _CHANNELS),
        user_id="",
        message_link=f"https://discord.com/channels/1/{number % _CHANNELS}/{number}",
        image_url="",
        posted_at=_FIRST_POST + timedelta(minutes=number),
        width=128,
        height=128,
        file_size=0,
        content_hash=f"{number:064x}",
    )
    return Entry(picture=picture, model_id=model_id, embedding=vector)


def _table(options: ArchiveBenchOptions, rows: Sequence[Row], maps: Maps) -> Table:
    return Table(
        title=f"The {options.archive} archive, vectors of {maps.drawn.shape[1]} numbers",
        columns=(
            "pictures",
            "searched",
            "p50 ms",
            "p99 ms",
            f"recall@{MATCHES}",
            "stored/s",
            "disk MB",
            "memory MB",
        ),
        rows=[
            (
                row.pictures,
                row.searched,
                row.latency.p50_ms,
                row.latency.p99_ms,
                f"{row.recall:.4f}",
                row.inserts_per_s,
                row.disk_mb,
                row.memory_mb,
            )
            for row in rows
        ],
        notes=[
            f"{len(maps.drawn):,} vectors are of drawn maps, the others lie between neighbours.",
            "The queries are views and near-copies of maps.",
            "Memory is the process's own, without what is mapped of the file.",
        ],
    )


def _targets(rows: Sequence[Row]) -> list[Target]:
    if not rows:
        return []
    slowest = max(row.latency.p50_ms for row in rows)
    worst = min(row.recall for row in rows)
    return [
        Target.at_most(f"half of the searches within {_MAX_P50_MS:g} ms", slowest, _MAX_P50_MS),
        Target.at_least(f"recall@{MATCHES} of at least {_MIN_RECALL}", worst, _MIN_RECALL),
    ]
