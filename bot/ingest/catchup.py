"""Makes up for an absence: what was posted, deleted and edited while the bot did not listen.

Discord tells nobody afterwards. So after every new session each channel is read on from the last
message that was taken in, and then, without hurry, what is known is compared with what is there.
"""

import asyncio
import logging
from collections.abc import Iterator

import disnake
from opentelemetry import trace

from bot.admin.preferences import Chosen, Preferences
from bot.ingest import access, history
from bot.ingest.forgotten import now_id
from bot.ingest.history import HistoryError, NoAccessError, NoChannelError, Place
from bot.ingest.pause import Pause
from bot.ingest.positions import Positions
from bot.ingest.queue import Queue
from bot.ingest.queued import Lane
from bot.ingest.reconcile import reconcile
from bot.ingest.worker import Ingest

_log = logging.getLogger("mapseek.bot")
_tracer = trace.get_tracer("mapseek.bot")

_FLUSH_S = 5.0
# How many guilds are caught up at once: the others wait, and Discord is not overrun.
_AT_ONCE = 4


class CatchUp:
    """Keeps the positions, and reads on where they lag behind.

    Args:
        client: Asks Discord.
        ingest: Takes in what was missed.
        queue: Knows what was seen.
        positions: Where each channel was left.
        preferences: Which channels are watched.
    """

    def __init__(
        self,
        *,
        client: disnake.Client,
        ingest: Ingest,
        queue: Queue,
        positions: Positions,
        preferences: Preferences,
    ) -> None:
        self._client = client
        self._ingest = ingest
        self._queue = queue
        self._positions = positions
        self._preferences = preferences
        self._guilds: asyncio.Queue[disnake.Guild] = asyncio.Queue()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        # Channels of which nothing is missing, and the newest message that was met in each other.
        self._current: set[int] = set()
        self._met: dict[int, int] = {}
        self._complete: set[int] = set()
        # When the bot last listened, before this session began.
        self._left_id = positions.alive_id()
        self._listening = False

    def connected(self) -> None:
        """A new session begins: whatever happened since the last one was not told."""
        self.interrupted()
        self._left_id = self._positions.alive_id()
        self._complete.clear()
        self._current.clear()
        self._met.clear()
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def interrupted(self) -> None:
        """The connection is lost; perhaps the session goes on."""
        self.flush()
        self._listening = False

    def resumed(self) -> None:
        """The session goes on, and everything was told."""
        self._listening = True

    def returned(self, guild: disnake.Guild) -> None:
        """A guild is there (again), with its channels."""
        self._listening = True
        self._guilds.put_nowait(guild)

    def left(self, guild: disnake.Guild) -> None:
        """A guild is gone, or out of order."""
        if task := self._tasks.pop(guild.id, None):
            task.cancel()
        self._complete.discard(guild.id)
        for channel in (*guild.channels, *guild.threads):
            self._current.discard(channel.id)

    def saw(self, message: disnake.Message) -> None:
        """Notes a message that was told of by the gateway."""
        channel_id, guild = message.channel.id, message.guild
        if guild is None:
            return
        if channel_id in self._current:
            self._positions.advance(str(guild.id), str(channel_id), message.id)
        elif guild.id in self._complete:
            # Made, or taken out of the archive, since: nothing of it was missed.
            self._current.add(channel_id)
            self._positions.advance(str(guild.id), str(channel_id), message.id)
        else:
            self._met[channel_id] = max(message.id, self._met.get(channel_id, 0))

    def watch_from_now(self, guild: disnake.Guild, before: Chosen) -> None:
        """Begins here and now with the channels of a guild that were not watched before.

        The others keep their positions: they may not have been caught up with yet.
        """
        places = list(_places(guild))
        kept = {
            place.channel_id
            for place, _ in places
            if before.watches(place.channel_id, place.parent_id)
        }
        self._positions.drop_guild(str(guild.id), but=kept)
        for place, last_id in places:
            if place.channel_id not in kept:
                self._store_last(place, last_id)

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._flush_now_and_then())
            while True:
                guild = await self._guilds.get()
                if before := self._tasks.pop(guild.id, None):
                    before.cancel()
                self._tasks[guild.id] = tasks.create_task(self._catch_up(guild))

    def flush(self) -> None:
        """Writes the positions down."""
        if self._listening:
            self._positions.flush(alive_id=now_id())

    async def _flush_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            self.flush()

    async def _catch_up(self, guild: disnake.Guild) -> None:
        pause = Pause(f"Catching up with guild {guild.id}")
        while True:
            try:
                async with self._slots:
                    with _tracer.start_as_current_span("mapseek.catch_up"):
                        await self._guild(guild)
                        await reconcile(self._client, self._ingest, self._queue, guild)
            except HistoryError as error:
                await pause.wait(error)
            except Exception:  # noqa: BLE001 (one guild must never stop the others)
                _log.exception("Catching up with guild %s failed.", guild.id)
                return
            else:
                return

    async def _guild(self, guild: disnake.Guild) -> None:
        known = self._positions.knows(str(guild.id))
        for place, last_id in _places(guild):
            if not known:
                self._store_last(place, last_id)
            else:
                await self._channel(guild, place, last_id)
        if known:
            await self._put_away_meanwhile(guild)
        self._complete.add(guild.id)
        self.flush()

    def _store_last(self, place: Place, last_id: int | None) -> None:
        """Begins with a channel here and now: what stands in it before is for a backfill."""
        met = self._met.pop(int(place.channel_id), 0)
        seen_id = max(last_id or int(place.channel_id), met)
        self._positions.advance(place.guild_id, place.channel_id, seen_id)
        self._current.add(int(place.channel_id))

    async def _channel(self, guild: disnake.Guild, place: Place, last_id: int | None) -> None:
        chosen = self._preferences.of(place.guild_id)
        channel = guild.get_channel_or_thread(int(place.parent_id or place.channel_id))
        if not chosen.watches(place.channel_id, place.parent_id):
            return
        if isinstance(channel, access.Readable) and access.missing_for_reading(channel):
            return
        seen_id = self._positions.seen(place.channel_id)
        if seen_id is None:
            # Made while nobody listened: all of it is new. (A forum's first post has its thread's
            # id.) Otherwise the bot was not to read there before.
            if int(place.channel_id) <= self._left_id:
                self._store_last(place, last_id)
                return
            seen_id = int(place.channel_id) - 1
        if last_id is not None and last_id > seen_id:
            try:
                seen_id = await self._read_on(guild, place, seen_id)
            except (NoAccessError, NoChannelError) as error:
                _log.info("Channel %s is left out: %s", place.channel_id, error)
                return
        self._store_last(place, seen_id)

    async def _read_on(self, guild: disnake.Guild, place: Place, seen_id: int) -> int:
        takes_bots = self._preferences.of(place.guild_id).take_bots
        while True:
            await self._ingest.room(place.guild_id)
            with self._ingest.crossing() as crossing:
                page = await history.page_after(self._client, place.channel_id, seen_id)
                wanted = [
                    message
                    for message in page
                    if int(message["author"]["id"]) != self._client.user.id
                    and (takes_bots or not history.is_by_machine(message))
                ]
                found = history.pictures_in(wanted, place, guild=guild)
                self._ingest.add(crossing.still(found), lane=Lane.BACKFILL)
            if page:
                seen_id = int(page[-1]["id"])
                self._positions.store(place.guild_id, place.channel_id, seen_id)
            if len(page) < history.PAGE:
                return seen_id

    async def _put_away_meanwhile(self, guild: disnake.Guild) -> None:
        """Reads threads that were posted in and archived while nobody listened."""
        since = disnake.utils.snowflake_time(self._left_id)
        for channel in access.readable_kinds(guild):
            if not isinstance(channel, access.Parent) or access.missing_for_reading(channel):
                continue
            async for thread in history.archived_threads(self._client, channel, since=since):
                await self._channel(guild, thread.place, thread.last_id)


def _places(guild: disnake.Guild) -> Iterator[tuple[Place, int | None]]:
    """The channels and active threads of a guild, each with its last message's id."""
    guild_id = str(guild.id)
    for channel in access.readable_kinds(guild):
        if access.holds_messages(channel):
            last_id = getattr(channel, "last_message_id", None)
            yield Place(guild_id=guild_id, channel_id=str(channel.id), name=channel.name), last_id
    for thread in guild.threads:
        yield history.place_of(thread), thread.last_message_id
