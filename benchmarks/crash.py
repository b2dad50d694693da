"""`mapseek bench crash`: is the archive exact after everything was killed, again and again?

People post, edit and delete on a loopback Discord while the bot, the embedding server and a second
writer of the archive are killed at random moments (SIGKILL) and stay away for random times. When
all are back, the archive must hold every picture that Discord still has, once, as it is now, and
nothing else.
"""

import asyncio
import hashlib
import io
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.discord import loopback, token
from benchmarks.machine import this_machine
from benchmarks.processes import BOT, SERVER, Process
from benchmarks.report import Progress, Report, Table, Target
from benchmarks.server_process import free_port
from bot.archive.embedded import EmbeddedArchive

if TYPE_CHECKING:
    from tests.bot.discord.loopback import Discord

_GUILDS = {1: (10, 11), 2: (20,)}
_THREADS = {30: 10}
_IS_SPOILER = 1 << 3
_LONGEST_ABSENCE = 12
_MOST_PICTURES = 3
_LAST_WAIT_S = 240.0

# Another program that writes to the archive, and dies in the middle of it.
_WRITER = (
    "import sys, time, apsw; db = apsw.Connection(sys.argv[1]); db.set_busy_timeout(60_000); "
    "db.execute('BEGIN IMMEDIATE; DELETE FROM picture'); time.sleep(3600)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashOptions:
    """How much is to happen.

    Attributes:
        model: The model folder that is served.
        posts: How many messages are posted.
        kills: How often something is killed.
        seed: Which things happen when.
    """

    model: Path
    posts: int
    kills: int
    seed: int


@dataclass
class Found:
    """What is wrong with the archive; nothing, if all are empty.

    Attributes:
        missing: Pictures that Discord has and the archive lacks.
        left_over: Pictures that the archive has and Discord does not.
        untrue: Pictures whose bytes or spoiler are others than in Discord.
    """

    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.left_over or self.untrue)


def bench_crash(options: CrashOptions, progress: Progress) -> Report:
    """Lets it all happen and compares."""
    began = time.monotonic()
    found, kills, happened, pictures = asyncio.run(_run(options, progress))
    rows = [
        *((f"killed: {victim}", count) for victim, count in sorted(kills.items())),
        *sorted(happened.items()),
        ("pictures in the end", pictures),
        ("missing", len(found.missing)),
        ("left over", len(found.left_over)),
        ("untrue", len(found.untrue)),
        ("seconds", round(time.monotonic() - began)),
    ]
    return Report(
        command="mapseek bench crash",
        machine=this_machine(),
        model_id=options.model.name,
        settings=asdict(options),
        tables=[Table(title="Killed at random", columns=("", "count"), rows=rows)],
        targets=[
            Target(
                name="the archive is exact in the end",
                met=found.exact,
                found="exact" if found.exact else f"{len(found.missing)} missing and more",
            )
        ],
        data={"kills": kills, "happened": happened, "pictures": pictures, "found": found},
    )


async def _run(
    options: CrashOptions, progress: Progress
) -> tuple[Found, Counter[str], Counter[str], int]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with loopback() as discord:
            for guild, channels in _GUILDS.items():
                discord.add_guild(guild)
                for channel in channels:
                    discord.add_channel(guild, channel)
            for thread, parent in _THREADS.items():
                discord.add_thread(1, thread, parent_id=parent)
            story = _Story(discord, random.Random(options.seed))
            async with _processes(options.model, folder, discord) as processes:
                kills = await _happen(options, story, processes, progress)
                progress("waiting until all is worked off", 1.0)
                found = await _settled(story, folder / "maps.db", processes)
            return found, kills, story.happened, len(story.expected())


@asynccontextmanager
async def _processes(
    model: Path, folder: Path, discord: "Discord"
) -> AsyncIterator[dict[str, Process]]:
    address = f"127.0.0.1:{free_port()}"
    archive = folder / "maps.db"
    server = {"model": str(model), "listen": address, "log_level": "warning"}
    bot = {
        "server": address,
        "archive": str(archive),
        "discord_token": token(),
        "download_origins": discord.origin,
    }
    processes = {
        "server": Process(SERVER, settings=server, folder=folder, name="server"),
        "bot": Process(BOT, [discord.api], settings=bot, folder=folder, name="bot"),
        "writer": Process(_WRITER, [str(archive)], settings={}, folder=folder, name="writer"),
    }
    try:
        processes["server"].start()
        processes["bot"].start()
        await _introduced(discord, processes["bot"])
        yield processes
    finally:
        for process in processes.values():
            process.kill()


async def _introduced(discord: "Discord", bot: Process) -> None:
    ready = asyncio.create_task(discord.introduced())
    while not (await asyncio.wait({ready}, timeout=0.2))[0]:
        bot.check()


class _Story:
    """What people do, and so what Discord has in the end."""

    def __init__(self, discord: "Discord", dice: random.Random) -> None:
        self._discord = discord
        self._dice = dice
        self._places = [*(one for many in _GUILDS.values() for one in many), *_THREADS]
        self._posts: list[dict[str, Any]] = []
        self._number = 0
        self.happened: Counter[str] = Counter()

    async def go_on(self) -> None:
        """One post, and now and then an edit or a deletion of an older one."""
        files = [self._picture() for _ in range(self._dice.randint(1, _MOST_PICTURES))]
        where = self._dice.choice(self._places)
        hidden = self._dice.random() < 0.1  # noqa: PLR2004  now and then
        self._posts.append(await self._discord.post(where, *files, spoiler=hidden))
        self.happened["posts"] += 1
        what = self._dice.choices(
            ("nothing", "delete", "delete several", "shorten", "hide"), (65, 12, 5, 8, 10)
        )[0]
        older = self._dice.choice(self._posts)
        if what == "delete":
            self._posts.remove(older)
            await self._discord.delete(older)
        elif what == "delete several":
            doomed = [one for one in self._posts if one["channel_id"] == older["channel_id"]][-3:]
            self._posts = [one for one in self._posts if one not in doomed]
            await self._discord.delete(*doomed)
        elif what == "shorten":
            shorter = older["attachments"][1:]
            await self._discord.edit(older, content="edited", attachments=shorter)
        elif what == "hide":
            for attachment in older["attachments"]:
                attachment["flags"] ^= _IS_SPOILER
            await self._discord.edit(older)
        self.happened[what] += what != "nothing"

    def expected(self) -> dict[tuple[str, str], tuple[str, bool]]:
        """What the archive must hold: content hash and spoiler by message and attachment."""
        return {
            (message["id"], attachment["id"]): (
                hashlib.sha256(self._discord.files[int(attachment["id"])]).hexdigest(),
                bool(attachment["flags"] & _IS_SPOILER),
            )
            for message in self._discord.messages.values()
            for attachment in message["attachments"]
        }

    def _picture(self) -> bytes:
        # Some are posted again, byte for byte.
        if self._number == 0 or self._dice.random() > 0.1:  # noqa: PLR2004  now and then
            self._number += 1
        colours = np.random.default_rng(self._number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST).save(file, "PNG")
        return file.getvalue()


async def _happen(
    options: CrashOptions, story: _Story, processes: dict[str, Process], progress: Progress
) -> Counter[str]:
    dice = random.Random(options.seed + 1)
    moments = Counter(dice.randrange(options.posts) for _ in range(options.kills))
    back: dict[int, list[str]] = {}
    kills: Counter[str] = Counter()
    for number in range(options.posts):
        progress(f"{number} posts, {kills.total()} kills", number / options.posts)
        await story.go_on()
        # The pace of the posts: kills meet work at all its steps.
        await asyncio.sleep(dice.uniform(0.0, 0.15))
        for victim in dice.choices(("bot", "server", "writer"), (3, 2, 1), k=moments[number]):
            if victim == "writer":
                processes[victim].start()
            else:
                processes[victim].kill()
            kills[victim] += 1
            back.setdefault(number + dice.randint(1, _LONGEST_ABSENCE), []).append(victim)
        for victim in back.pop(number, ()):
            _restore(processes[victim], victim)
    for victim in {name for names in back.values() for name in names}:
        _restore(processes[victim], victim)
    return kills


def _restore(process: Process, victim: str) -> None:
    if victim == "writer":
        process.kill()
    elif not process.alive:
        process.start()


async def _settled(story: _Story, archive: Path, processes: dict[str, Process]) -> Found:
    """Waits until the archive is exact; what is wrong with it if it never is."""
    deadline_s = time.monotonic() + _LAST_WAIT_S
    while True:
        found = await _compare(story, archive)
        if found.exact or time.monotonic() > deadline_s:
            return found
        for name in ("bot", "server"):
            processes[name].check()
        await asyncio.sleep(0.2)


async def _compare(story: _Story, file: Path) -> Found:
    async with EmbeddedArchive(file) as archive:
        entries = [entry async for entry in archive.entries()]
    there = {
        (entry.picture.key.message_id, entry.picture.key.attachment_id): (
            entry.picture.content_hash,
            entry.picture.spoiler,
        )
        for entry in entries
    }
    expected = story.expected()
    return Found(
        missing=_names(expected.keys() - there.keys()),
        left_over=_names(there.keys() - expected.keys()),
        untrue=_names(
            {key for key in expected.keys() & there.keys() if expected[key] != there[key]}
        ),
    )


def _names(keys: set[tuple[str, str]]) -> list[str]:
    return sorted("/".join(key) for key in keys)
