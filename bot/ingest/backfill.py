"""Takes in old posts: the history of channels, page by page, one guild beside the other.

Each guild is read by one task, a page at a time, and reads on only while few of its old posts wait
in the queue. So guilds do not hold one another up, links are fresh when they are fetched, and new
posts, which the queue puts first, wait for at most the batch that is being worked on.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

import disnake
from opentelemetry import metrics, trace

from bot.admin.preferences import Preferences
from bot.archive.port import Selection
from bot.ingest import access, history
from bot.ingest.forgotten import Forgotten, now_id
from bot.ingest.history import HistoryError, NoAccessError, NoChannelError, Place
from bot.ingest.jobs import Job, Jobs, State
from bot.ingest.pause import Pause
from bot.ingest.queue import Queue
from bot.ingest.queued import Lane
from bot.ingest.worker import Ingest

_log = logging.getLogger("mapseek.bot")
_tracer = trace.get_tracer("mapseek.bot")
_meter = metrics.get_meter("mapseek.bot")
_messages = _meter.create_counter(
    "mapseek.backfill.messages", description="Old messages that were read."
)
_channels = _meter.create_gauge(
    "mapseek.backfill.channels", description="Channels of running backfills, by state."
)

# How many guilds ask Discord for a page at once.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the backfill of a guild has come.

    Attributes:
        paused: Whether an admin has stopped it.
        jobs: Its channels and threads.
        waiting: Pictures found and not yet indexed.
        set_aside: Pictures that failed, over all time.
        messages_per_s: Speed since it last began or went on; None before there is any.
        left_s: About how long it will still take; None where nobody can tell.
    """

    paused: bool
    jobs: list[Job]
    waiting: int
    set_aside: int
    messages_per_s: float | None
    left_s: float | None

    @property
    def messages(self) -> int:
        """How many messages were read."""
        return sum(job.messages for job in self.jobs)

    @property
    def pictures(self) -> int:
        """How many pictures were found."""
        return sum(job.pictures for job in self.jobs)

    @property
    def running(self) -> bool:
        """Whether there is anything left to do."""
        return self.waiting > 0 or any(job.state is State.WAITING for job in self.jobs)


@dataclass
class _Pace:
    started_s: float
    messages: int = 0


class Backfill:
    """Works the jobs off for as long as `run` runs.

    Args:
        client: Asks Discord.
        ingest: Takes in what was found.
        queue: Knows what waits.
        jobs: What is to be done.
        forgotten: Is told of channels that an admin wants to be indexed again.
        preferences: Whether the posts of bots count.
    """

    def __init__(
        self,
        *,
        client: disnake.Client,
        ingest: Ingest,
        queue: Queue,
        jobs: Jobs,
        forgotten: Forgotten,
        preferences: Preferences,
    ) -> None:
        self._client = client
        self._ingest = ingest
        self._queue = queue
        self._jobs = jobs
        self._forgotten = forgotten
        self._preferences = preferences
        self._woken = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._paces: dict[str, _Pace] = {}

    def start(self, guild_id: str, places: list[Place]) -> None:
        """Asks for the history of channels and their threads, from this moment back."""
        self._forgotten.readmit_channels((place.channel_id for place in places), guild_id=guild_id)
        self._jobs.clear_ended(guild_id)
        self._jobs.add(places, newest_id=now_id(), threads_listed=False, again=True)
        self._jobs.pause(guild_id, paused=False)
        self._paces.pop(guild_id, None)
        self.wake()

    def pause(self, guild_id: str) -> None:
        """Stops a guild's backfill after the page that is being read."""
        self._jobs.pause(guild_id, paused=True)

    def resume(self, guild_id: str) -> None:
        """Lets a guild's backfill go on."""
        self._jobs.pause(guild_id, paused=False)
        self._paces.pop(guild_id, None)
        self.wake()

    def drop(self, channel_id: str) -> None:
        """Takes a channel and its threads out."""
        self._jobs.drop(channel_id)

    def wake(self) -> None:
        """Looks for guilds that have work to do."""
        self._woken.set()

    def progress(self, guild_id: str) -> Progress:
        """How far a guild's backfill has come."""
        jobs = self._jobs.of(guild_id)
        pace = self._paces.get(guild_id)
        speed = None
        if pace and pace.messages:
            speed = pace.messages / max(time.monotonic() - pace.started_s, 0.001)
        return Progress(
            paused=self._jobs.paused(guild_id),
            jobs=jobs,
            waiting=self._queue.waiting(guild_id, Lane.BACKFILL),
            set_aside=self._queue.set_aside_count(guild_id),
            messages_per_s=speed,
            left_s=_left(jobs) / speed if speed else None,
        )

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                for guild_id in self._jobs.guilds():
                    if guild_id not in self._tasks:
                        self._tasks[guild_id] = tasks.create_task(self._guild(guild_id))
                await self._woken.wait()

    async def _guild(self, guild_id: str) -> None:
        pause = Pause(f"The backfill of guild {guild_id}")
        try:
            while (job := self._jobs.next(guild_id)) and not self._jobs.paused(guild_id):
                guild = self._client.get_guild(int(guild_id))
                if guild is None or guild.unavailable:
                    return  # it wakes us when it is back
                try:
                    await self._step(job, guild)
                except NoAccessError as error:
                    self._jobs.fail(job.place.channel_id, str(error))
                except NoChannelError:
                    self._jobs.drop(job.place.channel_id)
                    self._ingest.delete(
                        Selection(guild_id=guild_id, channel_id=job.place.channel_id)
                    )
                except HistoryError as error:
                    await pause.wait(error)
                    continue
                pause = Pause(f"The backfill of guild {guild_id}")
                self._count()
        except Exception:  # noqa: BLE001 (one guild must never stop the others)
            _log.exception("The backfill of guild %s stopped.", guild_id)
            self._jobs.pause(guild_id, paused=True)
        finally:
            # Nothing is awaited since the last look at the jobs: what comes later wakes `run`.
            del self._tasks[guild_id]

    async def _step(self, job: Job, guild: disnake.Guild) -> None:
        place = job.place
        pace = self._paces.setdefault(place.guild_id, _Pace(time.monotonic()))
        channel = guild.get_channel(int(place.channel_id))
        _check_access(guild, place)
        if not job.threads_listed:
            if isinstance(channel, access.Parent):
                await self._list_threads(job, channel)
            self._jobs.threads_listed(place.channel_id)
        if isinstance(channel, access.Readable) and not access.holds_messages(channel):
            self._jobs.finish(place.channel_id)
            return
        await self._ingest.room(place.guild_id)
        async with self._slots:
            with (
                _tracer.start_as_current_span("mapseek.backfill.page"),
                self._ingest.crossing() as crossing,
            ):
                page = await history.page_before(self._client, place.channel_id, job.before_id)
                found = history.pictures_in(self._wanted(page, place), place, guild=guild)
                self._ingest.add(crossing.still(found), lane=Lane.BACKFILL)
        _messages.add(len(page))
        pace.messages += len(page)
        if page:
            self._jobs.advance(
                place.channel_id,
                before_id=int(page[-1]["id"]),
                messages=len(page),
                pictures=len(found),
            )
        if len(page) < history.PAGE:
            self._jobs.finish(place.channel_id)

    def _wanted(self, page: list[history.Message], place: Place) -> list[history.Message]:
        takes_bots = self._preferences.of(place.guild_id).take_bots
        return [
            message
            for message in page
            if int(message["author"]["id"]) != self._client.user.id
            and (takes_bots or not history.is_by_machine(message))
        ]

    async def _list_threads(self, job: Job, channel: access.Parent) -> None:
        """Gives every thread of a channel a job; again after a crash in the middle, once in all."""
        guild_id, parent_id = job.place.guild_id, job.place.channel_id
        active = await history.active_threads(self._client, guild_id)
        self._add_threads(job, [place for place in active if place.parent_id == parent_id])
        async for thread in history.archived_threads(self._client, channel):
            self._add_threads(job, [thread.place])

    def _add_threads(self, job: Job, places: list[Place]) -> None:
        self._jobs.add(places, newest_id=job.newest_id, threads_listed=True, again=True)

    def _count(self) -> None:
        states = [job.state for guild_id in self._tasks for job in self._jobs.of(guild_id)]
        for state in State:
            _channels.set(states.count(state), {"state": state.value})


def _check_access(guild: disnake.Guild, place: Place) -> None:
    """Without Read Message History, Discord shows an empty channel instead of an error."""
    channel = guild.get_channel(int(place.parent_id or place.channel_id))
    if isinstance(channel, access.Readable) and (missing := access.missing_for_reading(channel)):
        raise NoAccessError(f"The bot lacks {' and '.join(missing)} there.")


def _left(jobs: list[Job]) -> float:
    """About how many messages are left: as many in a time as there were in the time so far."""
    begun = [job for job in jobs if job.share > 0]
    done = sum(job.messages for job in begun)
    rest = sum(job.messages * (1 / job.share - 1) for job in begun)
    if not begun:
        return 0.0
    return rest + (done + rest) / len(begun) * (len(jobs) - len(begun))
