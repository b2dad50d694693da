"""What the bot itself may do where, by Discord's live permissions."""

from collections.abc import Iterator

import disnake

# Whatever Discord calls it in its settings, by the name that the library has for it.
READING = {"view_channel": "View Channel", "read_message_history": "Read Message History"}
WRITING = {
    "send_messages": "Send Messages",
    "send_messages_in_threads": "Send Messages in Threads",
    "attach_files": "Attach Files",
    "embed_links": "Embed Links",
}
# Only there, and only if their posts are to be found.
VOICE = {"connect": "Connect"}
PRIVATE_THREADS = {"manage_threads": "Manage Threads"}

Readable = (
    disnake.TextChannel
    | disnake.VoiceChannel
    | disnake.StageChannel
    | disnake.ForumChannel
    | disnake.MediaChannel
)
# What may be named as a channel in a command.
Channel = Readable | disnake.Thread
Parent = disnake.TextChannel | disnake.ForumChannel | disnake.MediaChannel
_SPOKEN_IN = (disnake.VoiceChannel, disnake.StageChannel)
_OF_THREADS = (disnake.ForumChannel, disnake.MediaChannel)


def invite_permissions() -> disnake.Permissions:
    """What an invite link should ask for."""
    return disnake.Permissions(**dict.fromkeys(READING | WRITING, True))


def readable_kinds(guild: disnake.Guild) -> Iterator[Readable]:
    """The channels of a guild that messages or threads stand in."""
    for channel in guild.channels:
        if isinstance(channel, Readable):
            yield channel


def holds_messages(channel: Readable) -> bool:
    """Whether messages stand in the channel itself; forums have threads only."""
    return not isinstance(channel, _OF_THREADS)


def missing_for_reading(channel: Readable | disnake.Thread) -> list[str]:
    """What the bot lacks to read a channel's history, as Discord's settings call it."""
    wanted = READING | (VOICE if isinstance(channel, _SPOKEN_IN) else {})
    return _missing(channel, wanted)


def missing_for_writing(channel: Readable | disnake.Thread) -> list[str]:
    """What the bot lacks to post a message in a channel."""
    name = "send_messages_in_threads" if isinstance(channel, disnake.Thread) else "send_messages"
    return _missing(channel, {"view_channel": READING["view_channel"], name: WRITING[name]})


def may_manage_threads(channel: Readable) -> bool:
    """Whether the bot sees private threads that it was not invited to."""
    return not _missing(channel, PRIVATE_THREADS)


def _missing(channel: Readable | disnake.Thread, wanted: dict[str, str]) -> list[str]:
    place = channel.parent if isinstance(channel, disnake.Thread) else channel
    if place is None:
        return list(wanted.values())
    allowed = place.permissions_for(channel.guild.me)
    return [words for name, words in wanted.items() if not getattr(allowed, name)]
