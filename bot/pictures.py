"""Which pictures a Discord message holds, and the wire names of each.

Messages come in two shapes: disnake's objects (new messages, commands, history) and raw gateway
dicts (edits). Both are brought to the raw shape first, so that there is one reading of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from typing import Any

import disnake

from bot.archive.port import PictureKey
from bot.links import embedded_id, hidden_words, media_ids, message_link, unsigned

# Attachment flags that disnake 2.12 has no names for.
_IS_THUMBNAIL = 1 << 1
_IS_SPOILER = 1 << 3
# Discord's codes; any other "not found" says nothing about a channel or a message.
UNKNOWN_CHANNEL = 10003
UNKNOWN_MESSAGE = 10008


class _Kind(IntEnum):
    """Components that show pictures, or hold such as do (Components V2)."""

    OTHER = 0
    SECTION = 9
    THUMBNAIL = 11
    GALLERY = 12
    CONTAINER = 17


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
    def file_keys(self) -> set[PictureKey]:
        """The keys by which an import of HTML knows the picture, which tells no ids."""
        urls = (self.image_url, self.fetch_url)
        return {
            PictureKey(message_id=self.message_id, attachment_id=id_)
            for url in urls
            for id_ in media_ids(url)
        }

    def is_the(self, key: PictureKey) -> bool:
        """Whether a key of the archive means this picture."""
        return key == self.key or key in self.file_keys

    @property
    def message_link(self) -> str:
        """Leads to the message in Discord."""
        return message_link(self.guild_id, self.channel_id, self.message_id)


def in_message(message: disnake.Message, *, guild: disnake.Guild | None) -> list[Sighting]:
    """The pictures of a message: attached, embedded, laid out as components, and forwarded.

    Args:
        message: The message, from whatever source.
        guild: Where it stands; commands' target messages do not know it themselves.
    """
    payload = {
        "id": message.id,
        "channel_id": message.channel.id,
        "timestamp": message.created_at.isoformat(),
        "author": {"id": message.author.id, "username": message.author.display_name},
        **_parts(message),
        "message_snapshots": [
            {"message": _parts(snapshot)} for snapshot in message.message_snapshots
        ],
    }
    return in_payload(payload, guild=guild)


def _parts(message: disnake.Message | disnake.ForwardedMessage) -> dict[str, Any]:
    return {
        "content": message.content,
        "attachments": [attachment.to_dict() for attachment in message.attachments],
        "embeds": [embed.to_dict() for embed in message.embeds],
        "components": [_component(component) for component in message.components],
    }


def _component(component: disnake.Component) -> dict[str, Any]:
    """The component as it came: disnake's `to_dict` keeps what can be sent, not what was told."""
    match component:
        case disnake.Container():
            inner = [_component(child) for child in component.children]
            return {"type": _Kind.CONTAINER, "components": inner, "spoiler": component.spoiler}
        case disnake.Section():
            return {"type": _Kind.SECTION, "accessory": _component(component.accessory)}
        case disnake.MediaGallery():
            items = [
                {"media": _media(one.media), "spoiler": one.spoiler} for one in component.items
            ]
            return {"type": _Kind.GALLERY, "items": items}
        case disnake.Thumbnail():
            media = _media(component.media)
            return {"type": _Kind.THUMBNAIL, "media": media, "spoiler": component.spoiler}
        case _:
            return {"type": _Kind.OTHER}


def _media(item: disnake.UnfurledMediaItem) -> dict[str, Any]:
    names = ("url", "proxy_url", "width", "height", "content_type", "attachment_id")
    return {name: getattr(item, name) for name in names}


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
        # Met twice, it is one picture, and a spoiler if it is one anywhere.
        first = sightings.setdefault(sighting.attachment_id, sighting)
        if sighting.spoiler and not first.spoiler:
            sightings[sighting.attachment_id] = replace(first, spoiler=True)
    return list(sightings.values())


def in_option(attachment: disnake.Attachment) -> Sighting | None:
    """The picture given to a slash command, which is in no message; None if it is none."""
    found = _attachment(attachment.to_dict())
    if found is None:
        return None
    return Sighting(message_id="", guild_id="", channel_id="", user_id="", posted_at="", **found)


def _find(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for attachment in message.get("attachments") or ():
        if found := _attachment(attachment):
            yield found
    hidden = hidden_words(message.get("content") or "")
    for embed in message.get("embeds") or ():
        # A bare link to a picture has it as the "thumbnail" of an embed of type "image"; the
        # thumbnails of other embeds are site icons and video stills.
        media = embed.get("image") or (embed.get("type") == "image" and embed.get("thumbnail"))
        if media and (found := _linked(media)):
            # Embeds have no flag for it: Discord hides those of links that stand in ||bars||.
            links = filter(None, (embed.get("url"), media.get("url")))
            yield found | {"spoiler": any(link in hidden for link in links)}
    yield from _laid_out(message.get("components") or (), hidden=False)
    for snapshot in message.get("message_snapshots") or ():
        yield from _find(snapshot["message"])


def _laid_out(components: Iterable[Mapping[str, Any]], *, hidden: bool) -> Iterator[dict[str, Any]]:
    """The pictures among components; what a hidden container holds is hidden."""
    for component in components:
        covered = hidden or bool(component.get("spoiler"))
        match component["type"]:
            case _Kind.CONTAINER:
                yield from _laid_out(component.get("components") or (), hidden=covered)
            case _Kind.SECTION:
                yield from _laid_out([component["accessory"]], hidden=covered)
            case _Kind.GALLERY:
                for item in component["items"]:
                    yield from _displayed(item["media"], covered or bool(item.get("spoiler")))
            case _Kind.THUMBNAIL:
                yield from _displayed(component["media"], covered)


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


def _displayed(media: Mapping[str, Any], hidden: bool) -> Iterator[dict[str, Any]]:  # noqa: FBT001
    found = _linked(media)
    if found is None or not (media.get("content_type") or "image/").startswith("image/"):
        return
    if media.get("attachment_id"):
        # Uploaded with the message, so that it has an id and a signed link of Discord's own.
        found |= {"attachment_id": str(media["attachment_id"]), "fetch_url": media["url"]}
        hidden = hidden or "/SPOILER_" in media["url"]
    yield found | {"spoiler": hidden}


def _linked(media: Mapping[str, Any]) -> dict[str, Any] | None:
    url = media.get("url") or ""
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
        # As it came: what disnake makes of it would be taken apart again.
        message = await client.http.get_message(int(channel_id), int(message_id))
    except disnake.NotFound as error:
        if error.code not in {UNKNOWN_CHANNEL, UNKNOWN_MESSAGE}:
            raise
        return None
    return in_payload(message, guild=client.get_guild(int(guild_id)))
