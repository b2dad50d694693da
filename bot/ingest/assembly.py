"""Everything that fills the archive and keeps it true, built and run together."""

import asyncio
from collections.abc import Awaitable, Callable

from disnake.ext import commands

from bot.admin.config import Config, Counts
from bot.admin.index import Index
from bot.admin.preferences import Preferences
from bot.admin.privacy import Forget
from bot.admin.progress import ProgressMessages
from bot.answering.limits import Limits
from bot.archive.port import ImageArchive
from bot.fetch import Fetcher
from bot.ingest.backfill import Backfill
from bot.ingest.catchup import CatchUp
from bot.ingest.events import Watch
from bot.ingest.forgotten import Forgotten
from bot.ingest.jobs import Jobs
from bot.ingest.positions import Positions
from bot.ingest.queue import Queue
from bot.ingest.reposts import Reposts
from bot.ingest.worker import Ingest
from bot.pictures import Sighting
from inference.client import EmbeddingClient


class Indexing:
    """The parts, wired; adds their commands and listeners to the bot.

    Args:
        bot: The client of Discord.
        queue: What must survive a crash.
        archive: Where pictures go.
        client: Embeds them.
        fetcher: Downloads them.
        refresh: See `Ingest`.
        give_way: See `Ingest`.
        limits: What members and servers may ask.
        privacy_url: Where the operator's privacy page is; "" if nowhere.
    """

    def __init__(
        self,
        *,
        bot: commands.InteractionBot,
        queue: Queue,
        archive: ImageArchive,
        client: EmbeddingClient,
        fetcher: Fetcher,
        refresh: Callable[[Sighting], Awaitable[Sighting | None]],
        give_way: Callable[[float], Awaitable[None]],
        limits: Limits,
        privacy_url: str,
    ) -> None:
        preferences = Preferences(queue.db)
        positions = Positions(queue.db)
        forgotten = Forgotten(queue.db)
        jobs = Jobs(queue.db)
        self._reposts = Reposts(
            client=bot, archive=archive, embedder=client, queue=queue, preferences=preferences
        )
        self.ingest = Ingest(
            queue=queue,
            archive=archive,
            client=client,
            fetcher=fetcher,
            refresh=refresh,
            indexed=self._reposts.indexed,
            give_way=give_way,
        )
        self._reposts.tell_of_gone(self.ingest)
        self._catch_up = CatchUp(
            client=bot,
            ingest=self.ingest,
            queue=queue,
            positions=positions,
            preferences=preferences,
        )
        self._backfill = Backfill(
            client=bot,
            ingest=self.ingest,
            queue=queue,
            jobs=jobs,
            forgotten=forgotten,
            preferences=preferences,
        )
        self._progress = ProgressMessages(client=bot, backfill=self._backfill, jobs=jobs)
        cogs = (
            Watch(
                client=bot,
                ingest=self.ingest,
                queue=queue,
                positions=positions,
                preferences=preferences,
                catch_up=self._catch_up,
                backfill=self._backfill,
            ),
            Index(
                client=bot,
                backfill=self._backfill,
                progress=self._progress,
                queue=queue,
                ingest=self.ingest,
                preferences=preferences,
            ),
            Config(preferences=preferences, catch_up=self._catch_up, embedder=client),
            Counts(archive=archive, queue=queue, limits=limits),
            Forget(
                client=bot,
                ingest=self.ingest,
                queue=queue,
                forgotten=forgotten,
                preferences=preferences,
                backfill=self._backfill,
                privacy_url=privacy_url,
            ),
        )
        for cog in cogs:
            bot.add_cog(cog)

    async def run(self) -> None:
        """Works until cancelled; what has moved in memory alone is written down at the end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in (
                    self.ingest,
                    self._catch_up,
                    self._backfill,
                    self._progress,
                    self._reposts,
                ):
                    tasks.create_task(part.run())
        finally:
            self._catch_up.flush()
