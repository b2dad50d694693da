"""Everything that fills the archive and keeps it true, built and run together."""

import asyncio
from collections.abc import Awaitable, Callable

from disnake.ext import commands

from bot.archive.port import ImageArchive
from bot.backfill import Backfill
from bot.catchup import CatchUp
from bot.config_command import Config, Counts
from bot.events import Watch
from bot.fetch import Fetcher
from bot.forgotten import Forgotten
from bot.index_command import Index
from bot.ingest import Ingest
from bot.jobs import Jobs
from bot.pictures import Sighting
from bot.positions import Positions
from bot.preferences import Preferences
from bot.privacy_command import Forget
from bot.progress import ProgressMessages
from bot.queue import Queue
from bot.reposts import Reposts
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
            Counts(archive=archive, queue=queue),
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
