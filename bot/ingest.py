"""Indexes what is posted: durable queue ▶ fetch ▶ embed (bulk lane) ▶ archive.

The archive has one writer, this one, and every change is in the queue before it is in the archive.
Whatever dies in between, the next start finds the same work again; what the archive already has is
recognised by message and attachment id, and not fetched a second time. A deletion is applied after
every write that it could have crossed, and before every later one.
"""

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
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
from bot.fetch import Fetcher, FetchError, GoneError, RefusedError
from bot.pictures import Sighting
from bot.queue import Queue, Queued
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
_LONGEST_PAUSE_S = 60.0


class Ingest:
    """Takes what was seen and deleted, and works it off for as long as `run` runs.

    Args:
        queue: Where everything is written down first.
        archive: Where the pictures go.
        client: Embeds them.
        fetcher: Downloads them.
        refresh: Gives a picture with a fresh link by asking Discord for its message; None if it
            is no longer there. Raises `FetchError`.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._queue = queue
        self._archive = archive
        self._client = client
        self._fetcher = fetcher
        self._refresh = refresh
        self._clock = clock
        self._writing = asyncio.Lock()
        self._added = asyncio.Event()
        self._deleted = asyncio.Event()

    def add(self, sightings: Sequence[Sighting]) -> None:
        """Writes down what was seen; it is on disk when this returns."""
        if sightings:
            self._queue.add(sightings, now_s=self._clock())
            self._added.set()

    def delete(self, selection: Selection) -> None:
        """Writes a deletion down; it is on disk when this returns, and applied soon."""
        self._queue.delete(selection)
        self._deleted.set()

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._index(), name="index")
            tasks.create_task(self._delete(), name="delete")

    async def _index(self) -> NoReturn:
        pause = _Pause()
        while True:
            self._added.clear()
            try:
                worked = await self._turn()
            except _OUTAGES as error:
                await pause.wait(error)
                continue
            finally:
                self._report()
            pause = _Pause()
            if not worked:
                await self._until_due()

    async def _delete(self) -> NoReturn:
        pause = _Pause()
        while True:
            self._deleted.clear()
            try:
                async with self._writing:
                    await self._apply_deletions()
            except ArchiveError as error:
                await pause.wait(error)
                continue
            pause = _Pause()
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
        with _tracer.start_as_current_span("mapseek.ingest", attributes={"pictures": len(batch)}):
            # Asked first: while the server is away, nothing is downloaded in vain.
            model = await self._client.model()
            stored = await self._archive.seen([item.sighting.key for item in batch], model.id)
            self._queue.done(stored)
            results = await asyncio.gather(
                *(self._entry(item) for item in batch if item.sighting.key not in stored),
                return_exceptions=True,
            )
            await self._store([result for result in results if isinstance(result, Entry)])
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        return True

    async def _store(self, entries: Sequence[Entry]) -> None:
        async with self._writing:
            await self._apply_deletions()
            wanted = self._queue.still_here(entry.picture.key for entry in entries)
            if not wanted:
                return
            refused: dict[PictureKey, str] = {}
            try:
                await self._archive.upsert_many(
                    [entry for entry in entries if entry.picture.key in wanted]
                )
            except EntriesRefusedError as error:
                refused = error.by_picture
            for key, reason in refused.items():
                self._queue.set_aside(key, reason=f"The archive refuses it: {reason}")
                _pictures.add(1, {"outcome": "set aside"})
                _log.warning("Set aside %s/%s: %s", key.message_id, key.attachment_id, reason)
            self._queue.done(wanted - refused.keys())
            _pictures.add(len(wanted) - len(refused), {"outcome": "indexed"})

    async def _apply_deletions(self) -> None:
        for number, selection in self._queue.deletions():
            await self._archive.delete(selection)
            self._queue.deletion_done(number)

    async def _entry(self, item: Queued) -> Entry | None:
        """Fetches and embeds one picture; a failure of its own is noted in the queue."""
        key = item.sighting.key
        try:
            found = await self._fetch(item.sighting)
            if found is None:
                self._queue.done([key])
                _pictures.add(1, {"outcome": "gone"})
                return None
            sighting, data = found
            embedded = await self._client.embed(data, lane="bulk")
            return Entry(
                picture=_picture(sighting, data),
                model_id=embedded.model_id,
                embedding=embedded.embedding,
            )
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
        _depth.set(depth.waiting, {"state": "waiting"})
        _depth.set(depth.set_aside, {"state": "set aside"})
        _depth.set(depth.deletions, {"state": "deletions"})


class _Pause:
    """Waits longer each time, up to a minute, while something that all work needs is away."""

    def __init__(self) -> None:
        self._next_s = 1.0

    async def wait(self, reason: Exception) -> None:
        """Says why, and waits."""
        _log.warning("Indexing waits %.0f s: %s", self._next_s, reason)
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))
        self._next_s = min(self._next_s * 2, _LONGEST_PAUSE_S)


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
