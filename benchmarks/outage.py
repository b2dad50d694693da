"""`mapseek bench outage`: the database goes away under load; is each picture there once at the end?

People post and delete on a loopback Discord, and members search, while the archive's database is
killed and stays away, while its primary steps down, and while its connections break in the middle
of bulk writes. The bot, its durable queue, the embedding server and the Atlas adapter are the real
ones; the database is SecantusDB behind the tests' proxy, which adds Vector Search.
"""

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
from pydantic import SecretStr
from pymongo import MongoClient

from benchmarks.bot_load import picture
from benchmarks.discord import loopback, token
from benchmarks.latency import Latency
from benchmarks.machine import this_machine
from benchmarks.mongo import atlas
from benchmarks.processes import BOT, SERVER, Process
from benchmarks.report import Progress, Report, Table, Target
from benchmarks.server_process import free_port
from bot.archive.atlas import managing
from bot.archive.atlas.driver import Driver
from bot.settings import BotSettings
from inference.client import ClientSettings, EmbeddingClient

if TYPE_CHECKING:
    from tests.bot.archive.atlas.proxy import AtlasProxy
    from tests.bot.archive.atlas.secantus import Secantus
    from tests.bot.discord.loopback import Discord

_GUILD, _CHANNEL = 1, 10
_DATABASE = "outage"
_DELETED = 0.1  # of the posts
_SEARCH_EVERY_S = 1.0
_BROKEN = 20  # so many commands in a row
_NOT_PRIMARY = 10107
_LAST_WAIT_S = 240.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageOptions:
    """How much is to happen.

    Attributes:
        model: The model folder that is served.
        away_s: For how long the database is gone.
        calm_s: How long each of the other parts lasts: before, failover, broken connections.
        rate: Posts a second.
        retry_s: MAPSEEK_ATLAS_RETRY_S of the bot.
        seed: Which things happen when.
    """

    model: Path
    away_s: float
    calm_s: float
    rate: float
    retry_s: float
    seed: int


@dataclass
class Part:
    """What happened in a part of the run.

    Attributes:
        name: What was wrong with the database.
        seconds: How long it lasted.
        posts: Pictures that were posted.
        backlog: Most that lay in the queue.
        recovered_s: How long it took to work all of it off; NaN where that was not waited for.
        answered_s: How long the searches took that found something.
        told_s: How long the others took, which were told plainly that nothing can be looked up.
        unanswered: Searches that nothing came of.
    """

    name: str
    seconds: float = 0.0
    posts: int = 0
    backlog: int = 0
    recovered_s: float = float("nan")
    answered_s: list[float] = field(default_factory=list)
    told_s: list[float] = field(default_factory=list)
    unanswered: int = 0


@dataclass
class Ended:
    """The database in the end, against Discord.

    Attributes:
        pictures: How many Discord has.
        missing: Those that the database lacks.
        twice: Those that it has more than once.
        left_over: Those that it has and Discord has not.
        out_of_turn: By how many places a picture was stored before or after its turn, at most.
    """

    pictures: int
    missing: list[str]
    twice: list[str]
    left_over: list[str]
    out_of_turn: int

    @property
    def exact(self) -> bool:
        """Whether every picture is there once, and nothing else."""
        return not (self.missing or self.twice or self.left_over)


def bench_outage(options: OutageOptions, progress: Progress) -> Report:
    """Lets it all happen and compares."""
    parts, ended = asyncio.run(_run(options, progress))
    rows = []
    for part in parts:
        answered, told = Latency.of(part.answered_s), Latency.of(part.told_s)
        rows.append(
            (
                *(part.name, part.seconds, part.posts, part.backlog, part.recovered_s),
                *(answered.count, answered.max_ms / 1000, told.count, told.p50_ms / 1000),
                *(told.max_ms / 1000, part.unanswered),
            )
        )
    return Report(
        command="mapseek bench outage",
        machine=this_machine(),
        model_id=options.model.name,
        settings=asdict(options),
        tables=[
            Table(
                title="The database goes away under load",
                columns=(
                    *("", "s", "posts", "most queued", "worked off s", "found", "max s"),
                    *("told", "p50 s", "max s", "unanswered"),
                ),
                rows=rows,
                notes=[
                    "In the end "  # noqa: ISC004 (one note)
                    f"{ended.pictures} pictures: {len(ended.missing)} missing, "
                    f"{len(ended.twice)} twice, {len(ended.left_over)} left over; "
                    f"at most {ended.out_of_turn} places out of turn.",
                ],
            )
        ],
        targets=[
            Target(
                name="every picture is there exactly once",
                met=ended.exact,
                found="exact" if ended.exact else f"{len(ended.missing)} missing and more",
            ),
            Target(
                name="every search is answered, plainly at least",
                met=not any(part.unanswered for part in parts),
                found=f"{sum(part.unanswered for part in parts)} were not",
            ),
        ],
        data={"parts": parts, "ended": ended},
    )


async def _run(options: OutageOptions, progress: Progress) -> tuple[list[Part], Ended]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with atlas(folder / "mongodb") as (database, proxy):
            async with loopback() as discord:
                discord.add_guild(_GUILD)
                discord.add_channel(_GUILD, _CHANNEL)
                async with _bot(options, folder, discord, proxy.uri) as bot:
                    run = _Outage(options, discord, bot, folder, progress)
                    await run.all(database, proxy)
                    return run.parts, run.ended(database.uri)


@asynccontextmanager
async def _bot(
    options: OutageOptions, folder: Path, discord: "Discord", uri: str
) -> AsyncIterator[Process]:
    """The server, an archive that is set up, and the bot; the bot's process."""
    address = f"127.0.0.1:{free_port()}"
    served = {"model": str(options.model), "listen": address, "log_level": "warning"}
    server = Process(SERVER, settings=served, folder=folder, name="server")
    settings = {
        "server": address,
        "atlas_uri": uri,
        "atlas_database": _DATABASE,
        "atlas_retry_s": str(options.retry_s),
        "queue": str(folder / "queue.db"),
        "discord_token": token(),
        "download_origins": discord.origin,
        "searches_per_member": "0",
        "log_level": "warning",
    }
    bot = Process(BOT, [discord.api], settings=settings, folder=folder, name="bot")
    try:
        server.start()
        async with EmbeddingClient(ClientSettings(server=address)) as client:
            await client.wait_ready(120)
            dimensions = (await client.model()).dimensions
        await _set_up(uri, dimensions)
        bot.start()
        ready = asyncio.create_task(discord.introduced())
        while not (await asyncio.wait({ready}, timeout=0.2))[0]:
            bot.check()
        yield bot
    finally:
        bot.kill()
        server.kill()


async def _set_up(uri: str, dimensions: int) -> None:
    settings = BotSettings.load(atlas_uri=SecretStr(uri), atlas_database=_DATABASE)
    driver = Driver(settings)
    try:
        await managing.init(driver, settings, [dimensions], tell=lambda _: None, wait_s=60)
    finally:
        await driver.close()


class _Outage:
    """One part after the other, with posts and searches in each."""

    def __init__(
        self,
        options: OutageOptions,
        discord: "Discord",
        bot: Process,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.parts: list[Part] = []
        self._options = options
        self._discord = discord
        self._bot = bot
        self._queue = folder / "queue.db"
        self._progress = progress
        self._dice = random.Random(options.seed)
        self._posts: list[dict[str, Any]] = []
        self._number = 0

    async def all(self, database: "Secantus", proxy: "AtlasProxy") -> None:
        calm_s, away_s = self._options.calm_s, self._options.away_s
        await self._part("nothing is wrong", calm_s)
        await asyncio.to_thread(database.kill)
        await self._part("the server is gone", away_s, empty=False)
        await asyncio.to_thread(database.start)
        await self._part("the server is back", calm_s)
        self._break(proxy, refusal=_stepped_down)
        await self._part("the primary steps down", calm_s)
        proxy.calm()
        self._break(proxy, drop="before")
        self._break(proxy, drop="after")
        await self._part("connections break in mid-bulk", calm_s)
        proxy.calm()

    def _break(self, proxy: "AtlasProxy", **how: Any) -> None:
        proxy.fail("update", times=_BROKEN // 2, **how)

    async def _part(self, name: str, seconds: float, *, empty: bool = True) -> None:
        """Posts and searches for so long; then waits until all of it is worked off."""
        part = Part(name=name, seconds=seconds)
        self.parts.append(part)
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._post(part, began_s + seconds))
            searching = tasks.create_task(self._search(part, tasks))
            await asyncio.sleep(max(0.0, began_s + seconds - time.monotonic()))
            searching.cancel()
        if empty:
            worked_s = time.monotonic()
            while self._waiting(part) and time.monotonic() < worked_s + _LAST_WAIT_S:
                self._progress(f"{name}: working off", self._share())
                self._bot.check()
                await asyncio.sleep(_POLL_S)
            part.recovered_s = time.monotonic() - worked_s

    async def _post(self, part: Part, until_s: float) -> None:
        due_s = time.monotonic()
        while time.monotonic() < until_s:
            self._number += 1
            self._posts.append(await self._discord.post(_CHANNEL, picture(self._number)))
            part.posts += 1
            if self._dice.random() < _DELETED:
                doomed = self._posts.pop(self._dice.randrange(len(self._posts)))
                await self._discord.delete(doomed)
            waiting = self._waiting(part)
            self._progress(f"{part.name}: {waiting} in the queue", self._share())
            self._bot.check()
            due_s += 1 / self._options.rate
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def _search(self, part: Part, tasks: asyncio.TaskGroup) -> None:
        member = 100
        while True:
            member += 1
            tasks.create_task(self._one(part, member))
            await asyncio.sleep(_SEARCH_EVERY_S)

    async def _one(self, part: Part, member: int) -> None:
        began_s = time.monotonic()
        what = picture(self._dice.randrange(max(1, self._number)) + 1)
        try:
            answer = await self._discord.use_find(what, member=member, channel_id=_CHANNEL)
        except TimeoutError:
            part.unanswered += 1
            return
        took_s = time.monotonic() - began_s
        found = answer.links or answer.content.startswith("Nothing")
        (part.answered_s if found else part.told_s).append(took_s)

    def _share(self) -> float:
        done = sum(part.seconds for part in self.parts)
        return min(1.0, done / (self._options.away_s + 4 * self._options.calm_s))

    def _waiting(self, part: Part) -> int:
        """What lies in the bot's queue."""
        db = apsw.Connection(str(self._queue), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            db.set_busy_timeout(5_000)
            waiting = "SELECT count(*) FROM sightings WHERE state <> 'indexed'"
            ((count,),) = db.execute(f"SELECT ({waiting}) + (SELECT count(*) FROM deletions)")  # noqa: S608 (constants)
        finally:
            db.close()
        part.backlog = max(part.backlog, count)
        return int(count)

    def ended(self, uri: str) -> Ended:
        """Looks into the database itself, without mapseek in between."""
        client: MongoClient[dict[str, Any]] = MongoClient(uri)
        with client:
            found = list(client[_DATABASE]["images"].find(sort=[("_id", 1)]))
        stored = Counter(one["discord_message_id"] for one in found)
        wanted = [str(one["id"]) for one in self._posts]
        order = [one for one in (doc["discord_message_id"] for doc in found) if one in set(wanted)]
        turns = {message_id: turn for turn, message_id in enumerate(sorted(order, key=int))}
        return Ended(
            pictures=len(wanted),
            missing=sorted(set(wanted) - stored.keys()),
            twice=sorted(one for one, count in stored.items() if count > 1),
            left_over=sorted(stored.keys() - set(wanted)),
            out_of_turn=max((abs(turns[one] - at) for at, one in enumerate(order)), default=0),
        )


def _stepped_down(_: Any) -> dict[str, Any]:
    """What a primary says that has become a secondary."""
    return {
        "ok": 0.0,
        "code": _NOT_PRIMARY,
        "codeName": "NotWritablePrimary",
        "errmsg": "not primary",
    }
