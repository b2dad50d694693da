import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from inference import tracing
from inference.client import EmbeddingClient, StreamItem
from inference.errors import (
    DeadlineError,
    EmbeddingError,
    InferenceError,
    InvalidInputError,
    ModelChangedError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.inference.server.fakes import GatedEngine, Start, client_of, picture, until

PATIENCE_S = 30.0


async def pictures(count: int, size: int = 1) -> AsyncIterator[tuple[int, bytes]]:
    for number in range(count):
        yield number, picture(number % 8, size)


def axis(item: StreamItem) -> int:
    assert not isinstance(item.outcome, EmbeddingError), item
    return int(np.argmax(item.outcome.embedding))


async def test_every_image_is_answered_once(client: EmbeddingClient) -> None:
    items = [item async for item in client.embed_many(pictures(500, size=20_000))]
    assert sorted(item.id for item in items) == list(range(500))
    assert all(axis(item) == item.id % 8 for item in items)


async def test_without_images_there_are_no_items(client: EmbeddingClient) -> None:
    assert [item async for item in client.embed_many(pictures(0))] == []


async def test_bad_images_are_items_and_ids_are_the_callers_own(start: Start) -> None:
    async def images() -> AsyncIterator[tuple[int, bytes]]:
        yield -1, picture(1)
        yield -1, b"bad"
        yield 2**70, picture(3, 2049)
        yield 7, picture(4, 2048)

    async with start(max_image_bytes=2048) as server, client_of(server.address) as client:
        items = [item async for item in client.embed_many(images())]
    good = {item.id: axis(item) for item in items if not isinstance(item.outcome, Exception)}
    bad = {item.id: item.outcome for item in items if isinstance(item.outcome, Exception)}
    assert len(items) == 4
    assert good == {-1: 1, 7: 4}
    assert isinstance(bad[-1], InvalidInputError)
    assert isinstance(bad[2**70], InvalidInputError)
    assert "2049 bytes long" in str(bad[2**70])


async def test_a_failed_batch_is_items(client: EmbeddingClient, engine: GatedEngine) -> None:
    engine.failures.append(InferenceError("The model failed."))
    items = [item async for item in client.embed_many(pictures(1))]
    assert [type(item.outcome) for item in items] == [InferenceError]


async def test_the_source_is_read_no_faster_than_items_are_taken(start: Start) -> None:
    read = taken = 0

    async def images() -> AsyncIterator[tuple[int, bytes]]:
        nonlocal read
        async for image in pictures(200):
            read += 1
            assert read - taken <= 10 + 1
            yield image

    async with start() as server, client_of(server.address, window=10) as client:
        async with aclosing(client.embed_many(images())) as items:
            async for _ in items:
                taken += 1
    assert taken == 200


async def test_large_images_are_held_by_bytes(start: Start, engine: GatedEngine) -> None:
    read = 0

    async def images() -> AsyncIterator[tuple[int, bytes]]:
        nonlocal read
        async for image in pictures(100, size=8 * 1024 * 1024):
            read += 1
            yield image

    async with start() as server, client_of(server.address) as client:
        await client.wait_ready(PATIENCE_S)
        engine.gate.clear()
        async with aclosing(client.embed_many(images())) as items:
            first = asyncio.create_task(anext(items))
            await until(lambda: read == 9)  # 64 MiB, and one in the hand
            await asyncio.to_thread(engine.entered.acquire)
            assert read == 9
            engine.gate.set()
            await first


def bulk_tasks() -> set[str]:
    """What runs for bulk calls, at either end; gRPC's own tasks come and go as they please."""
    names = (getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
    return {name for name in names if name.startswith(("BulkCall.", "BulkStream."))}


async def test_leaving_early_leaves_nothing_behind(client: EmbeddingClient) -> None:
    async with aclosing(client.embed_many(pictures(1000))) as items:
        await anext(items)
        assert {"BulkCall._work", "BulkStream._read"} <= bulk_tasks()
    await until(lambda: not bulk_tasks())


async def test_a_source_that_breaks_breaks_the_call(client: EmbeddingClient) -> None:
    async def images() -> AsyncIterator[tuple[int, bytes]]:
        yield 1, picture(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        [item async for item in client.embed_many(images())]


async def test_a_restart_in_the_middle_answers_each_image_exactly_once(start: Start) -> None:
    found = []
    async with (
        AsyncExitStack() as stack,
        start(stream_window=8) as first,
        client_of(first.address, outage_s=PATIENCE_S, window=32) as client,
    ):
        async for item in client.embed_many(pictures(400, size=1000)):
            found.append(item)
            if len(found) == 100:
                await first.stop()
                await stack.enter_async_context(start(listen=first.address))
    assert sorted(item.id for item in found) == list(range(400))
    assert all(axis(item) == item.id % 8 for item in found)


async def test_a_crash_in_the_middle_answers_each_image_exactly_once(
    start: Start, engine: GatedEngine
) -> None:
    """The server goes while it has images, and says nothing more about them."""
    async with (
        AsyncExitStack() as stack,
        start(drain_s=0.0) as first,
        client_of(first.address, outage_s=PATIENCE_S) as client,
    ):
        await client.wait_ready(PATIENCE_S)
        engine.gate.clear()
        async with aclosing(client.embed_many(pictures(50))) as items:
            waiting = asyncio.create_task(anext(items))
            await asyncio.to_thread(engine.entered.acquire)
            await first.stop()
            engine.gate.set()
            await stack.enter_async_context(start(listen=first.address))
            found = [await waiting, *[item async for item in items]]
    assert sorted(item.id for item in found) == list(range(50))
    assert all(axis(item) == item.id % 8 for item in found)


async def test_an_idle_source_outlasts_a_restart(start: Start) -> None:
    more = asyncio.Event()

    async def images() -> AsyncIterator[tuple[int, bytes]]:
        yield 1, picture(1)
        await more.wait()
        yield 2, picture(2)

    async with start() as first, client_of(first.address, outage_s=PATIENCE_S) as client:
        async with aclosing(client.embed_many(images())) as items:
            assert (await anext(items)).id == 1
            await first.stop()
            async with start(listen=first.address):
                more.set()
                assert (await anext(items)).id == 2
                with pytest.raises(StopAsyncIteration):
                    await anext(items)


async def test_another_model_after_a_restart_is_an_error_that_says_so(
    start: Start, engine: GatedEngine
) -> None:
    async with start(name="old") as first, client_of(first.address) as client:
        async with aclosing(client.embed_many(pictures(300))) as items:
            await anext(items)
            await first.stop()
            async with start(name="new", listen=first.address):
                with pytest.raises(
                    ModelChangedError, match="new@43602d44172a, and began with old@"
                ):
                    async for _ in items:
                        pass


async def test_a_server_that_stays_away_is_waited_for_as_long_as_the_settings_say(
    start: Start, engine: GatedEngine
) -> None:
    async with start(drain_s=0.0) as server, client_of(server.address, outage_s=0.5) as client:
        await client.wait_ready(PATIENCE_S)  # to come up may take longer than half a second
        async with aclosing(client.embed_many(pictures(300))) as items:
            await anext(items)
            await server.stop()
            with pytest.raises(UnavailableError, match=server.address):
                async for _ in items:
                    pass


async def test_a_server_that_answers_nothing_is_a_deadline_error(
    start: Start, engine: GatedEngine
) -> None:
    async with start() as server, client_of(server.address, outage_s=0.5) as client:
        await client.wait_ready(PATIENCE_S)
        engine.gate.clear()
        with pytest.raises(DeadlineError, match=r"for 0.5 s"):
            await anext(client.embed_many(pictures(3)))
        engine.gate.set()  # or the server would wait for it while it drains


async def test_a_wrong_token_ends_the_call(start: Start) -> None:
    async with start(token="correct-horse-battery") as server:
        async with client_of(server.address) as client:
            with pytest.raises(UnauthenticatedError):
                await anext(client.embed_many(pictures(3)))


async def test_it_works_while_traced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "inference.telemetry.client_interceptors", tracing.tracing_client_interceptors
    )
    async with start() as first, client_of(first.address, outage_s=PATIENCE_S) as client:
        taken = 0
        async with aclosing(client.embed_many(pictures(200))) as items:
            async for _ in items:
                taken += 1
                if taken == 50:
                    break
            await first.stop()
            async with start(listen=first.address):
                async for _ in items:
                    taken += 1
    assert taken == 200


class Quirky(embedding_pb2_grpc.EmbeddingServiceServicer):
    """A server that answers nonsense beside the answers, and closes streams without a reason."""

    def __init__(self) -> None:
        self.streams = 0

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=pb.Model(id="m"), limits=pb.Limits(max_image_bytes=99))

    async def EmbedStream(self, request_iterator: Any, context: Any) -> Any:
        self.streams += 1
        request = await anext(request_iterator)
        first = request.images[0].id
        embedding = pb.Embedding(values=[1.0], model_id="m")
        code = grpc.StatusCode.UNAVAILABLE.value[0]
        yield pb.EmbedStreamResponse(
            results=[
                pb.StreamResult(id=first, embedding=embedding),
                pb.StreamResult(id=first, embedding=embedding),
                pb.StreamResult(id=987654321, embedding=embedding),
                pb.StreamResult(id=first + 1, error=pb.StreamError(code=code, message="gone")),
            ]
        )

    def Embed(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def EmbedText(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


async def test_nonsense_from_a_server_is_neither_delivered_nor_fatal() -> None:
    servicer = Quirky()
    server = grpc.aio.server()
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with client_of(f"127.0.0.1:{port}", outage_s=PATIENCE_S) as client:
            items = [item async for item in client.embed_many(pictures(4))]
    finally:
        await server.stop(None)
    assert sorted(item.id for item in items) == [0, 1, 2, 3]
    assert servicer.streams == 4
