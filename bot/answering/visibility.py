"""Which channels a member can read now, and which of them everybody around can.

Computed from Discord's live permissions for every search, never from a stored guess. Whatever is
not known for certain is left out.
"""

import asyncio
from collections.abc import Collection, Iterable

import aiohttp
import disnake

from bot.ingest.queued import KnownThread

# Membership of a private thread costs a call to Discord each; the newest go first.
_MOST_PRIVATE_THREADS = 20
# What Discord has not said by then is left out.
_PATIENCE_S = 3.0


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
    threads = _threads(guild, known_threads)
    private = []
    for thread_id, (parent_id, is_private) in threads.items():
        if parent_id not in readable:
            continue
        if not is_private or permissions[parent_id].manage_threads:
            readable.add(thread_id)
        else:
            private.append(thread_id)
    newest = sorted(private, reverse=True)[:_MOST_PRIVATE_THREADS]
    joined = await asyncio.gather(*(_is_in(guild, thread_id, member) for thread_id in newest))
    readable |= {thread_id for thread_id, is_in in zip(newest, joined, strict=True) if is_in}
    return frozenset(map(str, readable))


def shareable_channels(
    guild: disnake.Guild,
    *,
    here: int,
    readable: Collection[str],
    known_threads: Iterable[KnownThread],
) -> frozenset[str]:
    """Those of the readable channels whose posts everybody may see who can see this one.

    That is certain of this channel itself, of the one that this thread belongs to and its public
    threads, and of channels that are open to the whole server: without a look at who is here.

    Args:
        guild: From the live cache, with its channels.
        here: The channel or thread in which something is to be shown to all.
        readable: What the member who shows it can read (see `readable_channels`).
        known_threads: See `readable_channels`.
    """
    threads = _threads(guild, known_threads)
    home, _ = threads.get(here, (here, False))

    def is_shareable(channel_id: int) -> bool:
        base, is_private = threads.get(channel_id, (channel_id, False))
        if channel_id == here or (base == home and not is_private):
            return _shows_its_past(guild.get_channel(home))
        return not is_private and _is_open(guild.get_channel(base))

    return frozenset(one for one in readable if is_shareable(int(one)))


def with_threads(
    guild: disnake.Guild, channel_id: int, known_threads: Iterable[KnownThread]
) -> list[str]:
    """The ids of a channel and of its threads, those that are live and those that were seen."""
    threads = _threads(guild, known_threads)
    own = sorted(one for one, (parent_id, _) in threads.items() if parent_id == channel_id)
    return [str(one) for one in (channel_id, *own)]


def may_write(guild: disnake.Guild, member: disnake.Member, here: int) -> bool:
    """Whether a member may post pictures into a channel or thread themselves."""
    channel = guild.get_channel_or_thread(here)
    if channel is None:
        return False
    allowed = channel.permissions_for(member)
    is_thread = isinstance(channel, disnake.Thread)
    speaks = allowed.send_messages_in_threads if is_thread else allowed.send_messages
    return allowed.view_channel and speaks and allowed.attach_files


def _threads(
    guild: disnake.Guild, known_threads: Iterable[KnownThread]
) -> dict[int, tuple[int, bool]]:
    """Thread ids to the channel that each belongs to, and whether it is private."""
    threads = {
        int(known.thread_id): (int(known.parent_id), known.private) for known in known_threads
    }
    return threads | {live.id: (live.parent_id, live.is_private()) for live in guild.threads}


def _is_open(channel: disnake.abc.GuildChannel | None) -> bool:
    """Whether everybody in the server can read a channel, whatever their roles."""
    if channel is None:
        return False
    needed = disnake.Permissions(view_channel=True, read_message_history=True)
    if _is_voice(channel):
        needed.connect = True
    everyone = channel.permissions_for(channel.guild.default_role)
    # The public `overwrites` leaves out members who are not in the cache, which is most of them.
    return everyone >= needed and not any(
        overwrite.deny & needed.value
        for overwrite in channel._overwrites  # noqa: SLF001
    )


def _shows_its_past(channel: disnake.abc.GuildChannel | None) -> bool:
    """Whether whoever sees a channel may also read what was posted in it before."""
    if channel is None:
        return False
    history = disnake.Permissions(read_message_history=True).value
    by_role = map(channel.permissions_for, channel.guild.roles)
    return all(one.read_message_history or not one.view_channel for one in by_role) and not any(
        overwrite.type == 1 and overwrite.deny & history
        for overwrite in channel._overwrites  # noqa: SLF001
    )


async def _is_in(guild: disnake.Guild, thread_id: int, member: disnake.Member) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            # Archived threads are not in the cache.
            thread = guild.get_thread(thread_id) or await guild.fetch_channel(thread_id)
            if not isinstance(thread, disnake.Thread):
                return False
            await thread.fetch_member(member.id)
    # "Not a member" is one of them; any other leaves it unknown.
    except (disnake.HTTPException, disnake.InvalidData, aiohttp.ClientError, OSError):
        return False
    return True


def _is_voice(channel: object) -> bool:
    return isinstance(channel, disnake.VoiceChannel | disnake.StageChannel)
