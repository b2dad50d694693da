"""The least gRPC client that loads a server: it costs less than what it measures.

Unary calls over one connection, as the protocol of gRPC over HTTP/2 has them. Frames are those of
RFC 9113, and header blocks those of RFC 7541, in a form that depends on no block before it, so that
one which came or was sent before need not be read or written again. grpcio's own client spends
nearly twice as much on a call, of the very cores that the server should have.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import IntEnum
from functools import lru_cache
from types import TracebackType
from typing import Final, Self, cast

import grpc
import grpc.aio
import hpack

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = 9
_PREFIX: Final = 5
"""Of a gRPC message: whether it is compressed, and its length."""

_WIDEST: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
_READ_MOST: Final = 2**30
"""What the server may send before it is given room for more."""

_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_REFUSED_STREAM, _CANCEL = 7, 8

Metadata = tuple[tuple[str, str], ...]


class _Frame(IntEnum):
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class _Setting(IntEnum):
    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


class Http2Channel:
    """Keeps a connection to one address open; looks like a gRPC channel as far as load needs it.

    Args:
        address: HOST:PORT of a server that speaks gRPC without TLS.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def unary_unary(self, method: str) -> Callable[..., Awaitable[bytes]]:
        """A call of a method: takes a message and returns one, both serialised."""

        async def call(
            request: bytes,
            *,
            timeout: float | None = None,  # noqa: ASYNC109  as grpc's calls
            metadata: Iterable[tuple[str, str]] = (),
        ) -> bytes:
            block = _headers(self._address, method, timeout, tuple(metadata))
            try:
                async with asyncio.timeout(timeout):
                    connection = await self._connected()
                    status, answer = await connection.call(block, request)
            except TimeoutError:
                raise failed(grpc.StatusCode.DEADLINE_EXCEEDED) from None
            except OSError:
                raise failed(grpc.StatusCode.UNAVAILABLE) from None
            if status is not grpc.StatusCode.OK:
                raise failed(status)
            return answer

        return call

    async def _connected(self) -> "_Connection":
        connection = self._connection
        if connection is None or connection.closed:
            async with self._opening:
                if self._connection is None or self._connection.closed:
                    host, _, port = self._address.rpartition(":")
                    loop = asyncio.get_running_loop()
                    _, self._connection = await loop.create_connection(
                        _Connection, host.strip("[]"), int(port)
                    )
                return self._connection
        return connection


class _Call:
    """One call: what the server has not been sent of it, and what came back."""

    __slots__ = ("answer", "done", "unsent", "window")

    def __init__(self, request: bytes, window: int) -> None:
        self.unsent = _message(request)
        self.window = window
        self.answer = b""
        self.done: asyncio.Future[grpc.StatusCode | None]  # None: the server has not looked at it
        self.done = asyncio.get_running_loop().create_future()


class _Connection(asyncio.Protocol):
    """A connection, and the calls that are on it."""

    def __init__(self) -> None:
        self.closed = False
        self._calls: dict[int, _Call] = {}
        self._held_up: dict[int, _Call] = {}  # of these, those that wait for a wider window
        self._next = 1
        self._window = _FIRST_WINDOW
        self._first_window = _FIRST_WINDOW
        self._largest = 16_384
        self._most_calls = _WIDEST
        self._room = asyncio.Event()
        self._received = b""
        self._block = b""
        self._read = 0

    def close(self) -> None:
        """Closes it; calls fail as UNAVAILABLE."""
        self._transport.close()

    async def call(self, headers: bytes, request: bytes) -> tuple[grpc.StatusCode, bytes]:
        """Makes a call and returns its status and the answer's message.

        Raises:
            ConnectionError: The connection is closed.
        """
        while True:
            # A server may count calls whose end it has sent already, and refuse one too many; such
            # a call may be sent again (RFC 9113, 8.7).
            status, answer = await self._try(headers, request)
            if status is not None:
                return status, answer

    async def _try(self, headers: bytes, request: bytes) -> tuple[grpc.StatusCode | None, bytes]:
        while len(self._calls) >= self._most_calls and not self.closed:
            self._room.clear()
            await self._room.wait()
        if self.closed:
            raise ConnectionError
        number = self._next
        self._next += 2
        call = self._calls[number] = _Call(request, self._first_window)
        self._send(number, call, _frame(_Frame.HEADERS, _END_HEADERS, number, headers))
        try:
            return await call.done, call.answer[_PREFIX:]
        finally:
            if self._forget(number) is not None:
                reset = _frame(_Frame.RST_STREAM, 0, number, _CANCEL.to_bytes(4))
                self._transport.write(reset)
            self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # as every loop makes it
        settings = {
            _Setting.HEADER_TABLE_SIZE: 0,  # so that a block says the same whenever it comes
            _Setting.ENABLE_PUSH: 0,
            _Setting.INITIAL_WINDOW_SIZE: _WIDEST,
        }
        values = b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in settings.items())
        more = (_WIDEST - _FIRST_WINDOW).to_bytes(4)
        self._transport.write(
            _PREFACE + _frame(_Frame.SETTINGS, 0, 0, values)
            + _frame(_Frame.WINDOW_UPDATE, 0, 0, more)
        )  # fmt: skip

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.closed = True
        self._room.set()
        for number in list(self._calls):
            self._end(number, grpc.StatusCode.UNAVAILABLE)

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        at = 0
        while len(data) - at >= _HEAD:
            end = at + _HEAD + int.from_bytes(data[at : at + 3])
            if len(data) < end:
                break
            number = int.from_bytes(data[at + 5 : at + 9]) & _WIDEST
            self._take(data[at + 3], data[at + 4], number, data[at + _HEAD : end])
            at = end
        self._received = data[at:]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        match kind:
            case _Frame.DATA:
                self._count(len(payload))
                if (call := self._calls.get(number)) is not None:
                    call.answer += _unpadded(payload, flags)
                if flags & _END_STREAM:
                    self._end(number, grpc.StatusCode.INTERNAL)  # a status would have come last
            case _Frame.HEADERS | _Frame.CONTINUATION:
                self._take_headers(kind, flags, number, payload)
            case _Frame.WINDOW_UPDATE:
                self._widen(number, int.from_bytes(payload))
            case _Frame.RST_STREAM:
                refused = int.from_bytes(payload) == _REFUSED_STREAM
                self._end(number, None if refused else grpc.StatusCode.UNAVAILABLE)
            case _Frame.SETTINGS if not flags & _ACK:
                self._take_settings(payload)
            case _Frame.PING if not flags & _ACK:
                self._transport.write(_frame(_Frame.PING, _ACK, 0, payload))
            case _Frame.GOAWAY:
                self._go_away(int.from_bytes(payload[:4]))

    def _go_away(self, last: int) -> None:
        self.closed = True  # for new calls; those that it still answers may go on
        for lost in [number for number in self._calls if number > last]:
            self._end(lost, grpc.StatusCode.UNAVAILABLE)

    def _take_headers(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _Frame.HEADERS:
            skipped = _PREFIX if flags & _PRIORITY else 0
            self._block = _unpadded(payload, flags)[skipped:]
            self._ends = bool(flags & _END_STREAM)
        else:
            self._block += payload
        if flags & _END_HEADERS and self._ends:
            self._end(number, _status(self._block))

    def _take_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            value = int.from_bytes(payload[at + 2 : at + 6])
            match int.from_bytes(payload[at : at + 2]):
                case _Setting.MAX_CONCURRENT_STREAMS:
                    self._most_calls = value
                case _Setting.INITIAL_WINDOW_SIZE:
                    for call in self._calls.values():
                        call.window += value - self._first_window
                    self._first_window = value
                case _Setting.MAX_FRAME_SIZE:
                    self._largest = value
        self._transport.write(_frame(_Frame.SETTINGS, _ACK, 0, b""))
        self._widen(0, 0)

    def _widen(self, number: int, by: int) -> None:
        """Sends what a window was too narrow for: a call's own, or (0) that of all of them."""
        if number:
            if (call := self._calls.get(number)) is not None:
                call.window += by
                self._send(number, call)
            return
        self._window += by
        for one, call in list(self._held_up.items()):
            self._send(one, call)

    def _send(self, number: int, call: _Call, first: bytes = b"") -> None:
        """Sends a frame, and after it as much of a call's request as the windows let pass."""
        out: list[bytes | memoryview] = [first]
        while call.unsent and (room := min(self._largest, self._window, call.window)) > 0:
            part, call.unsent = call.unsent[:room], call.unsent[room:]
            self._window -= len(part)
            call.window -= len(part)
            flags = 0 if call.unsent else _END_STREAM
            out += [_head(len(part), _Frame.DATA, flags, number), part]
        if call.unsent:
            self._held_up[number] = call
        else:
            self._held_up.pop(number, None)
        if first or len(out) > 1:
            self._transport.write(b"".join(out))

    def _count(self, length: int) -> None:
        """Gives the connection new room before what was given first is used up."""
        self._read += length
        if self._read >= _READ_MOST:
            more = self._read.to_bytes(4)
            self._transport.write(_frame(_Frame.WINDOW_UPDATE, 0, 0, more))
            self._read = 0

    def _end(self, number: int, status: grpc.StatusCode | None) -> None:
        call = self._forget(number)
        if call is not None and not call.done.done():
            call.done.set_result(status)

    def _forget(self, number: int) -> _Call | None:
        self._held_up.pop(number, None)
        return self._calls.pop(number, None)


def _frame(kind: _Frame, flags: int, number: int, payload: bytes) -> bytes:
    return _head(len(payload), kind, flags, number) + payload


def _head(length: int, kind: _Frame, flags: int, number: int) -> bytes:
    return length.to_bytes(3) + bytes([kind, flags]) + number.to_bytes(4)


def _unpadded(payload: bytes, flags: int) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload


@lru_cache(maxsize=256)
def _message(request: bytes) -> memoryview:
    return memoryview(b"\x00" + len(request).to_bytes(4) + request)


@lru_cache(maxsize=256)
def _headers(address: str, method: str, timeout_s: float | None, metadata: Metadata) -> bytes:
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", address),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *metadata,
    ]
    if timeout_s is not None:
        headers.append(("grpc-timeout", f"{max(1, round(timeout_s * 1000))}m"))
    # What is never indexed reads the same in every block.
    block: bytes = hpack.Encoder().encode(
        [hpack.NeverIndexedHeaderTuple(name, value) for name, value in headers], huffman=False
    )
    return block


@lru_cache(maxsize=256)
def _status(block: bytes) -> grpc.StatusCode:
    """The status in a call's last headers."""
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    decoder.header_table_size = 0
    found = dict(decoder.decode(block, raw=True)).get(b"grpc-status", b"")
    statuses = {b"%d" % status.value[0]: status for status in grpc.StatusCode}
    return statuses.get(found, grpc.StatusCode.UNKNOWN)


def failed(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """The error that a call of grpcio's raises for a status."""
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, empty)
