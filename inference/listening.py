"""The port, kept open: gRPC for Python stops listening at a call whose method is no UTF-8.

Any stranger may send one (found by `mapseek bench fuzz`, grpcio 1.85.1), and what gRPC does next is
unsafe: it frees the places into which its core has yet to write the calls to come, and it waits for
running calls to end before it says a word. So the places are held on to here, the running calls are
cut off as UNAVAILABLE, and another server listens on the same address within moments.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
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
# The coroutines of gRPC's that wait for the next call of a method.
_NEXT_CALL = "AioServer._request_"

_log = logging.getLogger("mapseek.server")

# Set by the first of the tasks below that gRPC gives up; inherited by all tasks of one server.
_given_up: ContextVar[asyncio.Event] = ContextVar("given_up")


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
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Starts answering."""
        _hold_on_to_next_calls()
        self._stopped = asyncio.Event()
        token = _given_up.set(self._stopped)
        try:
            await self._server.start()
        finally:
            _given_up.reset(token)

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
                # The first is only told what gRPC stopped for, and gets no further.
                for _ in range(2):
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
        given_up = asyncio.ensure_future(self._stopped.wait())
        tasks: set[asyncio.Future[Any]] = {ended, given_up}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _NextCall(asyncio.Task[Any]):
    """Waits for the next call of a method, for gRPC.

    gRPC gives these tasks up before its core does, which then writes into memory that is not
    theirs any more. The first time is told and not obeyed: the core ends them when it is stopped.
    """

    def __init__(self, coro: Coroutine[Any, Any, Any], given_up: asyncio.Event, **how: Any) -> None:
        super().__init__(coro, **how)
        self._given_up = given_up
        self._asked = False

    def cancel(self, msg: Any | None = None) -> bool:
        if self._asked:
            return super().cancel(msg)
        self._asked = True
        self._given_up.set()
        return False


def _hold_on_to_next_calls() -> None:
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        loop.set_task_factory(_make_task)  # type: ignore[arg-type]  # the stubs' keywords vary


def _make_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **how: Any
) -> "asyncio.Task[Any]":
    given_up = _given_up.get(None)
    if given_up is not None and getattr(coro, "__qualname__", "").startswith(_NEXT_CALL):
        return _NextCall(coro, given_up, loop=loop, **how)
    return asyncio.Task(coro, loop=loop, **how)
