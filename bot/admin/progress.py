"""Shows how far a backfill is: one message per guild, edited until the end, across restarts."""

import asyncio
import logging

import aiohttp
import disnake

from bot.admin import wording as admin_wording
from bot.ingest.backfill import Backfill
from bot.ingest.jobs import Jobs, Report

_log = logging.getLogger("mapseek.bot")

# An edit costs a call to Discord, and nobody watches more closely.
EVERY_S = 5.0


class ProgressMessages:
    """Keeps the messages up to date for as long as `run` runs.

    Args:
        client: Writes the messages.
        backfill: Knows how far it is.
        jobs: Remembers where the messages are.
    """

    def __init__(self, *, client: disnake.Client, backfill: Backfill, jobs: Jobs) -> None:
        self._client = client
        self._backfill = backfill
        self._jobs = jobs
        self._shown: dict[str, str] = {}

    async def show_in(self, guild_id: str, channel: disnake.abc.Messageable) -> None:
        """Posts the message that is edited from now on.

        Raises:
            disnake.HTTPException: Discord does not take it.
        """
        text = admin_wording.progress(self._backfill.progress(guild_id))
        message = await channel.send(text)
        self._shown[guild_id] = text
        self._jobs.report_in(
            guild_id, Report(channel_id=str(message.channel.id), message_id=str(message.id))
        )

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            for guild_id in self._jobs.reported_guilds():
                try:
                    await self._update(guild_id)
                except Exception:  # noqa: BLE001 (indexing goes on, shown or not)
                    _log.exception("The progress of guild %s was not shown.", guild_id)

    async def _update(self, guild_id: str) -> None:
        report = self._jobs.report(guild_id)
        now = self._backfill.progress(guild_id)
        text = admin_wording.progress(now)
        if report is None or (text == self._shown.get(guild_id) and now.running):
            return
        channel = self._client.get_partial_messageable(
            int(report.channel_id), type=disnake.ChannelType.text
        )
        try:
            await channel.get_partial_message(int(report.message_id)).edit(content=text)
        except (disnake.NotFound, disnake.Forbidden):
            self._jobs.report_in(guild_id, None)  # somebody deleted it: that is an answer, too
            return
        except (disnake.HTTPException, aiohttp.ClientError, OSError) as error:
            _log.info("The progress of guild %s was not shown: %s", guild_id, error)
            return
        self._shown[guild_id] = text
        if not now.running:
            self._jobs.report_in(guild_id, None)
