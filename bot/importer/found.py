"""What an importer yields: pictures that it found, and files that it had to set aside."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bot.archive.port import Picture, PictureKey

# Discord's ids count milliseconds since then.
_DISCORD_EPOCH = datetime(2015, 1, 1, tzinfo=UTC)


class SourceError(Exception):
    """There is nothing to import there. The message says what is wrong and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A picture on disk, with what is known without reading it.

    Attributes:
        key: Identifies the picture; the same on every run.
        path: The file.
        guild_id: The guild it was posted in.
        channel_id: The channel or thread.
        user_id: The author; "" where unknown.
        message_link: Where a click leads.
        posted_at: When it was posted, timezone-aware.
        spoiler: Whether it must stay hidden behind a spoiler.
        author: The author's name for showing; "" where unknown.
        channel: The channel's name for showing; "" where unknown.
        parent_id: The channel that a thread belongs to, where the export tells; "" otherwise.
        also: The attachment id that an export without ids gives the same picture; "" if none.
        by_file: Whether the key is such an id, so that the archive may have it by its own.
        replaces_message: Whether other pictures of the same message are older versions of this
            one, and go when it is stored.
    """

    key: PictureKey
    path: Path
    guild_id: str
    channel_id: str
    user_id: str
    message_link: str
    posted_at: datetime
    spoiler: bool = False
    author: str = ""
    channel: str = ""
    parent_id: str = ""
    also: str = ""
    by_file: bool = False
    replaces_message: bool = False

    def picture(self, *, width: int, height: int, file_size: int, content_hash: str) -> Picture:
        """The archive's picture, with what reading the file has told."""
        return Picture(
            key=self.key,
            guild_id=self.guild_id,
            channel_id=self.channel_id,
            user_id=self.user_id,
            message_link=self.message_link,
            image_url=str(self.path),
            posted_at=self.posted_at,
            width=width,
            height=height,
            file_size=file_size,
            content_hash=content_hash,
            spoiler=self.spoiler,
            author=self.author,
            channel=self.channel,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Something that cannot be imported.

    Attributes:
        name: The file or link.
        reason: Why not, and what may help.
    """

    name: str
    reason: str


def sent_at(message_id: str) -> datetime:
    """When a message was sent: Discord's ids hold the time of their making."""
    return _DISCORD_EPOCH + timedelta(milliseconds=int(message_id) >> 22)


# Reads a source from its beginning; every call gives the same items in the same order.
Source = Callable[[], Iterator[Found | SetAside]]
