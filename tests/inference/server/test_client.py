import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from inference.client import EmbeddingClient
from inference.client.backoff import Backoff
from inference.client.results import Limits, Thresholds
from inference.errors import (
    DeadlineError,
    EmbeddingError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from inference.status import code_of, error_of
from tests.inference.server.fakes import GatedEngine, Start, client_of, picture

PATIENCE_S = 30.0


async def test_embed_gives_the_embedding_its_model_and_its_timings(
    client: EmbeddingClient,
) -> None:
    embedded = await client.embed(picture(5))
    assert embedded.embedding.dtype == np.float32
    assert embedded.embedding.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert embedded.model_id == "fake@43602d44172a"
    assert embedded.timings.batch_size == 1
    assert embedded.timings.inference_ms > 0


async def test_model_tells_everything_about_it(start: Start) -> None:
    async with start(text=True, max_image_bytes=4096) as server:
        await server.ready()
        async with client_of(server.address) as client:
            model = await client.model()
    assert (model.id, model.name, model.revision) == ("fake@43602d44172a", "fake", "r1")
    assert (model.dimensions, model.image_size, model.precision) == (8, 4, "fp32")
    assert (model.provider, model.has_text) == ("FakeProvider", True)
    assert model.thresholds == Thresholds(same=0.875, similar=0.5)
    assert model.limits == Limits(
        max_image_bytes=4096,
        max_image_pixels=40_000_000,
        max_message_bytes=4096 + 1024 * 1024,
        max_text_chars=2000,
    )


async def test_texts(start: Start) -> None:
    async with start(text=True) as server, client_of(server.address) as client:
        await client.wait_ready(PATIENCE_S)
        assert np.argmax((await client.embed_text("abc")).embedding) == 3
        with pytest.raises(InvalidInputError, match="text is empty"):
            await client.embed_text("")


async def test_texts_without_a_text_tower(client: EmbeddingClient) -> None:
    with pytest.raises(UnsupportedError, match="no text tower"):
        await client.embed_text("abc")


async def test_what_is_no_image_is_invalid_input(client: EmbeddingClient) -> None:
    with pytest.raises(InvalidInputError, match="This is not an image"):
        await client.embed(b"bad")


async def test_a_failed_model_is_an_inference_error(
    client: EmbeddingClient, engine: GatedEngine
) -> None:
    engine.failures.append(InferenceError("The model failed."))
    with pytest.raises(InferenceError, match="The model failed"):
        await client.embed(picture(1))
    assert engine.computed == [1]  # and was not asked again


async def test_no_answer_in_time_is_a_deadline_error(
    client: EmbeddingClient, engine: GatedEngine
) -> None:
    await client.model()
    engine.gate.clear()
    with pytest.raises(DeadlineError, match="in time"):
        await client.embed(picture(1), timeout_s=0.2)
    engine.gate.set()  # or the server would wait for it while it drains


async def test_an_image_that_is_too_long_is_never_sent(start: Start, engine: GatedEngine) -> None:
    async with start(max_image_bytes=2048) as server, client_of(server.address) as client:
        await client.wait_ready(PATIENCE_S)
        with pytest.raises(InvalidInputError, match="2049 bytes long; the server takes at most"):
            await client.embed(picture(1, 2049))
        assert (await client.embed(picture(1, 2048))).model_id
    address = server.address
    async with start(max_image_bytes=4096, listen=address) as server, client_of(address) as client:
        await client.wait_ready(PATIENCE_S)
        assert (await client.embed(picture(1, 2049))).model_id


async def test_a_raised_limit_is_noticed(start: Start) -> None:
    async with start(max_image_bytes=2048) as server:
        client = client_of(server.address, timeout_s=PATIENCE_S, attempts=100)
        async with client:
            await client.wait_ready(PATIENCE_S)
            await server.stop()
            async with start(max_image_bytes=4096, listen=server.address):
                assert (await client.embed(picture(1, 4096))).model_id


async def test_nobody_there(unused_address: str) -> None:
    async with client_of(unused_address, attempts=2) as client:
        with pytest.raises(UnavailableError, match=unused_address):
            await client.embed(picture(1))
        with pytest.raises(UnavailableError, match=r"did not serve within 0.2 s\. No answer from"):
            await client.wait_ready(0.2)


@pytest.fixture
async def unused_address(start: Start) -> str:
    async with start() as server:
        return server.address


async def test_wait_ready_waits_for_a_server_that_comes_late(
    start: Start, unused_address: str, engine: GatedEngine
) -> None:
    async with client_of(unused_address) as client:
        waiting = asyncio.create_task(client.wait_ready(PATIENCE_S))
        await asyncio.sleep(0)
        engine.gate.clear()
        async with start(listen=unused_address) as server:
            assert not waiting.done()
            engine.gate.set()
            assert (await waiting).name == "fake"
            assert server.serving


async def test_calls_go_on_across_a_restart(start: Start) -> None:
    async with start() as first:
        async with client_of(first.address, timeout_s=PATIENCE_S, attempts=100) as client:
            await client.wait_ready(PATIENCE_S)
            await client.embed(picture(1))
            await first.stop()
            calls = [asyncio.create_task(client.embed(picture(n))) for n in range(8)]
            await asyncio.sleep(0)
            async with start(listen=first.address):
                answers = await asyncio.gather(*calls)
    assert [int(np.argmax(answer.embedding)) for answer in answers] == list(range(8))


async def test_a_server_that_is_back_is_found_however_fast_the_attempts_are(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.client.client.Backoff", partial(Backoff, first_s=0.0))
    async with start() as first, client_of(first.address) as client:
        await client.wait_ready(PATIENCE_S)
        await first.stop()
        async with start(listen=first.address):
            assert (await client.embed(picture(1))).model_id


# From here on, the server says what the test tells it to.

Answer = Callable[[pb.EmbedRequest, Any], Any]


class Scripted(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Answers each call with the next line of a script, and the last one for ever."""

    def __init__(self, *script: tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]) -> None:
        self.script = list(script)
        self.lanes: list[int] = []

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        return pb.GetModelResponse(limits=pb.Limits(max_image_bytes=1000))

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        self.lanes.append(request.lane)
        code, details, trailing = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if code is not grpc.StatusCode.OK:
            await context.abort(code, details, trailing)
        values = [] if details == "empty" else [1.0]
        return pb.EmbedResponse(embedding=pb.Embedding(values=values, model_id="m"))

    def EmbedStream(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError

    def EmbedText(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def scripted(
    *script: Any, **settings: Any
) -> AsyncIterator[tuple[EmbeddingClient, Scripted]]:
    servicer = Scripted(*script)
    server = grpc.aio.server()
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with client_of(f"127.0.0.1:{port}", timeout_s=PATIENCE_S, **settings) as client:
            yield client, servicer
    finally:
        await server.stop(None)


FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "The server is full.", (("retry-after-ms", "20"),))
OK = (grpc.StatusCode.OK, "", ())


async def test_a_full_server_is_asked_again() -> None:
    async with scripted(FULL, FULL, OK) as (client, server):
        assert (await client.embed(b"x", lane="bulk")).model_id == "m"
        assert server.lanes == [pb.LANE_BULK] * 3


async def test_a_call_whose_connection_broke_is_sent_again() -> None:
    broken = (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", ())
    async with scripted(broken, OK) as (client, server):
        assert (await client.embed(b"x")).model_id == "m"
        assert len(server.lanes) == 2


async def test_a_server_that_stays_full_is_asked_as_often_as_the_settings_say() -> None:
    async with scripted(FULL, attempts=3) as (client, server):
        with pytest.raises(OverloadedError, match="The server is full") as caught:
            await client.embed(b"x")
        assert caught.value.retry_after_ms == 20
        assert server.lanes == [pb.LANE_INTERACTIVE] * 3


async def test_no_attempt_is_begun_that_the_deadline_would_cut_off() -> None:
    hours = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("retry-after-ms", "3600000"),))
    async with scripted(hours) as (client, server):
        with pytest.raises(OverloadedError):
            await client.embed(b"x", timeout_s=10)
        assert len(server.lanes) == 1


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "no image", InvalidInputError),
        (grpc.StatusCode.UNIMPLEMENTED, "no text tower", UnsupportedError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", DeadlineError),
        (grpc.StatusCode.UNAUTHENTICATED, "who?", UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, "not you", UnauthenticatedError),
        (grpc.StatusCode.INTERNAL, "failed", InferenceError),
        (grpc.StatusCode.UNKNOWN, "", InferenceError),
        (grpc.StatusCode.DATA_LOSS, "lost", InferenceError),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "SERVER: Received message larger than max (5 vs. 4)",
            InvalidInputError,
        ),
        (grpc.StatusCode.OK, "empty", InferenceError),
    ],
)
async def test_what_will_fail_again_is_asked_once(
    code: grpc.StatusCode, details: str, kind: type[EmbeddingError]
) -> None:
    async with scripted((code, details, ())) as (client, server):
        with pytest.raises(kind) as caught:
            await client.embed(b"x")
        assert str(caught.value)
        assert len(server.lanes) == 1


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
def test_the_table_is_the_same_in_both_directions(code: grpc.StatusCode) -> None:
    error = error_of(code, "why", retry_after_ms=7)
    assert str(error) == "why"
    stands_for_another = {
        grpc.StatusCode.CANCELLED: grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.PERMISSION_DENIED: grpc.StatusCode.UNAUTHENTICATED,
    }
    kept = {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
    expected = stands_for_another.get(code, code if code in kept else grpc.StatusCode.INTERNAL)
    assert code_of(error) is expected


@given(
    failures=st.integers(0, 200),
    hint_ms=st.integers(-(10**9), 10**9),
    chance=st.floats(0, 1),
)
def test_pauses_are_bounded_whatever_the_server_says(
    failures: int, hint_ms: int, chance: float
) -> None:
    backoff = Backoff(first_s=0.1, longest_s=2.0, chance=lambda: chance)
    for _ in range(failures):
        backoff.pause_s(UnavailableError("away"))
    pause_s = backoff.pause_s(OverloadedError("full", retry_after_ms=hint_ms))
    assert 0 <= pause_s <= 32
    assert pause_s >= min(hint_ms / 1000, 30)
    assert backoff.failures == failures + 1


def test_pauses_grow_and_start_over() -> None:
    backoff = Backoff(first_s=0.1, longest_s=0.5, chance=lambda: 1.0)
    error = UnavailableError("away")
    assert [backoff.pause_s(error) for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    backoff.reset()
    assert backoff.pause_s(error) == 0.1
