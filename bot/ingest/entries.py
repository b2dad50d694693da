"""Makes the archive's entries of what lies in the queue: fetches each picture and embeds it.

A picture that fails is put off and tried again, and set aside where that does not help; an outage
is no picture's fault and is raised.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

from opentelemetry import metrics, trace

from bot.archive.port import ArchiveError, Entry, Picture
from bot.embedder import Embedder
from bot.fetch import Fetcher, FetchError, GoneError, RefusedError
from bot.ingest.queue import Queue
from bot.ingest.queued import Queued
from bot.pictures import Sighting
from inference import telemetry
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
pictures = metrics.get_meter("mapseek.bot").create_counter(
    "mapseek.ingest.pictures", description="Pictures worked on, by outcome."
)

# The whole of the work waits for these, and no picture is blamed.
OUTAGES = (UnavailableError, OverloadedError, DeadlineError, UnauthenticatedError, ArchiveError)

_ATTEMPTS = 8
_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 3600.0


class Entries:
    """Makes entries, one at a time or many at once.

    Args:
        queue: Where failures are noted.
        embedder: Embeds the pictures.
        fetcher: Downloads them.
        refresh: See `Ingest`.
        clock: The time, in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        queue: Queue,
        embedder: Embedder,
        fetcher: Fetcher,
        refresh: Callable[[Sighting], Awaitable[Sighting | None]],
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._embedder = embedder
        self._fetcher = fetcher
        self._refresh = refresh
        self._clock = clock

    async def of(self, item: Queued, model_id: str) -> Entry | None:
        """Fetches and embeds one picture; None where that failed, which is noted in the queue.

        Args:
            item: What was seen.
            model_id: The model whose vectors the archive is asked for first.

        Raises:
            EmbeddingError: The server is away or full (one of `OUTAGES`).
            ArchiveError: The archive does not answer.
        """
        with (
            telemetry.correlate(name_of(item)),
            _tracer.start_as_current_span(
                "mapseek.picture",
                attributes={"mapseek.picture": name_of(item), "lane": item.lane.name.lower()},
            ),
        ):
            return await self._made(item, model_id)

    def give_up(self, item: Queued, reason: str) -> None:
        """Sets a picture aside, with the reason."""
        self._queue.set_aside(item.sighting.key, reason=reason)
        pictures.add(1, {"outcome": "set aside"})
        _log.warning("Set aside a picture of %s: %s", item.sighting.message_link, reason)

    async def _made(self, item: Queued, model_id: str) -> Entry | None:
        key = item.sighting.key
        try:
            found = await self._fetch(item.sighting)
            if found is None:
                self._queue.drop([key])
                pictures.add(1, {"outcome": "gone"})
                return None
            sighting, data = found
            picture = _picture(sighting, data)
            embedded = await self._embedder.embed(
                data, content_hash=picture.content_hash, model_id=model_id, lane="bulk"
            )
            return Entry(picture=picture, model_id=embedded.model_id, embedding=embedded.embedding)
        except OUTAGES:
            raise
        except (RefusedError, InvalidInputError) as error:
            self.give_up(item, str(error))
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
            self.give_up(item, reason)
            return
        wait_s = min(_FIRST_RETRY_S * 2.0**item.attempts, _LAST_RETRY_S)
        self._queue.retry(item.sighting.key, reason=reason, due_at_s=self._clock() + wait_s)
        pictures.add(1, {"outcome": "put off"})


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
