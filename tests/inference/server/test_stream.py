import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio
import numpy as np
import pytest
from mapseek.v1 import embedding_pb2 as pb

from inference.errors import InvalidInputError, ShuttingDownError, UnavailableError
from inference.server import RunningServer
from inference.stream import BulkStream
from tests.inference.server.fakes import GatedEngine, Start, Stub, picture, stub_of, until

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]


def message(*images: tuple[int, bytes]) -> pb.EmbedStreamRequest:
    return pb.EmbedStreamRequest(
        images=[pb.StreamImage(id=id_, image=data) for id_, data in images]
    )


def axes(messages: Iterable[pb.EmbedStreamResponse]) -> dict[int, int]:
    """Which axis each result's embedding points along, by id; -code for an error."""
    found = {}
    for result in (result for message in messages for result in message.results):
        is_error = result.WhichOneof("outcome") == "error"
        assert result.id not in found
        found[result.id] = (
            -result.error.code if is_error else int(np.argmax(result.embedding.values))
        )
    return found


async def test_every_image_is_answered_under_its_id_and_a_bad_one_is_an_item(stub: Stub) -> None:
    requests = [
        message((10, picture(0)), (11, picture(1)), (12, b"bad")),
        message(),
        message((2**64 - 1, picture(3))),
    ]
    messages = [response async for response in stub.EmbedStream(iter(requests))]
    assert axes(messages) == {10: 0, 11: 1, 12: -INVALID, 2**64 - 1: 3}
    (error,) = [r.error for m in messages for r in m.results if r.HasField("error")]
    assert error.message == "This is not an image."


async def test_countless_images_in_a_message_are_refused_before_they_are_made(stub: Stub) -> None:
    """Empty ones: they would take 24 times as much memory as they do on the wire."""
    taken = message(*[(number, b"x" * 20) for number in range(1024)])
    answers = [answer async for answer in stub.EmbedStream(iter([taken]))]
    assert len(axes(answers)) == 1024
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.EmbedStream(iter([message(*[(0, b"")] * 10_000)])):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than 1024 images" in (caught.value.details() or "")


async def test_many_images_go_through_a_small_window(start: Start) -> None:
    async with start(stream_window=2, queue_size=2) as server, stub_of(server) as stub:
        await server.ready()
        requests = [message((n, picture(n % 8, 50_000))) for n in range(300)]
        messages = [response async for response in stub.EmbedStream(iter(requests))]
    assert axes(messages) == {n: n % 8 for n in range(300)}


async def test_a_cancelled_stream_drops_what_it_has_queued(
    stub: Stub, server: RunningServer, engine: GatedEngine
) -> None:
    engine.gate.clear()
    call = stub.EmbedStream()
    await call.write(message(*((number, picture(number)) for number in range(8))))
    await asyncio.to_thread(engine.entered.acquire)
    call.cancel()
    await until(lambda: server.calls == 0)
    engine.gate.set()
    await stub.Embed(pb.EmbedRequest(image=picture(9)))
    assert len(engine.seen) == 2
    assert engine.seen[1] == [9]


async def test_draining_answers_what_was_taken_up_and_then_says_unavailable(
    start: Start, engine: GatedEngine
) -> None:
    async with start() as server, stub_of(server) as stub:
        await server.ready()
        engine.gate.clear()
        call = stub.EmbedStream()
        await call.write(message((1, picture(1)), (2, picture(2))))
        await asyncio.to_thread(engine.entered.acquire)
        stopping = asyncio.create_task(server.stop())
        await until(lambda: not server.serving)
        engine.gate.set()
        received = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in call:
                received.append(response)  # noqa: PERF401  what came before the error counts
        await stopping
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert axes(received) == {1: 1, 2: 2}


# The rest needs no socket: a source and a writer that can be watched closely.


class Source:
    """Messages of one image each, for ever; counts how many were read."""

    def __init__(self, last: int | None = None) -> None:
        self.read = 0
        self.last = last

    async def __aiter__(self) -> AsyncIterator[pb.EmbedStreamRequest]:
        while self.read != self.last:
            self.read += 1
            yield message((self.read, b"x"))
        if self.last is not None:
            await asyncio.Event().wait()


class Writer:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.results: list[pb.StreamResult] = []
        self.messages = 0

    async def write(self, message: pb.EmbedStreamResponse, /) -> None:
        await self.gate.wait()
        self.messages += 1
        self.results.extend(message.results)


async def answer(image_id: int, image: bytes) -> pb.StreamResult:
    return pb.StreamResult(id=image_id)


async def settle() -> None:
    """Gives every task that can go on the time to do so."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_no_more_is_read_than_the_window_holds_while_the_model_is_busy() -> None:
    gate = asyncio.Event()
    source, writer = Source(), Writer()

    async def embed(image_id: int, image: bytes) -> pb.StreamResult:
        await gate.wait()
        return pb.StreamResult(id=image_id)

    stream = BulkStream(embed, window=4, idle_s=60)
    running = asyncio.create_task(stream.run(aiter(source), writer))
    await settle()
    assert source.read == 5  # four in flight, and one in the reader's hand
    gate.set()
    await settle()
    assert source.read > 5
    stream.close()
    with pytest.raises(ShuttingDownError):
        await running


async def test_no_more_is_read_than_the_window_holds_while_the_caller_does_not_read() -> None:
    source, writer = Source(), Writer()
    writer.gate.clear()
    stream = BulkStream(answer, window=4, idle_s=60)
    running = asyncio.create_task(stream.run(aiter(source), writer))
    await settle()
    assert source.read == 5
    stream.close()
    writer.gate.set()
    with pytest.raises(ShuttingDownError):
        await running
    assert [result.id for result in writer.results] == [1, 2, 3, 4]


async def test_results_that_are_ready_together_travel_together() -> None:
    ready = asyncio.Event()

    async def embed(image_id: int, image: bytes) -> pb.StreamResult:
        await ready.wait()
        return pb.StreamResult(id=image_id)

    writer = Writer()
    stream = BulkStream(embed, window=8, idle_s=60)
    running = asyncio.create_task(stream.run(aiter(Source(last=4)), writer))
    await settle()
    ready.set()
    await settle()
    stream.close()
    with pytest.raises(ShuttingDownError):
        await running
    assert {result.id for result in writer.results} == {1, 2, 3, 4}
    assert writer.messages < 4


async def test_a_caller_that_sends_nothing_is_sent_away() -> None:
    writer = Writer()
    with pytest.raises(UnavailableError, match="idle"):
        await BulkStream(answer, window=4, idle_s=0.01).run(aiter(Source(last=3)), writer)
    assert len(writer.results) == 3


async def test_a_caller_that_reads_nothing_is_sent_away() -> None:
    writer = Writer()
    writer.gate.clear()
    with pytest.raises(UnavailableError, match="idle"):
        await BulkStream(answer, window=4, idle_s=0.01).run(aiter(Source()), writer)


async def test_an_item_that_says_the_server_is_going_ends_the_stream_without_a_result() -> None:
    async def embed(image_id: int, image: bytes) -> pb.StreamResult:
        if image_id == 1:
            return pb.StreamResult(id=1)
        if image_id == 2:
            raise InvalidInputError("no image")
        raise ShuttingDownError

    writer = Writer()
    with pytest.raises(ShuttingDownError):
        await BulkStream(embed, window=4, idle_s=60).run(aiter(Source()), writer)
    assert [result.id for result in writer.results] == [1, 2]


async def test_a_source_that_breaks_ends_the_stream_after_the_answers() -> None:
    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        yield message((1, b"x"))
        raise RuntimeError("broken")

    writer = Writer()
    with pytest.raises(RuntimeError, match="broken"):
        await BulkStream(answer, window=4, idle_s=60).run(requests(), writer)
    assert [result.id for result in writer.results] == [1]


async def test_cancelling_a_stream_leaves_no_task_behind() -> None:
    started = asyncio.Event()
    ended = asyncio.Event()

    async def embed(image_id: int, image: bytes) -> pb.StreamResult:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    running = asyncio.create_task(
        BulkStream(embed, window=4, idle_s=60).run(aiter(Source()), Writer())
    )
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()
    assert asyncio.all_tasks() == {asyncio.current_task()}
