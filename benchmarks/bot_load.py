"""The load of `mapseek bench bot`: a backfill, searches and new posts, and what is seen of them."""

import asyncio
import io
import math
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.discord import loopback, token
from benchmarks.lag import lags
from benchmarks.latency import poisson_arrivals
from benchmarks.memory import cpu_s, own_bytes, rss_bytes
from benchmarks.processes import BOT_WATCHED, SERVER, Process
from benchmarks.report import Progress
from benchmarks.server_process import free_port

if TYPE_CHECKING:
    from tests.bot.discord.loopback import Answer, Discord

# Guilds that have old posts, and which share of the searches comes from each: one asks for most.
SHARES = {1: 0.7, 2: 0.1, 3: 0.1, 4: 0.1}
_NEW = (9, 90)  # guild and channel of the new posts
_MEMBERS = 100  # of a guild
# The part of the backfill that is left alone, to tell what it does by itself.
_ALONE = 0.15
_LIVE_EVERY_S = 2.0
_POLL_S = 0.05
_SAMPLE_S = 0.5
_MOST_SEARCHES_AT_ONCE = 2048
_BUSY = "More is being looked up right now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search.

    Attributes:
        moment_s: When it was to be asked, from the start of the backfill.
        took_s: From that moment to what the member saw.
        guild: Who asked.
        kind: "post" for the picture of an old post, "screenshot" for one that nobody has posted.
        outcome: "answered", "busy" or "failed".
    """

    moment_s: float
    took_s: float
    guild: int
    kind: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A process at a moment.

    Attributes:
        moment_s: From the start of the backfill.
        rss: Resident memory, in bytes.
        own: That without mapped files, of which the archive is one, in bytes.
        cpu_s: CPU time so far.
    """

    moment_s: float
    rss: int
    own: int
    cpu_s: float


@dataclass
class Measured:
    """What was seen; times in seconds from the start of the backfill.

    Attributes:
        searches: What became of every search.
        lives: New posts: when, and how long until they were indexed.
        indexed: How many old posts were indexed by when.
        processes: Samples by process; "bench" is the loopback Discord and the members.
        lags_s: How late the bot's event loop woke a sleeper, while there were searches.
        searched_from_s: When the searches began.
        searched_until_s: When they ended.
        done_s: When the backfill was done.
        messages_asked: How often the bot asked Discord for a message, while there were searches.
    """

    searches: list[Search] = field(default_factory=list)
    lives: list[tuple[float, float]] = field(default_factory=list)
    indexed: list[tuple[float, int]] = field(default_factory=list)
    processes: dict[str, list[Sample]] = field(default_factory=dict)
    lags_s: list[float] = field(default_factory=list)
    searched_from_s: float = float("nan")
    searched_until_s: float = float("nan")
    done_s: float = float("nan")
    messages_asked: int = 0

    def took(self, outcome: str, guild: int | None = None, kind: str | None = None) -> list[float]:
        """How long the searches of an outcome took."""
        return [
            one.took_s
            for one in self.searches
            if one.outcome == outcome and guild in {None, one.guild} and kind in {None, one.kind}
        ]

    @property
    def beside_until_s(self) -> float:
        """Until when there were searches and old posts to be indexed."""
        return min(self.searched_until_s, self.done_s)


async def measure(
    model: Path, *, posts: int, rate: float, seconds: float, seed: int, progress: Progress
) -> Measured:
    """Runs the processes and the load, until the backfill and the searches are done.

    Args:
        model: What is served.
        posts: How many old posts there are.
        rate: Searches a second; every other one for a screenshot.
        seconds: For how long there are searches.
        seed: What is searched for when.
        progress: Is told.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with loopback() as discord:
            for guild in (*SHARES, _NEW[0]):
                discord.add_guild(guild)
                discord.add_channel(guild, 10 * guild)
            _fill(discord, posts, progress)
            address = f"127.0.0.1:{free_port()}"
            late = folder / "lags"
            processes = {
                "server": Process(
                    SERVER,
                    settings={"model": str(model), "listen": address, "log_level": "warning"},
                    folder=folder,
                    name="server",
                ),
                "bot": Process(
                    BOT_WATCHED,
                    [discord.api, str(late)],
                    settings={
                        "server": address,
                        "archive": str(folder / "maps.db"),
                        "queue": str(folder / "queue.db"),
                        "discord_token": token(),
                        "download_origins": discord.origin,
                        "searches_per_member": "0",
                        "searches_per_guild": "0",
                        "log_level": "warning",
                    },
                    folder=folder,
                    name="bot",
                ),
            }
            load = _Load(discord, processes, folder, posts=posts, seed=seed, progress=progress)
            try:
                for process in processes.values():
                    process.start()
                return await load.run(rate, seconds)
            finally:
                for process in reversed(processes.values()):
                    process.stop()


def _fill(discord: "Discord", posts: int, progress: Progress) -> None:
    """Puts the old posts there, as if they had been posted over the last year."""
    first = datetime.now(UTC) - timedelta(days=365)
    guilds = [*SHARES]
    for number in range(posts):
        moment = first + timedelta(days=360 * number / posts)
        discord.remember(10 * guilds[number % len(guilds)], picture(number), sent_at=moment)
        if number % 100 == 0:
            progress(f"drawing {posts:,} pictures", number / posts)


def picture(seed: int) -> bytes:
    """A map that no other seed draws, as a PNG."""
    colours = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((128, 128), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def screenshot(data: bytes, seed: int) -> bytes:
    """A map as somebody sees it in the game, another file for every seed: cut, darker, a JPEG."""
    dice = random.Random(seed)
    left, top = dice.randrange(8), dice.randrange(8)
    image = (
        Image.open(io.BytesIO(data))
        .crop((left, top, 128 - dice.randrange(8), 128))
        .resize((200, 200))
    )
    file = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(dice.uniform(0.5, 0.9)).save(file, "JPEG")
    return file.getvalue()


class _Load:
    """Everything that goes on at once."""

    def __init__(
        self,
        discord: "Discord",
        processes: dict[str, Process],
        folder: Path,
        *,
        posts: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self._discord = discord
        self._processes = processes
        self._folder = folder
        self._posts = posts
        self._seed = seed
        self._progress = progress
        self._seen = Measured()
        self._alone = asyncio.Event()
        self._done = asyncio.Event()  # everything
        self._began_s = 0.0

    async def run(self, rate: float, seconds: float) -> Measured:
        await self._discord.introduced()
        self._began_s = time.monotonic()
        for guild in SHARES:
            where = 10 * guild
            await self._discord.use("index", "start", {"channel": where}, channel_id=where)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._check())
            tasks.create_task(self._post())
            tasks.create_task(self._sample())
            await asyncio.gather(self._watch(), self._search(rate, seconds))
            self._done.set()
        return self._seen

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _watch(self) -> None:
        """Counts what is indexed until all of it is."""
        query = "SELECT count(*) FROM sightings WHERE guild_id <> ? AND state = 'indexed'"
        while True:
            (((done,),)) = await asyncio.to_thread(self._ask, query, (str(_NEW[0]),))
            self._seen.indexed.append((self._now_s(), done))
            self._progress(
                f"{done:,} old posts indexed, {len(self._seen.searches):,} searches",
                done / self._posts,
            )
            if done >= _ALONE * self._posts:
                self._alone.set()
            if done >= self._posts:
                self._seen.done_s = self._now_s()
                return
            await asyncio.sleep(_SAMPLE_S)

    async def _check(self) -> None:
        """Ends it all when a process has ended."""
        number = 0
        while await self._until(_SAMPLE_S * number):
            number += 1
            for process in self._processes.values():
                process.check()

    def _ask(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        db = apsw.Connection(str(self._folder / "queue.db"), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            db.set_busy_timeout(5_000)
            return list(db.execute(sql, values))
        finally:
            db.close()

    async def _search(self, rate: float, seconds: float) -> None:
        """Members search at moments of their own, whether or not they are answered in time."""
        await self._alone.wait()
        start_s = self._seen.searched_from_s = self._now_s()
        late = self._folder / "lags"
        before, asked_before = len(lags(late)), self._discord.messages_asked
        dice = random.Random(self._seed)
        old: dict[int, list[dict[str, Any]]] = {guild: [] for guild in SHARES}
        for one in self._discord.messages.values():
            guild = int(one["channel_id"]) // 10
            if one["attachments"] and guild in old:
                old[guild].append(one)
        slots = asyncio.Semaphore(_MOST_SEARCHES_AT_ONCE)
        if rate > 0:
            async with asyncio.TaskGroup() as tasks:
                for number, moment in enumerate(poisson_arrivals(rate, seconds, seed=self._seed)):
                    await self._until(start_s + moment)
                    (guild,) = dice.choices([*SHARES], [*SHARES.values()])
                    ask = self._asking(
                        dice.choice(old[guild]),
                        member=1000 * guild + dice.randrange(_MEMBERS),
                        screenshot_of=number if number % 2 else None,
                    )
                    tasks.create_task(self._one(start_s + moment, guild, ask, slots))
                    if number % 50 == 0 and not math.isnan(self._seen.done_s):
                        self._progress(
                            f"all is indexed, {len(self._seen.searches):,} searches",
                            moment / seconds,
                        )
        self._seen.searched_until_s = self._now_s()
        self._seen.messages_asked = self._discord.messages_asked - asked_before
        self._seen.lags_s = lags(late)[before:]

    def _asking(
        self, message: dict[str, Any], *, member: int, screenshot_of: int | None
    ) -> "tuple[str, Callable[[], Awaitable[Answer]]]":
        """What a member does: looks an old post up, or a screenshot of it by such a seed."""
        if screenshot_of is None:
            return "post", partial(self._discord.use_message_command, message, member=member)
        data = self._discord.files[int(message["attachments"][0]["id"])]
        return "screenshot", partial(
            self._discord.use_find,
            screenshot(data, screenshot_of),
            member=member,
            channel_id=int(message["channel_id"]),
        )

    async def _one(
        self,
        moment_s: float,
        guild: int,
        asking: "tuple[str, Callable[[], Awaitable[Answer]]]",
        slots: asyncio.Semaphore,
    ) -> None:
        kind, ask = asking
        async with slots:
            try:
                answer = await ask()
            except TimeoutError:
                outcome = "failed"
            else:
                outcome = _outcome(answer)
        self._seen.searches.append(
            Search(
                moment_s=moment_s,
                took_s=self._now_s() - moment_s,
                guild=guild,
                kind=kind,
                outcome=outcome,
            )
        )

    async def _post(self) -> None:
        """New posts in another guild: are they indexed while the old ones are?"""
        number = 0
        while await self._until(_LIVE_EVERY_S * (number + 1)):
            number += 1
            message = await self._discord.post(_NEW[1], picture(10**6 + number))
            began_s = self._now_s()
            while not await self._is_indexed(message["id"]):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(_POLL_S)
            self._seen.lives.append((began_s, self._now_s() - began_s))

    async def _is_indexed(self, message_id: str) -> bool:
        query = "SELECT 1 FROM sightings WHERE message_id = ? AND state = 'indexed'"
        return bool(await asyncio.to_thread(self._ask, query, (message_id,)))

    async def _sample(self) -> None:
        ids = {name: process.pid for name, process in self._processes.items()}
        number = 0
        while await self._until(_SAMPLE_S * number):
            number += 1
            for name, pid in (ids | {"bench": os.getpid()}).items():
                sample = Sample(
                    moment_s=self._now_s(),
                    rss=rss_bytes(pid),
                    own=own_bytes(pid),
                    cpu_s=cpu_s(pid),
                )
                self._seen.processes.setdefault(name, []).append(sample)

    async def _until(self, moment: float) -> bool:
        """Waits for a moment; False if everything is over before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, moment - self._now_s())):
                await self._done.wait()
        return not self._done.is_set()


def _outcome(answer: "Answer") -> str:
    if answer.content.startswith(_BUSY):
        return "busy"
    # Early on, nothing may be indexed yet where the member can read.
    return "answered" if answer.links or answer.content.startswith("Nothing") else "failed"
