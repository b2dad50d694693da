"""What happens on Discord, written down for indexing."""

import disnake
from disnake.ext import commands

from bot.archive.port import Selection
from bot.ingest import Ingest
from bot.pictures import in_message, in_payload
from bot.queue import Queue


class Watch(commands.Cog):
    """Passes on posts, edits and deletions.

    Raw events throughout: the cache forgets messages, the archive does not. No handler waits for
    anything before it has written down what it was told, so the order of events is kept.
    """

    def __init__(self, client: disnake.Client, ingest: Ingest, queue: Queue) -> None:
        self._client = client
        self._ingest = ingest
        self._queue = queue

    @commands.Cog.listener()
    async def on_message(self, message: disnake.Message) -> None:
        """Takes in a new post."""
        if message.guild is not None and message.author.id != self._client.user.id:
            self._ingest.add(in_message(message, guild=message.guild))

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
        now = in_payload(payload.data, guild=guild)
        if payload.cached_message is not None:
            before = in_message(payload.cached_message, guild=guild)
            removed = {one.attachment_id for one in before} - {one.attachment_id for one in now}
            if removed:
                self._ingest.delete(
                    Selection(
                        message_ids=frozenset({str(payload.message_id)}),
                        attachment_ids=frozenset(removed),
                    )
                )
        self._ingest.add(now)

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
        live = {
            str(thread.id) for thread in channel.guild.threads if thread.parent_id == channel.id
        }
        known = {
            thread.thread_id
            for thread in self._queue.threads(guild_id)
            if thread.parent_id == str(channel.id)
        }
        for channel_id in (str(channel.id), *sorted(live | known)):
            self._ingest.delete(Selection(guild_id=guild_id, channel_id=channel_id))

    @commands.Cog.listener()
    async def on_raw_thread_delete(self, payload: disnake.RawThreadDeleteEvent) -> None:
        """Forgets a thread."""
        self._ingest.delete(
            Selection(guild_id=str(payload.guild_id), channel_id=str(payload.thread_id))
        )

    @commands.Cog.listener()
    async def on_guild_remove(self, guild: disnake.Guild) -> None:
        """Forgets a guild that the bot was removed from.

        An outage of Discord's is another event (`on_guild_unavailable`) and deletes nothing.
        """
        self._ingest.delete(Selection(guild_id=str(guild.id)))
