"""Indexes what is posted: durable queue ▶ fetch ▶ embed (bulk lane) ▶ archive.

The archive has one writer, this one, and every change is in the queue before it is in the archive.
Whatever dies in between, the next start finds the same work again; what the archive already has is
recognised by message and attachment id, and not fetched a second time. A deletion is applied after
every write that it could have crossed, and before every later one.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import NoReturn
from urllib.parse import parse_qs, urlsplit

from opentelemetry import metrics, trace

from bot.archive.port import (
    ArchiveError,
    EntriesRefusedError,
    Entry,
    ImageArchive,
    Picture,
    PictureKey,
    Selection,
)
from bot.embedder import Embedder
from bot.fetch import Fetcher, FetchError, GoneError, RefusedError
from bot.ingest.crossing import Crossing, Told
from bot.ingest.forgotten import Forgotten
from bot.ingest.pause import Pause
from bot.ingest.queue import Lane, Queue, Queued
from bot.pictures import Sighting
from inference import telemetry
from inference.client import EmbeddingClient
from inference.errors import (
    DeadlineError,
    EmbeddingError,
    InvalidInputError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
)

_log = logging.getLogger("mapseek.bot")
_tracer = trace.get_tracer("mapseek.bot")
_meter = metrics.get_meter("mapseek.bot")
_depth = _meter.create_gauge(
    "mapseek.ingest.depth", description="What lies in the durable queue, by state."
)
_pictures = _meter.create_counter(
    "mapseek.ingest.pictures", description="Pictures worked on, by outcome."
)

# The whole of the work waits for these, and no picture is blamed.
_OUTAGES = (UnavailableError, OverloadedError, DeadlineError, UnauthenticatedError, ArchiveError)

_BATCH = 16
_ATTEMPTS = 8
_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 3600.0
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
        self._embedder = Embedder(client, archive)
        self._fetcher = fetcher
        self._refresh = refresh
        self._indexed = indexed
        self._give_way = give_way
        self._clock = clock
        self._writing = asyncio.Lock()
        self._added = asyncio.Event()
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
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._index(), name="index")
            tasks.create_task(self._delete(), name="delete")

    async def _index(self) -> NoReturn:
        pause = Pause("Indexing")
        while True:
            self._added.clear()
            try:
                worked = await self._turn()
            except _OUTAGES as error:
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
        with _tracer.start_as_current_span("mapseek.ingest", attributes={"pictures": len(batch)}):
            # Asked first: while the server is away, nothing is downloaded in vain.
            model = await self._client.model()
            stored = await self._archive.seen(
                [item.sighting.key for item in batch if not item.anew], model.id
            )
            await self._forget_file_names(
                [item.sighting for item in batch if item.sighting.key in stored]
            )
            self._queue.done(item.sighting for item in batch if item.sighting.key in stored)
            todo = [item for item in batch if item.sighting.key not in stored]
            results = await asyncio.gather(
                *(self._entry(item, model.id) for item in todo), return_exceptions=True
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
            await self._give_way(_GIVEN_WAY * (time.monotonic() - began_s))
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
                    self._give_up(item, f"The archive refuses it: {reason}")
            work = [(item, entry) for item, entry in work if item.sighting.key not in refused]
            await self._forget_file_names([item.sighting for item, _ in work])
            self._queue.done(item.sighting for item, _ in work)
            _pictures.add(len(work), {"outcome": "indexed"})
        for item, _ in work:
            _log.debug("Indexed %s.", item.sighting.message_link, extra={"picture": name_of(item)})
        self._indexed([entry for item, entry in work if item.lane is Lane.LIVE and not item.anew])

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

    async def _entry(self, item: Queued, model_id: str) -> Entry | None:
        """Fetches and embeds one picture; a failure of its own is noted in the queue."""
        with (
            telemetry.correlate(name_of(item)),
            _tracer.start_as_current_span(
                "mapseek.picture",
                attributes={"mapseek.picture": name_of(item), "lane": item.lane.name.lower()},
            ),
        ):
            return await self._entry_of(item, model_id)

    async def _entry_of(self, item: Queued, model_id: str) -> Entry | None:
        key = item.sighting.key
        try:
            found = await self._fetch(item.sighting)
            if found is None:
                self._queue.drop([key])
                _pictures.add(1, {"outcome": "gone"})
                return None
            sighting, data = found
            picture = _picture(sighting, data)
            embedded = await self._embedder.embed(
                data, content_hash=picture.content_hash, model_id=model_id, lane="bulk"
            )
            return Entry(picture=picture, model_id=embedded.model_id, embedding=embedded.embedding)
        except _OUTAGES:
            raise
        except (RefusedError, InvalidInputError) as error:
            self._give_up(item, str(error))
        except (FetchError, EmbeddingError) as error:
            self._put_off(item, str(error))
        except Exception:  # noqa: BLE001 (one picture must never stop the others)
            _log.exception("Picture %s of message %s failed.", key.attachment_id, key.message_id)
            self._put_off(item, "mapseek failed on this picture; the cause is in its log.")
        return None

    async def _fetch(self, sighting: Sighting) -> tuple[Sighting, bytes] | None:
        if not link_expired(sighting.fetch_url, now_s=self._clock()):
            try:
                return sighting, await self._fetcher.fetch(sighting.fetch_url)
            except GoneError:
                pass
        fresh = await self._refresh(sighting)
        if fresh is None:
            return None
        return fresh, await self._fetcher.fetch(fresh.fetch_url)

    def _put_off(self, item: Queued, reason: str) -> None:
        if item.attempts + 1 >= _ATTEMPTS:
            self._give_up(item, reason)
            return
        wait_s = min(_FIRST_RETRY_S * 2.0**item.attempts, _LAST_RETRY_S)
        self._queue.retry(item.sighting.key, reason=reason, due_at_s=self._clock() + wait_s)
        _pictures.add(1, {"outcome": "put off"})

    def _give_up(self, item: Queued, reason: str) -> None:
        self._queue.set_aside(item.sighting.key, reason=reason)
        _pictures.add(1, {"outcome": "set aside"})
        _log.warning("Set aside a picture of %s: %s", item.sighting.message_link, reason)

    def _report(self) -> None:
        depth = self._queue.depth()
        _depth.set(depth.waiting - depth.backfill, {"state": "waiting", "lane": "live"})
        _depth.set(depth.backfill, {"state": "waiting", "lane": "backfill"})
        _depth.set(depth.set_aside, {"state": "set aside"})
        _depth.set(depth.deletions, {"state": "deletions"})


def name_of(item: Queued) -> str:
    """Names a picture in logs and traces, the same at every attempt and after every restart."""
    return f"{item.sighting.message_id}-{item.sighting.attachment_id}"


def link_expired(url: str, *, now_s: float) -> bool:
    """Whether Discord's signature on the link is past its time (`ex`, hex seconds)."""
    expires = parse_qs(urlsplit(url).query).get("ex", ["7fffffffffffffff"])[0]
    try:
        return int(expires, 16) <= now_s
    except ValueError:
        return False


def _picture(sighting: Sighting, data: bytes) -> Picture:
    return Picture(
        key=sighting.key,
        guild_id=sighting.guild_id,
        channel_id=sighting.channel_id,
        user_id=sighting.user_id,
        message_link=sighting.message_link,
        image_url=sighting.image_url,
        posted_at=datetime.fromisoformat(sighting.posted_at),
        width=sighting.width,
        height=sighting.height,
        file_size=len(data),
        content_hash=hashlib.sha256(data).hexdigest(),
        spoiler=sighting.spoiler,
        author=sighting.author,
        channel=sighting.channel,
    )
