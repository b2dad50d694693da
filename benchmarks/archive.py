"""`mapseek bench archive`: how long an exact search takes, by the size of the embedded archive."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.latency import Latency
from benchmarks.machine import this_machine
from benchmarks.report import Progress, Report, Table
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import Entry, Picture, PictureKey, Query, Vector

_MODEL_ID = "random-vectors"
_GUILD = "1"
_CHANNELS = 8
_BATCH = 1000
_FIRST_POST = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveBenchOptions:
    """What to measure.

    Attributes:
        sizes: Archives of how many pictures.
        dimensions: Length of a vector.
        searches: Searches at each size and of each kind.
    """

    sizes: Sequence[int]
    dimensions: int
    searches: int


def bench_archive(options: ArchiveBenchOptions, progress: Progress) -> Report:
    """Fills one archive step by step, and searches it at each size.

    Random vectors, because an exact search takes the same time whatever they are.
    """
    rows = asyncio.run(_measure(options, progress))
    return Report(
        command="mapseek bench archive",
        machine=this_machine(),
        model_id=_MODEL_ID,
        settings=asdict(options),
        tables=[
            Table(
                title=f"Exact search, {options.dimensions} numbers a vector",
                columns=("pictures", "searched", "p50 ms", "p99 ms", "file MB"),
                rows=rows,
            )
        ],
        data={"rows": rows},
    )


async def _measure(
    options: ArchiveBenchOptions, progress: Progress
) -> list[tuple[int, str, float, float, float]]:
    rng = np.random.default_rng(0)
    sizes = sorted(options.sizes)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "archive.db"
        async with EmbeddedArchive(file) as archive:
            for filled, size in pairwise((0, *sizes)):
                for start in range(filled, size, _BATCH):
                    progress(f"filling the archive to {size:,} pictures", start / sizes[-1])
                    count = min(_BATCH, size - start)
                    vectors = _unit_vectors(rng, count, options.dimensions)
                    numbers = range(start, start + count)
                    await archive.upsert_many(list(map(_entry, numbers, vectors)))
                for searched, channels in (("everything", None), ("one channel", frozenset("0"))):
                    seconds = []
                    for vector in _unit_vectors(rng, options.searches, options.dimensions):
                        query = Query(
                            embedding=vector,
                            model_id=_MODEL_ID,
                            guild_id=_GUILD if channels else None,
                            channel_ids=channels,
                        )
                        began = time.perf_counter()
                        await archive.search(query)
                        seconds.append(time.perf_counter() - began)
                    found = Latency.of(seconds)
                    stored = file.stat().st_size / 1e6
                    rows.append((size, searched, found.p50_ms, found.p99_ms, stored))
    return rows


def _unit_vectors(rng: np.random.Generator, count: int, dimensions: int) -> Vector:
    vectors = rng.standard_normal((count, dimensions), dtype=np.float32)
    unit: Vector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _entry(number: int, vector: Vector) -> Entry:
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
    return Entry(picture=picture, model_id=_MODEL_ID, embedding=vector)
