"""`/config` and `/stats`: what is watched, where reposts are pointed out, what can be found."""

from collections.abc import Awaitable, Callable

import disnake
from disnake.ext import commands

from bot.admin import wording as admin_wording
from bot.admin.preferences import Preferences
from bot.admin.replies import ADMINS, Said, answer
from bot.answering.limits import Limits
from bot.answering.visibility import readable_channels
from bot.archive.port import ImageArchive
from bot.ingest import access
from bot.ingest.access import Channel
from bot.ingest.catchup import CatchUp
from bot.ingest.queue import Queue
from bot.interactions import Command, RefusalError
from inference.client import EmbeddingClient

_MOST_CHANNELS = 10

Choice = Callable[[disnake.Guild], Awaitable[str | None]]


class Config(commands.Cog):
    """`/config`: what is watched, and where reposts are pointed out."""

    def __init__(
        self, *, preferences: Preferences, catch_up: CatchUp, embedder: EmbeddingClient
    ) -> None:
        self._preferences = preferences
        self._catch_up = catch_up
        self._embedder = embedder

    @commands.slash_command(name="config", default_member_permissions=ADMINS)
    async def config(self, inter: Command) -> None:
        """Choose which channels are watched and where reposts are pointed out."""

    async def _choose(self, inter: Command, choose: Choice) -> None:
        """Takes a choice, which may say something, and shows all that is chosen now."""

        async def make(guild: disnake.Guild) -> Said:
            said = await choose(guild) or ""
            return Said(content=said + admin_wording.chosen(self._preferences.of(str(guild.id))))

        await answer(inter, make)

    @config.sub_command(name="show")
    async def show(self, inter: Command) -> None:
        """See what was chosen."""

        async def choose(_: disnake.Guild) -> None:
            return

        await self._choose(inter, choose)

    @config.sub_command(name="watch")
    async def watch(
        self,
        inter: Command,
        channel: Channel = commands.Param(description="A channel, with its threads."),  # noqa: B008 (disnake's way)
        on: bool = commands.Param(description="Whether its new pictures are indexed."),  # noqa: FBT001
    ) -> None:
        """Watch a channel for new pictures, or no longer."""

        async def choose(guild: disnake.Guild) -> str:
            if on:
                _check(channel, access.missing_for_reading(channel))
            before = self._preferences.of(str(guild.id))
            self._preferences.watch(str(guild.id), str(channel.id), on=on)
            self._catch_up.watch_from_now(guild, before)
            return "" if on else "What is indexed stays: `/forget channel` removes it.\n"

        await self._choose(inter, choose)

    @config.sub_command(name="everywhere")
    async def everywhere(
        self,
        inter: Command,
        on: bool = commands.Param(description="Whether channels are watched without being named."),  # noqa: FBT001
    ) -> None:
        """Watch every channel that the bot can read, or only those named by /config watch."""

        async def choose(guild: disnake.Guild) -> None:
            before = self._preferences.of(str(guild.id))
            self._preferences.watch_all(str(guild.id), on=on)
            self._catch_up.watch_from_now(guild, before)

        await self._choose(inter, choose)

    @config.sub_command(name="bots")
    async def bots(
        self,
        inter: Command,
        on: bool = commands.Param(description="Whether their pictures are indexed."),  # noqa: FBT001
    ) -> None:
        """Index the posts of other bots and of webhooks, or leave them out."""

        async def choose(guild: disnake.Guild) -> None:
            self._preferences.take_bots(str(guild.id), on=on)

        await self._choose(inter, choose)

    @config.sub_command(name="reposts")
    async def reposts(
        self,
        inter: Command,
        channel: Channel = commands.Param(description="A channel, with its threads."),  # noqa: B008 (disnake's way)
        on: bool = commands.Param(description="Whether reposts there get a quiet reply."),  # noqa: FBT001
    ) -> None:
        """Reply to a map that was posted before with a link to the first post, or no longer."""

        async def choose(guild: disnake.Guild) -> None:
            if on:
                _check(channel, access.missing_for_writing(channel))
                model = await self._embedder.model()
                if model.thresholds is None:
                    raise RefusalError(
                        "This cannot be turned on: for the model that is served "
                        f"({model.name}), nobody has measured from which similarity on two "
                        "pictures show the same map."
                    )
            self._preferences.point_out_reposts(str(guild.id), str(channel.id), on=on)

        await self._choose(inter, choose)


def _check(channel: Channel, lack: list[str]) -> None:
    """Refuses a choice for which the bot lacks permissions, and names them."""
    if lack:
        raise RefusalError(admin_wording.not_readable({str(channel.id): lack})[0])


class Counts(commands.Cog):
    """`/stats`: what the archive holds of this server. It counts as a search: it costs more."""

    def __init__(self, *, archive: ImageArchive, queue: Queue, limits: Limits) -> None:
        self._archive = archive
        self._queue = queue
        self._limits = limits

    @commands.slash_command(name="stats")
    async def stats(self, inter: Command) -> None:
        """See how many pictures can be found, by channel."""

        async def make(guild: disnake.Guild) -> Said:
            guild_id = str(guild.id)
            assert isinstance(inter.author, disnake.Member), "commands are used in guilds only"  # noqa: S101
            self._limits.enter(member_id=inter.author.id, guild_id=guild.id)
            readable = await readable_channels(
                guild,
                inter.author,
                asked_in=inter.channel_id,
                known_threads=self._queue.threads(guild_id),
            )
            counted = await self._archive.stats()
            # Not even the number of pictures of a channel is told to those who cannot read it.
            counts = {
                channel_id: count
                for (guild_of, channel_id), count in counted.by_channel.items()
                if guild_of == guild_id and channel_id in readable
            }
            return Said(content=admin_wording.counts(counts, most=_MOST_CHANNELS))

        await answer(inter, make)
