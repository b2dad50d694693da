"""The least HTTP/1.1 client that loads a server: it costs less than what it measures."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc

from benchmarks.http2 import failed

_OK = b"200"
_FULL = (b"429", b"503")


def as_body(picture: bytes, body: str) -> bytes:
    """What a POST holds: the file itself, or JSON with the file in base64."""
    if body == "json":
        return json.dumps({"image": base64.b64encode(picture).decode()}).encode()
    return picture


class HttpChannel:
    """Keeps connections to one address open; looks like a gRPC channel as far as load needs it.

    Args:
        where: HOST:PORT/PATH.
    """

    def __init__(self, where: str) -> None:
        self._address, _, path = where.partition("/")
        self._path = f"/{path}"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _, writer in self._idle:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def unary_unary(self, _method: str) -> Callable[..., Awaitable[bytes]]:
        """A call that POSTs its request and returns the answer's body."""
        return self._post

    async def _post(
        self,
        body: bytes,
        *,
        timeout: float | None,  # noqa: ASYNC109  as grpc's calls
        metadata: Any,  # noqa: ARG002  there is none
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                status, answer = await self._exchange(body)
        except TimeoutError:
            raise failed(grpc.StatusCode.DEADLINE_EXCEEDED) from None
        except (OSError, asyncio.IncompleteReadError):
            raise failed(grpc.StatusCode.UNAVAILABLE) from None
        if status == _OK:
            return answer
        full = status in _FULL
        raise failed(grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.INTERNAL)

    async def _exchange(self, body: bytes) -> tuple[bytes, bytes]:
        host, port = self._address.split(":")
        connection = (
            self._idle.pop() if self._idle else await asyncio.open_connection(host, int(port))
        )
        reader, writer = connection
        try:
            writer.write(
                f"POST {self._path} HTTP/1.1\r\nHost: {self._address}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in lines
                if line.startswith(b"content-length:")
            )
            answer = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        self._idle.append(connection)
        return lines[0].split(b" ")[1], answer
