"""`mapseek bench bot`: a long backfill with searches and new posts beside it.

The real bot, server and model, as processes; Discord is the tests' loopback one, on this machine
too, as are those who search. So the figures are of everything together on these cores.
"""

import asyncio
import io
import random
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np
from PIL import Image

from benchmarks.discord import loopback, token
from benchmarks.latency import Latency, poisson_arrivals
from benchmarks.machine import this_machine
from benchmarks.memory import MB, Growth, rss_bytes
from benchmarks.processes import BOT, SERVER, Process
from benchmarks.report import Progress, Report, Table, Target
from benchmarks.server_process import free_port

if TYPE_CHECKING:
    from tests.bot.discord.loopback import Discord

_OLD, _NEW = (1, 10), (2, 20)  # guild and channel of the backfill, and of the new posts
_SEARCHER = 42
_LIVE_EVERY_S = 2.0
_POLL_S = 0.05
_SAMPLE_S = 0.5
_MOST_SEARCHES_AT_ONCE = 512
_LONGEST_LIVE_S = 10.0
_LONGEST_SEARCH_MS = 2000.0
_MOST_GROWTH = 32 * MB


@dataclass(frozen=True, slots=True, kw_only=True)
class BotBenchOptions:
    """How much is to happen.

    Attributes:
        model: The model folder that is served.
        posts: How many old posts, one picture each, are backfilled.
        rate: Searches a second, arriving independently.
        seed: Which picture is searched for when.
    """

    model: Path
    posts: int
    rate: float
    seed: int


@dataclass
class Measured:
    """What was seen; times in seconds from the start of the backfill."""

    searches: list[tuple[float, float]] = field(default_factory=list)
    failed: int = 0
    lives: list[tuple[float, float]] = field(default_factory=list)
    indexed: list[tuple[float, int]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    backfill_s: float = float("nan")


def bench_bot(options: BotBenchOptions, progress: Progress) -> tuple[Report, Measured]:
    """Lets it run until the backfill is done."""
    seen = asyncio.run(_measure(options, progress))
    searches = Latency.of([took for _, took in seen.searches])
    lives = Latency.of([took for _, took in seen.lives])
    growth = Growth.of(seen.memory)
    columns = ("", "count", "p50 ms", "p90 ms", "p99 ms", "max ms")
    rows = [
        (name, one.count, one.p50_ms, one.p90_ms, one.p99_ms, one.max_ms)
        for name, one in (("searches answered", searches), ("new posts indexed", lives))
    ]
    report = Report(
        command="mapseek bench bot",
        machine=this_machine(),
        model_id=options.model.name,
        settings=asdict(options),
        tables=[
            Table(
                title=f"While {options.posts:,} old posts are indexed",
                columns=columns,
                rows=rows,
                notes=_notes(options, seen),
            )
        ],
        targets=[
            Target(name="every search is answered", met=seen.failed == 0, found=f"{seen.failed}"),
            Target.at_most("p99 of a search, ms", searches.p99_ms, _LONGEST_SEARCH_MS),
            Target.at_most("p99 of a new post, s", lives.p99_ms / 1000, _LONGEST_LIVE_S),
            Target.at_most(
                "growth of the bot's memory, MB",
                growth.rise / MB if growth else float("nan"),
                _MOST_GROWTH / MB,
            ),
        ],
        data={"searches": searches, "lives": lives, "growth": growth, "measured": seen},
    )
    return report, seen


def _notes(options: BotBenchOptions, seen: Measured) -> list[str]:
    speed, answered = (count / seen.backfill_s for count in (options.posts, len(seen.searches)))
    resident = [value / MB for _, value in seen.memory]
    backfill = f"Backfill: {speed:.1f} posts/s in {seen.backfill_s:.0f} s."
    searches = f"{options.rate:g}/s arrived, {answered:.1f}/s were answered, {seen.failed} were not"
    memory = f"{resident[0]:.0f} MB at the start, at most {max(resident):.0f} MB"
    return [backfill, f"Searches: {searches}.", f"Resident memory of the bot: {memory}."]


async def _measure(options: BotBenchOptions, progress: Progress) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with loopback() as discord:
            for guild, channel in (_OLD, _NEW):
                discord.add_guild(guild)
                discord.add_channel(guild, channel)
            _fill(discord, options.posts, progress)
            address = f"127.0.0.1:{free_port()}"
            state = folder / "queue.db"
            server = Process(
                SERVER,
                settings={"model": str(options.model), "listen": address, "log_level": "warning"},
                folder=folder,
                name="server",
            )
            bot = Process(
                BOT,
                [discord.api],
                settings={
                    "server": address,
                    "archive": str(folder / "maps.db"),
                    "queue": str(state),
                    "discord_token": token(),
                    "download_origins": discord.origin,
                    "searches_per_member": "0",
                    "searches_per_guild": "0",
                    "log_level": "warning",
                },
                folder=folder,
                name="bot",
            )
            try:
                server.start()
                bot.start()
                return await _Load(options, discord, bot, state, progress).run()
            finally:
                bot.stop()
                server.stop()


def _fill(discord: "Discord", posts: int, progress: Progress) -> None:
    """Puts the old posts there, as if they had been posted over the last year."""
    first = datetime.now(UTC) - timedelta(days=365)
    for number in range(posts):
        moment = first + timedelta(days=360 * number / posts)
        discord.remember(_OLD[1], _picture(number), sent_at=moment)
        if number % 100 == 0:
            progress(f"drawing {posts:,} pictures", number / posts)


def _picture(seed: int) -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((128, 128), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


class _Load:
    """Everything that goes on at once."""

    def __init__(
        self,
        options: BotBenchOptions,
        discord: "Discord",
        bot: Process,
        state: Path,
        progress: Progress,
    ) -> None:
        self._options = options
        self._discord = discord
        self._bot = bot
        self._state = state
        self._progress = progress
        self._seen = Measured()
        self._done = asyncio.Event()
        self._began_s = 0.0
        self._dice = random.Random(options.seed)

    async def run(self) -> Measured:
        await self._discord.introduced()
        self._began_s = time.monotonic()
        await self._discord.use("index", "start", {"channel": _OLD[1]}, channel_id=_OLD[1])
        async with asyncio.TaskGroup() as tasks:
            for part in (self._watch, self._search, self._post, self._weigh):
                tasks.create_task(part())
        return self._seen

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _watch(self) -> None:
        """Ends it all when the backfill is done."""
        query = (
            "SELECT count(*) FROM sightings WHERE channel_id = ? AND state = 'indexed'",
            (str(_OLD[1]),),
        )
        while True:
            self._bot.check()
            (((done,),)) = await asyncio.to_thread(self._ask, *query)
            self._seen.indexed.append((self._now_s(), done))
            self._progress(f"{done:,} old posts indexed", done / self._options.posts)
            if done >= self._options.posts:
                self._seen.backfill_s = self._now_s()
                self._done.set()
                return
            await asyncio.sleep(_SAMPLE_S)

    def _ask(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        db = apsw.Connection(str(self._state), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            db.set_busy_timeout(5_000)
            return list(db.execute(sql, values))
        finally:
            db.close()

    async def _search(self) -> None:
        """Members search at moments of their own, whether or not they are answered in time."""
        old = [one for one in self._discord.messages.values() if one["attachments"]]
        slots = asyncio.Semaphore(_MOST_SEARCHES_AT_ONCE)

        async def ask(moment: float) -> None:
            async with slots:
                message = self._dice.choice(old)
                try:
                    await self._discord.use_message_command(message, member=_SEARCHER)
                except TimeoutError:
                    self._seen.failed += 1
                else:
                    self._seen.searches.append((moment, self._now_s() - moment))

        async with asyncio.TaskGroup() as tasks:
            if self._options.rate <= 0:
                return
            for moment in poisson_arrivals(self._options.rate, 1e6, seed=self._options.seed):
                if not await self._until(moment):
                    return
                tasks.create_task(ask(moment))

    async def _post(self) -> None:
        """New posts in another guild: are they indexed while the old ones are?"""
        number = 0
        while await self._until(_LIVE_EVERY_S * (number + 1)):
            number += 1
            message = await self._discord.post(_NEW[1], _picture(10**6 + number))
            began_s = self._now_s()
            while not await self._is_indexed(message["id"]):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(_POLL_S)
            self._seen.lives.append((began_s, self._now_s() - began_s))

    async def _is_indexed(self, message_id: str) -> bool:
        query = "SELECT 1 FROM sightings WHERE message_id = ? AND state = 'indexed'"
        return bool(await asyncio.to_thread(self._ask, query, (message_id,)))

    async def _weigh(self) -> None:
        number = 0
        while await self._until(_SAMPLE_S * number):
            number += 1
            self._seen.memory.append((self._now_s(), float(rss_bytes(self._bot.pid))))

    async def _until(self, moment: float) -> bool:
        """Waits for a moment; False if everything is over before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, moment - self._now_s())):
                await self._done.wait()
        return not self._done.is_set()
