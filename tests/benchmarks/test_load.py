import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from benchmarks import load
from benchmarks.http2 import Http2Channel
from benchmarks.latency import poisson_arrivals
from benchmarks.load import ClosedLoop, LoadGenerator, OpenLoop, Stream
from benchmarks.peers.http import HttpChannel, as_body

OPEN = OpenLoop(rate=1000, seconds=0.03, timeout_s=1, seed=3)
MOMENTS = list(poisson_arrivals(OPEN.rate, OPEN.seconds, seed=OPEN.seed))


class Clock:
    """Time that passes only when a test says so."""

    now = 0.0
    process_time = staticmethod(time.process_time)

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(load, "time", clock)
    return clock


def generator(answer: Callable[[int], Awaitable[None]]) -> LoadGenerator:
    """Sends to a server that does something at each call, which it is told the number of."""
    numbers = itertools.count(1)

    async def embed(request: bytes, *, timeout: float | None, metadata: Any) -> bytes:  # noqa: ASYNC109
        await answer(next(numbers))
        return b"embedding"

    channel: Any = SimpleNamespace(unary_unary=lambda method: embed)
    return LoadGenerator(channel, [b"one", b"two"])


async def test_a_stall_is_in_the_latency_of_all_who_came_meanwhile(clock: Clock) -> None:
    async def stall(call: int) -> None:
        if call == 1:
            clock.now = 5.0  # nobody could send until then, and yet everybody would have

    result = await generator(stall).open(OPEN)
    assert len(MOMENTS) > 10
    assert result.codes == {"OK": len(MOMENTS)}
    assert result.latencies_s == pytest.approx([5.0 - moment for moment in MOMENTS])
    assert result.late_s == pytest.approx(5.0 - MOMENTS[1])
    assert result.throughput == pytest.approx(len(MOMENTS) / 5.0)


async def test_an_open_loop_does_not_wait_for_answers(clock: Clock) -> None:
    all_sent = asyncio.Event()

    async def answer_after_the_last(call: int) -> None:
        if call == len(MOMENTS):
            clock.now = 2.0
            all_sent.set()
        await all_sent.wait()

    result = await generator(answer_after_the_last).open(OPEN)
    assert sorted(result.latencies_s) == pytest.approx([2.0 - moment for moment in MOMENTS[::-1]])


async def test_a_closed_loop_counts_what_was_answered_within_its_time(clock: Clock) -> None:
    async def take_an_eighth(call: int) -> None:
        clock.now += 0.125
        if call == 4:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, empty, empty)

    result = await generator(take_an_eighth).closed(ClosedLoop(callers=1, seconds=1, warm_s=0))
    assert result.codes == {"OK": 6, "RESOURCE_EXHAUSTED": 1}  # the eighth came at the very end
    assert result.latencies_s == [0.125] * 6
    assert (result.throughput, result.answered) == (6, 7)


class Bulk(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Answers every image of a stream, and refuses each third."""

    def __init__(self) -> None:
        self.messages: list[int] = []

    async def EmbedStream(self, request_iterator: Any, context: Any) -> Any:
        async for request in request_iterator:
            self.messages.append(len(request.images))
            results = [
                pb.StreamResult(id=one.id, error=pb.StreamError(code=3))
                if one.id % 3 == 2
                else pb.StreamResult(id=one.id, embedding=pb.Embedding(values=[1.0]))
                for one in request.images
            ]
            yield pb.EmbedStreamResponse(results=results)

    async def Embed(self, request: Any, context: Any) -> pb.EmbedResponse:
        return pb.EmbedResponse(embedding=pb.Embedding(values=[1.0]))


@pytest.fixture
async def bulk() -> AsyncIterator[tuple[Bulk, LoadGenerator]]:
    bulk = Bulk()  # type: ignore[abstract]
    server = grpc.aio.server()
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(bulk, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    request = pb.EmbedRequest(image=b"picture").SerializeToString()
    address = f"127.0.0.1:{port}"
    async with Http2Channel(address) as channel, grpc.aio.insecure_channel(address) as streams:
        yield bulk, LoadGenerator(channel, [request], streams=streams)
    await server.stop(0)


async def test_a_stream_is_kept_full(bulk: tuple[Bulk, LoadGenerator]) -> None:
    server, load = bulk
    result = await load.stream(Stream(images=3, seconds=0.3, warm_s=0.0))
    assert set(server.messages) == {3}
    assert result.codes["OK"] == 2 * result.codes["FAILED"] > 0
    assert result.throughput == pytest.approx(result.codes["OK"] / 0.3)


async def test_calls_are_measured_beside_a_full_stream(bulk: tuple[Bulk, LoadGenerator]) -> None:
    server, load = bulk
    result = await load.open(OpenLoop(rate=100, seconds=0.3, timeout_s=9, seed=3, bulk=6))
    assert set(server.messages) == {6}
    assert result.codes == {"OK": len(result.latencies_s)}
    assert result.latencies_s
    assert result.bulk > 0


async def test_a_server_that_speaks_http_is_loaded_as_well() -> None:
    asked: list[bytes] = []
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                asked.append(await reader.readexactly(length))
                status = b"503 Full" if len(asked) % 2 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with HttpChannel(f"127.0.0.1:{port}/predict") as channel:
        load = LoadGenerator(channel, [as_body(b"picture", "json")])
        result = await load.closed(ClosedLoop(callers=1, seconds=0.2, warm_s=0))
    await gone.wait()
    server.close()
    await server.wait_closed()
    assert set(asked) == {b'{"image": "cGljdHVyZQ=="}'}
    assert set(result.codes) == {"OK", "RESOURCE_EXHAUSTED"}


def test_poisson_arrivals_are_fixed_beforehand_and_come_at_their_rate() -> None:
    moments = list(poisson_arrivals(1000, 20, seed=1))
    assert moments == list(poisson_arrivals(1000, 20, seed=1))
    assert moments == sorted(moments)
    assert moments[-1] < 20
    assert len(moments) == pytest.approx(20_000, rel=0.03)
    gaps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    # Of exponential gaps, 1 - 1/e are shorter than the mean.
    assert sum(gap < 0.001 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.02)
