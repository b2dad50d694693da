"""Imports what DiscordChatExporter writes as JSON with `--media`.

An export is read as a stream, whatever its size. Nothing is fetched from the network: what was not
downloaded at export time is set aside.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

import ijson

from bot.archive.port import PictureKey
from bot.importer.files import claims_picture
from bot.importer.found import Found, SetAside, sent_at
from bot.importer.media import NotThereError, is_remote, locate
from bot.links import embedded_id, hidden_words, media_id, message_link

_BOM = b"\xef\xbb\xbf"
# An export tells guild and channel within its first few values, before the messages.
_HEADER_EVENTS = 500
# Where things lie in the nesting of an export, and what is no export any more.
_HEADER_DEPTH = 2
_LIST_DEPTH = 2
_DEEPEST = 64
_LONGEST_VALUE = 4 * 1024 * 1024  # in bytes; a message has a few thousand letters
_MOST_PARTS = 1_000_000
# What is kept of a message; the users behind its reactions alone could fill the memory.
_KEPT = frozenset(
    {"id", "timestamp", "content", "author", "attachments", "embeds", "forwardedMessage"}
)
_STARTS = frozenset({"start_map", "start_array"})
_ENDS = frozenset({"end_map", "end_array"})
_Event = tuple[int, int, str, Any]
_LONGEST_NAME = 200
_LONGEST_ID = 20  # digits of 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channel:
    guild_id: str
    channel_id: str
    parent_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """A picture as a message mentions it.

    Attributes:
        attachment_id: Its id within the message.
        url: A path relative to the export, or an address where it was not downloaded.
        name: The file's name as it was posted.
        spoiler: Whether Discord hides it.
        claimed: Whether its name says that it is a picture; others are passed over in silence.
    """

    attachment_id: str
    url: str
    name: str
    spoiler: bool
    claimed: bool


def is_export(path: Path) -> bool:
    """Whether a file begins like an export of DiscordChatExporter.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _channel(_events(file)) is not None
        except _BrokenError:
            return False


def scan(export: Path, *, media: Path | None = None) -> Iterator[Found | SetAside]:
    """Yields the pictures of an export: attached, embedded and forwarded ones.

    Args:
        export: The JSON file.
        media: A further folder where its media may lie (DiscordChatExporter's `--media-dir`, or
            where it was moved to).
    """
    try:
        with export.open("rb") as file:
            events = _events(file)
            channel = _channel(events)
            if channel is None:
                yield SetAside(name=str(export), reason="is no export of DiscordChatExporter")
                return
            roots = [export.parent.resolve(), *([media.resolve()] if media else [])]
            for message in _messages(events):
                yield from _message(message, channel, roots)
    except _BrokenError:
        yield SetAside(
            name=str(export),
            reason="is cut off or damaged; what came before that is imported. "
            "Export it again for the rest",
        )
    except OSError as error:
        yield SetAside(name=str(export), reason=f"cannot be read: {error.strerror or error}")


class _BrokenError(Exception):
    """The JSON ends early, or is none."""


class _Bounded:
    """A file that breaks off inside a value without end: the parser would hold all of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.since_value = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.since_value += len(data)
        if self.since_value > _LONGEST_VALUE:
            raise _BrokenError
        return data


def _events(file: IO[bytes]) -> Iterator[_Event]:
    """The JSON's parts as they come, each with how many brackets are open before and after it.

    Raises:
        _BrokenError: The JSON ends early, is none, or is nested as deep or as long as no export is.
    """
    file.seek(len(_BOM) if file.read(len(_BOM)) == _BOM else 0)
    bounded = _Bounded(file)
    depth = 0
    try:
        for kind, value in ijson.basic_parse(bounded):
            bounded.since_value = 0
            before = depth
            if kind in _STARTS:
                depth += 1
                if depth > _DEEPEST:
                    raise _BrokenError
            elif kind in _ENDS:
                depth -= 1
            yield before, depth, kind, value
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise _BrokenError from error


def _channel(events: Iterator[_Event]) -> _Channel | None:
    """Reads up to the messages, and so the channel; None where no export begins like this."""
    header: dict[str, str] = {}
    section = name = ""
    for _, depth, kind, value in islice(events, _HEADER_EVENTS):
        if kind == "start_array" and section == "messages":
            break
        if kind == "map_key" and depth == 1:
            section = value
        elif kind == "map_key":
            name = value
        elif kind == "string" and depth == _HEADER_DEPTH:
            header[f"{section}.{name}"] = value
    guild_id, channel_id = _text(header, "guild.id"), _text(header, "channel.id")
    if section != "messages" or not (_is_id(guild_id) and _is_id(channel_id)):
        return None
    return _Channel(
        guild_id="" if guild_id == "0" else guild_id,  # direct messages
        channel_id=channel_id,
        # Of a thread, its channel; of a channel, its category.
        parent_id=_text(header, "channel.categoryId"),
        name=_text(header, "channel.name"),
    )


def _messages(events: Iterator[_Event]) -> Iterator[Mapping[str, Any]]:
    """The messages, once the events have come to them.

    Raises:
        _BrokenError: A message has more parts than fit into memory with ease.
    """
    message = None
    parts, kept = 0, True
    for before, depth, kind, value in events:
        if message is None and before == _LIST_DEPTH and kind == "start_map":
            message = ijson.ObjectBuilder()
            parts, kept = 0, True
        if message is not None:
            if kind == "map_key" and depth == _LIST_DEPTH + 1:
                kept = value in _KEPT
            if kept or depth == _LIST_DEPTH:
                message.event(kind, value)
                parts += 1
                if parts > _MOST_PARTS:
                    raise _BrokenError
            if depth == _LIST_DEPTH:
                yield message.value
                message = None


def _message(
    message: Mapping[str, Any], channel: _Channel, roots: list[Path]
) -> Iterator[Found | SetAside]:
    message_id = _text(message, "id")
    references: dict[str, _Reference] = {}
    for part in (message, _mapping(message, "forwardedMessage")):
        for reference in _references(part):
            # Met twice, it is one picture, and a spoiler if it is one anywhere.
            first = references.setdefault(reference.attachment_id, reference)
            if reference.spoiler:
                references[reference.attachment_id] = replace(first, spoiler=True)
    if not references:
        return
    if not _is_id(message_id):
        yield SetAside(name=next(iter(references.values())).name, reason="is in no known message")
        return
    author = _mapping(message, "author")
    for reference in references.values():
        try:
            path = locate(reference.url, roots)
        except NotThereError as error:
            if reference.claimed:
                yield SetAside(name=f"{reference.name} in message {message_id}", reason=str(error))
            continue
        yield Found(
            key=PictureKey(message_id=message_id, attachment_id=reference.attachment_id),
            path=path,
            guild_id=channel.guild_id,
            channel_id=channel.channel_id,
            parent_id=channel.parent_id,
            user_id=_text(author, "id"),
            message_link=message_link(channel.guild_id, channel.channel_id, message_id),
            posted_at=_posted_at(message, message_id),
            spoiler=reference.spoiler,
            author=_text(author, "nickname") or _text(author, "name"),
            channel=channel.name,
            also=media_id(path.name),
        )


def _references(message: Mapping[str, Any]) -> Iterator[_Reference]:
    for attachment in _list(message, "attachments"):
        attachment_id, url = _text(attachment, "id"), _address(attachment, "url")
        name = _text(attachment, "fileName") or Path(url).name
        if _is_id(attachment_id) and url:
            yield _Reference(
                attachment_id=attachment_id,
                url=url,
                name=name,
                spoiler=name.startswith("SPOILER_"),
                claimed=claims_picture(name),
            )
    hidden = hidden_words(_address(message, "content"))
    for embed in _list(message, "embeds"):
        yield from _embedded(embed, hidden)


def _embedded(embed: Mapping[str, Any], hidden: str) -> Iterator[_Reference]:
    """The pictures of an embed; thumbnails count only where the message just linked a picture."""
    images = _list(embed, "images") or [_mapping(embed, "image")]
    bare = not any(embed.get(key) for key in ("title", "description", "fields", "author"))
    if bare and not any(images):
        images = [_mapping(embed, "thumbnail")]
    for number, image in enumerate(images):
        url = _address(image, "url")
        if not url:
            continue
        # Exports before 2026 name no canonical address: then the link's own has to do.
        own = _address(image, "canonicalUrl")
        if not own and bare:
            own = _address(embed, "url")
        if not own:
            own = url if is_remote(url) else f"{_address(embed, 'url')}#{number}"
        links = filter(None, (_address(embed, "url"), own))
        yield _Reference(
            attachment_id=embedded_id(own),
            url=url,
            name=own,
            spoiler=any(link in hidden for link in links),
            claimed=True,
        )


def _posted_at(message: Mapping[str, Any], message_id: str) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(message, "timestamp"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return sent_at(message_id)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _LONGEST_ID


def _text(values: Mapping[str, Any], key: str) -> str:
    """A short text; whatever is none counts as empty."""
    return _address(values, key)[:_LONGEST_NAME]


def _address(values: Mapping[str, Any], key: str) -> str:
    """A text that has to be whole."""
    value = values.get(key)
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = values.get(key)
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, Mapping)]
