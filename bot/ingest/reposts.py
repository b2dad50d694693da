"""Points out reposts: a quiet reply to a new post that shows the same map as an older one.

Only where an admin has turned it on. The link leads into channels alone that everybody can see who
can see the reply. A notice is written down before it is sent: after a crash there may be none, but
never two.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import aiohttp
import disnake
from disnake.utils import format_dt

from bot.admin.preferences import Preferences
from bot.answering.visibility import readable_channels, shareable_channels
from bot.archive.port import ArchiveError, Entry, ImageArchive, Match, Query, Selection
from bot.ingest.queue import Queue
from bot.ingest.worker import Ingest
from bot.links import message_link
from bot.pictures import in_channel
from inference import telemetry
from inference.client import EmbeddingClient
from inference.errors import EmbeddingError

_log = logging.getLogger("mapseek.bot")

# A notice under a post that was indexed hours late helps nobody.
_FRESH = timedelta(minutes=30)
_MOST_WAITING = 256
_CANDIDATES = 100


class Reposts:
    """Looks at every new post that was indexed, for as long as `run` runs.

    Args:
        client: Replies.
        archive: Where the older post is.
        embedder: Knows from which similarity on two pictures are the same map.
        ingest: Is told of older posts that turn out to be gone.
        queue: Knows the threads, and remembers which posts have had their notice.
        preferences: Where notices are wanted.
    """

    def __init__(
        self,
        *,
        client: disnake.Client,
        archive: ImageArchive,
        embedder: EmbeddingClient,
        queue: Queue,
        preferences: Preferences,
    ) -> None:
        self._client = client
        self._archive = archive
        self._embedder = embedder
        self._queue = queue
        self._preferences = preferences
        self._posts: asyncio.Queue[Entry] = asyncio.Queue(_MOST_WAITING)
        self._ingest: Ingest | None = None

    def tell_of_gone(self, ingest: Ingest) -> None:
        """Names whom to tell of older posts that are gone. It needs us to be made first."""
        self._ingest = ingest

    def indexed(self, entries: Sequence[Entry]) -> None:
        """Takes new posts; where too many come at once, the rest get no notice."""
        for entry in entries:
            picture = entry.picture
            chosen = self._preferences.of(picture.guild_id)
            if chosen.reposts and datetime.now(UTC) - picture.posted_at < _FRESH:
                try:
                    self._posts.put_nowait(entry)
                except asyncio.QueueFull:
                    return

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            entry = await self._posts.get()
            key = entry.picture.key
            with telemetry.correlate(f"{key.message_id}-{key.attachment_id}"):
                try:
                    await self._look_at(entry)
                except (ArchiveError, EmbeddingError, aiohttp.ClientError, OSError) as error:
                    _log.warning("Whether a post is a repost was not found out: %s", error)
                except disnake.HTTPException as error:
                    _log.info("A repost was not pointed out: %s", error)
                except Exception:  # noqa: BLE001 (one post must never stop the others)
                    _log.exception("Looking for reposts failed.")

    async def _look_at(self, entry: Entry) -> None:
        picture = entry.picture
        guild = self._client.get_guild(int(picture.guild_id))
        if guild is None:
            return
        channel = guild.get_channel_or_thread(int(picture.channel_id))
        parent_id = str(channel.parent_id) if isinstance(channel, disnake.Thread) else ""
        chosen = self._preferences.of(picture.guild_id)
        if not chosen.points_out_reposts(picture.channel_id, parent_id):
            return
        first = await self._first(entry, guild)
        if first is None or not self._queue.notice(picture.key.message_id, picture.guild_id):
            return
        where = self._client.get_partial_messageable(int(picture.channel_id))
        await where.send(
            _words(first),
            reference=disnake.MessageReference(
                message_id=int(picture.key.message_id), channel_id=int(picture.channel_id)
            ),
            mention_author=False,
            allowed_mentions=disnake.AllowedMentions.none(),
            flags=disnake.MessageFlags(suppress_notifications=True, suppress_embeds=True),
        )

    async def _first(self, entry: Entry, guild: disnake.Guild) -> Match | None:
        """The oldest post of the same map that may be shown and is still there."""
        thresholds = (await self._embedder.model()).thresholds
        if thresholds is None:
            return None
        picture = entry.picture
        here = int(picture.channel_id)
        threads = self._queue.threads(picture.guild_id)
        readable = await readable_channels(guild, guild.me, asked_in=here, known_threads=threads)
        matches = await self._archive.search(
            Query(
                embedding=entry.embedding,
                model_id=entry.model_id,
                limit=_CANDIDATES,
                guild_id=picture.guild_id,
                channel_ids=shareable_channels(
                    guild, here=here, readable=readable, known_threads=threads
                ),
                exclude_message_id=picture.key.message_id,
            )
        )
        same = [
            match
            for match in matches
            if match.score >= thresholds.same and match.picture.posted_at < picture.posted_at
        ]
        for match in sorted(same, key=lambda one: one.picture.posted_at):
            if await self._is_there(match):
                return match
        return None

    async def _is_there(self, match: Match) -> bool:
        picture = match.picture
        now = await in_channel(
            self._client,
            guild_id=picture.guild_id,
            channel_id=picture.channel_id,
            message_id=picture.key.message_id,
        )
        if now is None and self._ingest is not None:
            gone = frozenset({picture.key.message_id})
            self._ingest.delete(Selection(guild_id=picture.guild_id, message_ids=gone))
        return any(one.is_the(picture.key) for one in now or ())


def _words(first: Match) -> str:
    picture = first.picture
    link = message_link(picture.guild_id, picture.channel_id, picture.key.message_id)
    return f"This map was posted before, on {format_dt(picture.posted_at, 'D')}: {link}"
