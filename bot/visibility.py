"""Which channels a member can read now.

Computed from Discord's live permissions for every search, never from a stored guess. Whatever is
not known for certain is left out.
"""

import asyncio
from collections.abc import Iterable

import disnake

from bot.queue import KnownThread

# Membership of a private thread costs one call to Discord each; the newest go first.
_MOST_PRIVATE_THREADS = 20


async def readable_channels(
    guild: disnake.Guild,
    member: disnake.Member,
    *,
    asked_in: int,
    known_threads: Iterable[KnownThread],
) -> frozenset[str]:
    """The ids of the channels and threads of a guild whose posts may be shown to a member.

    Args:
        guild: From the live cache, with its channels.
        member: Who asks, with the roles that came with the request.
        asked_in: The channel of the request: posts of age-restricted channels are shown in
            age-restricted ones only.
        known_threads: Threads by the bot's own records; archived ones are not in the cache.
    """
    here = guild.get_channel_or_thread(asked_in)
    adult = here is not None and not isinstance(here, disnake.CategoryChannel) and here.is_nsfw()
    permissions = {
        channel.id: channel.permissions_for(member)
        for channel in guild.channels
        if adult or not channel.is_nsfw()
    }
    readable = {
        channel_id
        for channel_id, allowed in permissions.items()
        if allowed.view_channel
        and allowed.read_message_history
        and (allowed.connect or not _is_voice(guild.get_channel(channel_id)))
    }
    threads = {
        int(known.thread_id): (int(known.parent_id), known.private) for known in known_threads
    }
    threads |= {live.id: (live.parent_id, live.is_private()) for live in guild.threads}
    private = []
    for thread_id, (parent_id, is_private) in threads.items():
        if parent_id not in readable:
            continue
        if not is_private or permissions[parent_id].manage_threads:
            readable.add(thread_id)
        else:
            private.append(thread_id)
    newest = sorted(private, reverse=True)[:_MOST_PRIVATE_THREADS]
    joined = await asyncio.gather(*(_is_member(guild.get_thread(id_), member) for id_ in newest))
    readable |= {thread_id for thread_id, is_in in zip(newest, joined, strict=True) if is_in}
    return frozenset(map(str, readable))


async def _is_member(thread: disnake.Thread | None, member: disnake.Member) -> bool:
    if thread is None:
        return False
    try:
        await thread.fetch_member(member.id)
    except disnake.HTTPException:  # "not a member" is one; any other leaves it unknown
        return False
    return True


def _is_voice(channel: object) -> bool:
    return isinstance(channel, disnake.VoiceChannel | disnake.StageChannel)
