"""The commands that members use. Thin: what is found and said is decided in `bot.answers`."""

import logging
from collections.abc import Awaitable, Callable

import disnake
from disnake.ext import commands
from disnake.interactions.application_command import (
    ApplicationCommandInteraction,
    MessageCommandInteraction,
)
from disnake.interactions.base import Interaction
from disnake.interactions.message import MessageInteraction
from opentelemetry import trace

from bot.answers import PICK, Answers, Asker, Reply, explain
from bot.archive.port import ArchiveError
from bot.fetch import FetchError
from bot.pictures import in_message, in_option
from inference import telemetry
from inference.errors import EmbeddingError

_log = logging.getLogger("mapseek.bot")
_tracer = trace.get_tracer("mapseek.bot")


class Find(commands.Cog):
    """Finds maps by picture."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    @commands.message_command(name="Find similar map")
    async def find_similar(self, inter: MessageCommandInteraction[commands.InteractionBot]) -> None:
        """Looks for the first picture of a message."""

        async def make(asker: Asker) -> Reply:
            choices = in_message(inter.target, guild=asker.guild)
            return await self._answers.about(choices, None, asker)

        await _answer(inter, make)

    @commands.slash_command(name="find")
    async def find(
        self,
        inter: ApplicationCommandInteraction[commands.InteractionBot],
        image: disnake.Attachment = commands.Param(description="A picture of it."),  # noqa: B008 (disnake's way)
    ) -> None:
        """Find who posted a map, by a picture of it."""

        async def make(asker: Asker) -> Reply:
            sighting = in_option(image)
            if sighting is None:
                return Reply(content="That file is no picture.")
            return await self._answers.about([sighting], None, asker)

        await _answer(inter, make)

    @commands.Cog.listener()
    async def on_dropdown(self, inter: MessageInteraction[commands.InteractionBot]) -> None:
        """Looks for another picture of the message that an earlier answer was about."""
        prefix, _, ids = (inter.component.custom_id or "").rpartition(f"{PICK}:")
        channel_id, _, message_id = ids.partition(":")
        if prefix or not (channel_id.isdecimal() and message_id.isdecimal() and inter.values):
            return
        chosen = inter.values[0]

        async def make(asker: Asker) -> Reply:
            return await self._answers.about_message(
                channel_id=channel_id, message_id=message_id, chosen=chosen, asker=asker
            )

        await _answer(inter, make)


async def _answer(
    inter: ApplicationCommandInteraction[commands.InteractionBot]
    | MessageInteraction[commands.InteractionBot],
    make: Callable[[Asker], Awaitable[Reply]],
) -> None:
    """Defers at once, then shows what `make` makes, or a sentence about why there is nothing."""
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
            reply = await _reply(inter, make, reference)
            await inter.edit_original_response(
                content=reply.content,
                components=reply.components,
                files=reply.files,
                attachments=[],  # of an earlier answer in this place
            )
        except disnake.HTTPException:
            _log.warning("Discord did not take the answer.", exc_info=True)


async def _reply(
    inter: Interaction[commands.InteractionBot],
    make: Callable[[Asker], Awaitable[Reply]],
    reference: str,
) -> Reply:
    # Commands arrive before the guilds do, after a start.
    guild, member = inter.guild, inter.author
    if guild is None or guild.unavailable or not isinstance(member, disnake.Member):
        return Reply(content="The bot is still starting; try again in a moment.")
    asker = Asker(guild=guild, member=member, channel_id=inter.channel_id)
    try:
        return await make(asker)
    except (EmbeddingError, ArchiveError, FetchError) as error:
        _log.warning("A search failed: %s", error)
        return Reply(content=explain(error, reference))
    except Exception as error:  # noqa: BLE001 (a member must never be left without an answer)
        _log.exception("A search failed.")
        return Reply(content=explain(error, reference))
