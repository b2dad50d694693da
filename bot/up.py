"""`mapseek up`: the server and the bot as two processes that live and end together."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence

from bot.settings import BotSettings
from inference import telemetry
from inference.client import ClientSettings, EmbeddingClient
from inference.errors import UnauthenticatedError, UnavailableError
from inference.settings import ServerSettings
from inference.tether import Tether

_log = logging.getLogger("mapseek.up")

_MAPSEEK = (sys.executable, "-m", "bot.cli.main")
SERVE = (*_MAPSEEK, "serve")
BOT = (*_MAPSEEK, "bot")

# How long the bot may take to end by itself, and the server beyond its drain.
_GRACE_S = 30.0
_ROOM_S = 10.0
# A process that ends so ends so again: a variable is wrong, or what it names.
_FOR_SOMEBODY = frozenset({2, os.EX_CONFIG})
# A server that has run for this long has recovered from its last crash.
_STEADY_S = 60.0
_MOST_CRASHES = 5
_LONGEST_PAUSE_S = 30.0
# How often a server that takes its time to load is reported.
_PATIENCE_S = 30.0


def run_up(settings: BotSettings, *, serve: Sequence[str] = SERVE, bot: Sequence[str] = BOT) -> int:
    """Starts the server, waits until it serves, starts the bot, and keeps both going.

    SIGTERM and SIGINT stop both, the bot first; a second one kills them. A server that crashes is
    started again; a bot that ends, ends everything. If this process is killed, both end by
    themselves.

    Args:
        settings: The bot's.
        serve: The server's command line.
        bot: The bot's command line.

    Returns:
        0 after a signal. Where one of the two died, which is in the log, its own status if that
        says that starting again will not help (2 or 78), else 1.

    Raises:
        StartupError: There is no Discord token, or a setting is wrong. Nothing was started.
    """
    settings.required_token()
    client = ClientSettings.load()
    drain_s = ServerSettings.load().drain_s
    # What was given as an option must hold for the bot, too.
    tether = Tether()
    environment = {
        **os.environ,
        **tether.environment,
        "MAPSEEK_ARCHIVE": str(settings.archive),
        "MAPSEEK_ARCHIVE_KIND": settings.archive_kind,
    }
    with (
        contextlib.closing(tether),
        telemetry.set_up("mapseek-up", telemetry.TelemetrySettings.load()),
    ):
        return asyncio.run(
            _until_signal(
                _Child("server", serve, environment, tether, grace_s=drain_s + _ROOM_S),
                _Child("bot", bot, environment, tether, grace_s=_GRACE_S),
                client,
            )
        )


class _Child:
    """A process of ours, by name, which may take `grace_s` to end when it is asked to."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        tether: Tether,
        *,
        grace_s: float,
    ) -> None:
        self.name = name
        self._grace_s = grace_s
        self._command = command
        self._environment = environment
        self._tether = tether
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it, in a session of its own: a Ctrl-C reaches it through us, once, in order."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            pass_fds=self._tether.pass_fds,
            start_new_session=True,
        )

    async def ended(self) -> int:
        """Waits for its end and returns the exit status; negative is the signal that killed it."""
        assert self._process is not None, "ended() comes after start()"  # noqa: S101
        return await self._process.wait()

    @property
    def status(self) -> int:
        """What its end means for the whole: see `run_up`."""
        status = None if self._process is None else self._process.returncode
        return status if status is not None and status in _FOR_SOMEBODY else 1

    async def stop(self) -> None:
        """Asks it to end, and kills it if it does not in time."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(self._grace_s):
                await self._process.wait()
        except TimeoutError:
            _log.warning("The %s did not end within %g s and is killed.", self.name, self._grace_s)
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


async def _until_signal(server: _Child, bot: _Child, client: ClientSettings) -> int:
    signalled = asyncio.Event()

    def on_signal() -> None:
        if signalled.is_set():
            bot.kill()
            server.kill()
        signalled.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    both = asyncio.create_task(_run_both(server, bot, client))
    stop = asyncio.create_task(signalled.wait())
    try:
        await asyncio.wait({both, stop}, return_when=asyncio.FIRST_COMPLETED)
        return both.result() if both.done() else 0
    finally:
        stop.cancel()
        both.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await both
        await bot.stop()
        await server.stop()


async def _run_both(server: _Child, bot: _Child, settings: ClientSettings) -> int:
    """Ends only when one of them has ended for good, with the exit status for it."""
    async with EmbeddingClient(settings) as client:
        await server.start()
        if not await _serving(server, client, settings.server):
            return server.status
        await bot.start()
        _log.info("Server and bot are running. Ctrl-C stops both.")
        keeping = asyncio.create_task(_keep_serving(server, client, settings.server))
        ending = asyncio.create_task(bot.ended())
        try:
            await asyncio.wait({keeping, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                _log.error("The bot ended with exit status %d.", ending.result())
                return bot.status
            keeping.result()
            return server.status
        finally:
            keeping.cancel()
            ending.cancel()
            await asyncio.gather(keeping, ending, return_exceptions=True)


async def _keep_serving(server: _Child, client: EmbeddingClient, address: str) -> None:
    """Starts the server again whenever it ends; returns when that no longer helps."""
    crashes = 0
    started_at_s = time.monotonic()
    while True:
        status = await server.ended()
        if status in _FOR_SOMEBODY:
            _log.error("The server cannot start with these settings; see its log above.")
            return
        crashes = 1 if time.monotonic() - started_at_s > _STEADY_S else crashes + 1
        if crashes > _MOST_CRASHES:
            _log.error("The server ended %d times in a row; see its log above.", crashes)
            return
        pause_s = min(2.0 ** (crashes - 1), _LONGEST_PAUSE_S)
        _log.warning(
            "The server ended with exit status %d; it is started again in %g s.", status, pause_s
        )
        await asyncio.sleep(pause_s)
        started_at_s = time.monotonic()
        await server.start()
        await _serving(server, client, address)


async def _serving(server: _Child, client: EmbeddingClient, address: str) -> bool:
    """Waits until the server serves; False if it ended before, or can never be reached."""
    ended = asyncio.create_task(server.ended())
    try:
        while True:
            ready = asyncio.create_task(client.wait_ready(_PATIENCE_S))
            await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ready.cancel()
                await asyncio.gather(ready, return_exceptions=True)
                _log.error("The server ended with exit status %d.", ended.result())
                return False
            try:
                await ready
            except UnauthenticatedError as error:
                _log.error("The server does not let us in: %s", error)
                return False
            except UnavailableError:
                _log.warning(
                    "The server does not serve at %s yet. MAPSEEK_SERVER must name the address "
                    "that MAPSEEK_LISTEN listens on.",
                    address,
                )
            else:
                return True
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
