"""The wire of the Open Inference Protocol: another mapseek, Triton, KServe.

What makes embeddings comparable comes with the model's configuration, see `inference.client.cards`.
The version that is in every answer is the fingerprint of the model's id as a number, so that no
answer of another model passes unnoticed.
"""

import asyncio
import os
import struct
from collections.abc import AsyncGenerator
from functools import partial
from typing import TypeVar

import grpc.aio
import numpy as np
from mapseek.oip import open_inference_pb2 as oip
from mapseek.oip import open_inference_pb2_grpc
from numpy.typing import NDArray

from inference.artifact import Manifest
from inference.client import cards
from inference.client.cards import Card
from inference.client.many import ManyCalls
from inference.client.messages import failure
from inference.client.results import (
    Embedded,
    ModelInfo,
    StreamItem,
    Timings,
)
from inference.client.settings import ClientSettings
from inference.client.wire import Images, LaneName
from inference.errors import (
    DeadlineError,
    EmbeddingError,
    InferenceError,
    InvalidInputError,
    UnavailableError,
    UnknownModelError,
    UnsupportedError,
)
from inference.lanes import Lane
from inference.oip.models import (
    IMAGES,
    PIXELS,
    TEXTS,
    Tensor,
    image_embeds,
    pixels,
    text_embeds,
    text_model_name,
    version_of,
)
from inference.preprocess import Preprocessor
from inference.threads import LaneThreads

_PRIORITIES: dict[LaneName, int] = {"interactive": 1, "bulk": 2}
# A half-precision model is not exact to more.
_UNIT_TOLERANCE = 5e-3

Request = TypeVar("Request")
Response = TypeVar("Response")


class OpenInferenceWire:
    """Calls `inference.GRPCInferenceService`; see `Wire`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        settings: ClientSettings,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        self._stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._settings = settings
        self._metadata = metadata
        self._card: Card | None = None
        self._decoders = LaneThreads(max(1, (os.cpu_count() or 1) // 2), name="decode")

    async def model(self, *, timeout_s: float) -> ModelInfo:
        """Asks what is being served.

        Raises:
            UnknownModelError: There is no such model.
            UnsupportedError: It is none of ours, or there are several to choose from.
        """
        return (await self._describe(_now() + timeout_s)).info

    async def embed(self, image: bytes, *, lane: LaneName, timeout_s: float) -> Embedded:
        """Embeds one image; decodes it first where the model takes pixels only."""
        deadline = _now() + timeout_s
        card = self._card or await self._describe(deadline)
        if card.preprocess is None:
            tensor, data = IMAGES, _with_length(image)
        else:
            tensor = pixels(card.manifest)
            data = await self._decode(card.preprocess, image, Lane(lane), deadline)
        output = image_embeds(card.manifest)
        try:
            return await self._infer(card, card.name, tensor, data, output, lane, deadline)
        except (InvalidInputError, UnknownModelError) as error:
            await self._blame(card, error, deadline)
            raise

    async def embed_text(self, text: str, *, timeout_s: float) -> Embedded:
        """Embeds one text, where the server itself tokenises."""
        deadline = _now() + timeout_s
        card = self._card or await self._describe(deadline)
        if not card.info.has_text:
            raise UnsupportedError(f"{self._settings.server} offers no model that reads text.")
        name = text_model_name(card.manifest)
        output = text_embeds(card.manifest)
        data = _with_length(text.encode())
        return await self._infer(card, name, TEXTS, data, output, "interactive", deadline)

    def embed_many(self, images: Images, *, model: ModelInfo) -> AsyncGenerator[StreamItem, None]:
        """Embeds many images, several calls at a time."""
        return ManyCalls(
            embed=lambda image, left_s: self.embed(image, lane="bulk", timeout_s=left_s),
            model=model,
            images=images,
            window=self._settings.window,
            outage_s=self._settings.outage_s,
            server=self._settings.server,
        ).items()

    def close(self) -> None:
        """Ends the threads that decode."""
        self._decoders.stop()

    async def _blame(self, card: Card, error: EmbeddingError, deadline: float) -> None:
        """Returns if a refusal stands.

        Raises:
            UnavailableError: The image was prepared for a model that is gone: try again.
            InferenceError: It was decoded here, so there is nothing wrong with it.
        """
        now = await self._describe(deadline)
        if (now.info, now.preprocess is None) != (card.info, card.preprocess is None):
            raise UnavailableError(f"{self._settings.server} has changed its model.") from error
        if card.preprocess is not None and isinstance(error, InvalidInputError):
            raise InferenceError(f"{self._settings.server} refused its pixels: {error}") from error

    async def _decode(
        self, preprocess: Preprocessor, image: bytes, lane: Lane, deadline: float
    ) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                return (
                    await self._decoders.run(partial(_pixel_bytes, preprocess, image), lane)
                ).value
        except TimeoutError:
            raise DeadlineError("The image could not be decoded in time.") from None

    async def _infer(  # noqa: PLR0917
        self,
        card: Card,
        name: str,
        tensor: Tensor,
        data: bytes,
        output: Tensor,
        lane: LaneName,
        deadline: float,
    ) -> Embedded:
        request = oip.ModelInferRequest(model_name=name, raw_input_contents=[data])
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[1, *tensor.dims])
        request.outputs.add(name=output.name)
        request.parameters["priority"].int64_param = _PRIORITIES[lane]
        # Not every server hears of a call's deadline.
        request.parameters["timeout"].int64_param = max(1, round((deadline - _now()) * 1e6))
        response = await self._call(self._stub.ModelInfer, request, deadline)
        if response.model_version != _version(card):
            card = await self._describe(deadline)
            if response.model_version != _version(card):
                raise UnavailableError(
                    f"{self._settings.server} answered with version "
                    f"{response.model_version or 'unknown'} of {name}, and says that it serves "
                    f"{_version(card)}."
                )
        numbers = {key: value.int64_param for key, value in response.parameters.items()}
        return Embedded(
            embedding=self._embedding(response, output),
            model_id=card.info.id,
            timings=Timings(
                decode_ms=numbers.get("mapseek_decode_us", 0) / 1000,
                queue_ms=numbers.get("mapseek_queue_us", 0) / 1000,
                inference_ms=numbers.get("mapseek_inference_us", 0) / 1000,
                batch_size=numbers.get("mapseek_batch_size", 0),
            ),
        )

    def _embedding(self, response: oip.ModelInferResponse, output: Tensor) -> NDArray[np.float32]:
        """The one vector of an answer, checked.

        Raises:
            InferenceError: There is none, or it is not of unit length.
        """
        found = [tensor.name for tensor in response.outputs]
        if output.name not in found:
            raise InferenceError(f"{self._settings.server} answered without {output.name}.")
        place = found.index(output.name)
        if response.raw_output_contents:
            data = (
                response.raw_output_contents[place]
                if place < len(response.raw_output_contents)
                else b""
            )
            embedding = np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(np.float32)
        else:
            embedding = np.array(response.outputs[place].contents.fp32_contents, np.float32)
        if embedding.shape != output.dims:
            raise InferenceError(
                f"{self._settings.server} answered with {embedding.size} numbers instead of "
                f"{output.dims[0]}."
            )
        length = float(np.linalg.norm(embedding))
        if not abs(length - 1.0) <= _UNIT_TOLERANCE:  # so that NaN fails, too
            raise InferenceError(
                f"{self._settings.server} answered with a vector of length {length:.4f} instead "
                "of 1: the model there is no export of mapseek's."
            )
        return embedding

    async def _describe(self, deadline: float) -> Card:
        name = self._settings.model_name or await self._only_model(deadline)
        request = oip.ModelMetadataRequest(name=name)
        metadata = await self._call(self._stub.ModelMetadata, request, deadline)
        config = (
            await self._call(self._stub.ModelConfig, oip.ModelConfigRequest(name=name), deadline)
        ).config
        manifest = cards.read_manifest(metadata, config, server=self._settings.server)
        self._card = cards.card(
            manifest,
            metadata,
            config,
            has_text=await self._reads_text(manifest, deadline),
            server=self._settings.server,
        )
        return self._card

    async def _only_model(self, deadline: float) -> str:
        """The name of the one image model that the server has.

        Raises:
            UnsupportedError: There are several, or the server does not tell.
            UnavailableError: There is none, which may change.
        """
        server = self._settings.server
        try:
            index = await self._call(
                self._stub.RepositoryIndex, oip.RepositoryIndexRequest(ready=True), deadline
            )
        except UnsupportedError as error:
            raise UnsupportedError(
                f"{server} does not tell which models it has: write {server.rstrip('/')}/MODEL."
            ) from error
        found: dict[str, bool] = {}  # with whether it takes encoded images
        for model in index.models:
            metadata = await self._call(
                self._stub.ModelMetadata, oip.ModelMetadataRequest(name=model.name), deadline
            )
            if any(tensor.name in {IMAGES.name, PIXELS} for tensor in metadata.inputs):
                found[model.name] = cards.takes_images(metadata)
        best = [name for name, encoded in found.items() if encoded] or list(found)
        if not best:
            raise UnavailableError(f"{server} has no model that embeds images (yet).")
        if len(best) > 1:
            names = ", ".join(f"{server.rstrip('/')}/{name}" for name in sorted(best))
            raise UnsupportedError(f"{server} has several models: write one of {names}.")
        return best[0]

    async def _reads_text(self, manifest: Manifest, deadline: float) -> bool:
        """Whether there is a text model that takes words and not their tokens."""
        if manifest.text is None:
            return False
        request = oip.ModelMetadataRequest(name=text_model_name(manifest))
        try:
            metadata = await self._call(self._stub.ModelMetadata, request, deadline)
        except UnknownModelError:
            return False
        return any(tensor.name == TEXTS.name for tensor in metadata.inputs)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        deadline: float,
    ) -> Response:
        try:
            return await method(request, timeout=deadline - _now(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise failure(error, self._settings.server) from error


def _version(card: Card) -> str:
    return str(version_of(card.info.id))


def _with_length(element: bytes) -> bytes:
    """One element of BYTES in raw form."""
    return struct.pack("<I", len(element)) + element


def _pixel_bytes(preprocess: Preprocessor, image: bytes) -> bytes:
    return preprocess(image).tobytes()


def _now() -> float:
    return asyncio.get_running_loop().time()
