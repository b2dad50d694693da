"""`inference.GRPCInferenceService`: the protocol's messages to domain calls and back."""

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc.aio
from mapseek.oip import open_inference_pb2 as oip
from mapseek.v1 import embedding_pb2 as pb

from inference.errors import (
    DeadlineError,
    EmbeddingError,
    InvalidInputError,
    UnknownModelError,
)
from inference.oip import tensors
from inference.oip.models import LIMIT_PREFIX, PROVIDER, TEXTS, Model, served
from inference.oip.statistics import Statistics
from inference.oip.stream import InferStream
from inference.oip.wire import Request
from inference.service import Backend
from inference.status import UNFORESEEN

SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE_NAME: str = SERVICE.full_name

_EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)

_log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Answering = Callable[[Context], AbstractAsyncContextManager[Backend]]


class OpenInferenceService:
    """Answers calls with what `EmbeddingService` answers with, and in its company.

    Args:
        answering: Counts a call and turns its errors into a status, as `EmbeddingService` does.
        serving: Whether health probes are told SERVING.
        limits: What requests must keep to.
        max_batch: Most elements of one request.
        stream_window: Most elements of requests that one stream may have in the server.
        stream_idle_s: How long a stream may be idle, in seconds.
    """

    def __init__(
        self,
        *,
        answering: Answering,
        serving: Callable[[], bool],
        limits: pb.Limits,
        max_batch: int,
        stream_window: int,
        stream_idle_s: float,
    ) -> None:
        self._answering = answering
        self._serving = serving
        self._limits = limits
        self._max_batch = max_batch
        self._stream_window = stream_window
        self._stream_idle_s = stream_idle_s
        self._models: dict[str, Model] = {}
        self._statistics: dict[str, Statistics] = {}
        self._streams: set[InferStream] = set()

    def open(self, backend: Backend) -> None:
        """Offers the models of this backend."""
        limits = {f.name: str(getattr(self._limits, f.name)) for f in pb.Limits.DESCRIPTOR.fields}
        self._models = served(
            backend.manifest,
            max_batch=self._max_batch,
            parameters={
                PROVIDER: backend.provider,
                **{LIMIT_PREFIX + name: value for name, value in limits.items()},
            },
        )
        self._statistics = {name: Statistics() for name in self._models}

    def close(self) -> None:
        """Tells running streams to come to an end."""
        for stream in self._streams:
            stream.close()

    async def ServerLive(  # noqa: N802  named by the protocol, as all below
        self,
        request: oip.ServerLiveRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> oip.ServerLiveResponse:
        """Says that there is somebody."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self,
        request: oip.ServerReadyRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> oip.ServerReadyResponse:
        """Says what health probes are told."""
        return oip.ServerReadyResponse(ready=self._serving())

    async def ModelReady(  # noqa: N802
        self,
        request: oip.ModelReadyRequest,
        context: Context,  # noqa: ARG002
    ) -> oip.ModelReadyResponse:
        """Says what health probes are told, of a model that there is."""
        try:
            self._model(request.name, request.version)
        except UnknownModelError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._serving())

    async def ServerMetadata(  # noqa: N802
        self,
        request: oip.ServerMetadataRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> oip.ServerMetadataResponse:
        """Describes the server."""
        return oip.ServerMetadataResponse(
            name="mapseek", version=_version(), extensions=_EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        """Describes a model's tensors."""
        async with self._answering(context):
            return self._model(request.name, request.version).metadata()

    async def ModelConfig(  # noqa: N802
        self, request: oip.ModelConfigRequest, context: Context
    ) -> oip.ModelConfigResponse:
        """Describes a model's batching, and gives its parameters."""
        async with self._answering(context):
            model = self._model(request.name, request.version)
            return oip.ModelConfigResponse(config=model.config())

    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Tells counts and times."""
        async with self._answering(context):
            models = (
                [self._model(request.name, request.version)]
                if request.name
                else list(self._models.values())
            )
            return oip.ModelStatisticsResponse(
                model_stats=[self._statistics[model.name].message(model) for model in models]
            )

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """Lists the models."""
        async with self._answering(context):
            ready = self._serving()
            models = self._models.values() if ready or not request.ready else ()
            return oip.RepositoryIndexResponse(
                models=[
                    oip.RepositoryIndexResponse.ModelIndex(
                        name=model.name,
                        version=str(model.version),
                        state="READY" if ready else "UNAVAILABLE",
                        reason="" if ready else "The engine is unhealthy.",
                    )
                    for model in models
                ]
            )

    async def ModelInfer(  # noqa: N802
        self, request: Request, context: Context
    ) -> oip.ModelInferResponse:
        """Embeds a batch, or refuses at once when the server is full."""
        async with self._answering(context) as backend:
            return await self._infer(request, backend, wait=False)

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[Request], context: Context
    ) -> None:
        """Embeds batch after batch over one call; waits while the server is full."""
        async with self._answering(context) as backend:

            async def answer(request: Request) -> oip.ModelStreamInferResponse:
                try:
                    response = await self._infer(request, backend, wait=True)
                except EmbeddingError as error:
                    message = str(error)
                except Exception:  # noqa: BLE001  one bad request must not end the stream
                    _log.exception("a request of a stream failed")
                    message = UNFORESEEN
                else:
                    return oip.ModelStreamInferResponse(infer_response=response)
                return oip.ModelStreamInferResponse(
                    error_message=message,
                    infer_response=oip.ModelInferResponse(id=request.message.id),
                )

            stream = InferStream(answer, window=self._stream_window, idle_s=self._stream_idle_s)
            self._streams.add(stream)
            try:
                await stream.run(request_iterator, context)
            finally:
                self._streams.discard(stream)

    async def _infer(
        self, request: Request, backend: Backend, *, wait: bool
    ) -> oip.ModelInferResponse:
        model = self._model(request.message.model_name, request.message.model_version)
        statistics = self._statistics[model.name]
        started = time.perf_counter()
        try:
            if tensors.is_slow(request):
                question = await asyncio.to_thread(tensors.read, request, model)
            else:
                question = tensors.read(request, model)
            if question.tensor == TEXTS:
                self._check_texts(question.items)
            try:
                async with asyncio.timeout(question.timeout_s):
                    embedded = await backend.pipeline.embed_all(
                        question.items, question.lane, name=question.tensor.name, wait=wait
                    )
            except TimeoutError as error:
                raise DeadlineError(
                    "The request's own timeout passed before its answer."
                ) from error
        except BaseException:
            statistics.failed(time.perf_counter() - started)
            raise
        statistics.succeeded(embedded, time.perf_counter() - started)
        return tensors.answer(embedded, request=request, model=model, raw=question.raw)

    def _check_texts(self, texts: tensors.Items) -> None:
        for number, text in enumerate(texts):
            if len(text) > self._limits.max_text_chars:
                raise InvalidInputError(
                    f"{TEXTS.name}[{number}]: The text is {len(text)} characters long; "
                    f"at most {self._limits.max_text_chars} are accepted."
                )

    def _model(self, name: str, version: str) -> Model:
        """The model of a name, in a version or whichever there is.

        Raises:
            UnknownModelError: There is none.
        """
        model = self._models.get(name)
        if model is None:
            there = " and ".join(self._models) or "none yet"
            raise UnknownModelError(f"There is no model {name!r} here: there is {there}.")
        if version not in {"", str(model.version)}:
            raise UnknownModelError(
                f"There is no version {version!r} of {name} here: there is {model.version}."
            )
        return model


def _version() -> str:
    try:
        return importlib.metadata.version("mapseek")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
        return "unknown"
