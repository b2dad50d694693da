"""Compares what is known of a guild with what is there now.

It walks back over those stretches of history in which pictures are known, and takes as long to
think as Discord took to answer, so that it never crowds out anything else.
"""

import asyncio
import logging
import time
from collections import deque

import disnake

from bot.archive.port import Selection
from bot.ingest import access, history
from bot.ingest.history import NoAccessError, NoChannelError, Place
from bot.ingest.queue import Queue
from bot.ingest.queued import Lane
from bot.ingest.worker import Ingest

_log = logging.getLogger("mapseek.bot")

_PARTS = ("content", "attachments", "embeds", "components", "message_snapshots", "sticker_items")


async def reconcile(
    client: disnake.Client, ingest: Ingest, queue: Queue, guild: disnake.Guild
) -> None:
    """Deletes what is gone and takes in what was changed, channel after channel.

    Raises:
        HistoryError: Discord does not tell.
    """
    threads = {thread.thread_id: thread for thread in queue.threads(str(guild.id))}
    for channel_id in queue.channels_of(str(guild.id)):
        thread = threads.get(channel_id)
        place = Place(
            guild_id=str(guild.id),
            channel_id=channel_id,
            name="",
            parent_id=thread.parent_id if thread else "",
            private=bool(thread and thread.private),
        )
        try:
            await _channel(client, ingest, queue, guild, place)
        except NoAccessError as error:
            _log.info("Channel %s is not compared: %s", channel_id, error)
        except NoChannelError:
            ingest.delete(Selection(guild_id=str(guild.id), channel_id=channel_id))


async def _channel(
    client: disnake.Client, ingest: Ingest, queue: Queue, guild: disnake.Guild, place: Place
) -> None:
    known = queue.known_in(place.channel_id)
    left = deque(sorted(known, reverse=True))
    while left and _may_read(guild, place):
        started_s = time.monotonic()
        with ingest.crossing() as crossing:
            page = await history.page_before(client, place.channel_id, left[0] + 1)
            there = {int(message["id"]): message for message in page}
            floor = min(there) if len(page) == history.PAGE else 0
            compared = []
            while left and left[0] >= floor:
                compared.append(left.popleft())
            missing = [one for one in compared if one not in there]
            # Without a permission or the intent, Discord tells of less than there is.
            if missing and not await history.exists(client, place.channel_id, str(missing[0])):
                ingest.delete(Selection(message_ids=frozenset(map(str, missing))))
            for message_id in compared:
                if message_id in there and not crossing.is_newer(str(message_id)):
                    _message(ingest, known[message_id], there[message_id], place, guild)
        await asyncio.sleep(time.monotonic() - started_s)


def _message(
    ingest: Ingest,
    known: dict[str, bool],
    message: history.Message,
    place: Place,
    guild: disnake.Guild,
) -> None:
    """Brings one message up to date that an edit may have changed."""
    if not any(message.get(part) for part in _PARTS):
        return  # a message is never empty: its content is kept from the bot
    now = {one.attachment_id: one for one in history.pictures_in([message], place, guild=guild)}
    removed = known.keys() - now.keys()
    if removed:
        selection = Selection(
            message_ids=frozenset({str(message["id"])}), attachment_ids=frozenset(removed)
        )
        ingest.delete(selection)
    ingest.add(
        [one for id_, one in now.items() if known.get(id_) != one.spoiler], lane=Lane.BACKFILL
    )


def _may_read(guild: disnake.Guild, place: Place) -> bool:
    channel = guild.get_channel(int(place.parent_id or place.channel_id))
    return not isinstance(channel, access.Readable) or not access.missing_for_reading(channel)
