"""The Open Inference Protocol over loopback, mostly through Triton's own client."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from hypothesis import given
from hypothesis import strategies as st
from mapseek.oip import open_inference_pb2 as oip
from mapseek.oip import open_inference_pb2_grpc
from mapseek.v1 import embedding_pb2 as pb
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from inference.errors import InferenceError, InvalidInputError
from inference.oip import tensors
from inference.oip.models import served
from inference.oip.stream import InferStream
from inference.oip.wire import Request, bound, parse
from inference.server import RunningServer
from tests.inference.server.fakes import GatedEngine, Start, manifest, picture, stub_of, until
from tests.inference.server.reading import read_both_ways

VERSION = str(int(manifest().model_id.rpartition("@")[2], 16))
TOKEN = "a token of twenty-one"[:16].replace(" ", "-")


def images(*elements: bytes) -> list[Any]:
    given = triton.InferInput("images", [len(elements), 1], "BYTES")
    given.set_data_from_numpy(np.array([[element] for element in elements], dtype=np.object_))
    return [given]


def pixels(*colours: int) -> list[Any]:
    given = triton.InferInput("pixels", [len(colours), 4, 4, 3], "UINT8")
    batch = (
        np.zeros((len(colours), 4, 4, 3), np.uint8)
        + np.array(colours, np.uint8)[:, None, None, None]
    )
    given.set_data_from_numpy(batch)
    return [given]


def typed(*elements: bytes, **fields: Any) -> oip.ModelInferRequest:
    """A request with typed contents, as KServe's examples send it."""
    request = oip.ModelInferRequest(**({"model_name": "fake", "id": "r1"} | fields))
    given = request.inputs.add(name="images", datatype="BYTES", shape=[len(elements)])
    given.contents.bytes_contents.extend(elements)
    return request


@asynccontextmanager
async def triton_of(server: RunningServer) -> AsyncIterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(server.address)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def oip_of(server: RunningServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton_of(server) as client:
        yield client


@pytest.fixture
async def raw(server: RunningServer) -> AsyncIterator[Any]:
    async with oip_of(server) as stub:
        yield stub


async def refusal(call: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        await call
    return caught.value


async def status(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def axes(result: Any) -> list[int]:
    return [int(axis) for axis in np.argmax(result.as_numpy("image_embeds"), axis=1)]


async def test_a_batch_of_images_and_one_of_pixels(client: Any) -> None:
    result = await client.infer("fake", images(picture(3), picture(5)), request_id="seven")
    assert axes(result) == [3, 5]
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", "fake", VERSION)
    assert list(response.outputs[0].shape) == [2, 8]
    assert response.outputs[0].datatype == "FP32"
    assert response.parameters["mapseek_batch_size"].int64_param >= 1
    assert axes(await client.infer("fake", pixels(1, 6, 2), model_version=VERSION)) == [1, 6, 2]


async def test_pixels_are_not_decoded(client: Any, engine: GatedEngine) -> None:
    # The pictures of these tests that are "bad" begin with this byte; decoding would refuse it.
    assert axes(await client.infer("fake_pixels", pixels(ord("b")))) == [ord("b") % 8]
    assert engine.computed == [ord("b")]


async def test_typed_contents_get_typed_contents(raw: Any) -> None:
    response = await raw.ModelInfer(typed(picture(3), picture(4)))
    assert not response.raw_output_contents
    rows = np.array(response.outputs[0].contents.fp32_contents).reshape(2, 8)
    assert np.argmax(rows, axis=1).tolist() == [3, 4]
    assert response.id == "r1"

    request = oip.ModelInferRequest(model_name="fake")
    given = request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 4, 4, 3])
    given.contents.uint_contents.extend([6] * 48)
    response = await raw.ModelInfer(request)
    assert np.argmax(response.outputs[0].contents.fp32_contents) == 6


async def test_the_caller_may_choose_the_form_of_the_answer(raw: Any) -> None:
    request = typed(picture(3))
    request.outputs.add(name="image_embeds").parameters["binary_data"].bool_param = True
    response = await raw.ModelInfer(request)
    assert np.argmax(np.frombuffer(response.raw_output_contents[0], "<f4")) == 3
    assert not response.outputs[0].HasField("contents")

    request = typed(picture(3))
    request.parameters["binary_data_output"].bool_param = True
    assert (await raw.ModelInfer(request)).raw_output_contents


def changed(**changes: Any) -> oip.ModelInferRequest:
    """A right request with one thing wrong."""
    request = typed(picture(1), picture(2))
    given = request.inputs[0]
    if "raw" in changes:
        given.ClearField("contents")
    if "shape" in changes:
        given.ClearField("shape")
    wrong: dict[str, Callable[[Any], Any]] = {
        "again": lambda name: request.inputs.add(name=name, datatype="BYTES", shape=[1]),
        "both": request.raw_input_contents.extend,
        "classes": lambda number: setattr(
            request.outputs.add(name="image_embeds").parameters["classification"],
            "int64_param",
            number,
        ),
        "lane": lambda lane: setattr(request.parameters["lane"], "string_param", lane),
        "output": lambda name: request.outputs.add(name=name),
        "priority": lambda level: setattr(request.parameters["priority"], "int64_param", level),
        "raw": request.raw_input_contents.extend,
        "shape": given.shape.extend,
        "shared": lambda name: setattr(
            given.parameters["shared_memory_region"], "string_param", name
        ),
    }
    for name, value in changes.items():
        wrong.get(name, partial(setattr, given, name))(value)
    return request


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (changed(name="pictures"), "no input 'pictures': fake takes images"),
        (changed(again="images"), "2 inputs were sent"),
        (oip.ModelInferRequest(model_name="fake"), "0 inputs were sent"),
        (changed(datatype="UINT8"), "datatype 'UINT8', and must have BYTES"),
        (changed(datatype=""), "datatype 'none'"),
        (changed(shape=[]), r"shape \[\], and must have \[N\]"),
        (changed(shape=[2, 2]), r"shape \[2, 2\]"),
        (changed(shape=[0]), r"shape \[0\]"),
        (changed(shape=[-1]), r"shape \[-1\]"),
        (changed(shape=[3]), "2 elements in bytes_contents, and 3 in its shape"),
        (changed(shape=[1000]), "batch of 1000, and at most 192"),
        (changed(raw=[b"\x01\0\0\0a"]), "ends within element 1 of 2"),
        (changed(raw=[b"\xff\xff\xff\xffa"]), "ends within element 0 of 2"),
        (changed(raw=[b""]), "ends within element 0 of 2"),
        (changed(raw=[b"\0\0\0\0\0\0\0\0xy"]), "goes on for 2 bytes after"),
        (changed(raw=[b"", b""]), "2 entries for 1 input"),
        (changed(both=[b""]), "both contents and raw_input_contents"),
        (changed(shared="region"), "Shared memory is not offered"),
        (changed(output="logits"), "no output 'logits': fake gives image_embeds"),
        (changed(classes=3), "neither shared memory nor classification"),
        (changed(priority=-1), "priority must be a number that is not negative"),
        (changed(lane="fast"), "lane must be interactive or bulk"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(
    raw: Any, engine: GatedEngine, request_: oip.ModelInferRequest, says: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
        await raw.ModelInfer(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert engine.computed == []


async def test_pixels_of_another_size_or_beyond_a_byte(raw: Any) -> None:
    request = oip.ModelInferRequest(model_name="fake", raw_input_contents=[b"x" * 47])
    given = request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 4, 4, 3])
    assert "47 bytes in raw_input_contents, and its shape needs 48" in str(
        await status(raw.ModelInfer(request))
    )
    given.shape[:] = [1, 8, 8, 3]
    assert "must have [N, 4, 4, 3]" in str(await status(raw.ModelInfer(request)))
    given.shape[:] = [1, 4, 4, 3]
    request.ClearField("raw_input_contents")
    given.contents.uint_contents.extend([256] * 48)
    assert "the number 256 in uint_contents, which is no UINT8" in str(
        await status(raw.ModelInfer(request))
    )


async def test_a_batch_is_all_or_nothing_and_the_bad_image_is_named(client: Any) -> None:
    error = await refusal(client.infer("fake", images(picture(1), picture(2), b"bad", picture(4))))
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.message() == "images[2]: This is not an image."


async def test_a_message_that_is_too_long(start: Start) -> None:
    async with start(max_image_bytes=1024 * 1024) as server, triton_of(server) as client:
        await server.ready()
        error = await refusal(client.infer("fake", images(b"x" * (3 * 1024 * 1024))))
    assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert "larger than max" in error.message()


async def test_unknown_models_and_versions(client: Any) -> None:
    for name, version, says in (
        ("clip", "", "no model 'clip' here: there is fake and fake_pixels"),
        ("fake", "1", f"no version '1' of fake here: there is {VERSION}"),
    ):
        assert not await client.is_model_ready(name, version)
        for call in (
            client.infer(name, images(b"x"), model_version=version),
            client.get_model_metadata(name, version),
            client.get_model_config(name, version),
            client.get_inference_statistics(name, version),
        ):
            error = await refusal(call)
            assert error.status() == "StatusCode.NOT_FOUND"
            assert says in error.message()


async def test_a_failing_model_is_internal(client: Any, engine: GatedEngine) -> None:
    engine.failures.append(InferenceError("The model failed on this batch."))
    error = await refusal(client.infer("fake", images(picture(1))))
    assert error.status() == "StatusCode.INTERNAL"


async def test_a_full_server_takes_the_whole_batch_or_none_of_it(
    start: Start, engine: GatedEngine
) -> None:
    async with start(queue_size=4) as server, triton_of(server) as client, oip_of(server) as raw:
        await server.ready()
        engine.gate.clear()
        first = asyncio.create_task(client.infer("fake", images(picture(1), picture(2))))
        await asyncio.to_thread(engine.entered.acquire)
        error = await status(raw.ModelInfer(typed(picture(3), picture(4), picture(5))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "retry-after-ms" in [key for key, _ in error.trailing_metadata()]
        second = asyncio.create_task(client.infer("fake", images(picture(6), picture(7))))
        await until(lambda: server.calls == 2)
        engine.gate.set()
        assert axes(await first) == [1, 2]
        assert axes(await second) == [6, 7]
        assert sorted(engine.computed) == [1, 2, 6, 7]
        # Nothing holds a slot any more.
        assert axes(await client.infer("fake", images(*map(picture, (1, 2, 3))))) == [1, 2, 3]


async def test_priority_two_is_the_bulk_lane(start: Start, engine: GatedEngine) -> None:
    async with start(queue_size=4) as server, triton_of(server) as client:
        await server.ready()
        engine.gate.clear()
        three = images(*map(picture, (1, 2, 3)))
        bulk = asyncio.create_task(client.infer("fake", three, priority=2))
        await asyncio.to_thread(engine.entered.acquire)
        # The last of four slots is not for bulk.
        error = await refusal(client.infer("fake", images(picture(4)), priority=2))
        assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
        lane = {"lane": "bulk"}
        error = await refusal(client.infer("fake", images(picture(4)), parameters=lane))
        assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
        interactive = asyncio.create_task(client.infer("fake", images(picture(5)), priority=1))
        await until(lambda: server.calls == 2)
        engine.gate.set()
        assert axes(await bulk) == [1, 2, 3]
        assert axes(await interactive) == [5]


async def test_a_failed_batch_gives_its_slots_back(start: Start) -> None:
    async with start(queue_size=4) as server, triton_of(server) as client:
        await server.ready()
        for _ in range(5):
            await refusal(client.infer("fake", images(b"bad", picture(1), b"bad")))
        assert axes(await client.infer("fake", images(*map(picture, (1, 2, 3))))) == [1, 2, 3]


async def test_a_passed_deadline_and_a_passed_timeout_drop_the_work(
    server: RunningServer, client: Any, engine: GatedEngine
) -> None:
    engine.gate.clear()
    first = asyncio.create_task(client.infer("fake", images(picture(1))))
    await asyncio.to_thread(engine.entered.acquire)
    error = await refusal(client.infer("fake", images(picture(2)), client_timeout=0.2))
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    error = await refusal(client.infer("fake", images(picture(3)), timeout=1000))  # microseconds
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert "own timeout" in error.message()
    await until(lambda: server.calls == 1)
    engine.gate.set()
    await first
    assert axes(await client.infer("fake", images(picture(4)))) == [4]
    assert engine.computed == [1, 4]


async def test_it_is_ready_when_health_says_so(start: Start, engine: GatedEngine) -> None:
    engine.gate.clear()
    async with start() as server, triton_of(server) as client:
        assert await client.is_server_live()
        assert not await client.is_server_ready()
        assert not await client.is_model_ready("fake")
        error = await refusal(client.infer("fake", images(picture(1))))
        assert error.status() == "StatusCode.UNAVAILABLE"
        assert (await client.get_server_metadata()).name == "mapseek"
        engine.gate.set()
        await server.ready()
        assert await client.is_server_ready()
        assert await client.is_model_ready("fake", VERSION)
        (first, second) = (await client.get_model_repository_index()).models
        assert (first.name, first.version, first.state) == ("fake", VERSION, "READY")
        assert second.name == "fake_pixels"


async def test_metadata_and_config_describe_the_tensors(client: Any) -> None:
    metadata = await client.get_model_metadata("fake")
    assert list(metadata.versions) == [VERSION]
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("images", "BYTES", [-1, 1]),
        ("pixels", "UINT8", [-1, 4, 4, 3]),
    ]
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [
        ("image_embeds", "FP32", [-1, 8])
    ]
    config = (await client.get_model_config("fake")).config
    assert config.max_batch_size == 192
    assert [list(one.dims) for one in config.input] == [[1], [4, 4, 3]]
    assert all(one.optional for one in config.input)
    assert config.HasField("dynamic_batching")
    assert '"name":"fake"' in config.parameters["mapseek_manifest"].string_value


async def test_statistics_count_requests_elements_and_runs(client: Any) -> None:
    await client.infer("fake", images(picture(1)))
    await client.infer("fake", pixels(2, 3, 4))
    await refusal(client.infer("fake", images(b"bad")))
    (counted, other) = (await client.get_inference_statistics()).model_stats
    assert (counted.name, counted.inference_count) == ("fake", 4)
    assert counted.inference_stats.success.count == 2
    assert counted.inference_stats.fail.count == 1
    assert counted.inference_stats.compute_infer.count == 2
    assert counted.inference_stats.success.ns >= counted.inference_stats.compute_infer.ns > 0
    assert sum(one.batch_size * one.compute_infer.count for one in counted.batch_stats) == 4
    assert counted.execution_count == sum(one.compute_infer.count for one in counted.batch_stats)
    assert other.inference_count == 0


async def test_texts_are_a_model_of_their_own(start: Start) -> None:
    def texts(*elements: bytes) -> list[Any]:
        given = triton.InferInput("texts", [len(elements)], "BYTES")
        given.set_data_from_numpy(np.array(elements, dtype=np.object_))
        return [given]

    async with start(text=True, max_text_chars=5) as server, triton_of(server) as client:
        await server.ready()
        result = await client.infer("fake_text", texts(b"abc", "fünf".encode()))
        assert np.argmax(result.as_numpy("text_embeds"), axis=1).tolist() == [3, 4]
        for wrong, says in (
            (b"sixsix", r"texts\[1\]: The text is 6 characters"),
            (b"\xff", r"texts\[1\]: The text is no UTF-8"),
            (b"", r"texts\[1\]: The text is empty"),
        ):
            with pytest.raises(InferenceServerException, match=says):
                await client.infer("fake_text", texts(b"abc", wrong))


async def test_a_stream_answers_in_order_and_outlives_an_error(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, image in enumerate((picture(1), b"bad", picture(3))):
            yield {"model_name": "fake", "inputs": images(image), "request_id": str(number)}

    answers = [answer async for answer in client.stream_infer(requests())]
    assert [error and error.message() for _, error in answers] == [
        None,
        "images[0]: This is not an image.",
        None,
    ]
    assert [axes(result) for result, error in answers if error is None] == [[1], [3]]


async def test_a_stream_waits_where_a_single_call_is_refused(
    start: Start, engine: GatedEngine
) -> None:
    async with start(queue_size=1) as server, oip_of(server) as raw:
        await server.ready()
        call = raw.ModelStreamInfer()
        for colour in (1, 2, 3):
            await call.write(typed(picture(colour)))
        await call.done_writing()
        answers = [answer async for answer in call]
    assert [answer.error_message for answer in answers] == [""] * 3
    assert engine.computed == [1, 2, 3]


async def test_the_window_of_a_stream_counts_elements() -> None:
    read: list[int] = []
    begun: list[str] = []
    gate = asyncio.Event()

    async def requests() -> AsyncIterator[Request]:
        for number, size in enumerate((3, 3, 1, 100)):
            read.append(number)
            yield Request.of(typed(*[b""] * size, id=str(number)))

    async def answer(request: Request) -> oip.ModelStreamInferResponse:
        begun.append(request.message.id)
        await gate.wait()
        return oip.ModelStreamInferResponse(error_message=request.message.id)

    class Written(list[str]):
        async def write(self, message: oip.ModelStreamInferResponse, /) -> None:
            self.append(message.error_message)

    written = Written()
    stream = InferStream(answer, window=4, idle_s=60)
    running = asyncio.create_task(stream.run(requests(), written))
    await until(lambda: read == [0, 1])
    for _ in range(20):
        await asyncio.sleep(0)
    assert (read, begun) == ([0, 1], ["0"])
    gate.set()
    await running
    assert written == ["0", "1", "2", "3"]


async def test_a_draining_server_ends_an_idle_stream(start: Start) -> None:
    async with start() as server, oip_of(server) as raw:
        await server.ready()
        call = raw.ModelStreamInfer()
        await call.write(typed(picture(1)))
        assert not (await call.read()).error_message
        await server.stop()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_token_is_asked_for(start: Start) -> None:
    async with start(token=TOKEN) as server, triton_of(server) as client:
        await server.ready()
        error = await refusal(client.infer("fake", images(picture(1))))
        assert error.status() == "StatusCode.UNAUTHENTICATED"
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert axes(await client.infer("fake", images(picture(1)), headers=headers)) == [1]


async def test_what_is_no_message_is_an_invalid_argument(server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        error = await status(call(b"\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no request of ModelInfer" in (error.details() or "")


NONE = 10_000


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [oip.ModelInferRequest.InferInputTensor()] * NONE},
        {"outputs": [oip.ModelInferRequest.InferRequestedOutputTensor()] * NONE},
        {"raw_input_contents": [b""] * NONE},
        {"parameters": {str(number): oip.InferParameter() for number in range(NONE)}},
        {"inputs": [{"shape": [0] * 2 * NONE}]},
        {"inputs": [{"parameters": {str(number): {} for number in range(NONE)}}]},
        {"inputs": [{"contents": {"bytes_contents": [b""] * NONE}}]},
        {"inputs": [{"contents": {"int64_contents": [0] * 2 * NONE}}]},
        {"outputs": [{"parameters": {str(number): {} for number in range(NONE)}}]},
    ],
    ids=lambda body: str(body)[:30],
)
async def test_countless_parts_are_refused_before_they_are_made(
    server: RunningServer, body: dict[str, Any]
) -> None:
    message = oip.ModelInferRequest(model_name="fake", **body).SerializeToString()
    path = "/inference.GRPCInferenceService/Model"
    channel: Any
    async with grpc.aio.insecure_channel(server.address) as channel:
        alone = await status(channel.unary_unary(f"{path}Infer")(message))
        call = channel.stream_stream(f"{path}StreamInfer")(iter([message]))
        streamed = await status(call.read())
    for error in (alone, streamed):
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 192 elements are taken at once" in (error.details() or "")


def test_many_pixels_and_a_full_batch_are_not_too_many_parts() -> None:
    message = typed(*[bytes(100)] * 192)
    message.inputs[0].contents.uint_contents.extend([0xFF] * 192 * 4 * 4 * 3)
    bound(192).check(message.SerializeToString())
    with pytest.raises(InvalidInputError, match="more than 1025 parts"):
        bound(1).check(typed(*[bytes(20)] * 1024).SerializeToString())


async def test_both_services_give_the_same_answer(server: RunningServer, client: Any) -> None:
    async with stub_of(server) as stub:
        own = await stub.Embed(pb.EmbedRequest(image=picture(5)))
    other = await client.infer("fake", images(picture(5)))
    assert other.as_numpy("image_embeds")[0].tolist() == list(own.embedding.values)


SERVED = served(manifest(text=True), max_batch=16, parameters={})


@given(elements=st.lists(st.binary(max_size=20), min_size=1, max_size=16))
def test_raw_bytes_are_read_as_tritons_client_writes_them(elements: list[bytes]) -> None:
    data = serialize_byte_tensor(np.array(elements, dtype=np.object_)).item()
    request = oip.ModelInferRequest(raw_input_contents=[data])
    request.inputs.add(name="images", datatype="BYTES", shape=[len(elements)])
    assert tensors.read(Request.of(request), SERVED["fake"]).items == elements


LONG = st.integers(0, 20_000).map(bytes)


@given(
    raw=st.lists(st.binary(max_size=50) | LONG, max_size=3),
    name=st.text(max_size=20) | st.just("x" * 40_000),
    priority=st.integers(-(2**63), 2**63 - 1),
    more=st.sampled_from(
        [b"", b"\xf8\x07\x01", b"\xfd\x07abcd", b"\xf9\x07abcdefgh", b"\xfb\x07\xfc\x07"]
    ),
    spoilt=st.booleans(),
    at=st.integers(0, 2**16),
)
def test_a_message_is_read_as_protobuf_reads_it(
    *, raw: list[bytes], name: str, priority: int, more: bytes, spoilt: bool, at: int
) -> None:
    """With fields that nobody knows, of every kind, and where a byte is not what it was."""
    message = oip.ModelInferRequest(model_name=name, raw_input_contents=raw)
    message.parameters["priority"].int64_param = priority
    data = bytearray(more + message.SerializeToString() + more)
    if spoilt:
        data[at % len(data)] ^= 0x55
    read = read_both_ways(bytes(data), oip.ModelInferRequest, parse)
    if read is None:
        return
    expected, request = read
    assert [bytes(one) for one in request.raw] == list(expected.raw_input_contents)
    rest = oip.ModelInferRequest.FromString(request.message.SerializeToString())
    expected.ClearField("raw_input_contents")
    rest.ClearField("raw_input_contents")
    assert rest == expected


def test_long_tensors_are_not_copied_and_many_fields_left_to_protobuf() -> None:
    message = oip.ModelInferRequest(model_name="fake", raw_input_contents=[bytes(100_000)])
    assert isinstance(parse(message.SerializeToString()).raw[0], memoryview)
    message.raw_input_contents.extend([b"x"] * 1000)
    request = parse(message.SerializeToString())
    assert isinstance(request.raw[0], bytes)
    assert len(request.raw) == 1001


@given(
    name=st.sampled_from(["images", "pixels", "texts", ""]),
    datatype=st.sampled_from(["BYTES", "UINT8", "FP32"]),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from([1, 2, 3, 4]), max_size=5),
    data=st.lists(
        st.binary(max_size=200)
        | st.lists(st.binary(max_size=8), max_size=4).map(
            lambda parts: b"".join(struct.pack("<I", len(part)) + part for part in parts)
        ),
        max_size=2,
    ),
    numbers=st.lists(st.integers(0, 2**32 - 1), max_size=48),
    model=st.sampled_from(sorted(SERVED)),
)
def test_whatever_is_sent_is_read_or_refused(
    *,
    name: str,
    datatype: str,
    shape: list[int],
    data: list[bytes],
    numbers: list[int],
    model: str,
) -> None:
    request = oip.ModelInferRequest(raw_input_contents=data)
    given = request.inputs.add(name=name, datatype=datatype, shape=shape)
    given.contents.uint_contents.extend(numbers)
    if data:
        given.ClearField("contents")
    with suppress(InvalidInputError):
        assert len(tensors.read(Request.of(request), SERVED[model]).items) == shape[0]


async def test_every_element_of_a_batch_counts_against_the_clients_rate(start: Start) -> None:
    async with start(max_rate_per_client=4.0) as server, oip_of(server) as raw:
        await server.ready()
        await raw.ModelInfer(typed(*(picture(number) for number in range(8))))
        error = await status(raw.ModelInfer(typed(picture(1))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 4 images a second" in (error.details() or "")


async def test_a_shape_of_any_number_shuts_nobody_out_for_good(start: Start) -> None:
    async with start(max_rate_per_client=4.0, queue_size=4) as server, oip_of(server) as raw:
        await server.ready()
        error = await status(raw.ModelInfer(changed(shape=[2**62])))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        await raw.ModelInfer(typed(picture(1)))
