"""Answers a command of an admin, and says what went wrong in words."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import disnake
from disnake.ext import commands
from disnake.interactions.application_command import ApplicationCommandInteraction
from disnake.interactions.base import Interaction
from disnake.interactions.message import MessageInteraction
from opentelemetry import trace

from bot.answering.wording import explain
from bot.archive.port import ArchiveError
from inference import telemetry
from inference.errors import EmbeddingError

_log = logging.getLogger("mapseek.bot")
_tracer = trace.get_tracer("mapseek.bot")

Command = ApplicationCommandInteraction[commands.InteractionBot]
Press = MessageInteraction[commands.InteractionBot]

# Who is offered the commands of admins, unless the server's settings say otherwise.
ADMINS = disnake.Permissions(manage_guild=True)

STARTING = "The bot is still starting; try again in a moment."


class RefusalError(Exception):
    """What was asked for cannot be done. The message says what is missing, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the asker is to see.

    Attributes:
        content: Text, in Discord's markdown.
        buttons: Below it.
    """

    content: str
    buttons: list[disnake.ui.Button[None]] = field(default_factory=list)


async def answer(
    inter: Command | Press,
    make: Callable[[disnake.Guild], Awaitable[Said]],
) -> None:
    """Defers at once, then shows what `make` makes to the asker alone.

    A press of a button replaces the message that the button is on.
    """
    reference = str(inter.id)
    with (
        telemetry.correlate(reference),
        _tracer.start_as_current_span(
            "mapseek.interaction", attributes={"mapseek.interaction_id": reference}
        ),
    ):
        try:
            if isinstance(inter, MessageInteraction):
                await inter.response.defer()
            else:
                await inter.response.defer(ephemeral=True)
            said = await _said(inter, make, reference)
            await inter.edit_original_response(content=said.content, components=said.buttons)
        except disnake.HTTPException:
            _log.warning("Discord did not take the answer.", exc_info=True)


async def _said(
    inter: Interaction[commands.InteractionBot],
    make: Callable[[disnake.Guild], Awaitable[Said]],
    reference: str,
) -> Said:
    guild = inter.guild
    if guild is None or guild.unavailable or not isinstance(inter.author, disnake.Member):
        return Said(content=STARTING)
    try:
        return await make(guild)
    except RefusalError as error:
        return Said(content=str(error))
    except (ArchiveError, EmbeddingError) as error:
        _log.warning("A command failed: %s", error)
        return Said(content=explain(error, reference))
    except Exception as error:  # noqa: BLE001 (an asker must never be left without an answer)
        _log.exception("A command failed.")
        return Said(content=explain(error, reference))


def is_admin(inter: Interaction[commands.InteractionBot]) -> bool:
    """Whether whoever asks may manage the guild, by what Discord says in this request."""
    return inter.permissions.manage_guild
