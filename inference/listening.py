"""The port, kept open: gRPC for Python stops listening at a call whose method is no UTF-8.

Any stranger may send one (found by `mapseek bench fuzz`, grpcio 1.85.1), and gRPC then waits for
running calls to end before it says a word. So its loop is watched here, the running calls are cut
off as UNAVAILABLE, and another server listens on the same address within moments. gRPC also frees
the places where it waits for further calls, into which its core has yet to write; there must be one
place only, which is not waited in then, see `bind.wait_in_one_place`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import grpc.aio

from inference import bind
from inference.errors import StartupError
from inference.settings import ServerSettings

# How often, and how long apart, a port that gRPC let go of is bound again.
_REBINDS = 100
_REBIND_PAUSE_S = 0.05
# How long gRPC may take to let go of it.
_LET_GO_S = 10.0
# gRPC's own loop, as its coroutine is called.
_LOOP = "AioServer._server_main_loop"

_log = logging.getLogger("mapseek.server")


class Listener:
    """A gRPC server on an address, and another one whenever gRPC stops by itself.

    Args:
        build: Makes a server with all its services, which listens nowhere yet.
        settings: Where and how to listen.

    Attributes:
        address: Where it listens, with the real port.

    Raises:
        StartupError: The address cannot be bound, or a TLS file cannot be used.
    """

    def __init__(self, build: Callable[[], grpc.aio.Server], settings: ServerSettings) -> None:
        self._build = build
        self._server = build()
        self.address = bind.listen(self._server, settings)
        self._settings = settings.model_copy(update={"listen": self.address})
        self._broke = asyncio.Event()

    async def start(self) -> None:
        """Starts answering."""
        self._broke = asyncio.Event()
        loop = asyncio.get_running_loop()
        usual = loop.get_task_factory()
        # Only here, where gRPC starts its loop: it would cost a little at every task.
        loop.set_task_factory(partial(_make_task, self._broke))
        try:
            await self._server.start()
        finally:
            loop.set_task_factory(usual)

    async def keep(self) -> None:
        """Listens anew whenever gRPC stops by itself; runs until it is cancelled.

        Raises:
            StartupError: The address cannot be bound again.
            TimeoutError: gRPC does not let go of it.
        """
        while True:
            await self._until_it_stops()
            _log.error("gRPC stopped by itself; listening anew")
            async with asyncio.timeout(_LET_GO_S):
                with suppress(UnicodeDecodeError):
                    await self._server.stop(None)
            for left in reversed(range(_REBINDS)):
                self._server = self._build()
                try:
                    bind.listen(self._server, self._settings)
                    break
                except StartupError:
                    if not left:
                        raise
                    await asyncio.sleep(_REBIND_PAUSE_S)
            await self.start()

    async def stop(self, grace_s: float) -> None:
        """Stops; calls that do not end within `grace_s` seconds are cut off."""
        try:
            async with asyncio.timeout(grace_s + _LET_GO_S):
                await self._server.stop(grace_s)
        except TimeoutError:
            _log.error("gRPC did not stop")

    async def _until_it_stops(self) -> None:
        # A cancelled wait would cancel what `stop` waits for, too.
        ended = asyncio.shield(self._server.wait_for_termination())
        broke = asyncio.ensure_future(self._broke.wait())
        tasks: set[asyncio.Future[Any]] = {ended, broke}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _make_task(
    broke: asyncio.Event,
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any],
    **how: Any,
) -> "asyncio.Task[Any]":
    task = asyncio.Task(coro, loop=loop, **how)
    if getattr(coro, "__qualname__", "") == _LOOP:

        def look(ended: "asyncio.Task[Any]") -> None:
            if not ended.cancelled() and ended.exception() is not None:
                broke.set()

        task.add_done_callback(look)
    return task
