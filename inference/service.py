"""`mapseek.v1.EmbeddingService`: messages to domain calls and back, and nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from inference.artifact import Manifest
from inference.errors import (
    EmbeddingError,
    InvalidInputError,
    ShuttingDownError,
    UnavailableError,
    UnsupportedError,
)
from inference.fields import Bound, Buffer, apart, tag, varint
from inference.lanes import Lane
from inference.pipeline import Embedded, Pipeline
from inference.status import UNFORESEEN, code_of, trailing_of
from inference.stream import BulkStream, Requests, being_cancelled

# A handful is a good message; so many empty ones take no memory to speak of.
_MOST_IMAGES = 1024
STREAM_BOUND = Bound(
    most=_MOST_IMAGES,
    within={},
    error=f"The message has more than {_MOST_IMAGES} images: send them in several messages.",
)
"""What a message of EmbedStream must keep to."""

SERVICE = pb.DESCRIPTOR.services_by_name["EmbeddingService"]
SERVICE_NAME: str = SERVICE.full_name

_LANES = {
    pb.LANE_UNSPECIFIED: Lane.INTERACTIVE,
    pb.LANE_INTERACTIVE: Lane.INTERACTIVE,
    pb.LANE_BULK: Lane.BULK,
}

_IMAGE = tag(pb.EmbedRequest.IMAGE_FIELD_NUMBER)
_VALUES = varint(tag(pb.Embedding.DESCRIPTOR.fields_by_name["values"].number))

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer", pb.EmbedResponse, pb.StreamResult, pb.EmbedTextResponse)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """What an `EmbedRequest` asks for.

    Attributes:
        image: The encoded file, where it lies in the message.
        lane: How urgent it is.
    """

    image: Buffer
    lane: Lane


def parse(data: bytes) -> EmbedRequest:
    """Reads a request; its image stays where it is.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    images, rest = apart(data, _IMAGE) or ([], data)
    message = pb.EmbedRequest.FromString(rest)
    image = images[-1] if images else message.image  # of several, protobuf takes the last, too
    return EmbedRequest(image=image, lane=_LANES.get(message.lane, Lane.INTERACTIVE))


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What answers, once the model is loaded.

    Attributes:
        pipeline: Embeds images, and texts where the model has a tower for them.
        manifest: What the model is.
        provider: The onnxruntime provider in use.
    """

    pipeline: Pipeline
    manifest: Manifest
    provider: str

    @cached_property  # every answer names it
    def model_id(self) -> str:
        """Name of the vector space."""
        return self.manifest.model_id

    @property
    def has_text(self) -> bool:
        """Whether texts can be embedded."""
        return self.manifest.text is not None


class EmbeddingService(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Answers calls: UNAVAILABLE until `open` and after `close`.

    Args:
        limits: What callers are told that their requests must keep to.
        stream_window: Most images that one EmbedStream may have in the server.
        stream_idle_s: How long a stream may be idle, in seconds.
    """

    def __init__(self, *, limits: pb.Limits, stream_window: int, stream_idle_s: float) -> None:
        self._limits = limits
        self._stream_window = stream_window
        self._stream_idle_s = stream_idle_s
        self._backend: Backend | None = None
        self._closed = False
        self._calls = 0
        self._no_calls = asyncio.Event()
        self._no_calls.set()
        self._streams: set[BulkStream] = set()

    def open(self, backend: Backend) -> None:
        """Starts answering with this backend."""
        self._backend = backend

    def close(self) -> None:
        """Refuses new calls and tells running streams to come to an end."""
        self._closed = True
        for stream in self._streams:
            stream.close()

    @property
    def calls(self) -> int:
        """How many calls are running."""
        return self._calls

    async def drained(self) -> None:
        """Waits until no call is running."""
        await self._no_calls.wait()

    async def Embed(  # type: ignore[override]  # noqa: N802  as the protocol has it
        self, request: EmbedRequest, context: Context
    ) -> pb.EmbedResponse:
        """Embeds one image, or refuses at once when the server is full."""
        async with self.answering(context) as backend:
            embedded = await backend.pipeline.embed(request.image, request.lane, wait=False)
            return _told(pb.EmbedResponse(), embedded, backend.model_id)

    async def EmbedStream(  # type: ignore[override]  # noqa: N802  the stubs know generators only,
        # but one that is cancelled while it is suspended would not clean up in time
        self,
        request_iterator: Requests,
        context: Context,
    ) -> None:
        """Embeds many images over one call."""
        async with self.answering(context) as backend:

            async def embed(image_id: int, image: bytes) -> pb.StreamResult:
                embedded = await backend.pipeline.embed(image, Lane.BULK, wait=True)
                return _told(pb.StreamResult(id=image_id), embedded, backend.model_id)

            stream = BulkStream(embed, window=self._stream_window, idle_s=self._stream_idle_s)
            self._streams.add(stream)
            try:
                await stream.run(request_iterator, context)
            finally:
                self._streams.discard(stream)

    async def EmbedText(  # noqa: N802  named by the protocol
        self, request: pb.EmbedTextRequest, context: Context
    ) -> pb.EmbedTextResponse:
        """Embeds one text."""
        async with self.answering(context) as backend:
            if not backend.has_text:
                raise UnsupportedError(
                    f"The model {backend.manifest.name} embeds images only: it has no text tower."
                )
            if len(request.text) > self._limits.max_text_chars:
                raise InvalidInputError(
                    f"The text is {len(request.text)} characters long; "
                    f"at most {self._limits.max_text_chars} are accepted."
                )
            embedded = await backend.pipeline.embed_text(request.text, Lane.INTERACTIVE)
            return _told(pb.EmbedTextResponse(), embedded, backend.model_id)

    async def GetModel(  # noqa: N802  named by the protocol
        self,
        request: pb.GetModelRequest,  # noqa: ARG002  empty
        context: Context,
    ) -> pb.GetModelResponse:
        """Describes the model and the limits."""
        async with self.answering(context) as backend:
            return pb.GetModelResponse(model=_model(backend), limits=self._limits)

    def _ready_backend(self) -> Backend:
        if self._closed:
            raise ShuttingDownError
        if self._backend is None:
            raise UnavailableError("The server is loading its model: try again in a moment.")
        return self._backend

    @asynccontextmanager
    async def answering(self, context: Context) -> AsyncIterator[Backend]:
        """Counts a call, and turns whatever goes wrong in it into a status.

        For every service of the server, so that all of them start and drain together.
        """
        self._calls += 1
        self._no_calls.clear()
        try:
            yield self._ready_backend()
        except grpc.aio.AbortError:
            raise
        except EmbeddingError as error:
            _log.debug("refused: %s", error)
            await _abort(context, error, str(error))
        except asyncio.CancelledError as error:
            if being_cancelled():  # the caller has gone, or the server cuts it off
                raise
            _log.exception("a call was lost")
            await _abort(context, error, UNFORESEEN)
        except Exception as error:  # noqa: BLE001  its text could hold anything: to the log only
            _log.exception("a call failed")
            await _abort(context, error, UNFORESEEN)
        finally:
            self._calls -= 1
            if not self._calls:
                self._no_calls.set()


async def _abort(context: Context, error: BaseException, message: str) -> NoReturn:
    await context.abort(code_of(error), message, trailing_of(error))


def _told(answer: Answer, embedded: Embedded, model_id: str) -> Answer:
    """An answer, with the embedding in it and where its time went."""
    # As they lie on the wire, numbers are read in a tenth of the time that a list of them takes.
    numbers = embedded.embedding.astype("<f4", copy=False).tobytes()
    answer.embedding.MergeFromString(_VALUES + varint(len(numbers)) + numbers)
    answer.embedding.model_id = model_id
    timings = answer.timings
    timings.decode_ms = embedded.decode_s * 1000
    timings.queue_ms = embedded.queue_s * 1000
    timings.inference_ms = embedded.inference_s * 1000
    timings.batch_size = embedded.batch_size
    return answer


def _model(backend: Backend) -> pb.Model:
    manifest = backend.manifest
    model = pb.Model(
        id=backend.model_id,
        name=manifest.name,
        revision=manifest.revision,
        dimensions=manifest.dimensions,
        image_size=manifest.preprocessing.image_size,
        precision=manifest.precision,
        provider=backend.provider,
        has_text=backend.has_text,
    )
    if manifest.thresholds is not None:
        model.thresholds.same = manifest.thresholds.same
        model.thresholds.similar = manifest.thresholds.similar
    return model
