"""Delivers replies to Discord: acknowledged at once, counted, traced, and never left open.

Whatever goes wrong becomes a sentence for the one member who asked, with the interaction's id to
quote; the same id stands in the log lines and in the trace, through to the batch of the model.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import disnake
from disnake.interactions.message import MessageInteraction
from disnake.ui import ActionRow, Button
from opentelemetry import metrics

from bot.answering.answers import Asker
from bot.answering.limits import Limits
from bot.answering.line import BusyError
from bot.answering.pages import Reply
from bot.interactions import Click, Command, RefusalError, in_words, traced, who_asks

# Nobody looks at an answer that comes later than this.
_PATIENCE_S = 20.0

_log = logging.getLogger("mapseek.bot")
_duration = metrics.get_meter("mapseek.bot").create_histogram(
    "mapseek.search.duration",
    unit="s",
    description="Time from a member's command or click to the answer, by what was asked and came.",
)

Make = Callable[[Asker], Awaitable[Reply]]
Share = Callable[[Asker, Callable[[Reply], Awaitable[None]]], Awaitable[None]]


class Delivery:
    """Answers interactions.

    Args:
        limits: How much may be asked.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def answer(self, inter: Command, kind: str, make: Make) -> None:
        """Answers a command, for the member's eyes only."""

        async def act(asker: Asker) -> str:
            reply = await make(asker)
            await _edit(inter, reply)
            return "found" if reply.hits else "nothing"

        async def say(words: str) -> None:
            await inter.edit_original_response(words)

        await self._run(inter, kind, act, say, ephemeral=True)

    async def replace(self, click: Click, kind: str, make: Make) -> None:
        """Puts another answer in the place of the one that was clicked on."""

        async def act(asker: Asker) -> str:
            reply = await make(asker)
            await _edit(click, reply)
            return "found" if reply.hits else "nothing"

        await self._run(click, kind, act, _beside(click))

    async def share(self, click: Click, share: Share) -> None:
        """Shows an answer to everybody in the channel, below the one that was clicked on."""

        async def show(reply: Reply) -> None:
            await click.followup.send(
                reply.content,
                files=reply.files,
                components=reply.rows,
                suppress_embeds=True,
                allowed_mentions=disnake.AllowedMentions.none(),
            )

        async def act(asker: Asker) -> str:
            await share(asker, show)
            await click.edit_original_response(components=_shared(click))
            return "found"

        await self._run(click, "share", act, _beside(click))

    async def remove(self, click: Click, check: Callable[[Asker], None]) -> None:
        """Takes back what was shared, if the check does not refuse it."""

        async def act(asker: Asker) -> str:
            check(asker)
            await click.delete_original_response()
            return "removed"

        await self._run(click, "remove", act, _beside(click))

    async def _run(
        self,
        inter: Command | Click,
        kind: str,
        act: Callable[[Asker], Awaitable[str]],
        say: Callable[[str], Awaitable[None]],
        *,
        ephemeral: bool = False,
    ) -> None:
        began_s = time.perf_counter()
        with traced(inter, asked=kind) as reference:
            outcome = await self._outcome(inter, act, say, reference, ephemeral=ephemeral)
            took_s = time.perf_counter() - began_s
            _duration.record(took_s, {"asked": kind, "outcome": outcome})
            _log.info("Asked by %s: %s after %.0f ms.", kind, outcome, took_s * 1000)

    async def _outcome(
        self,
        inter: Command | Click,
        act: Callable[[Asker], Awaitable[str]],
        say: Callable[[str], Awaitable[None]],
        reference: str,
        *,
        ephemeral: bool,
    ) -> str:
        try:
            try:
                asker = _asker(inter)
                self._limits.enter(member_id=asker.member.id, guild_id=asker.guild.id)
            except (RefusalError, BusyError) as error:  # told at once, in one call
                await inter.response.send_message(in_words(error, reference), ephemeral=True)
                return _outcome_of(error)
            if isinstance(inter, MessageInteraction):
                await inter.response.defer()
            else:
                await inter.response.defer(ephemeral=ephemeral)
        except (disnake.HTTPException, aiohttp.ClientError, OSError) as error:
            _log.warning("Discord took no acknowledgement: %s", error)
            return "late"
        try:
            async with (
                self._limits.turn(member_id=asker.member.id, guild_id=asker.guild.id),
                asyncio.timeout(_PATIENCE_S),
            ):
                return await act(asker)
        except Exception as error:  # noqa: BLE001 (a member must never be left without an answer)
            outcome, words = _outcome_of(error), in_words(error, reference)
        # Nobody else listens where Discord does not.
        with suppress(disnake.HTTPException, aiohttp.ClientError, OSError):
            await say(words)
        return outcome


def _outcome_of(error: Exception) -> str:
    """How a search that was not answered is counted."""
    if isinstance(error, BusyError):
        return "busy"
    return "refused" if isinstance(error, RefusalError) else "failed"


def _asker(inter: Command | Click) -> Asker:
    guild, member = who_asks(inter)
    return Asker(guild=guild, member=member, channel_id=inter.channel_id)


async def _edit(inter: Command | Click, reply: Reply) -> None:
    await inter.edit_original_response(
        content=reply.content,
        components=reply.rows,
        files=reply.files,
        attachments=[],  # of an earlier answer in this place
        suppress_embeds=True,
        allowed_mentions=disnake.AllowedMentions.none(),
    )


def _beside(click: Click) -> Callable[[str], Awaitable[None]]:
    """Says something to the member alone, and leaves the answer that was clicked on."""

    async def say(words: str) -> None:
        await click.followup.send(words, ephemeral=True)

    return say


def _shared(click: Click) -> list[ActionRow[Any]]:
    """The buttons of the answer, of which the one that was clicked on has done its work."""
    rows = ActionRow.rows_from_message(click.message)
    for _, component in ActionRow.walk_components(rows):
        if isinstance(component, Button) and component.custom_id == click.data.custom_id:
            component.label, component.disabled = "Shared", True
    return rows
