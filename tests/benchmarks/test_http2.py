import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.http2 import Http2Channel

Behaviour = Callable[[bytes, Any], Awaitable[bytes]]
LARGE = 3_000_000
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS, REFUSED_STREAM = 1, 4, 7


@asynccontextmanager
async def serving(
    behaviour: Behaviour, *options: tuple[str, int], port: int = 0
) -> AsyncIterator[int]:
    """A real server of gRPC's with one method, `/test/Method`; gives its port."""
    handler: Any = grpc.unary_unary_rpc_method_handler(behaviour)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), *options])
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("test", {"Method": handler})]
    )
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def calling(port: int) -> AsyncIterator[Callable[..., Awaitable[bytes]]]:
    async with Http2Channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary("/test/Method")


async def code_of(call: Awaitable[bytes]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def echo(request: bytes, context: Any) -> bytes:
    return request


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_384, 65_535, 65_536, LARGE])
async def test_messages_of_all_sizes_go_and_come(size: int) -> None:
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with serving(echo) as port, calling(port) as call:
        assert await call(message) == message


@given(sizes=st.lists(st.integers(0, 400_000), min_size=1, max_size=40))
async def test_calls_share_a_connection_and_each_gets_its_own_answer(sizes: list[int]) -> None:
    requests = [bytes([number]) * size for number, size in enumerate(sizes)]
    async with serving(echo) as port, calling(port) as call:
        assert await asyncio.gather(*(call(request) for request in requests)) == requests


async def test_more_calls_than_the_server_takes_at_once_wait_for_their_turn() -> None:
    running = most = 0

    async def count(request: bytes, context: Any) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return request

    async with serving(count, ("grpc.max_concurrent_streams", 2)) as port, calling(port) as call:
        await call(b"")  # what the server takes is known from now on
        answers = await asyncio.gather(*(call(bytes([number])) for number in range(20)))
    assert answers == [bytes([number]) for number in range(20)]
    assert most <= 2


async def test_metadata_and_the_deadline_reach_the_server() -> None:
    seen: list[tuple[Any, float]] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.append((dict(context.invocation_metadata()), context.time_remaining()))
        return request

    token = "Bearer " + "long" * 100
    async with serving(look) as port, calling(port) as call:
        await call(b"", timeout=30, metadata=[("authorization", token)])
    ((metadata, left_s),) = seen
    assert metadata["authorization"] == token
    assert 0 < left_s <= 30


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
async def test_a_status_is_an_error_of_its_code(code: grpc.StatusCode) -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        await context.abort(code, "no; see % and \u00fc", (("retry-after-ms", "5"),))
        return b""

    async with serving(refuse) as port, calling(port) as call:
        assert await code_of(call(b"picture")) is code
        assert await code_of(call(b"picture")) is code


async def test_a_call_that_takes_too_long_is_given_up_and_the_server_hears_of_it() -> None:
    gone = asyncio.Event()

    async def hang(request: bytes, context: Any) -> bytes:
        if request == b"next":
            return request
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        return b""

    async with serving(hang) as port, calling(port) as call:
        assert await code_of(call(b"first", timeout=0.05)) is grpc.StatusCode.DEADLINE_EXCEEDED
        await gone.wait()
        assert await call(b"next") == b"next"


async def test_a_cancelled_call_leaves_the_others_alone() -> None:
    async def slow(request: bytes, context: Any) -> bytes:
        if request == b"hang":
            await asyncio.Event().wait()
        return request

    async with serving(slow) as port, calling(port) as call:
        hanging = asyncio.ensure_future(call(b"hang"))
        assert await call(b"one") == b"one"
        hanging.cancel()
        assert await call(b"two") == b"two"
        with pytest.raises(asyncio.CancelledError):
            await hanging


async def test_a_server_that_goes_and_comes_back() -> None:
    arrived = asyncio.Event()

    async def hang(request: bytes, context: Any) -> bytes:
        arrived.set()
        await asyncio.Event().wait()
        return b""

    async with serving(hang) as port:
        channel = Http2Channel(f"127.0.0.1:{port}")
        call = channel.unary_unary("/test/Method")
        cut_off = asyncio.ensure_future(call(b"picture"))
        await arrived.wait()
    assert await code_of(cut_off) is grpc.StatusCode.UNAVAILABLE
    assert await code_of(call(b"picture")) is grpc.StatusCode.UNAVAILABLE
    async with serving(echo, port=port), channel:
        assert await call(b"picture") == b"picture"


async def test_what_is_no_server_of_grpc_ends_a_call(unused_tcp_port: int) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", unused_tcp_port):
        async with calling(unused_tcp_port) as call:
            assert await code_of(call(b"picture", timeout=30)) is grpc.StatusCode.UNAVAILABLE


async def test_a_call_that_the_server_refused_unseen_is_made_again() -> None:
    made: list[int] = []
    gone = asyncio.Event()

    async def refuse_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)  # the preface
        writer.write(frame(SETTINGS, 0, 0, b""))
        with suppress(asyncio.IncompleteReadError):  # until the client goes
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3]))
                if head[3] != HEADERS:
                    continue
                number = int.from_bytes(head[5:])
                made.append(number)
                if len(made) == 1:
                    writer.write(frame(RST_STREAM, 0, number, REFUSED_STREAM.to_bytes(4)))
                    continue
                trailers = hpack.Encoder().encode([("grpc-status", "0")], huffman=False)
                writer.write(frame(DATA, 0, number, b"\0\0\0\0\3map"))
                writer.write(frame(HEADERS, END_STREAM | END_HEADERS, number, trailers))
        writer.close()
        await writer.wait_closed()
        gone.set()

    async with await asyncio.start_server(refuse_the_first, "127.0.0.1", 0) as server:
        async with calling(server.sockets[0].getsockname()[1]) as call:
            assert await call(b"picture", timeout=30) == b"map"
        await gone.wait()
    assert made == [1, 3]


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + number.to_bytes(4) + payload
