"""The bot's composition root: builds everything, runs it, closes it."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
import disnake
from disnake.ext import commands
from disnake.webhook.async_ import async_context

from bot.answering.commands import make_find
from bot.answering.limits import Limits
from bot.answering.line import Line
from bot.archive.opening import open_archive
from bot.current import CurrentClient
from bot.fetch import DISCORD_ORIGINS, Fetcher, FetchError
from bot.ingest.assembly import Indexing
from bot.ingest.queue import Queue
from bot.ingest.state import StateError
from bot.pictures import Sighting, in_channel
from bot.settings import BotSettings
from inference import telemetry
from inference.client import ClientSettings
from inference.errors import StartupError

_log = logging.getLogger("mapseek.bot")

# Discord's close code for a bad token, should the REST login have let it through.
_AUTHENTICATION_FAILED = 4004


def run_bot(settings: BotSettings) -> int:
    """Runs the bot until SIGTERM, SIGINT or a failure that it cannot live with.

    The embedding server need not be there: until it is, members are told so, and what is posted
    waits in the queue.

    Returns:
        0 after a signal, 1 where Discord cannot be reached.

    Raises:
        StartupError: Something that the operator must change: the token, the intent, a file.
    """
    token = settings.required_token()
    client_settings = ClientSettings.load()
    with telemetry.set_up("mapseek-bot", telemetry.TelemetrySettings.load()):
        return asyncio.run(_run(settings, client_settings, token))


async def _run(settings: BotSettings, client_settings: ClientSettings, token: str) -> int:
    try:
        fetcher = Fetcher(
            origins=DISCORD_ORIGINS,
            trusted_origins=list(
                filter(None, map(str.strip, settings.download_origins.split(",")))
            ),
            max_bytes=settings.download_bytes,
            timeout_s=settings.download_s,
        )
    except ValueError as error:
        raise StartupError(f"MAPSEEK_DOWNLOAD_ORIGINS: {error}.") from None
    try:
        queue = Queue(settings.queue_file)
    except StateError as error:
        raise StartupError(str(error)) from error
    with queue:
        async with (
            open_archive(None, settings) as archive,
            CurrentClient(client_settings, archive, next_server=settings.next_server) as client,
            fetcher,
        ):
            bot = make_bot()
            line = Line()
            limits = Limits(
                per_member=settings.searches_per_member,
                per_guild=settings.searches_per_guild,
                line=line,
            )
            indexing = Indexing(
                bot=bot,
                queue=queue,
                archive=archive,
                client=client,
                fetcher=fetcher,
                refresh=lambda sighting: _refresh(bot, sighting),
                give_way=line.give_way,
                limits=limits,
                privacy_url=settings.privacy_url,
            )
            find = make_find(
                settings,
                bot=bot,
                archive=archive,
                client=client,
                fetcher=fetcher,
                ingest=indexing.ingest,
                queue=queue,
                limits=limits,
            )
            bot.add_cog(find)
            try:
                return await _until_signal(_work(bot, indexing, token))
            finally:
                await bot.close()


def make_bot() -> commands.InteractionBot:
    """The Discord client. Call it inside the running loop, which it binds itself to."""
    # Libraries for voice are not missing here: nothing is said.
    disnake.VoiceClient.warn_nacl = disnake.VoiceClient.warn_dave = False
    # disnake 2.12 keeps a lock for every interaction for ever: 1 kB for each search.
    async_context.get()._locks = WeakValueDictionary()  # type: ignore[assignment] # noqa: SLF001
    return commands.InteractionBot(
        intents=disnake.Intents(guilds=True, guild_messages=True, message_content=True),
        allowed_mentions=disnake.AllowedMentions.none(),
        default_install_types=disnake.ApplicationInstallTypes(guild=True),
        default_contexts=disnake.InteractionContextTypes(guild=True),
    )


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    working = asyncio.create_task(work)
    stop = asyncio.create_task(signalled.wait())
    try:
        await asyncio.wait({working, stop}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else 0
    finally:
        for task in (working, stop):
            task.cancel()
        await asyncio.gather(working, stop, return_exceptions=True)


async def _work(bot: commands.InteractionBot, indexing: Indexing, token: str) -> int:
    """Runs until Discord or the indexing ends, and says why in words."""
    try:
        await bot.login(token)
        working = asyncio.create_task(indexing.run())
        connection = asyncio.create_task(bot.connect())
        try:
            await asyncio.wait({working, connection}, return_when=asyncio.FIRST_COMPLETED)
            (connection if connection.done() else working).result()
        finally:
            working.cancel()
            connection.cancel()
            await asyncio.gather(working, connection, return_exceptions=True)
    except disnake.LoginFailure:
        raise _refused_token() from None
    except disnake.PrivilegedIntentsRequired:
        raise StartupError(
            "Discord does not let this bot read messages: turn on Message Content Intent on the "
            "Bot page of your application at https://discord.com/developers/applications."
        ) from None
    except disnake.ConnectionClosed as error:
        if error.code == _AUTHENTICATION_FAILED:
            raise _refused_token() from None
        _log.error("Discord closed the connection for good, with code %s.", error.code)
    except disnake.SessionStartLimitReached as error:
        _log.error("Discord lets this bot connect no more today: %s", error)
    except (disnake.GatewayNotFound, disnake.HTTPException, aiohttp.ClientError, OSError) as error:
        _log.error("Discord cannot be reached: %s", error)
    else:
        _log.error("The connection to Discord ended.")
    return 1


def _refused_token() -> StartupError:
    return StartupError(
        "Discord refused the token: put a valid one into MAPSEEK_DISCORD_TOKEN (Reset Token on the "
        "Bot page of your application at https://discord.com/developers/applications)."
    )


async def _refresh(bot: disnake.Client, sighting: Sighting) -> Sighting | None:
    try:
        now = await in_channel(
            bot,
            guild_id=sighting.guild_id,
            channel_id=sighting.channel_id,
            message_id=sighting.message_id,
        )
    except (disnake.HTTPException, aiohttp.ClientError, OSError) as error:
        raise FetchError(f"Discord gives no fresh link: {error}.") from error
    if now == []:
        # No proof that it is gone: without the intent, Discord keeps the content from the bot.
        raise FetchError("Discord shows no picture in this message any more.")
    return next((one for one in now or () if one.key == sighting.key), None)
