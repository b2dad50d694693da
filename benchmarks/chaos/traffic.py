"""Callers with pictures whose embeddings are known: one by one, and over streams of both protocols.

Nothing is sent again. Each image is answered by an embedding, by an error, or by the end of the
call that it was sent in; a stream that says nothing of one, or speaks of it twice, is found out.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np
from mapseek.oip import open_inference_pb2 as oip
from mapseek.oip import open_inference_pb2_grpc
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc
from numpy.typing import NDArray

from benchmarks.chaos.outcome import FULL, INTERNAL, LOST, OK, TWICE, UNAVAILABLE, WRONG
from benchmarks.valid import TOLERANCE, Question
from inference.client.messages import LOST_CALL
from inference.status import UNFORESEEN

# A call, or an answer of a stream, that takes longer is lost.
PATIENCE_S = 30.0
# How long a caller who was refused waits before the next call.
_PAUSE_S = 0.05
# Images a message of a stream, and unanswered messages of one.
_IMAGES, _MESSAGES = 3, 3

# A stream of the Open Inference Protocol has sentences where calls have statuses.
_SENTENCES = {
    UNFORESEEN: INTERNAL,
    "The model failed": INTERNAL,
    "The model returned no numbers": INTERNAL,
    "The model does not answer": UNAVAILABLE,
    "The server is shutting down": UNAVAILABLE,
    "The engine has no memory": FULL,
}
_STATUSES = {int(code.value[0]): code.name for code in grpc.StatusCode}


# Sends pictures over a channel until it is told to stop, and counts what becomes of them.
Ask = Callable[[grpc.aio.Channel, Sequence[Question], Counter[str], asyncio.Event], Awaitable[None]]


async def one_by_one(
    channel: grpc.aio.Channel,
    asked: Sequence[Question],
    statuses: Counter[str],
    stop: asyncio.Event,
) -> None:
    """Calls `Embed` again and again."""
    stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
    for question in itertools.cycle(asked):
        if stop.is_set():
            return
        status = await status_of(stub, pb.EmbedRequest(image=question.picture), question)
        statuses[status] += 1
        if status != OK:  # as callers should; and a vanished server answers very quickly
            await asyncio.sleep(_PAUSE_S)


async def status_of(stub: Any, request: pb.EmbedRequest, question: Question | None) -> str:
    """Makes one call, without retries, and returns how it ended."""
    try:
        answer = await stub.Embed(request, timeout=PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    if question is None:
        return OK
    return _judged(np.array(answer.embedding.values, np.float32), question)


async def over_stream(
    channel: grpc.aio.Channel,
    asked: Sequence[Question],
    statuses: Counter[str],
    stop: asyncio.Event,
) -> None:
    """Sends several images a message over one `EmbedStream` after another."""
    stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)

    def message(numbers: Sequence[int]) -> pb.EmbedStreamRequest:
        return pb.EmbedStreamRequest(
            images=[
                pb.StreamImage(id=number, image=asked[number % len(asked)].picture)
                for number in numbers
            ]
        )

    def answers(response: pb.EmbedStreamResponse) -> dict[int, str]:
        return {
            result.id: (
                _judged(
                    np.array(result.embedding.values, np.float32), asked[result.id % len(asked)]
                )
                if result.HasField("embedding")
                else _STATUSES.get(result.error.code, f"code {result.error.code}")
            )
            for result in response.results
        }

    await _stream_after_stream(stub.EmbedStream, message, answers, statuses, stop)


async def over_open_stream(
    channel: grpc.aio.Channel,
    asked: Sequence[Question],
    statuses: Counter[str],
    stop: asyncio.Event,
) -> None:
    """Sends several images a request over one `ModelStreamInfer` after another."""
    stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        index = await stub.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        statuses[error.code().name] += 1
        return
    model = index.models[0].name

    def message(numbers: Sequence[int]) -> oip.ModelInferRequest:
        request = oip.ModelInferRequest(model_name=model, id=" ".join(map(str, numbers)))
        given = request.inputs.add(name="images", datatype="BYTES", shape=[len(numbers)])
        pictures = [asked[number % len(asked)].picture for number in numbers]
        given.contents.bytes_contents.extend(pictures)
        return request

    def answers(response: oip.ModelStreamInferResponse) -> dict[int, str]:
        answer = response.infer_response
        numbers = [int(number) for number in answer.id.split()]
        if response.error_message:
            return dict.fromkeys(numbers, _status_said(response.error_message))
        values = np.array(answer.outputs[0].contents.fp32_contents, np.float32)
        rows = values.reshape(answer.outputs[0].shape)
        return {
            number: _judged(row, asked[number % len(asked)])
            for number, row in zip(numbers, rows, strict=True)
        }

    await _stream_after_stream(stub.ModelStreamInfer, message, answers, statuses, stop)


async def _stream_after_stream(
    method: Any,
    message: Callable[[Sequence[int]], Any],
    answers: Callable[[Any], dict[int, str]],
    statuses: Counter[str],
    stop: asyncio.Event,
) -> None:
    numbers = itertools.count()
    while not stop.is_set():
        sent = _Sent(message=message, numbers=numbers)
        async with sent.into(method(), stop) as call:
            try:
                while (response := await asyncio.wait_for(call.read(), PATIENCE_S)) is not (
                    grpc.aio.EOF
                ):
                    for number, status in answers(response).items():
                        statuses[status if sent.answered(number) else TWICE] += 1
                ended = _ended(await call.code(), await call.details())
            except grpc.aio.AioRpcError as error:
                ended = _ended(error.code(), error.details())
            except TimeoutError:
                ended = LOST
        if sent.waiting:
            statuses[LOST if ended == OK else ended] += len(sent.waiting)
        if not stop.is_set():
            await asyncio.sleep(_PAUSE_S)


@dataclass(slots=True, kw_only=True)
class _Sent:
    """What was sent over one stream.

    Attributes:
        message: Makes a message of images with these numbers.
        numbers: The numbers, over all streams.
        waiting: Those that have not been answered.
    """

    message: Callable[[Sequence[int]], Any]
    numbers: "itertools.count[int]"
    waiting: set[int] = field(default_factory=set)
    _places: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_MESSAGES * _IMAGES)
    )

    def answered(self, number: int) -> bool:
        """Whether that was waited for."""
        if number not in self.waiting:
            return False
        self.waiting.discard(number)
        self._places.release()
        return True

    @asynccontextmanager
    async def into(self, call: Any, stop: asyncio.Event) -> AsyncIterator[Any]:
        """A call that is sent into, until told to stop, while there are places."""

        async def send() -> None:
            while not stop.is_set():
                for _ in range(_IMAGES):
                    await self._places.acquire()
                some = list(itertools.islice(self.numbers, _IMAGES))
                self.waiting.update(some)
                await call.write(self.message(some))
            await call.done_writing()

        sender = asyncio.create_task(send())
        try:
            yield call
        finally:
            call.cancel()
            sender.cancel()
            # What it was broken off by is what reading tells, too.
            await asyncio.gather(sender, return_exceptions=True)


def _ended(code: grpc.StatusCode, details: str | None) -> str:
    """The status of a stream; what gRPC itself says of a broken one is not the server's word."""
    broken = code is grpc.StatusCode.INTERNAL and (details or "").startswith(LOST_CALL)
    return UNAVAILABLE if broken else str(code.name)


def _judged(values: NDArray[np.float32], question: Question) -> str:
    if values.shape != question.embedding.shape:
        return WRONG
    right = np.abs(values - question.embedding).max() <= TOLERANCE
    return OK if right else WRONG


def _status_said(sentence: str) -> str:
    """The status that a sentence stands for; the sentence itself where nobody foresaw it."""
    sentence = sentence.partition("]: ")[2] or sentence  # without the name of the element
    known = (status for begins, status in _SENTENCES.items() if sentence.startswith(begins))
    return next(known, sentence)
