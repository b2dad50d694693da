"""Answers a command of an admin, and says what went wrong in words."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import disnake
from disnake.ext import commands
from disnake.interactions.base import Interaction
from disnake.interactions.message import MessageInteraction

from bot.interactions import Click, Command, in_words, traced, who_asks

_log = logging.getLogger("mapseek.bot")

# Who is offered the commands of admins, unless the server's settings say otherwise.
ADMINS = disnake.Permissions(manage_guild=True)


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
    inter: Command | Click,
    make: Callable[[disnake.Guild], Awaitable[Said]],
) -> None:
    """Defers at once, then shows what `make` makes to the asker alone.

    A press of a button replaces the message that the button is on.
    """
    with traced(inter) as reference:
        try:
            if isinstance(inter, MessageInteraction):
                await inter.response.defer()
            else:
                await inter.response.defer(ephemeral=True)
            try:
                said = await make(who_asks(inter)[0])
            except Exception as error:  # noqa: BLE001 (an asker must never be left without an answer)
                said = Said(content=in_words(error, reference))
            await inter.edit_original_response(content=said.content, components=said.buttons)
        except disnake.HTTPException:
            _log.warning("Discord did not take the answer.", exc_info=True)


def is_admin(inter: Interaction[commands.InteractionBot]) -> bool:
    """Whether whoever asks may manage the guild, by what Discord says in this request."""
    return inter.permissions.manage_guild
