"""Which pictures a Discord message holds, and the wire names of each.

Messages come in two shapes: disnake's objects (new messages, commands, history) and raw gateway
dicts (edits). Both are brought to the raw shape first, so that there is one reading of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import disnake

from bot.archive.port import PictureKey
from bot.links import embedded_id, message_link, unsigned

# Attachment flags that disnake 2.12 has no names for.
_IS_THUMBNAIL = 1 << 1
_IS_SPOILER = 1 << 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A picture that was seen in a message and has not been fetched yet.

    Attributes:
        message_id: The message it stands in.
        attachment_id: Its id within the message; made from the address for embedded pictures.
        guild_id: The server (guild).
        channel_id: The channel or thread.
        user_id: The author of the message.
        fetch_url: Where the bytes are now. Discord's links expire within about a day.
        image_url: Where the picture is for good: Discord renews unsigned links when it shows them.
        posted_at: When the message was sent, ISO 8601 with its offset.
        width: In pixels as Discord says; 0 where it says nothing.
        height: In pixels as Discord says; 0 where it says nothing.
        spoiler: Whether it must stay hidden behind a spoiler.
        author: The author's name for showing.
        channel: The channel's name for showing.
        parent_id: The channel that a thread belongs to; "" outside threads.
        private_thread: Whether the thread is private.
    """

    message_id: str
    attachment_id: str
    guild_id: str
    channel_id: str
    user_id: str
    fetch_url: str
    image_url: str
    posted_at: str
    width: int = 0
    height: int = 0
    spoiler: bool = False
    author: str = ""
    channel: str = ""
    parent_id: str = ""
    private_thread: bool = False

    @property
    def key(self) -> PictureKey:
        """Identifies the picture in the archive."""
        return PictureKey(message_id=self.message_id, attachment_id=self.attachment_id)

    @property
    def message_link(self) -> str:
        """Leads to the message in Discord."""
        return message_link(self.guild_id, self.channel_id, self.message_id)


def in_message(message: disnake.Message, *, guild: disnake.Guild | None) -> list[Sighting]:
    """The pictures of a message: attached, embedded and forwarded, in that order.

    Args:
        message: The message, from whatever source.
        guild: Where it stands; commands' target messages do not know it themselves.
    """
    payload = {
        "id": message.id,
        "channel_id": message.channel.id,
        "timestamp": message.created_at.isoformat(),
        "author": {"id": message.author.id, "username": message.author.display_name},
        "attachments": [attachment.to_dict() for attachment in message.attachments],
        "embeds": [embed.to_dict() for embed in message.embeds],
        "message_snapshots": [
            {
                "message": {
                    "attachments": [attachment.to_dict() for attachment in snapshot.attachments],
                    "embeds": [embed.to_dict() for embed in snapshot.embeds],
                }
            }
            for snapshot in message.message_snapshots
        ],
    }
    return in_payload(payload, guild=guild)


def in_payload(payload: Mapping[str, Any], *, guild: disnake.Guild | None) -> list[Sighting]:
    """The pictures of a raw message, as the gateway sends it.

    Args:
        payload: Discord's message object.
        guild: Where it stands.
    """
    author = payload["author"]
    name = (
        payload.get("member", {}).get("nick")
        or author.get("global_name")
        or author.get("username")
        or ""
    )
    channel = guild.get_channel_or_thread(int(payload["channel_id"])) if guild else None
    thread = channel if isinstance(channel, disnake.Thread) else None
    sightings: dict[str, Sighting] = {}
    for found in _find(payload):
        sighting = Sighting(
            message_id=str(payload["id"]),
            guild_id=str(guild.id) if guild else "",
            channel_id=str(payload["channel_id"]),
            user_id=str(author["id"]),
            posted_at=datetime.fromisoformat(payload["timestamp"]).isoformat(),
            author=name,
            channel=channel.name if channel else "",
            parent_id=str(thread.parent_id) if thread else "",
            private_thread=bool(thread and thread.is_private()),
            **found,
        )
        sightings.setdefault(sighting.attachment_id, sighting)
    return list(sightings.values())


def in_option(attachment: disnake.Attachment) -> Sighting | None:
    """The picture given to a slash command, which is in no message; None if it is none."""
    found = _attachment(attachment.to_dict())
    if found is None:
        return None
    return Sighting(message_id="", guild_id="", channel_id="", user_id="", posted_at="", **found)


def _find(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for attachment in message.get("attachments", ()):
        if found := _attachment(attachment):
            yield found
    for embed in message.get("embeds", ()):
        # A bare link to a picture has it as the "thumbnail" of an embed of type "image"; the
        # thumbnails of other embeds are site icons and video stills.
        media = embed.get("image") or (embed.get("type") == "image" and embed.get("thumbnail"))
        if media and (found := _embedded(media)):
            yield found
    for snapshot in message.get("message_snapshots", ()):
        yield from _find(snapshot["message"])


def _attachment(attachment: Mapping[str, Any]) -> dict[str, Any] | None:
    flags = attachment.get("flags", 0)
    # Without a type the bytes decide, after fetching.
    if flags & _IS_THUMBNAIL or not attachment.get("content_type", "image/").startswith("image/"):
        return None
    return {
        "attachment_id": str(attachment["id"]),
        "fetch_url": attachment["url"],
        "image_url": unsigned(attachment["url"]),
        "width": attachment.get("width") or 0,
        "height": attachment.get("height") or 0,
        "spoiler": bool(flags & _IS_SPOILER) or attachment["filename"].startswith("SPOILER_"),
    }


def _embedded(media: Mapping[str, Any]) -> dict[str, Any] | None:
    url = media.get("url", "")
    if not url.startswith(("https://", "http://")):
        return None
    return {
        "attachment_id": embedded_id(url),
        # Discord's own copy: the bot talks to no host that a member chose.
        "fetch_url": media.get("proxy_url") or url,
        "image_url": unsigned(url),
        "width": media.get("width") or 0,
        "height": media.get("height") or 0,
    }


async def in_channel(
    client: disnake.Client, *, guild_id: str, channel_id: str, message_id: str
) -> list[Sighting] | None:
    """The pictures of a message as Discord has it now, with fresh links.

    Returns:
        None if Discord says that there is no such message.

    Raises:
        disnake.HTTPException: Discord does not tell: no access, or it is out of order.
    """
    try:
        channel = client.get_partial_messageable(int(channel_id))
        message = await channel.fetch_message(int(message_id))
    except disnake.NotFound:
        return None
    return in_message(message, guild=client.get_guild(int(guild_id)))
