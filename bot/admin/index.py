"""`/index`: what was posted before, and pictures that failed."""

import disnake
from disnake.ext import commands

from bot.admin import wording as admin_wording
from bot.admin.preferences import Preferences
from bot.admin.progress import ProgressMessages
from bot.admin.replies import ADMINS, Said, answer
from bot.ingest import access
from bot.ingest.access import Channel
from bot.ingest.backfill import Backfill
from bot.ingest.history import Place, place_of
from bot.ingest.queue import Queue
from bot.ingest.worker import Ingest
from bot.interactions import Command, RefusalError

_PAGE = 8

_NO_INTENT = (
    "The bot is not allowed to read messages: whoever runs it must turn on **Message Content "
    "Intent** on the Bot page of its application at https://discord.com/developers/applications."
)


class Index(commands.Cog):
    """`/index`: old posts, and pictures that failed."""

    def __init__(
        self,
        *,
        client: commands.InteractionBot,
        backfill: Backfill,
        progress: ProgressMessages,
        queue: Queue,
        ingest: Ingest,
        preferences: Preferences,
    ) -> None:
        self._client = client
        self._backfill = backfill
        self._progress = progress
        self._queue = queue
        self._ingest = ingest
        self._preferences = preferences

    @commands.slash_command(name="index", default_member_permissions=ADMINS)
    async def index(self, inter: Command) -> None:
        """Put what was posted before into the archive."""

    @index.sub_command(name="start")
    async def start(
        self,
        inter: Command,
        channel: Channel | None = commands.Param(  # noqa: B008 (disnake's way)
            default=None, description="Only this channel and its threads; else all watched ones."
        ),
    ) -> None:
        """Index what was posted so far, in one channel or on the whole server."""

        async def make(guild: disnake.Guild) -> Said:
            flags = self._client.application_flags
            if not (flags.gateway_message_content or flags.gateway_message_content_limited):
                raise RefusalError(_NO_INTENT)
            places, missing = self._places(guild, channel)
            lines = admin_wording.not_readable(missing)
            if not places:
                raise RefusalError("\n".join(lines) or "There is no watched channel to index.")
            self._backfill.start(str(guild.id), places)
            lines.insert(0, f"Indexing {_channels(len(places))}, newest posts first.")
            lines += await self._show(inter, guild)
            return Said(content="\n".join(lines))

        await answer(inter, make)

    def _places(
        self, guild: disnake.Guild, channel: Channel | None
    ) -> tuple[list[Place], dict[str, list[str]]]:
        """Where to read, and what is missing elsewhere, by channel id."""
        places, missing = [], {}
        chosen = self._preferences.of(str(guild.id))
        asked: list[access.Readable | disnake.Thread] = (
            [channel]
            if channel is not None
            else [one for one in access.readable_kinds(guild) if chosen.watches(str(one.id))]
        )
        for one in asked:
            if lack := access.missing_for_reading(one):
                missing[str(one.id)] = lack
            elif isinstance(one, disnake.Thread):
                places.append(place_of(one))
            else:
                places.append(Place(guild_id=str(guild.id), channel_id=str(one.id), name=one.name))
        return places, missing

    async def _show(self, inter: Command, guild: disnake.Guild) -> list[str]:
        """Posts the progress, and says so where that cannot be."""
        here = guild.get_channel_or_thread(inter.channel_id)
        if isinstance(here, Channel):
            lack = access.missing_for_writing(here)
            if lack:
                words = " and ".join(lack)
                return [f"The progress is in `/index status`: the bot lacks **{words}** here."]
            if isinstance(here, disnake.abc.Messageable):
                try:
                    await self._progress.show_in(str(guild.id), here)
                except disnake.HTTPException as error:
                    return [f"The progress cannot be shown here: {error.text or error}"]
        return []

    @index.sub_command(name="pause")
    async def pause(self, inter: Command) -> None:
        """Stop indexing old posts for now; new ones are still taken in."""

        async def make(guild: disnake.Guild) -> Said:
            self._backfill.pause(str(guild.id))
            return Said(content="Paused, also over restarts. `/index resume` goes on.")

        await answer(inter, make)

    @index.sub_command(name="resume")
    async def resume(self, inter: Command) -> None:
        """Go on with indexing old posts."""

        async def make(guild: disnake.Guild) -> Said:
            self._backfill.resume(str(guild.id))
            return Said(content=admin_wording.progress(self._backfill.progress(str(guild.id))))

        await answer(inter, make)

    @index.sub_command(name="status")
    async def status(self, inter: Command) -> None:
        """See how far indexing is."""

        async def make(guild: disnake.Guild) -> Said:
            return Said(content=admin_wording.progress(self._backfill.progress(str(guild.id))))

        await answer(inter, make)

    @index.sub_command(name="failed")
    async def failed(
        self,
        inter: Command,
        page: int = commands.Param(default=1, ge=1, description="Further pages: 2, 3, ..."),
    ) -> None:
        """See which pictures could not be indexed, and why."""

        async def make(guild: disnake.Guild) -> Said:
            guild_id = str(guild.id)
            entries = self._queue.set_aside_list(guild_id, limit=_PAGE, offset=(page - 1) * _PAGE)
            total = self._queue.set_aside_count(guild_id)
            return Said(content=admin_wording.set_aside(entries, total, page=page, size=_PAGE))

        await answer(inter, make)

    @index.sub_command(name="retry")
    async def retry(self, inter: Command) -> None:
        """Try again what could not be indexed."""

        async def make(guild: disnake.Guild) -> Said:
            count = self._ingest.retry_set_aside(str(guild.id))
            return Said(content=f"{count:,} pictures are tried again.")

        await answer(inter, make)


def _channels(count: int) -> str:
    return "one channel" if count == 1 else f"{count:,} channels"
