import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from inference import telemetry
from inference.errors import InferenceError
from inference.fields import Buffer
from inference.lanes import Lane
from inference.pipeline import Pipeline
from inference.server import RunningServer
from inference.service import Backend, EmbeddingService, parse
from inference.tracing import TracingServerInterceptor
from tests.inference.server.fakes import (
    GatedEngine,
    Start,
    Stub,
    decode,
    manifest,
    picture,
    stub_of,
    until,
)
from tests.inference.server.reading import read_both_ways

# Longer than anything here takes, shorter than anybody's patience: a hang becomes a failure.
TIMEOUT_S = 30.0


async def status_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_embed_answers_with_the_embedding_its_model_and_its_timings(stub: Stub) -> None:
    response = await stub.Embed(pb.EmbedRequest(image=picture(3)))
    assert np.argmax(response.embedding.values) == 3
    assert len(response.embedding.values) == 8
    assert response.embedding.model_id == "fake@43602d44172a"
    assert response.timings.batch_size == 1
    assert response.timings.inference_ms > 0


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("settings", [{}, {"max_calls_per_client": 9}])
@pytest.mark.parametrize("traced", [False, True])
async def test_nothing_holds_the_image_of_a_call_that_was_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], *, traced: bool
) -> None:
    images: list[object] = []
    nobodys = [object()]

    def seen(data: Buffer) -> Any:
        images.append(data)
        return decode(data)

    monkeypatch.setattr("tests.inference.server.conftest.decode", seen)
    if traced:
        monkeypatch.setattr(telemetry, "server_interceptors", lambda: [TracingServerInterceptor()])
    async with start(**settings) as server, stub_of(server) as stub:
        await server.ready()
        error = await status_of(stub.Embed(pb.EmbedRequest(image=b"bad" * 100)))
        await until(lambda: sys.getrefcount(images[0]) == sys.getrefcount(nobodys[0]))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_image_of_the_longest_length_fits_into_a_message(start: Start) -> None:
    async with start(max_image_bytes=1024 * 1024) as server, stub_of(server) as stub:
        await server.ready()
        await stub.Embed(pb.EmbedRequest(image=picture(3, 1024 * 1024)))
        error = await status_of(stub.Embed(pb.EmbedRequest(image=picture(3, 3 * 1024 * 1024))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in (error.details() or "")


@given(
    images=st.lists(st.binary(max_size=50) | st.integers(0, 20_000).map(bytes), max_size=3),
    lane=st.integers(-(2**31), 2**31 - 1),
    more=st.sampled_from([b"", b"\x08\x01", b"\xf8\x07\x01", b"\xfb\x07\xfc\x07"]),
    spoilt=st.booleans(),
    at=st.integers(0, 2**16),
)
def test_a_request_is_read_as_protobuf_reads_it(
    *, images: list[bytes], lane: int, more: bytes, spoilt: bool, at: int
) -> None:
    """With images of which the last counts, an odd field, and a byte that is not what it was."""
    sent = [pb.EmbedRequest(image=one).SerializeToString() for one in images]
    data = bytearray(more + b"".join(sent) + pb.EmbedRequest(lane=lane).SerializeToString())  # type: ignore[arg-type]
    if spoilt and data:
        data[at % len(data)] ^= 0x55
    read = read_both_ways(bytes(data), pb.EmbedRequest, parse)
    if read is None:
        return
    expected, request = read
    assert bytes(request.image) == expected.image
    assert request.lane is (Lane.BULK if expected.lane == pb.LANE_BULK else Lane.INTERACTIVE)


def test_a_long_image_is_not_copied() -> None:
    sent = pb.EmbedRequest(image=bytes(100_000), lane=pb.LANE_BULK).SerializeToString()
    image = parse(sent).image
    assert isinstance(image, memoryview)
    assert image.obj is sent


async def test_a_bad_image_is_an_invalid_argument(stub: Stub) -> None:
    error = await status_of(stub.Embed(pb.EmbedRequest(image=b"bad")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "This is not an image."


async def test_a_failing_model_is_internal_and_the_next_call_works(
    stub: Stub, engine: GatedEngine
) -> None:
    engine.failures.append(InferenceError("The model failed on this batch."))
    error = await status_of(stub.Embed(pb.EmbedRequest(image=picture(1))))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "The model failed on this batch."
    assert (await stub.Embed(pb.EmbedRequest(image=picture(1)))).embedding.values


async def test_a_full_server_refuses_with_a_hint(start: Start, engine: GatedEngine) -> None:
    async with start(queue_size=1) as server, stub_of(server) as stub:
        await server.ready()
        engine.gate.clear()
        first = stub.Embed(pb.EmbedRequest(image=picture(1)))
        await asyncio.to_thread(engine.entered.acquire)
        error = await status_of(stub.Embed(pb.EmbedRequest(image=picture(2))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hints = [value for key, value in error.trailing_metadata() if key == "retry-after-ms"]
        assert [int(hint) > 0 for hint in hints] == [True]
        engine.gate.set()
        await first
        assert engine.computed == [1]


async def test_work_past_its_deadline_is_dropped_before_it_is_computed(
    engine: GatedEngine, server: RunningServer, stub: Stub
) -> None:
    engine.gate.clear()
    first = stub.Embed(pb.EmbedRequest(image=picture(1)))
    await asyncio.to_thread(engine.entered.acquire)
    error = await status_of(stub.Embed(pb.EmbedRequest(image=picture(2)), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: server.calls == 1)  # the server hears of it a moment later
    engine.gate.set()
    await first
    await stub.Embed(pb.EmbedRequest(image=picture(3)))
    assert engine.computed == [1, 3]


async def test_cancelled_work_is_dropped_and_its_neighbours_are_answered(
    engine: GatedEngine, server: RunningServer, stub: Stub
) -> None:
    engine.gate.clear()
    first = stub.Embed(pb.EmbedRequest(image=picture(1)))
    await asyncio.to_thread(engine.entered.acquire)
    cancelled = stub.Embed(pb.EmbedRequest(image=picture(2)))
    neighbour = stub.Embed(pb.EmbedRequest(image=picture(3)))
    await until(lambda: server.calls == 3)
    cancelled.cancel()
    await until(lambda: server.calls == 2)
    engine.gate.set()
    await asyncio.gather(first, neighbour)
    assert engine.computed == [1, 3]


async def test_a_text_is_embedded_where_there_is_a_text_tower(start: Start) -> None:
    async with start(text=True, max_text_chars=5) as server, stub_of(server) as stub:
        await server.ready()
        response = await stub.EmbedText(pb.EmbedTextRequest(text="five!"))
        assert np.argmax(response.embedding.values) == 5
        for text in ("", "sixsix"):
            error = await status_of(stub.EmbedText(pb.EmbedTextRequest(text=text)))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_text_without_a_text_tower_is_unimplemented(stub: Stub) -> None:
    error = await status_of(stub.EmbedText(pb.EmbedTextRequest(text="a creeper")))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == "The model fake embeds images only: it has no text tower."


async def test_get_model_tells_the_model_and_the_limits(start: Start) -> None:
    async with start(text=True, max_image_bytes=4096) as server, stub_of(server) as stub:
        await server.ready()
        response = await stub.GetModel(pb.GetModelRequest())
    assert response.model == pb.Model(
        id="fake@43602d44172a",
        name="fake",
        revision="r1",
        dimensions=8,
        image_size=4,
        precision="fp32",
        provider="FakeProvider",
        has_text=True,
        thresholds=pb.Thresholds(same=0.875, similar=0.5),
    )
    assert response.limits.max_image_bytes == 4096
    assert response.limits.max_message_bytes > 4096


class BrokenPipeline:
    """A pipeline with a bug."""

    async def embed(self, *_: Any, **__: Any) -> Any:
        raise ValueError("the password is 1234")

    async def embed_text(self, *_: Any, **__: Any) -> Any:
        """Awaits a future that somebody cancels, without the call being cancelled."""
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.cancel)
        return await future


@asynccontextmanager
async def broken_service() -> AsyncIterator[Stub]:
    service = EmbeddingService(
        limits=pb.Limits(max_text_chars=10), stream_window=4, stream_idle_s=TIMEOUT_S
    )
    pipeline = cast("Pipeline", BrokenPipeline())
    service.open(Backend(pipeline=pipeline, manifest=manifest(text=True), provider="Fake"))
    server = grpc.aio.server()
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield embedding_pb2_grpc.EmbeddingServiceStub(channel)
    finally:
        await server.stop(None)


async def test_an_unforeseen_error_is_logged_and_kept_from_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with broken_service() as stub:
        unary = await status_of(stub.Embed(pb.EmbedRequest(image=b"x")))
        stream = stub.EmbedStream(iter([pb.EmbedStreamRequest(images=[pb.StreamImage(id=7)])]))
        results = [result async for message in stream for result in message.results]
    assert unary.code() is grpc.StatusCode.INTERNAL
    assert [result.error.code for result in results] == [grpc.StatusCode.INTERNAL.value[0]]
    assert unary.details() == results[0].error.message
    assert "1234" not in results[0].error.message
    assert caplog.text.count("ValueError: the password is 1234") == 2


async def test_a_call_whose_future_was_cancelled_is_answered_all_the_same() -> None:
    async with broken_service() as stub:
        call = stub.EmbedText(pb.EmbedTextRequest(text="x"), timeout=TIMEOUT_S)
        assert (await status_of(call)).code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("method", ["Embed", "GetModel", "EmbedText", "EmbedStream"])
async def test_what_is_no_message_is_the_callers_fault_and_fills_no_log(
    server: RunningServer, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, garbage = f"/mapseek.v1.EmbeddingService/{method}", b"\x0a\xff no protobuf"
    channel: Any
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if method == "EmbedStream":
                async for _ in channel.stream_stream(path)(iter([b"", garbage])):
                    pass
            else:
                await channel.unary_unary(path)(garbage)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"no request of {method}" in (caught.value.details() or "")
    assert caplog.records == []


async def test_what_is_no_message_to_a_watch_is_the_callers_fault_too(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    channel: Any
    async with grpc.aio.insecure_channel(server.address) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        error = await status_of(watch(b"\x0a\xff no protobuf").read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no request of Watch" in (error.details() or "")
    assert caplog.records == []
