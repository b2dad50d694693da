"""`grpc.health.v1.Health`: tells probes and watchers whether the server serves.

The servicer that comes with `grpcio-health-checking` starts as SERVING, holds a lock while it
writes to a watcher (so one that stops reading blocks every later change), and never ends a watch
(so a graceful stop waits for its whole grace). This one does none of that.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_SERVING: int = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Context = grpc.aio.ServicerContext[Any, Any]


class ProbeService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped package
    """Answers probes and watchers. All its services share one state, NOT_SERVING at first.

    Args:
        services: Names that may be asked for; "" is the server as a whole.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """What probes are told."""
        return self._serving

    def set_serving(self, *, serving: bool) -> None:
        """Changes the state: at once for probes, as soon as they read for watchers."""
        if not self._closed and serving != self._serving:
            self._serving = serving
            self._wake()

    def close(self) -> None:
        """Says NOT_SERVING for good, and ends each watch once it has been told."""
        self._serving = False
        self._closed = True
        self._wake()

    async def Check(  # noqa: N802  named by the protocol
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answers a probe."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service here.")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802  named by the protocol
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Tells a watcher the state, and then every change that it is quick enough to read."""
        told = None
        while True:
            changed, closed = self._changed, self._closed
            status = self._status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if closed:
                return
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return _UNKNOWN
        return _SERVING if self._serving else _NOT_SERVING

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
