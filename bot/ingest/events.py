"""What happens on Discord, written down for indexing."""

import logging

import disnake
from disnake.ext import commands

from bot.admin.preferences import Preferences
from bot.answering.visibility import with_threads
from bot.archive.port import Selection
from bot.ingest.backfill import Backfill
from bot.ingest.catchup import CatchUp
from bot.ingest.history import is_by_machine
from bot.ingest.positions import Positions
from bot.ingest.queue import Queue
from bot.ingest.worker import Ingest
from bot.pictures import in_message, in_payload

_log = logging.getLogger("mapseek.bot")


class Watch(commands.Cog):
    """Passes on posts, edits and deletions.

    Raw events throughout: the cache forgets messages, the archive does not. No handler waits for
    anything before it has written down what it was told, so the order of events is kept.
    """

    def __init__(
        self,
        *,
        client: disnake.Client,
        ingest: Ingest,
        queue: Queue,
        positions: Positions,
        preferences: Preferences,
        catch_up: CatchUp,
        backfill: Backfill,
    ) -> None:
        self._client = client
        self._ingest = ingest
        self._queue = queue
        self._positions = positions
        self._preferences = preferences
        self._catch_up = catch_up
        self._backfill = backfill

    @commands.Cog.listener()
    async def on_message(self, message: disnake.Message) -> None:
        """Takes in a new post."""
        if message.guild is None:
            return
        self._ingest.touched(str(message.id))
        machine = message.author.bot or message.webhook_id is not None
        if self._wanted(message.channel, message.guild, message.author.id, machine=machine):
            self._ingest.add(in_message(message, guild=message.guild))
        self._catch_up.saw(message)

    @commands.Cog.listener()
    async def on_raw_message_edit(self, payload: disnake.RawMessageUpdateEvent) -> None:
        """Takes in what an edit added (links are unfurled late), and drops what it removed."""
        guild = self._client.get_guild(payload.guild_id or 0)
        # An edit without these is no full message and says nothing about its pictures.
        complete = {"author", "timestamp", "attachments", "embeds"} <= payload.data.keys()
        if (
            guild is None
            or not complete
            or int(payload.data["author"]["id"]) == self._client.user.id
        ):
            return
        message_id = str(payload.message_id)
        self._ingest.touched(message_id)
        now = in_payload(payload.data, guild=guild)
        known = self._queue.pictures_of(message_id)
        before = set(known)
        if payload.cached_message is not None:  # of an import, the queue knows nothing
            cached = in_message(payload.cached_message, guild=guild)
            before |= {one.attachment_id for one in cached}
        removed = before - {one.attachment_id for one in now}
        if removed:
            self._ingest.delete(
                Selection(message_ids=frozenset({message_id}), attachment_ids=frozenset(removed))
            )
        channel = guild.get_channel_or_thread(payload.channel_id)
        author_id = int(payload.data["author"]["id"])
        machine = is_by_machine(payload.data)
        # What is indexed, say by a backfill, is kept true whether its channel is watched or not.
        if known or self._wanted(channel, guild, author_id, machine=machine):
            self._ingest.add(now)

    def _wanted(
        self, channel: object, guild: disnake.Guild, author_id: int, *, machine: bool
    ) -> bool:
        chosen = self._preferences.of(str(guild.id))
        if author_id == self._client.user.id or (machine and not chosen.take_bots):
            return False
        parent_id = str(channel.parent_id) if isinstance(channel, disnake.Thread) else ""
        return chosen.watches(str(getattr(channel, "id", "")), parent_id)

    @commands.Cog.listener()
    async def on_raw_message_delete(self, payload: disnake.RawMessageDeleteEvent) -> None:
        """Forgets a deleted post."""
        self._ingest.delete(Selection(message_ids=frozenset({str(payload.message_id)})))

    @commands.Cog.listener()
    async def on_raw_bulk_message_delete(self, payload: disnake.RawBulkMessageDeleteEvent) -> None:
        """Forgets posts that were deleted together."""
        self._ingest.delete(Selection(message_ids=frozenset(map(str, payload.message_ids))))

    @commands.Cog.listener()
    async def on_guild_channel_delete(self, channel: disnake.abc.GuildChannel) -> None:
        """Forgets a channel and its threads, for which Discord sends no events of their own."""
        guild_id = str(channel.guild.id)
        for channel_id in with_threads(channel.guild, channel.id, self._queue.threads(guild_id)):
            self._forget_channel(guild_id, channel_id)

    @commands.Cog.listener()
    async def on_raw_thread_delete(self, payload: disnake.RawThreadDeleteEvent) -> None:
        """Forgets a thread."""
        self._forget_channel(str(payload.guild_id), str(payload.thread_id))

    def _forget_channel(self, guild_id: str, channel_id: str) -> None:
        self._ingest.delete(Selection(guild_id=guild_id, channel_id=channel_id))
        self._positions.drop(channel_id)
        self._backfill.drop(channel_id)

    @commands.Cog.listener()
    async def on_guild_remove(self, guild: disnake.Guild) -> None:
        """Forgets a guild that the bot was removed from.

        An outage of Discord's is another event (`on_guild_unavailable`) and deletes nothing.
        """
        self._catch_up.left(guild)
        self._forget_guild(str(guild.id))

    def _forget_guild(self, guild_id: str) -> None:
        self._positions.drop_guild(guild_id)
        self._preferences.drop_guild(guild_id)
        self._ingest.delete_guild(guild_id)

    @commands.Cog.listener()
    async def on_connect(self) -> None:
        """A new session began: Discord tells nothing of what was before."""
        self._catch_up.connected()

    @commands.Cog.listener()
    async def on_disconnect(self) -> None:
        """The connection was lost."""
        self._catch_up.interrupted()

    @commands.Cog.listener()
    async def on_resumed(self) -> None:
        """The session goes on, and Discord has told what was missed."""
        self._catch_up.resumed()

    @commands.Cog.listener()
    async def on_guild_available(self, guild: disnake.Guild) -> None:
        """A guild is there, after a start or after an outage."""
        self._catch_up.returned(guild)
        self._backfill.wake()

    @commands.Cog.listener()
    async def on_guild_join(self, guild: disnake.Guild) -> None:
        """The bot was added to a guild."""
        self._catch_up.returned(guild)

    @commands.Cog.listener()
    async def on_guild_unavailable(self, guild: disnake.Guild) -> None:
        """An outage: nothing is told of this guild until it is over."""
        self._catch_up.left(guild)

    @commands.Cog.listener()
    async def on_ready(self) -> None:
        """Forgets the guilds that the bot was removed from while it was away."""
        if not self._positions.same_application(self._client.application_id):
            _log.warning(
                "This is another Discord application than at the last start. What it indexed in "
                "guilds that this one is not in is kept."
            )
            return
        there = {str(guild.id) for guild in self._client.guilds}
        for guild_id in self._positions.guilds() - there:
            _log.warning("The bot was removed from guild %s: it is forgotten.", guild_id)
            self._forget_guild(guild_id)
