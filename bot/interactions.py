"""What answers to members and to admins share: who asks, the trace, and errors in words."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import disnake
from disnake.ext import commands
from disnake.interactions.application_command import ApplicationCommandInteraction
from disnake.interactions.message import MessageInteraction
from opentelemetry import trace

from bot.answering.line import BusyError
from bot.answering.wording import explain
from bot.archive.port import ArchiveError
from bot.fetch import FetchError
from inference import telemetry
from inference.errors import EmbeddingError

_log = logging.getLogger("mapseek.bot")
_tracer = trace.get_tracer("mapseek.bot")

Command = ApplicationCommandInteraction[commands.InteractionBot]
Click = MessageInteraction[commands.InteractionBot]

_STARTING = "The bot is still starting; try again in a moment."
# What may happen to anybody; everything else is a mistake of ours, and logged in full.
_EXPECTED = (EmbeddingError, ArchiveError, FetchError, TimeoutError)


class RefusalError(Exception):
    """What was asked for cannot be done. The message says what is missing, for people."""


def who_asks(inter: Command | Click) -> tuple[disnake.Guild, disnake.Member]:
    """The guild and the member of an interaction.

    Raises:
        RefusalError: The guild is not there yet: commands arrive before it does, after a start.
    """
    guild, member = inter.guild, inter.author
    if guild is None or guild.unavailable or not isinstance(member, disnake.Member):
        raise RefusalError(_STARTING)
    return guild, member


@contextmanager
def traced(inter: Command | Click, **attributes: str) -> Iterator[str]:
    """A span for an interaction, and its id in every line of the log: the reference to quote."""
    reference = str(inter.id)
    told = {f"mapseek.{name}": value for name, value in attributes.items()}
    with (
        telemetry.correlate(reference),
        _tracer.start_as_current_span(
            "mapseek.interaction", attributes={"mapseek.interaction_id": reference, **told}
        ),
    ):
        yield reference


def in_words(error: Exception, reference: str) -> str:
    """What a member is told of an error; those that somebody must look after are logged."""
    if isinstance(error, RefusalError):
        return str(error)
    if isinstance(error, _EXPECTED):
        _log.warning("An answer failed: %s", str(error) or "it took too long")
    elif not isinstance(error, BusyError):
        _log.error("An answer failed.", exc_info=error)
    return explain(error, reference)
