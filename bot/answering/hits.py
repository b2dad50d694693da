"""Checks that what was found is still there, by asking Discord for it again."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import disnake
from opentelemetry import trace

from bot.answering.confirmed import Confirmed
from bot.answering.thumbnails import Thumbnails
from bot.archive.port import Match, Picture, Selection
from bot.fetch import Fetcher, FetchError
from bot.ingest.worker import Ingest
from bot.pictures import Sighting, in_channel

_tracer = trace.get_tracer("mapseek.bot")
_log = logging.getLogger("mapseek.bot")

# The answer does not wait longer for one of its pictures; the link is shown without it.
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A match that was checked.

    Attributes:
        match: What was found.
        now: The picture as Discord has it now; None where Discord did not tell.
        shown: It as a small encoded file; None where it cannot be drawn.
        missing: Whether it could not be fetched, or must not be shown.
    """

    match: Match
    now: Sighting | None
    shown: bytes | None = None
    missing: bool = True

    @property
    def spoiler(self) -> bool:
        """Whether it must stay hidden: it is a spoiler now, or was one when it was indexed."""
        return self.match.picture.spoiler or (self.now is not None and self.now.spoiler)


class Checker:
    """Looks at matches again. What is gone leaves the archive.

    Args:
        bot: Asks Discord for messages.
        fetcher: Downloads the pictures, from Discord only.
        ingest: Is told of what is gone.
    """

    def __init__(self, *, bot: disnake.Client, fetcher: Fetcher, ingest: Ingest) -> None:
        self._bot = bot
        self._ingest = ingest
        self._thumbnails = Thumbnails(fetcher.fetch)
        self._confirmed = Confirmed(self._ask)
        ingest.tell(self._confirmed)

    async def _ask(self, guild_id: str, channel_id: str, message_id: str) -> list[Sighting] | None:
        return await in_channel(
            self._bot, guild_id=guild_id, channel_id=channel_id, message_id=message_id
        )

    async def check(self, matches: Sequence[Match]) -> list[Hit]:
        """Those of the matches that still exist, in their order, with fresh links and bytes."""
        with _tracer.start_as_current_span("mapseek.check", attributes={"matches": len(matches)}):
            return await self._check(matches)

    async def _check(self, matches: Sequence[Match]) -> list[Hit]:
        # Several may stand in one message, which is asked for once.
        messages = {
            (match.picture.channel_id, match.picture.key.message_id): match.picture
            for match in matches
        }
        found = dict(
            zip(
                messages,
                await asyncio.gather(*map(self._message, messages.values())),
                strict=True,
            )
        )
        hits = await asyncio.gather(
            *(
                self._hit(match, found[match.picture.channel_id, match.picture.key.message_id])
                for match in matches
            )
        )
        return [hit for hit in hits if hit is not None]

    async def _message(self, picture: Picture) -> "list[Sighting] | Exception | None":
        """The pictures of a message now; None if it is gone; why, where Discord does not tell."""
        if self._is_closed(picture):
            return PermissionError("the bot cannot read its channel")
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._confirmed.pictures(
                    picture.guild_id, (picture.channel_id, picture.key.message_id)
                )
        # A ValueError is an id that an import made up.
        except (disnake.HTTPException, aiohttp.ClientError, OSError, ValueError) as error:
            _log.info("Message %s was not checked: %r", picture.key.message_id, error)
            return error

    def _is_closed(self, picture: Picture) -> bool:
        """Whether it is known that the bot cannot read there: refusals count against a bot."""
        guild = self._bot.get_guild(int(picture.guild_id))
        me = guild.get_member(self._bot.user.id) if guild else None
        if guild is None or me is None:
            return False
        channel = guild.get_channel_or_thread(int(picture.channel_id))
        if channel is None:
            return False
        allowed = channel.permissions_for(me)
        return not (allowed.view_channel and allowed.read_message_history)

    async def _hit(self, match: Match, found: "list[Sighting] | Exception | None") -> Hit | None:
        picture = match.picture
        if isinstance(found, Exception):
            return Hit(match=match, now=None)
        now = next((one for one in found or () if one.is_the(picture.key)), None)
        if now is None:
            # A message without any picture may also be one whose content is kept from the bot.
            if found != []:
                self._ingest.delete(_selection(picture, whole_message=found is None))
            return None
        hit = Hit(match=match, now=now)
        if hit.spoiler:
            return hit
        try:
            async with asyncio.timeout(_PATIENCE_S):
                shown = await self._thumbnails.of(now)
        except (FetchError, TimeoutError) as error:
            _log.info("Picture %s is not on the sheet: %r", picture.key.attachment_id, error)
            return hit
        return Hit(match=match, now=now, shown=shown, missing=False)


def _selection(picture: Picture, *, whole_message: bool) -> Selection:
    return Selection(
        message_ids=frozenset({picture.key.message_id}),
        attachment_ids=None if whole_message else frozenset({picture.key.attachment_id}),
    )
