"""Imports what DiscordChatExporter writes as HTML with `--media`.

The page is read as a stream. It tells less than JSON: no ids of attachments, none of the server
unless a link or a picture of it does, and of the channel only in the file's name. A picture is
therefore known by its file's name, which the exporter makes from the address; the bot, and the
import of JSON, recognise it by that and put its own id in the place.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO

from bot.archive.port import PictureKey
from bot.importer.files import claims_picture
from bot.importer.found import Found, SetAside, sent_at
from bot.importer.media import NotThereError, locate
from bot.links import embedded_id, media_id, message_link

_CHUNK = 64 * 1024
# A tag, or a style sheet, without end: the parser would hold all of it.
_LONGEST_PART = 1024 * 1024
_LONGEST_NAME = 200
_LONGEST_ID = 20
_HEAD = 64 * 1024

# Behind the channel's id stand the dates that were asked for, and which part of several it is.
_DATE = r"\d{4}-\d\d-\d\d"
_FILE_NAME = re.compile(
    r"^(?P<name>.*?) ?\[(?P<id>\d{1,20})\]"
    rf"(?: \((?:after|before|{_DATE} to) {_DATE}\))?(?: \[part \d+\])?\.html?$",
    re.IGNORECASE,
)
_IMAGE_TITLE = re.compile(r"^Image: (.*) \([^()]*\)$", re.DOTALL)
# What tells of a server: its icon, and links to messages of the channel that is exported.
_ICON = re.compile(rb"https://cdn\.discordapp\.com/icons/(\d{1,20})/")
_LINK = re.compile(rb"https://(?:\w+\.)?discord(?:app)?\.com/channels/(\d{1,20})/(\d{1,20})\b")
_OVERLAP = 200

_EMBEDDED = frozenset({"chatlog__embed-generic-image", "chatlog__embed-image"})
# Words that are hidden, with bars around them in Discord.
_BARS = frozenset({"chatlog__markdown-spoiler--hidden", "spoiler-text--hidden"})


class _BrokenError(Exception):
    """The page is no such export any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """A picture as the page mentions it."""

    message_id: str
    user_id: str
    author: str
    url: str
    name: str
    spoiler: bool


def is_export(path: Path) -> bool:
    """Whether a file begins like an HTML export of DiscordChatExporter.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return b"chatlog__" in file.read(_HEAD)


def scan(
    export: Path, *, media: Path | None = None, guild_id: str | None = None
) -> Iterator[Found | SetAside]:
    """Yields the pictures of a page: attached and embedded ones.

    Args:
        export: The HTML file.
        media: A further folder where its media may lie.
        guild_id: The server, where the page does not tell.
    """
    named = _FILE_NAME.match(export.name)
    if named is None:
        yield SetAside(
            name=str(export),
            reason="has lost its channel's id: rename it to NAME [CHANNEL ID].html",
        )
        return
    try:
        guild_id = guild_id or _guild(export, named["id"])
        if guild_id is None:
            yield SetAside(
                name=str(export),
                reason="does not tell of which server (guild) it is: say so with --guild ID",
            )
            return
        roots = [export.parent.resolve(), *([media.resolve()] if media else [])]
        seen: set[PictureKey] = set()
        with export.open("rb") as file:
            for reference in _references(file):
                item = _item(reference, guild_id, named["id"], named["name"], roots)
                if isinstance(item, Found):
                    # Keys of one message stand together: no more need be remembered.
                    if seen and next(iter(seen)).message_id != item.key.message_id:
                        seen.clear()
                    if item.key in seen:
                        continue
                    seen.add(item.key)
                if item is not None:
                    yield item
    except _BrokenError:
        yield SetAside(
            name=str(export),
            reason="is damaged; what came before that is imported. Export it again for the rest",
        )
    except OSError as error:
        yield SetAside(name=str(export), reason=f"cannot be read: {error.strerror or error}")


def _guild(export: Path, channel_id: str) -> str | None:
    """The server that a page belongs to; None where it does not tell, or tells of several."""
    icons: set[str] = set()
    links: set[str] = set()
    with export.open("rb") as file:
        rest = head = file.read(_HEAD)
        icons.update(found[1].decode() for found in _ICON.finditer(head))
        while rest:
            links.update(
                found[1].decode()
                for found in _LINK.finditer(rest)
                if found[2].decode() == channel_id
            )
            chunk = file.read(_CHUNK)
            rest = rest[-_OVERLAP:] + chunk if chunk else b""
    for told in (icons, links):
        if len(told) == 1:
            return told.pop()
    return None


def _item(
    reference: _Reference, guild_id: str, channel_id: str, channel: str, roots: list[Path]
) -> Found | SetAside | None:
    message_id = reference.message_id
    try:
        path = locate(reference.url, roots)
    except NotThereError as error:
        if not claims_picture(reference.name):
            return None
        return SetAside(name=f"{reference.name} in message {message_id}", reason=str(error))
    # A file that was renamed by hand is known by that name, and merges with nothing.
    attachment_id = media_id(path.name) or embedded_id(path.name)
    return Found(
        key=PictureKey(message_id=message_id, attachment_id=attachment_id),
        path=path,
        guild_id=guild_id,
        channel_id=channel_id,
        user_id=reference.user_id,
        message_link=message_link(guild_id, channel_id, message_id),
        posted_at=sent_at(message_id),
        spoiler=reference.spoiler or reference.name.startswith("SPOILER_"),
        author=reference.author,
        channel=channel.rpartition(" - ")[2],
        by_file=True,
    )


def _references(file: IO[bytes]) -> Iterator[_Reference]:
    """The pictures of a page as they come.

    Raises:
        _BrokenError: A part of the page has no end.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
    page = _Page()
    while chunk := file.read(_CHUNK):
        page.feed(decode(chunk))
        if len(page.rawdata) > _LONGEST_PART:
            raise _BrokenError
        yield from page.take()


class _Page(HTMLParser):
    """Walks through the tags, and knows whose message it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.rawdata: str
        self._found: list[_Reference] = []
        self._message_id = ""
        self._user_id = self._author = ""
        self._reads_author = False
        self._hidden = False
        # How many spans are open in hidden words, and whether the message has a link in such words.
        self._spans = 0
        self._hides_link = False

    def take(self) -> list[_Reference]:
        """What was found since it was last asked."""
        found, self._found = self._found, []
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = set(given.get("class", "").split())
        if "chatlog__message-group" in classes:
            self._message_id = self._user_id = self._author = ""
        if "data-message-id" in given:
            message_id = given["data-message-id"]
            self._message_id = message_id if _is_id(message_id) else ""
            self._hidden = self._hides_link = False
            self._spans = 0
        if "chatlog__author" in classes or "chatlog__author-name" in classes:
            user_id = given.get("data-user-id", "")
            self._user_id = user_id if _is_id(user_id) else ""
            self._author, self._reads_author = "", True
        if "chatlog__attachment" in classes or "chatlog__embed" in classes:
            self._hidden = False
        if classes & {"chatlog__attachment--hidden", "spoiler--hidden"}:
            self._hidden = True
        if tag == "span" and (self._spans or classes & _BARS):
            self._spans += 1
        self._hides_link |= tag == "a" and self._spans > 0
        if tag == "img" and self._message_id:
            self._image(given, classes)

    def _image(self, given: dict[str, str], classes: set[str]) -> None:
        url = given.get("src", "")
        titled = _IMAGE_TITLE.match(given.get("title", ""))
        attached = "chatlog__attachment-media" in classes or (
            "chatlog__attachment-thumbnail" in classes
        )
        if not url or not (attached or classes & _EMBEDDED):
            return
        self._found.append(
            _Reference(
                message_id=self._message_id,
                user_id=self._user_id,
                author=self._author,
                url=url,
                name=(titled[1] if titled else Path(url).name)[:_LONGEST_NAME],
                # An embed does not say which link it belongs to: each is hidden if any of them is.
                spoiler=self._hidden or (self._hides_link and not attached),
            )
        )

    def handle_endtag(self, tag: str) -> None:
        self._reads_author = False
        if tag == "span" and self._spans:
            self._spans -= 1

    def handle_data(self, data: str) -> None:
        if self._reads_author:
            self._author = (self._author + data).strip()[:_LONGEST_NAME]


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _LONGEST_ID
