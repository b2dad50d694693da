"""Reads what was posted before, page by page, from Discord."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import aiohttp
import disnake

from bot.ingest import access
from bot.pictures import UNKNOWN_CHANNEL, UNKNOWN_MESSAGE, Sighting, in_payload

PAGE = 100

_PRIVATE_THREAD = 12

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A channel or thread whose messages are read.

    Attributes:
        guild_id: Its guild.
        channel_id: Its id.
        name: Its name for showing.
        parent_id: The channel that a thread belongs to; "" outside threads.
        private: Whether it is a private thread.
    """

    guild_id: str
    channel_id: str
    name: str
    parent_id: str = ""
    private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAway:
    """A thread that is archived.

    Attributes:
        place: The thread.
        archived_at: When it was put away.
        last_id: Its last message; None where Discord does not say.
    """

    place: Place
    archived_at: datetime
    last_id: int | None


class HistoryError(Exception):
    """A page cannot be had now; later it may be. The message says why."""


class NoAccessError(HistoryError):
    """Discord does not let the bot read there."""


class NoChannelError(HistoryError):
    """There is no such channel any more."""


async def page_before(client: disnake.Client, channel_id: str, message_id: int) -> list[Message]:
    """The newest messages before one, newest first; fewer than `PAGE` if there are no more.

    Raises:
        HistoryError: Discord does not tell.
    """
    return await _page(client, channel_id, before=message_id)


async def page_after(client: disnake.Client, channel_id: str, message_id: int) -> list[Message]:
    """The oldest messages after one, oldest first; fewer than `PAGE` if there are no more.

    Raises:
        HistoryError: Discord does not tell.
    """
    return (await _page(client, channel_id, after=message_id))[::-1]


async def exists(client: disnake.Client, channel_id: str, message_id: str) -> bool:
    """Whether there is such a message: Discord says so of each more surely than by a page.

    Raises:
        HistoryError: Discord does not tell.
    """
    try:
        await client.http.get_message(int(channel_id), int(message_id))
    except disnake.NotFound as error:
        if error.code in {UNKNOWN_MESSAGE, UNKNOWN_CHANNEL}:
            return False
        raise HistoryError(str(error)) from error
    except (disnake.HTTPException, aiohttp.ClientError, OSError) as error:
        raise HistoryError(str(error)) from error
    return True


def pictures_in(
    messages: Iterable[Message], place: Place, *, guild: disnake.Guild
) -> list[Sighting]:
    """The pictures of messages. Archived threads are not in the cache, so `place` tells of them."""
    return [
        replace(
            sighting,
            channel=sighting.channel or place.name,
            parent_id=place.parent_id,
            private_thread=place.private,
        )
        for message in messages
        for sighting in in_payload(message, guild=guild)
    ]


def is_by_machine(message: Message) -> bool:
    """Whether a message comes from a bot or a webhook."""
    return bool(message.get("webhook_id") or message["author"].get("bot"))


def place_of(thread: disnake.Thread) -> Place:
    """A thread from the cache as a place."""
    return Place(
        guild_id=str(thread.guild.id),
        channel_id=str(thread.id),
        name=thread.name,
        parent_id=str(thread.parent_id),
        private=thread.is_private(),
    )


async def active_threads(client: disnake.Client, guild_id: str) -> list[Place]:
    """The threads of a guild that are not archived.

    Raises:
        HistoryError: Discord does not tell.
    """
    answer = await _asked(client.http.get_active_threads(int(guild_id)))
    return [_thread(payload, guild_id) for payload in answer["threads"]]


async def archived_threads(
    client: disnake.Client, channel: access.Parent, *, since: datetime | None = None
) -> AsyncIterator[PutAway]:
    """The archived threads of a channel, also the private ones where the bot may see them.

    Args:
        client: Asks Discord.
        channel: Whose threads.
        since: Only those that were put away then or later.

    Raises:
        HistoryError: Discord does not tell.
    """
    kinds = [client.http.get_public_archived_threads]
    if access.may_manage_threads(channel):
        kinds.append(client.http.get_private_archived_threads)
    for ask in kinds:
        async for one in _archived(ask, channel):
            if since is not None and one.archived_at < since:
                break  # the latest come first
            yield one


async def _archived(
    ask: Callable[..., Awaitable[Any]], channel: access.Parent
) -> AsyncIterator[PutAway]:
    before: Any = None
    while True:
        answer = await _asked(ask(channel.id, before=before, limit=PAGE))
        for payload in answer["threads"]:
            before = payload["thread_metadata"]["archive_timestamp"]
            yield PutAway(
                place=_thread(payload, str(channel.guild.id)),
                archived_at=datetime.fromisoformat(before),
                last_id=int(payload["last_message_id"]) if payload.get("last_message_id") else None,
            )
        if not answer.get("has_more") or not answer["threads"]:
            return


def _thread(payload: Mapping[str, Any], guild_id: str) -> Place:
    return Place(
        guild_id=guild_id,
        channel_id=str(payload["id"]),
        name=payload["name"],
        parent_id=str(payload["parent_id"]),
        private=payload["type"] == _PRIVATE_THREAD,
    )


async def _page(client: disnake.Client, channel_id: str, **where: int) -> list[Message]:
    page = await _asked(client.http.logs_from(int(channel_id), PAGE, **where))
    return sorted(page, key=lambda one: int(one["id"]), reverse=True)


async def _asked(question: Awaitable[Any]) -> Any:
    try:
        return await question
    except disnake.Forbidden as error:
        raise NoAccessError(f"Discord does not let the bot read there ({error.text}).") from error
    except disnake.NotFound as error:
        if error.code == UNKNOWN_CHANNEL:
            raise NoChannelError("The channel is gone.") from error
        raise HistoryError(f"Discord gives no messages: {error}") from error
    except (disnake.HTTPException, aiohttp.ClientError, OSError) as error:
        raise HistoryError(f"Discord gives no messages: {error}") from error
