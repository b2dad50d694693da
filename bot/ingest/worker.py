"""Indexes what is posted: durable queue ▶ fetch ▶ embed (bulk lane) ▶ archive.

The archive has one writer, this one, and every change is in the queue before it is in the archive.
Whatever dies in between, the next start finds the same work again; what the archive already has is
recognised by message and attachment id, and not fetched a second time. A deletion is applied after
every write that it could have crossed, and before every later one.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn

from opentelemetry import metrics, trace

from bot.archive.port import (
    ArchiveError,
    EntriesRefusedError,
    Entry,
    ImageArchive,
    PictureKey,
    Selection,
)
from bot.embedder import Embedder
from bot.fetch import Fetcher
from bot.ingest.crossing import Crossing, Told
from bot.ingest.entries import OUTAGES, Entries, name_of, pictures
from bot.ingest.forgotten import Forgotten
from bot.ingest.pause import Pause
from bot.ingest.queue import Queue
from bot.ingest.queued import Lane, Queued
from bot.pictures import Sighting
from inference.client import EmbeddingClient

_log = logging.getLogger("mapseek.bot")
_tracer = trace.get_tracer("mapseek.bot")
_depth = metrics.get_meter("mapseek.bot").create_gauge(
    "mapseek.ingest.depth", description="What lies in the durable queue, by state."
)

_BATCH = 16
# While members wait, old posts pause for so many times the length of their last batch: a quarter of
# the time stays theirs.
_GIVEN_WAY = 3.0
# How many old posts of a guild may wait: links expire, and the disk is not endless.
_MOST_BACKFILL = 256


class Ingest:
    """Takes what was seen and deleted, and works it off for as long as `run` runs.

    Args:
        queue: Where everything is written down first.
        archive: Where the pictures go.
        client: Embeds them.
        fetcher: Downloads them.
        refresh: Gives a picture with a fresh link by asking Discord for its message; None if it
            is no longer there. Raises `FetchError`.
        indexed: Is told of new posts that have just become part of the archive.
        give_way: Waits while members wait for answers, for so many seconds at most.
        clock: The time, in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        queue: Queue,
        archive: ImageArchive,
        client: EmbeddingClient,
        fetcher: Fetcher,
        refresh: Callable[[Sighting], Awaitable[Sighting | None]],
        indexed: Callable[[Sequence[Entry]], None] = lambda _: None,
        give_way: Callable[[float], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._queue = queue
        self._forgotten = Forgotten(queue.db)
        self._archive = archive
        self._client = client
        self._entries = Entries(
            queue=queue,
            embedder=Embedder(client, archive),
            fetcher=fetcher,
            refresh=refresh,
            clock=clock,
        )
        self._indexed = indexed
        self._give_way = give_way
        self._clock = clock
        self._writing = asyncio.Lock()
        self._added = asyncio.Event()
        self._posted = asyncio.Event()
        self._deleted = asyncio.Event()
        self._worked = asyncio.Event()
        self._told: set[Told] = set()

    def add(self, sightings: Sequence[Sighting], *, lane: Lane = Lane.LIVE) -> None:
        """Writes down what was seen; it is on disk when this returns.

        What somebody asked to be forgotten is left out.
        """
        wanted = [one for one in sightings if self._forgotten.allows(one)]
        if wanted:
            self._queue.add(wanted, now_s=self._clock(), lane=lane)
            self._added.set()
            if lane is Lane.LIVE:
                self._posted.set()

    def retry_set_aside(self, guild_id: str) -> int:
        """Tries again what was given up of a guild, and says how much that is."""
        count = self._queue.retry_set_aside(guild_id, now_s=self._clock())
        self._added.set()
        return count

    def delete(self, selection: Selection) -> None:
        """Writes a deletion down; it is on disk when this returns, and applied soon."""
        self._queue.delete(selection)
        self._note_deletion(selection)

    def delete_guild(self, guild_id: str) -> None:
        """Like `delete`, for a guild and everything that is known about it."""
        self._queue.forget_guild(guild_id)
        self._note_deletion(Selection(guild_id=guild_id))

    def _note_deletion(self, selection: Selection) -> None:
        for listener in self._told:
            listener.deleted(selection)
        self._deleted.set()

    def tell(self, listener: Told) -> None:
        """Tells it from now on of what the gateway tells, and of deletions."""
        self._told.add(listener)

    def touched(self, message_id: str) -> None:
        """Notes that the gateway told of a message; see `crossing`."""
        for listener in self._told:
            listener.touched(message_id)

    @contextlib.contextmanager
    def crossing(self) -> Iterator[Crossing]:
        """Notes what happens while Discord is asked about messages."""
        crossing = Crossing()
        self._told.add(crossing)
        try:
            yield crossing
        finally:
            self._told.discard(crossing)

    async def room(self, guild_id: str) -> None:
        """Waits until a guild may put more of its old posts into the queue."""
        while self._queue.waiting(guild_id, Lane.BACKFILL) >= _MOST_BACKFILL:
            self._worked.clear()
            await self._worked.wait()

    async def run(self) -> None:
        """Works until cancelled."""
        # What was copied or restored into the archive meanwhile may hold posts of theirs.
        for user_id in sorted(self._forgotten.everyone_out()):
            self.delete(Selection(user_id=user_id))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._index(), name="index")
            tasks.create_task(self._delete(), name="delete")

    async def _index(self) -> NoReturn:
        pause = Pause("Indexing")
        while True:
            self._added.clear()
            try:
                worked = await self._turn()
            except OUTAGES as error:
                await pause.wait(error)
                continue
            finally:
                self._worked.set()
                self._report()
            pause = Pause("Indexing")
            if not worked:
                await self._until_due()

    async def _delete(self) -> NoReturn:
        pause = Pause("Indexing")
        while True:
            self._deleted.clear()
            try:
                async with self._writing:
                    await self._apply_deletions()
            except ArchiveError as error:
                await pause.wait(error)
                continue
            pause = Pause("Indexing")
            await self._deleted.wait()

    async def _until_due(self) -> None:
        due_at_s = self._queue.next_due_at_s()
        wait_s = None if due_at_s is None else max(0.0, due_at_s - self._clock())
        try:
            async with asyncio.timeout(wait_s):
                await self._added.wait()
        except TimeoutError:
            pass

    async def _turn(self) -> bool:
        """Works off one batch; False if nothing is due."""
        batch = self._queue.due(now_s=self._clock(), limit=_BATCH)
        if not batch:
            return False
        began_s = time.monotonic()
        self._posted.clear()
        with _tracer.start_as_current_span("mapseek.ingest", attributes={"pictures": len(batch)}):
            # Asked first: while the server is away, nothing is downloaded in vain.
            model = await self._client.model()
            # What is there and about to be deleted is not stored; nor is what is deleted meanwhile,
            # and may be back in the queue by now: it waits for the next turn.
            with self.crossing() as crossing:
                async with self._writing:
                    await self._apply_deletions()
                stored = await self._archive.seen(
                    [item.sighting.key for item in batch if not item.anew], model.id
                )
                there = [item.sighting for item in batch if item.sighting.key in stored]
                await self._forget_file_names(there)
                self._queue.done(crossing.still(there))
            todo = [item for item in batch if item.sighting.key not in stored]
            results = await asyncio.gather(
                *(self._entries.of(item, model.id) for item in todo), return_exceptions=True
            )
            await self._store(
                [
                    (item, result)
                    for item, result in zip(todo, results, strict=True)
                    if isinstance(result, Entry)
                ]
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        if self._give_way and all(item.lane is Lane.BACKFILL for item in batch):
            giving = asyncio.ensure_future(
                self._give_way(_GIVEN_WAY * (time.monotonic() - began_s))
            )
            posted = asyncio.ensure_future(self._posted.wait())
            await _first_of(giving, posted)
        return True

    async def _store(self, work: Sequence[tuple[Queued, Entry]]) -> None:
        async with self._writing:
            await self._apply_deletions()
            wanted = self._queue.still_here(item.sighting.key for item, _ in work)
            work = [(item, entry) for item, entry in work if item.sighting.key in wanted]
            if not work:
                return
            refused: dict[PictureKey, str] = {}
            try:
                await self._archive.upsert_many([entry for _, entry in work])
            except EntriesRefusedError as error:
                refused = error.by_picture
            for item, _ in work:
                if item.sighting.key in refused:
                    reason = refused[item.sighting.key]
                    self._entries.give_up(item, f"The archive refuses it: {reason}")
            work = [(item, entry) for item, entry in work if item.sighting.key not in refused]
            await self._forget_file_names([item.sighting for item, _ in work])
            self._queue.done(item.sighting for item, _ in work)
            pictures.add(len(work), {"outcome": "indexed"})
        for item, _ in work:
            _log.debug("Indexed %s.", item.sighting.message_link, extra={"picture": name_of(item)})
        self._indexed([entry for item, entry in work if item.lane is Lane.LIVE])

    async def _forget_file_names(self, stored: Sequence[Sighting]) -> None:
        """Deletes what an import knew by the name of its file and is now there by its own id."""
        names = {key for one in stored for key in one.file_keys}
        for key in await self._archive.seen(names, None) if names else ():
            await self._archive.delete(
                Selection(
                    message_ids=frozenset({key.message_id}),
                    attachment_ids=frozenset({key.attachment_id}),
                )
            )

    async def _apply_deletions(self) -> None:
        for number, selection in self._queue.deletions():
            await self._archive.delete(selection)
            self._queue.deletion_done(number)

    def _report(self) -> None:
        depth = self._queue.depth()
        _depth.set(depth.waiting - depth.backfill, {"state": "waiting", "lane": "live"})
        _depth.set(depth.backfill, {"state": "waiting", "lane": "backfill"})
        _depth.set(depth.set_aside, {"state": "set aside"})
        _depth.set(depth.deletions, {"state": "deletions"})


async def _first_of(*tasks: asyncio.Future[Any]) -> None:
    """Waits for one of the tasks, and ends the others."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
